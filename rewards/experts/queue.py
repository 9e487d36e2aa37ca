"""Which reply is whose turn: items come in, are leased to raters, and return when a lease runs out.

item.raters  >=  ratings that stand  +  live leases
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any

from rewards.experts import audit, turns
from rewards.experts.config import ServiceConfig
from rewards.experts.turns import HARD, Turns, row
from rewards.experts.types import Kind

REPLIES = Turns(
    things="items", thing="item", leases="leases", answers="ratings", answer=Kind.RATING, done="rated",
    waits="t.open = 1 AND t.rated < t.raters", order="t.priority DESC, t.id", called="reply", asked_at="/api/next",
)  # fmt: skip

# Why no rater who has a token may be given an item that has too few ratings; nothing for items that somebody may be given,
# or holds.
_STUCK = f"""
    WITH active AS MATERIALIZED (SELECT name, crisis FROM raters WHERE EXISTS (
        SELECT 1 FROM tokens t WHERE t.rater = name AND t.shut = 0 AND (t.expires IS NULL OR t.expires > :now))),
    few AS (
        SELECT i.id, i.rated >= i.raters AS full, i.tier IN ({HARD}) AS hard
        FROM json_each(:ids) asked JOIN items i ON i.id = asked.value WHERE i.rated < :least)
    SELECT id, CASE
        WHEN NOT EXISTS (SELECT 1 FROM active) THEN 'no_raters'
        WHEN hard AND NOT EXISTS (SELECT 1 FROM active WHERE crisis) THEN 'crisis'
        WHEN EXISTS (SELECT 1 FROM active JOIN leases l ON l.item = few.id AND l.rater = name AND l.state = 'skipped')
            THEN 'skipped'
        ELSE 'rated_by_all' END AS why
    FROM few WHERE full OR NOT EXISTS (SELECT 1 FROM active WHERE (crisis OR NOT hard) AND NOT EXISTS (
        SELECT 1 FROM leases l WHERE l.item = few.id AND l.rater = name AND l.state IN ('rated', 'skipped')))
"""


def stuck(db: sqlite3.Connection, ids: Sequence[str], least: int, now: float) -> dict[str, str]:
    """Those of `ids` that have fewer than `least` ratings while no active rater may give one, and why: "no_raters" (none is
    active), "crisis" (the client is in danger and none takes such), "skipped" (all who might have judged it, one at least
    refused), "rated_by_all" (or by as many as were wanted). A rater is active whose token is neither shut out nor expired."""
    asked = {"ids": json.dumps(list(ids)), "least": least, "now": now}
    return {found["id"]: found["why"] for found in db.execute(_STUCK, asked)}


def held(db: sqlite3.Connection, rater: str, now: float) -> sqlite3.Row | None:
    """The lease that this rater has and that has not run out."""
    return row(db, "SELECT * FROM leases WHERE rater = ? AND state = 'held' AND expires > ?", (rater, now))


def choose(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """A new lease on what comes next for this rater; None where nothing waits.

    Highest priority first, then by id: a hash, so that the prompts that were sent first are not always judged first. With
    probability `repeats`, drawn from the rater's name and how much he or she has done, it is something rated at least
    `repeat_gap` ratings ago: only while there is work, so that "nothing left" is true.
    """
    first = REPLIES.first(db, rater, now)
    if first is None:
        return None
    again = REPLIES.again(db, config, rater)
    return give(db, config, rater["name"], again["id"] if again else first, now, repeat=again is not None)


def give(
    db: sqlite3.Connection,
    config: ServiceConfig,
    rater: str,
    item: str,
    now: float,
    *,
    repeat: bool = False,
    draft: dict[str, Any] | None = None,
) -> sqlite3.Row:
    """Lease `item` to `rater`, who lets go of anything else; the draft of a lease on it that has run out, or was put aside, is
    there again. An undo, which brings its own `draft`, puts what the rater holds aside: with its draft, until what is given
    next."""
    mine = (
        "FROM leases WHERE rater = ? AND state IN ('held', 'aside') AND item = ? AND repeat = ? AND draft IS NOT NULL"
    )
    before = row(db, f"SELECT draft {mine} ORDER BY given DESC LIMIT 1", (rater, item, repeat))
    if draft is not None:
        db.execute("UPDATE leases SET state = 'aside' WHERE rater = ? AND state = 'held'", (rater,))
    else:
        db.execute("UPDATE leases SET state = 'returned' WHERE rater = ? AND state IN ('held', 'aside')", (rater,))
    text = audit.canonical(draft) if draft else before["draft"] if before else None
    lease = secrets.token_hex(16)
    db.execute(
        "INSERT INTO leases (lease, item, rater, given, expires, repeat, state, draft) VALUES (?, ?, ?, ?, ?, ?, 'held', ?)",
        (lease, item, rater, now, now + config.lease_s, repeat, text),
    )
    return db.execute("SELECT * FROM leases WHERE lease = ?", (lease,)).fetchone()


def shown(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> dict[str, Any]:
    """What a rater sees: the texts, and a handle that says nothing."""
    item = db.execute("SELECT history, reply, tier FROM items WHERE id = ?", (lease["item"],)).fetchone()
    draft = json.loads(lease["draft"]) if lease["draft"] else None
    return {**turns.shown(lease, item, now), "reply": item["reply"], "draft": draft}

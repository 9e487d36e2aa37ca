"""Which reply is whose turn: items come in, are leased to raters, and return when a lease runs out.

item.raters  >=  ratings that stand  +  live leases
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any

from rewards.danger import IN_DANGER
from rewards.experts import audit
from rewards.experts.config import ServiceConfig
from rewards.experts.refusal import Refused

_SENSITIVE = tuple(sorted(tier.value for tier in IN_DANGER))
_HARD = ", ".join(f"'{tier}'" for tier in _SENSITIVE)
_LEFT_AT_MOST = 1000  # what `left` counts up to: nobody plans a sitting beyond it

# What this rater may be given: it waits, is not too hard to bear, was not judged or refused by this rater, and ratings and
# other raters' live leases leave room. The first line is the condition of the index items_by_turn, word by word.
_WAITING = f"""
    FROM items i WHERE i.open = 1 AND i.rated < i.raters
    AND (:crisis OR i.tier NOT IN ({_HARD}))
    AND NOT EXISTS (
        SELECT 1 FROM leases mine WHERE mine.item = i.id AND mine.rater = :rater AND mine.state IN ('rated', 'skipped'))
    AND i.rated + (SELECT count(*) FROM leases l WHERE l.item = i.id AND l.state = 'held' AND l.repeat = 0
        AND l.expires > :now AND l.rater <> :rater) < i.raters
"""
_REPEATABLE = f"""
    FROM ratings r JOIN items i ON i.id = r.item
    WHERE r.rater = :rater AND r.repeat = 0 AND r.undone = 0 AND r.seq <= :latest
    AND (:crisis OR i.tier NOT IN ({_HARD}))
    AND NOT EXISTS (SELECT 1 FROM leases mine WHERE mine.item = i.id AND mine.rater = :rater AND mine.repeat = 1
        AND mine.state IN ('rated', 'skipped'))
"""
# Why no rater who has a token may be given an item that has too few ratings; nothing for items that somebody may be given,
# or holds.
_STUCK = f"""
    WITH active AS MATERIALIZED (SELECT name, crisis FROM raters WHERE EXISTS (
        SELECT 1 FROM tokens t WHERE t.rater = name AND t.shut = 0 AND (t.expires IS NULL OR t.expires > :now))),
    few AS (
        SELECT i.id, i.rated >= i.raters AS full, i.tier IN ({_HARD}) AS hard
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
    return {row["id"]: row["why"] for row in db.execute(_STUCK, asked)}


def left(db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> int:
    """Items that this rater could be given now, up to 1,000."""
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now, "most": _LEFT_AT_MOST}
    return int(db.execute(f"SELECT count(*) FROM (SELECT 1 {_WAITING} LIMIT :most)", asked).fetchone()[0])


def held(db: sqlite3.Connection, rater: str, now: float) -> sqlite3.Row | None:
    """The lease that this rater has and that has not run out."""
    return _row(db, "SELECT * FROM leases WHERE rater = ? AND state = 'held' AND expires > ?", (rater, now))


def choose(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """A new lease on what comes next for this rater; None where nothing waits.

    Highest priority first, then by id: a hash, so that the prompts that were sent first are not always judged first. With
    probability `repeats`, drawn from the rater's name and how much he or she has done, it is something rated at least
    `repeat_gap` ratings ago: only while there is work, so that "nothing left" is true.
    """
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now}
    first = _row(db, f"SELECT i.id {_WAITING} ORDER BY i.priority DESC, i.id LIMIT 1", asked)
    if first is None:
        return None
    repeated = _repeated(db, config, rater)
    if repeated is not None:
        return give(db, config, rater["name"], repeated, now, repeat=True)
    return give(db, config, rater["name"], first["id"], now)


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
    before = _row(db, f"SELECT draft {mine} ORDER BY given DESC LIMIT 1", (rater, item, repeat))
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
    return {
        "lease": lease["lease"],
        "expires_s": max(0.0, lease["expires"] - now),
        "turns": [{"speaker": speaker, "text": text} for speaker, text in json.loads(item["history"])],
        "reply": item["reply"],
        "sensitive": item["tier"] in _SENSITIVE,
        "draft": json.loads(lease["draft"]) if lease["draft"] else None,
    }


def usable(db: sqlite3.Connection, rater: str, lease: str, now: float) -> sqlite3.Row:
    """The lease, if this rater may still work under it: it is live, or it ran out and its place was not taken.

    Raises `Refused`: 404 for a handle that was never given, 409 for another's, a finished or a lost one.
    """
    row = _row(db, "SELECT * FROM leases WHERE lease = ?", (lease,))
    if row is None:
        raise Refused(404, "lease must be one that was given by /api/next, is not known: ask for the next reply")
    if row["rater"] != rater:
        raise Refused(409, "lease must be your own, belongs to another rater: ask for the next reply")
    if row["state"] == "rated":
        raise Refused(409, "this reply is already rated: ask for the next one, or undo")
    if row["state"] != "held":
        raise Refused(409, "this reply was given back: ask for the next one")
    if row["expires"] <= now and not row["repeat"] and not _has_room(db, row, now):
        raise Refused(409, "the time for this reply is over and another rater has it now: ask for the next one")
    return row


def renew(db: sqlite3.Connection, config: ServiceConfig, lease: str, now: float) -> None:
    """The rater is at work: the time starts anew."""
    db.execute("UPDATE leases SET expires = ? WHERE lease = ?", (now + config.lease_s, lease))


def _has_room(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> bool:
    item = db.execute("SELECT raters, rated FROM items WHERE id = ?", (lease["item"],)).fetchone()
    others = db.execute(
        "SELECT count(*) FROM leases WHERE item = ? AND state = 'held' AND repeat = 0 AND expires > ? AND rater <> ?",
        (lease["item"], now, lease["rater"]),
    ).fetchone()[0]
    return bool(item["rated"] + others < item["raters"])


def _repeated(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row) -> str | None:
    """What this rater is given again now, if it is time for that."""
    finished = "SELECT count(*) FROM leases WHERE rater = ? AND state IN ('rated', 'skipped')"
    count = db.execute(finished, (rater["name"],)).fetchone()[0]
    drawn = f"{rater['name']}\n{count}"
    if share(hashlib.sha256(drawn.encode()).hexdigest()) >= config.repeats:
        return None
    ago = "SELECT seq FROM ratings WHERE rater = ? AND undone = 0 ORDER BY seq DESC LIMIT 1 OFFSET ?"
    latest = _row(db, ago, (rater["name"], config.repeat_gap - 1))
    if latest is None:
        return None
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "latest": latest["seq"]}
    candidates = db.execute(f"SELECT count(*) {_REPEATABLE}", asked).fetchone()[0]
    if not candidates:
        return None
    place = int(share(hashlib.sha256(f"{drawn}\nwhich".encode()).hexdigest()) * candidates)
    return str(db.execute(f"SELECT i.id {_REPEATABLE} ORDER BY r.seq LIMIT 1 OFFSET {place}", asked).fetchone()[0])


def share(digest: str) -> float:
    """A number in [0, 1) that a hash stands for."""
    return int(digest[:8], 16) / 2**32


def _row(db: sqlite3.Connection, sql: str, asked: Any) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(sql, asked).fetchone()
    return row

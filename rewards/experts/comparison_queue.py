"""Whose turn a comparison is: leased to raters, returned when a lease runs out, asked again unannounced with sides swapped.

comparison.raters  >=  judgements that stand  +  live leases
"""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any

from rewards.experts import turns
from rewards.experts.comparison import drawn_sides
from rewards.experts.config import ServiceConfig
from rewards.experts.turns import SENSITIVE, Turns, row
from rewards.experts.types import Kind

COMPARISONS = Turns(
    things="comparisons", thing="comparison", leases="comparison_leases", answers="judgements", answer=Kind.JUDGEMENT,
    done="judged", waits="t.open = 1 AND t.same = 0 AND t.judged < t.raters", order="t.id", called="comparison",
    asked_at="/api/compare/next", salt="comparisons\n",
)  # fmt: skip


def held(db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """The lease that this rater has and that has not run out. One on a crisis that he or she will not see goes back."""
    lease = row(
        db,
        "SELECT l.*, c.tier FROM comparison_leases l JOIN comparisons c ON c.id = l.comparison "
        "WHERE l.rater = ? AND l.state = 'held' AND l.expires > ?",
        (rater["name"], now),
    )
    if lease is not None and not rater["crisis"] and lease["tier"] in SENSITIVE:
        db.execute("UPDATE comparison_leases SET state = 'returned' WHERE lease = ?", (lease["lease"],))
        return None
    return lease


def choose(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """A new lease on what comes next for this rater; None where nothing waits.

    In the order of ids, which are hashes. With probability `repeats`, drawn from the rater's name and how much he or she has
    done, it is one judged at least `repeat_gap` judgements ago, with its sides swapped; only while there is work.
    """
    name, first = rater["name"], COMPARISONS.first(db, rater, now)
    if first is None:
        return None
    again = COMPARISONS.again(db, config, rater)
    if again is not None:
        before = "SELECT swapped FROM comparison_leases WHERE lease = ?"
        swapped = db.execute(before, (again["lease"],)).fetchone()[0]
        return give(db, config, name, again["id"], now, swapped=not swapped, repeat=True)
    seed = db.execute("SELECT seed FROM comparisons WHERE id = ?", (first,)).fetchone()[0]
    return give(db, config, name, first, now, swapped=drawn_sides(seed, name, first))


def give(
    db: sqlite3.Connection,
    config: ServiceConfig,
    rater: str,
    comparison: str,
    now: float,
    *,
    swapped: bool,
    repeat: bool = False,
) -> sqlite3.Row:
    """Lease `comparison` to `rater`, who lets go of anything else."""
    db.execute("UPDATE comparison_leases SET state = 'returned' WHERE rater = ? AND state = 'held'", (rater,))
    lease = secrets.token_hex(16)
    db.execute(
        "INSERT INTO comparison_leases (lease, comparison, rater, given, expires, repeat, swapped, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 'held')",
        (lease, comparison, rater, now, now + config.lease_s, repeat, swapped),
    )
    return db.execute("SELECT * FROM comparison_leases WHERE lease = ?", (lease,)).fetchone()


def shown(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> dict[str, Any]:
    """What a rater sees: the texts, and a handle that says nothing."""
    texts = "SELECT history, first, second, tier FROM comparisons WHERE id = ?"
    pair = db.execute(texts, (lease["comparison"],)).fetchone()
    a, b = (pair["second"], pair["first"]) if lease["swapped"] else (pair["first"], pair["second"])
    return {**turns.shown(lease, pair, now), "a": a, "b": b}

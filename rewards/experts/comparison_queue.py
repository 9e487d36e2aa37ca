"""Whose turn a comparison is: leased to raters, returned when a lease runs out, asked again unannounced with sides swapped.

comparison.raters  >=  judgements that stand  +  live leases
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from typing import Any

from rewards.danger import IN_DANGER
from rewards.experts.comparison import drawn_sides
from rewards.experts.config import ServiceConfig
from rewards.experts.queue import share
from rewards.experts.refusal import Refused

_SENSITIVE = tuple(sorted(tier.value for tier in IN_DANGER))
_HARD = ", ".join(f"'{tier}'" for tier in _SENSITIVE)
_LEFT_AT_MOST = 1000

# As for ratings: it waits, is not too hard to bear, was neither judged nor refused by this rater, and there is room. The first
# line is the condition of the index comparisons_by_turn, word by word.
_WAITING = f"""
    FROM comparisons c WHERE c.open = 1 AND c.same = 0 AND c.judged < c.raters
    AND (:crisis OR c.tier NOT IN ({_HARD}))
    AND NOT EXISTS (SELECT 1 FROM comparison_leases mine WHERE mine.comparison = c.id AND mine.rater = :rater
        AND mine.state IN ('judged', 'skipped'))
    AND c.judged + (SELECT count(*) FROM comparison_leases l WHERE l.comparison = c.id AND l.state = 'held' AND l.repeat = 0
        AND l.expires > :now AND l.rater <> :rater) < c.raters
"""
_REPEATABLE = f"""
    FROM judgements j JOIN comparisons c ON c.id = j.comparison JOIN comparison_leases before ON before.lease = j.lease
    WHERE j.rater = :rater AND j.repeat = 0 AND j.undone = 0 AND j.seq <= :latest
    AND (:crisis OR c.tier NOT IN ({_HARD}))
    AND NOT EXISTS (SELECT 1 FROM comparison_leases mine WHERE mine.comparison = c.id AND mine.rater = :rater
        AND mine.repeat = 1 AND mine.state IN ('judged', 'skipped'))
"""


def left(db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> int:
    """Comparisons that this rater could be given now, up to 1,000."""
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "now": now, "most": _LEFT_AT_MOST}
    return int(db.execute(f"SELECT count(*) FROM (SELECT 1 {_WAITING} LIMIT :most)", asked).fetchone()[0])


def held(db: sqlite3.Connection, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """The lease that this rater has and that has not run out. One on a crisis that he or she will not see goes back."""
    row = _row(
        db,
        "SELECT l.*, c.tier FROM comparison_leases l JOIN comparisons c ON c.id = l.comparison "
        "WHERE l.rater = ? AND l.state = 'held' AND l.expires > ?",
        (rater["name"], now),
    )
    if row is not None and not rater["crisis"] and row["tier"] in _SENSITIVE:
        db.execute("UPDATE comparison_leases SET state = 'returned' WHERE lease = ?", (row["lease"],))
        return None
    return row


def choose(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row, now: float) -> sqlite3.Row | None:
    """A new lease on what comes next for this rater; None where nothing waits.

    In the order of ids, which are hashes. With probability `repeats`, drawn from the rater's name and how much he or she has
    done, it is one judged at least `repeat_gap` judgements ago, with its sides swapped; only while there is work.
    """
    name = rater["name"]
    asked = {"rater": name, "crisis": rater["crisis"], "now": now}
    first = _row(db, f"SELECT c.id, c.seed {_WAITING} ORDER BY c.id LIMIT 1", asked)
    if first is None:
        return None
    again = _repeated(db, config, rater)
    if again is not None:
        return give(db, config, name, again["id"], now, swapped=not again["swapped"], repeat=True)
    return give(db, config, name, first["id"], now, swapped=drawn_sides(first["seed"], name, first["id"]))


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
    row = db.execute(
        "SELECT history, first, second, tier FROM comparisons WHERE id = ?", (lease["comparison"],)
    ).fetchone()
    a, b = (row["second"], row["first"]) if lease["swapped"] else (row["first"], row["second"])
    return {
        "lease": lease["lease"],
        "expires_s": max(0.0, lease["expires"] - now),
        "turns": [{"speaker": speaker, "text": text} for speaker, text in json.loads(row["history"])],
        "a": a,
        "b": b,
        "sensitive": row["tier"] in _SENSITIVE,
    }


def usable(db: sqlite3.Connection, rater: str, lease: str, now: float) -> sqlite3.Row:
    """The lease, if this rater may still work under it: it is live, or it ran out and its place was not taken.

    Raises `Refused`: 404 for a handle that was never given, 409 for another's, a finished or a lost one.
    """
    row = _row(db, "SELECT * FROM comparison_leases WHERE lease = ?", (lease,))
    if row is None:
        raise Refused(
            404, "lease must be one that was given by /api/compare/next, is not known: ask for the next comparison"
        )
    if row["rater"] != rater:
        raise Refused(409, "lease must be your own, belongs to another rater: ask for the next comparison")
    if row["state"] == "judged":
        raise Refused(409, "this comparison is already judged: ask for the next one, or undo")
    if row["state"] != "held":
        raise Refused(409, "this comparison was given back: ask for the next one")
    if row["expires"] <= now and not row["repeat"] and not _has_room(db, row, now):
        raise Refused(409, "the time for this comparison is over and another rater has it now: ask for the next one")
    return row


def _has_room(db: sqlite3.Connection, lease: sqlite3.Row, now: float) -> bool:
    wanted = db.execute("SELECT raters, judged FROM comparisons WHERE id = ?", (lease["comparison"],)).fetchone()
    others = db.execute(
        "SELECT count(*) FROM comparison_leases WHERE comparison = ? AND state = 'held' AND repeat = 0 AND expires > ? "
        "AND rater <> ?",
        (lease["comparison"], now, lease["rater"]),
    ).fetchone()[0]
    return bool(wanted["judged"] + others < wanted["raters"])


def _repeated(db: sqlite3.Connection, config: ServiceConfig, rater: sqlite3.Row) -> sqlite3.Row | None:
    """What this rater is given again now, and how its sides were, if it is time for that."""
    finished = "SELECT count(*) FROM comparison_leases WHERE rater = ? AND state IN ('judged', 'skipped')"
    count = db.execute(finished, (rater["name"],)).fetchone()[0]
    drawn = f"{rater['name']}\ncomparisons\n{count}"
    if share(hashlib.sha256(drawn.encode()).hexdigest()) >= config.repeats:
        return None
    ago = "SELECT seq FROM judgements WHERE rater = ? AND undone = 0 ORDER BY seq DESC LIMIT 1 OFFSET ?"
    latest = _row(db, ago, (rater["name"], config.repeat_gap - 1))
    if latest is None:
        return None
    asked = {"rater": rater["name"], "crisis": rater["crisis"], "latest": latest["seq"]}
    candidates = db.execute(f"SELECT count(*) {_REPEATABLE}", asked).fetchone()[0]
    if not candidates:
        return None
    place = int(share(hashlib.sha256(f"{drawn}\nwhich".encode()).hexdigest()) * candidates)
    return _row(db, f"SELECT c.id, before.swapped {_REPEATABLE} ORDER BY j.seq LIMIT 1 OFFSET {place}", asked)


def _row(db: sqlite3.Connection, sql: str, asked: Any) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(sql, asked).fetchone()
    return row

"""What becomes of comparisons: they come to the queue, raters judge or skip them, and take the last judgement back."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Collection
from typing import Any

from rewards.experts import audit, comparison_queue, desk
from rewards.experts.comparison import Answer, Comparison, Judgement
from rewards.experts.config import ServiceConfig
from rewards.experts.refusal import Refused
from rewards.experts.types import Kind


def put(db: sqlite3.Connection, asked: Comparison, now: float) -> None:
    """Take a comparison in. One that is here is open again, for as many raters as were ever wanted; its sides stay as they
    were drawn. Its texts stay out of the chain, which holds the hash of them: the id."""
    added = db.execute(
        "INSERT INTO comparisons (id, key, history, first_arm, second_arm, first, second, tier, raters, seed, same, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            *(asked.id, asked.key, audit.canonical([[turn.speaker, turn.text] for turn in asked.history])),
            *(*asked.arms, *asked.replies, asked.tier, asked.wanted, asked.seed, asked.same, now),
        ),
    ).rowcount
    changed = db.execute(
        "UPDATE comparisons SET open = 1, raters = max(raters, :wanted) WHERE id = :id AND (open = 0 OR raters < :wanted)",
        {"id": asked.id, "wanted": asked.wanted},
    ).rowcount
    if added or changed:
        row = db.execute("SELECT raters, seed FROM comparisons WHERE id = ?", (asked.id,)).fetchone()
        told = {"id": asked.id, "key": asked.key, "arms": list(asked.arms), "tier": asked.tier, "same": asked.same}
        again = {} if added else {"again": True}
        audit.append(db, now, Kind.COMPARISON, {**told, "raters": row["raters"], "seed": row["seed"], **again})


def close_others(db: sqlite3.Connection, ids: Collection[str]) -> int:
    """Nobody needs any but these; how many were open. Who has one before him or her may finish it."""
    others = "UPDATE comparisons SET open = 0 WHERE open = 1 AND id NOT IN (SELECT value FROM json_each(?))"
    return db.execute(others, (json.dumps(sorted(ids)),)).rowcount


def sitting(db: sqlite3.Connection, config: ServiceConfig, name: str) -> dict[str, int]:
    """How far the sitting is."""
    done = "SELECT count(*) FROM judgements WHERE rater = ? AND sitting = ? AND undone = 0"
    return {"done": db.execute(done, (name, desk.rater(db, name)["sitting"])).fetchone()[0], "limit": config.sitting}


def judge(db: sqlite3.Connection, name: str, told: Answer, reason: str, now: float) -> tuple[str, bool]:
    """The judgement's id, and whether it is new. `reason` is what is stored of the reason: names and contacts are out of it.

    Raises `Refused` (409) where the submission is known with another content, and as `comparison_queue.usable` does.
    """
    known = db.execute("SELECT id, rater, content FROM judgements WHERE submission = ?", (told.submission,)).fetchone()
    if known is not None:
        if (known["rater"], known["content"]) != (name, told.content):
            raise Refused(
                409, "submission must be new for each judgement, is known with another content: send a new id"
            )
        return known["id"], False
    lease = comparison_queue.usable(db, name, told.lease, now)
    judgement = Judgement.of(told, lease, secrets.token_hex(16), reason, now)
    body = judgement.to_dict()
    seq = audit.append(db, now, Kind.JUDGEMENT, body)
    db.execute(
        "INSERT INTO judgements (seq, id, comparison, rater, lease, submission, content, body, repeat, sitting, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(seq, judgement.id, judgement.comparison, name, told.lease, told.submission, told.content),
            *(audit.canonical(body), judgement.repeat, desk.rater(db, name)["sitting"], now),
        ),
    )
    db.execute("UPDATE comparison_leases SET state = 'judged' WHERE lease = ?", (told.lease,))
    if not judgement.repeat:
        db.execute("UPDATE comparisons SET judged = judged + 1 WHERE id = ?", (judgement.comparison,))
    return judgement.id, True


def renew(db: sqlite3.Connection, config: ServiceConfig, name: str, lease: str, now: float) -> float:
    """The rater is at work: the time starts anew; seconds until the lease runs out."""
    comparison_queue.usable(db, name, lease, now)
    db.execute("UPDATE comparison_leases SET expires = ? WHERE lease = ?", (now + config.lease_s, lease))
    return config.lease_s


def skip(db: sqlite3.Connection, name: str, lease: str, reason: str, now: float) -> None:
    """Give the comparison to others; this rater will not see it again."""
    row = comparison_queue.usable(db, name, lease, now)
    db.execute("UPDATE comparison_leases SET state = 'skipped' WHERE lease = ?", (lease,))
    told = {"comparison": row["comparison"], "rater": name, "reason": reason, "repeat": bool(row["repeat"])}
    audit.append(db, now, Kind.SKIP, told)


def undo(db: sqlite3.Connection, config: ServiceConfig, name: str, now: float) -> tuple[sqlite3.Row, dict[str, Any]]:
    """Take the last judgement of this sitting back: a lease on its comparison, with the same sides, and what was answered.

    Raises `Refused` (409) where there is none, or it was taken back already.
    """
    last = _last(db, name)
    if last is None or last["undone"]:
        raise Refused(409, "undo takes back the last judgement of this sitting, once: there is none to take back")
    before = db.execute("SELECT * FROM comparison_leases WHERE lease = ?", (last["lease"],)).fetchone()
    db.execute("UPDATE judgements SET undone = 1 WHERE seq = ?", (last["seq"],))
    db.execute("UPDATE comparison_leases SET state = 'returned' WHERE lease = ?", (last["lease"],))
    if not last["repeat"]:
        db.execute("UPDATE comparisons SET judged = judged - 1 WHERE id = ?", (last["comparison"],))
    told = {"judgement": last["id"], "comparison": last["comparison"], "rater": name}
    audit.append(db, now, Kind.UNDO, told)
    swapped = bool(before["swapped"])
    lease = comparison_queue.give(
        db, config, name, last["comparison"], now, swapped=swapped, repeat=bool(last["repeat"])
    )
    return lease, _answered(json.loads(last["body"]), swapped)


def can_undo(db: sqlite3.Connection, name: str) -> bool:
    """Whether `undo` would take something back."""
    last = _last(db, name)
    return last is not None and not last["undone"]


def _answered(body: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """A judgement as its rater gave it."""
    towards_a = -body["preference"] if swapped else body["preference"]
    a, b = ("second", "first") if swapped else ("first", "second")
    flags = body["flags"]
    return {"choice": round(3 - 2 * towards_a), "flags_a": flags[a], "flags_b": flags[b], "reason": body["reason"]}


def _last(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM judgements WHERE rater = ? AND sitting = ? ORDER BY seq DESC LIMIT 1",
        (name, desk.rater(db, name)["sitting"]),
    ).fetchone()
    return row

"""What becomes of comparisons: they come to the queue, raters judge or skip them, and take the last judgement back."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Collection
from typing import Any

from rewards.experts import audit, comparison_queue
from rewards.experts.comparison import Answer, Comparison, Judgement
from rewards.experts.comparison_queue import COMPARISONS
from rewards.experts.config import ServiceConfig
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


def judge(db: sqlite3.Connection, name: str, told: Answer, reason: str, now: float) -> tuple[str, bool]:
    """The judgement's id, and whether it is new. `reason` is what is stored of the reason: names and contacts are out of it.

    Raises `Refused` (409) where the submission is known with another content, and as `Turns.usable` does.
    """
    if (known := COMPARISONS.known(db, name, told)) is not None:
        return known, False
    lease = COMPARISONS.usable(db, name, told.lease, now)
    judgement = Judgement.of(told, lease, secrets.token_hex(16), reason, now)
    COMPARISONS.keep(db, told, lease, judgement.to_dict(), now)
    return judgement.id, True


def renew(db: sqlite3.Connection, config: ServiceConfig, name: str, lease: str, now: float) -> float:
    """The rater is at work: seconds until the lease runs out."""
    COMPARISONS.usable(db, name, lease, now)
    return COMPARISONS.renew(db, config, lease, now)


def undo(db: sqlite3.Connection, config: ServiceConfig, name: str, now: float) -> tuple[sqlite3.Row, dict[str, Any]]:
    """Take the last judgement of this sitting back: a lease on its comparison, with the same sides, and what was answered.

    Raises `Refused` (409) where there is none, or it was taken back already.
    """
    last = COMPARISONS.to_undo(db, name)
    COMPARISONS.take_back(db, last, now)
    before = "SELECT swapped FROM comparison_leases WHERE lease = ?"
    swapped = bool(db.execute(before, (last["lease"],)).fetchone()[0])
    lease = comparison_queue.give(
        db, config, name, last["comparison"], now, swapped=swapped, repeat=bool(last["repeat"])
    )
    return lease, _answered(json.loads(last["body"]), swapped)


def _answered(body: dict[str, Any], swapped: bool) -> dict[str, Any]:
    """A judgement as its rater gave it."""
    towards_a = -body["preference"] if swapped else body["preference"]
    a, b = ("second", "first") if swapped else ("first", "second")
    flags = body["flags"]
    return {"choice": round(3 - 2 * towards_a), "flags_a": flags[a], "flags_b": flags[b], "reason": body["reason"]}

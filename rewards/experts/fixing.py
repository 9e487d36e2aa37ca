"""When ratings become a reward: computed once, written into the chain, and the same for whoever asks again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewards.experts import audit, queue
from rewards.experts.form import VERSION
from rewards.experts.types import Kind, Rating

Aggregate = Callable[[Sequence[Rating]], Mapping[str, tuple[float, float]]]
"""All ratings that count -> by item: value in [0, 1], and its standard error."""

_COUNTS = "FROM ratings WHERE undone = 0 AND repeat = 0"


def counted(db: sqlite3.Connection, after: int = 0, most: int = -1) -> list[tuple[int, Rating]]:
    """The ratings that stand and are no repeats, with their rows' numbers, in order; up to `most` after row `after`."""
    told = db.execute(f"SELECT seq, body {_COUNTS} AND seq > ? ORDER BY seq LIMIT ?", (after, most))
    return [(seq, rating(json.loads(body))) for seq, body in told]


def rating(body: Mapping[str, Any]) -> Rating:
    """A rating from its JSON."""
    return Rating(**{**body, "flags": tuple(body["flags"])})


def missing(db: sqlite3.Connection, ids: Sequence[str], least: int) -> list[str]:
    """Those of `ids` that have neither a reward nor `least` ratings. Raises `Refused` (404) for an unknown id."""
    queue.known(db, ids)
    enough = "SELECT 1 FROM rewards WHERE item = :item UNION SELECT 1 FROM items WHERE id = :item AND rated >= :least"
    return [one for one in ids if db.execute(enough, {"item": one, "least": least}).fetchone() is None]


def fixed(db: sqlite3.Connection, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The rewards that are fixed, by item."""
    found: dict[str, dict[str, Any]] = {}
    for one in ids:
        row = db.execute("SELECT body FROM rewards WHERE item = ?", (one,)).fetchone()
        if row is not None:
            body = json.loads(row["body"])
            found[one] = {part: body[part] for part in ("value", "std", "ratings", "flags")}
    return found


def compute(
    ratings: Sequence[Rating], ids: Iterable[str], aggregate: Aggregate, *, run: str, step: int
) -> dict[str, dict[str, Any]]:
    """The rewards of `ids`, ready for the chain. A flag that any rater raised counts."""
    values = aggregate(ratings)
    told: dict[str, dict[str, Any]] = {}
    for one in ids:
        own = [each for each in ratings if each.item == one]
        value, std = values[one]
        told[one] = {
            "item": one,
            "run": run,
            "step": step,
            "value": float(value),
            "std": float(std),
            "ratings": [each.id for each in own],
            "flags": sorted({flag for each in own for flag in each.flags}),
            "aggregation": aggregate.__name__,
            "form": VERSION,
        }
    return told


def fix(db: sqlite3.Connection, computed: Mapping[str, Mapping[str, Any]], now: float) -> bool:
    """Fix rewards that are not; False where a rating came or went since they were computed: compute anew."""
    fresh = [one for one in computed if db.execute("SELECT 1 FROM rewards WHERE item = ?", (one,)).fetchone() is None]
    for one in fresh:
        stand = [row["id"] for row in db.execute(f"SELECT id {_COUNTS} AND item = ? ORDER BY seq", (one,))]
        if stand != computed[one]["ratings"]:
            return False
    for one in fresh:
        seq = audit.append(db, now, Kind.REWARD, computed[one])
        db.execute("INSERT INTO rewards (item, seq, body) VALUES (?, ?, ?)", (one, seq, audit.canonical(computed[one])))
    return True

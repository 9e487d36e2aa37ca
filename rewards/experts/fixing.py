"""When ratings become a reward: computed once, written into the chain, and the same for whoever asks again."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.experts import audit, intake
from rewards.experts.form import VERSION
from rewards.experts.types import Kind, Rating


class Group(NamedTuple):
    """The step of a run that a reply is of; what is not known is None."""

    run: str | None
    step: int | None


@dataclass(frozen=True)
class Worth:
    """By item: value in [0, 1], and its standard error. `notes`: what a reader of the numbers should know, a line each."""

    items: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = ()


Aggregate = Callable[[Sequence[Rating], Mapping[str, Group]], Worth]
"""All ratings that count, and the group of each item that they are of."""

_COUNTS = "FROM ratings WHERE undone = 0 AND repeat = 0"
_KEY = re.compile(r"(.+?)/(\d{1,18})/.+", re.DOTALL)  # RUN/STEP/PROMPT/SAMPLE

# Neither a reward nor `least` ratings; nor, with `settle_s`, one rating among them that its rater could take back and that
# is not older than that: the last of the sitting that he or she is in.
_MISSING = """
    SELECT i.id FROM json_each(:ids) asked JOIN items i ON i.id = asked.value
    WHERE NOT EXISTS (SELECT 1 FROM rewards w WHERE w.item = i.id) AND (i.rated < :least OR :settle_s > 0 AND EXISTS (
        SELECT 1 FROM ratings r JOIN raters by ON by.name = r.rater
        WHERE r.item = i.id AND r.undone = 0 AND r.repeat = 0 AND r.at > :now - :settle_s AND r.sitting = by.sitting
        AND NOT EXISTS (SELECT 1 FROM ratings later WHERE later.rater = r.rater AND later.seq > r.seq)))
"""


def counted(db: sqlite3.Connection, after: int = 0, most: int = -1) -> list[tuple[int, Rating]]:
    """The ratings that stand and are no repeats, with their rows' numbers, in order; up to `most` after row `after`."""
    told = db.execute(f"SELECT seq, body {_COUNTS} AND seq > ? ORDER BY seq LIMIT ?", (after, most))
    return [(seq, rating(json.loads(body))) for seq, body in told]


def rating(body: Mapping[str, Any]) -> Rating:
    """A rating from its JSON."""
    return Rating(**{**body, "flags": tuple(body["flags"])})


def groups(db: sqlite3.Connection) -> dict[str, Group]:
    """The groups of all items that have a rating: run and step as their origin tells them, else as their key does."""
    told = db.execute(
        "SELECT id, key, CASE json_type(origin, '$.run') WHEN 'text' THEN json_extract(origin, '$.run') END, "
        "CASE json_type(origin, '$.step') WHEN 'integer' THEN json_extract(origin, '$.step') END FROM items WHERE rated > 0"
    )
    return {item: _group(key, run, step) for item, key, run, step in told}


def missing(db: sqlite3.Connection, ids: Sequence[str], least: int, now: float, settle_s: float = 0.0) -> list[str]:
    """Those of `ids` that have neither a reward nor `least` ratings, all of them settled. Raises `Refused` (404) for an
    unknown id.

    A rating that its rater can still take back is settled `settle_s` seconds after it was given.
    """
    intake.known(db, ids)
    asked = {"ids": json.dumps(list(ids)), "least": least, "now": now, "settle_s": settle_s}
    found = {row["id"] for row in db.execute(_MISSING, asked)}
    return [one for one in ids if one in found]


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
    ratings: Sequence[Rating],
    groups: Mapping[str, Group],
    ids: Iterable[str],
    aggregate: Aggregate,
    *,
    run: str,
    step: int,
) -> dict[str, dict[str, Any]]:
    """The rewards of `ids`, ready for the chain. A flag that any rater raised counts."""
    worth = aggregate(ratings, groups)
    of_item: dict[str, list[Rating]] = defaultdict(list)
    for each in ratings:
        of_item[each.item].append(each)
    told: dict[str, dict[str, Any]] = {}
    for one in ids:
        value, std = worth.items[one]
        told[one] = {
            "item": one,
            "run": run,
            "step": step,
            "value": float(value),
            "std": float(std),
            "ratings": [each.id for each in of_item[one]],
            "flags": sorted({flag for each in of_item[one] for flag in each.flags}),
            "aggregation": aggregate.__name__,
            "notes": list(worth.notes),
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


def _group(key: str, run: str | None, step: int | None) -> Group:
    named = _KEY.fullmatch(key)
    if named is None:
        return Group(run, step)
    return Group(named[1] if run is None else run, int(named[2]) if step is None else step)

"""The admin's numbers: how long the queue is, how fast raters are, how far they agree with each other and themselves."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, pstdev
from typing import Any

from rewards.experts import audit
from rewards.experts.aggregation import random_effects
from rewards.experts.agreement import agreement, consistency, drift
from rewards.experts.rating_rows import Row

_HOUR_S = 3600.0
_HOURS_SHOWN = 48
_RECENT = 3000  # ratings that agreement and drift are computed from: the newest, so that the page stays quick
_DRAWS = 200  # bootstrap samples of an interval


class Overview:
    """Everything of `GET /api/admin/overview`; what follows from the chain is kept until the chain has grown. Not thread-safe."""

    def __init__(self) -> None:
        self._seen = -1  # last row of the chain that `_kept` follows from
        self._kept: dict[str, Any] = {}

    def told(self, db: sqlite3.Connection, now: float) -> dict[str, Any]:
        """The numbers at `now`. Those that need more ratings than there are, are null."""
        begun = not db.in_transaction
        if begun:
            db.execute("BEGIN")  # one view of the chain and of what follows from it
        try:
            last = audit.head(db).seq
            if last != self._seen:
                self._kept, self._seen = _from_chain(db), last
            return {**self._kept, "queue": _queue(db, now), "per_hour": _per_hour(db, now)}
        finally:
            if begun:
                db.execute("COMMIT")


def _from_chain(db: sqlite3.Connection) -> dict[str, Any]:
    ratings = [
        (json.loads(row["body"]), bool(row["repeat"]))
        for row in db.execute("SELECT body, repeat FROM ratings WHERE undone = 0 ORDER BY seq")
    ]
    first = [body for body, repeat in ratings if not repeat]
    rows = [Row(body["item"], body["rater"], body["overall"], tuple(body["flags"])) for body in first[-_RECENT:]]
    agreed = agreement(rows, draws=_DRAWS) if rows else None
    slopes = drift(rows, random_effects(rows)) if rows else {}
    return _sound(
        {
            "raters": [_rater(db, row, ratings, slopes) for row in db.execute("SELECT * FROM raters ORDER BY name")],
            "agreement": None if agreed is None else asdict(agreed),
            "flags": {**Counter(flag for body in first for flag in body["flags"]), **_late_flags(db)},
        }
    )


def _queue(db: sqlite3.Connection, now: float) -> dict[str, Any]:
    waiting = "FROM items WHERE open = 1 AND rated < raters"
    count, oldest = db.execute(f"SELECT count(*), min(at) {waiting}").fetchone()
    leased = "SELECT count(*) FROM leases WHERE state = 'held' AND expires > ?"
    return {
        "open": count,
        "leased": db.execute(leased, (now,)).fetchone()[0],
        "oldest_s": None if oldest is None else now - oldest,
        "by_tier": dict(map(tuple, db.execute(f"SELECT tier, count(*) {waiting} GROUP BY tier"))),  # type: ignore[arg-type]
    }


def _rater(
    db: sqlite3.Connection,
    rater: sqlite3.Row,
    ratings: Sequence[tuple[Mapping[str, Any], bool]],
    slopes: Mapping[str, Any],
) -> dict[str, Any]:
    name = rater["name"]
    own = [(body, repeat) for body, repeat in ratings if body["rater"] == name]
    values = [body["overall"] for body, _ in own]
    worked_s = sum(body["seconds"] for body, _ in own)
    before = {body["item"]: body["overall"] for body, repeat in own if not repeat}
    pairs = [(before[body["item"]], body["overall"]) for body, repeat in own if repeat and body["item"] in before]
    twice, slope = consistency(pairs, draws=_DRAWS), slopes.get(name)
    skips = "SELECT count(*) FROM leases WHERE rater = ? AND state = 'skipped'"
    active = "SELECT count(*) FROM tokens WHERE rater = ? AND shut = 0"
    return {
        "name": name,
        "active": db.execute(active, (name,)).fetchone()[0] > 0,
        "crisis": bool(rater["crisis"]),
        "ratings": len(own),
        "per_hour": len(own) * _HOUR_S / worked_s if worked_s else None,  # of work at the page
        "skips": db.execute(skips, (name,)).fetchone()[0],
        "mean": fmean(values) if values else None,
        "std": pstdev(values) if values else None,
        "drift": None if slope is None else slope.value,  # in a hundred ratings
        "drift_interval": None if slope is None else [slope.low, slope.high],
        "consistency": None if twice is None else twice.icc,  # ICC(A,1) of first and second ratings
        "repeats": None if twice is None else {"pairs": twice.pairs, "difference": twice.difference.value, "shift": twice.shift},
    }  # fmt: skip


def _late_flags(db: sqlite3.Connection) -> dict[str, int]:
    """`late_flags`, where there are any: flags of a reply that nobody had raised when its reward was fixed, hidden repeats'
    among them. The policy was paid as if they were not."""
    late = db.execute(
        "SELECT DISTINCT r.item, flag.value FROM rewards w JOIN ratings r ON r.item = w.item AND r.seq > w.seq "
        "JOIN json_each(r.body, '$.flags') flag WHERE r.undone = 0 "
        "AND NOT EXISTS (SELECT 1 FROM json_each(w.body, '$.flags') paid WHERE paid.value = flag.value)"
    ).fetchall()
    return {"late_flags": len(late)} if late else {}


def _per_hour(db: sqlite3.Connection, now: float) -> list[list[float]]:
    """[start of the hour, ratings] for the last 48 hours, the one that runs among them."""
    this = now // _HOUR_S
    times = db.execute("SELECT at FROM ratings WHERE undone = 0 AND at >= ?", ((this - _HOURS_SHOWN + 1) * _HOUR_S,))
    counts = Counter(row["at"] // _HOUR_S for row in times)
    return [[hour * _HOUR_S, counts[hour]] for hour in (this - ago for ago in range(_HOURS_SHOWN - 1, -1, -1))]


def _sound(told: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(told, dict):
        return {name: _sound(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [_sound(value) for value in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told

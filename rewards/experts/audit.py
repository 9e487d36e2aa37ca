"""The audit chain: every rating, reward, update and checkpoint in one list of rows, each sealed with the row before.

    hash_n = sha256(hash_{n-1} + "\\n" + seq_n + "\\n" + at_n + "\\n" + kind_n + "\\n" + body_n),  hash_0 = 64 zeros

Whoever changes, drops or inserts a row must rewrite every later hash. Rows cut off at the end cannot be missed by the
chain itself: compare its last hash with one that was noted elsewhere (`Head`).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.experts.types import Kind

FIRST_HASH = "0" * 64


class Row(NamedTuple):
    """One row: `at` in seconds since 1970, `body` canonical JSON."""

    seq: int
    at: float
    kind: str
    body: str
    hash: str

    @property
    def content(self) -> dict[str, Any]:
        """What `body` says."""
        return dict(json.loads(self.body))


class Head(NamedTuple):
    """The end of a chain: number of its last row (0: there is none) and that row's hash."""

    seq: int
    hash: str


def canonical(body: Any) -> str:
    """JSON with sorted keys and no spaces: equal content has equal text. Raises ValueError for NaN and infinities."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def seal(before: str, seq: int, at: float, kind: str, body: str) -> str:
    """The hash of a row that follows one with hash `before`."""
    return hashlib.sha256(f"{before}\n{seq}\n{at!r}\n{kind}\n{body}".encode()).hexdigest()


def append(db: sqlite3.Connection, at: float, kind: Kind, body: Mapping[str, Any]) -> int:
    """Add a row in the transaction that `db` is in; the row's number."""
    end, text = head(db), canonical(body)
    seq, at = end.seq + 1, float(at)
    row = Row(seq, at, kind.value, text, seal(end.hash, seq, at, kind.value, text))
    db.execute("INSERT INTO chain (seq, at, kind, body, hash) VALUES (?, ?, ?, ?, ?)", row)
    return seq


def head(db: sqlite3.Connection) -> Head:
    """The chain's last row."""
    last = db.execute("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1").fetchone()
    return Head(0, FIRST_HASH) if last is None else Head(*last)


def rows(db: sqlite3.Connection) -> Iterator[Row]:
    """The whole chain, in order."""
    return map(Row._make, db.execute("SELECT seq, at, kind, body, hash FROM chain ORDER BY seq"))


def verify(chain: Iterable[Row]) -> Head:
    """The end of a sound chain. Raises ValueError that names the first row that is not what was written."""
    end = Head(0, FIRST_HASH)
    for row in chain:
        if row.seq != end.seq + 1:
            raise ValueError(
                f"audit chain: row {end.seq + 1} must follow row {end.seq}, row {row.seq} does: rows were removed or "
                "put in; restore the database from a copy"
            )
        if row.hash != seal(end.hash, row.seq, row.at, row.kind, row.body):
            raise ValueError(
                f"audit chain: row {row.seq} ({row.kind}) must have the hash of its content and of row {end.seq}, has "
                f"{row.hash[:12]}...: it or its hash was changed; restore the database from a copy"
            )
        end = Head(row.seq, row.hash)
    return end


@dataclass(frozen=True)
class Trace:
    """What moved a checkpoint: the rows of its updates, of the rewards they used, and of the ratings behind them.

    `surrogates` are the promoted fits that the run's updates could rest on. `unfixed` are items before raters that updates
    used with a surrogate's score alone.
    """

    checkpoint: Row
    updates: Sequence[Row]
    rewards: Mapping[str, Row]  # by item
    ratings: Mapping[str, Row]  # by rating
    surrogates: Sequence[Row]
    unfixed: Sequence[str]


def trace(chain: Iterable[Row], run: str, step: int) -> Trace:
    """Which ratings moved the checkpoint of `run` after `step` steps (the newest one of that name).

    A run that was resumed repeats steps: an update of step s takes the place of all earlier ones of steps >= s. Raises
    ValueError for a checkpoint that the chain does not know.
    """
    told = list(chain)
    checkpoint = _checkpoint(told, run, step)
    of_run = [(row, row.content) for row in told[: checkpoint.seq] if row.kind in {Kind.UPDATE, Kind.SURROGATE}]
    updates: list[tuple[Row, dict[str, Any]]] = []
    for row, body in of_run:
        if row.kind == Kind.UPDATE and body.get("run") == run:
            updates = [(one, said) for one, said in updates if said["step"] < body["step"]] + [(row, body)]
    used = _last_use(updates)
    fixed = {
        body["item"]: (row, body)
        for row in told[: checkpoint.seq]
        if row.kind == Kind.REWARD and row.seq < used.get((body := row.content)["item"], 0)
    }
    surrogates = [
        (row, body)
        for row, body in of_run
        if row.kind == Kind.SURROGATE and body.get("run", run) == run and body.get("promoted", True)
    ]
    guessed = {item for _, body in updates for item in body.get("guessed", ())}
    wanted = {rating for _, body in [*fixed.values(), *surrogates] for rating in body.get("ratings", ())}
    ratings = {body["id"]: row for row in told if row.kind == Kind.RATING and (body := row.content)["id"] in wanted}
    return Trace(
        checkpoint,
        [row for row, _ in updates],
        {item: row for item, (row, _) in fixed.items()},
        ratings,
        [row for row, _ in surrogates],
        sorted((used.keys() | guessed) - fixed.keys()),
    )


def _last_use(updates: Iterable[tuple[Row, Mapping[str, Any]]]) -> dict[str, int]:
    """The last update that used each item: a reward that was fixed after it moved nothing."""
    return {item: row.seq for row, body in updates for item in body["rewards"]}


def _checkpoint(told: Sequence[Row], run: str, step: int) -> Row:
    known = [(row, row.content) for row in told if row.kind == Kind.CHECKPOINT]
    for row, body in reversed(known):
        if (body["run"], body["step"]) == (run, step):
            return row
    steps = sorted({body["step"] for _, body in known if body["run"] == run})
    raise ValueError(
        f"audit chain: run {run!r} must have a checkpoint of step {step}, has {steps or 'none'}: name one of these"
    )

"""Read-only view of a run directory: what a run wrote, at whatever point it is now.

    runs/NAME/ settings.json provenance.json status.json metrics.jsonl model/warmup.jsonl
               rollouts/step-000050.parquet (PPO)  replies/step-000050.parquet (held-out prompts, after so many updates; at the
               update of that number in fine-tuning)  sequences/train.parquet (fine-tuning)

Any of these may be missing, and a run that is going on, or was killed, may have left its last line half written.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

PART = "part/"  # prefix of the reward parts' columns
SAMPLE = ("prompt_id", "history", "reply", "reference")


class RunState(enum.StrEnum):
    """How far a run got, by its own account."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by whoever runs it: Ctrl-C, SIGTERM, `ray job stop`
    DIVERGED = "diverged"
    UNRECORDED = "unrecorded"  # no status.json: the run says nothing of its ending


@dataclass(frozen=True)
class Log:
    """Metrics by step, steps rising. `unreadable` counts lines that were not a JSON object with a step."""

    rows: tuple[Mapping[str, float], ...] = ()
    unreadable: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric that occurs in any step, sorted, without `step`."""
        return tuple(sorted({name for row in self.rows for name in row} - {"step"}))

    def series(self, *names: str) -> NDArray[np.float64]:
        """Return `[N, 1 + len(names)]`: step, then values, for the steps that have all `names` (NaN stays NaN)."""
        kept = [[row["step"], *(row[n] for n in names)] for row in self.rows if all(n in row for n in names)]
        return np.array(kept, dtype=np.float64).reshape(len(kept), 1 + len(names))


class ReplyKey(NamedTuple):
    """Where one reply lies (row `row` of step `step`), and as much of it as choosing among replies needs."""

    step: int
    row: int
    prompt_id: str
    reward: float
    flagged: bool


@dataclass(frozen=True)
class Reply:
    """One reply as the run recorded it. `history` has one `Client: ...` or `Therapist: ...` line per turn; `parts`
    holds the reward terms that applied."""

    step: int
    prompt_id: str
    sample: int
    history: str
    reply: str
    reference: str
    emotion: str
    finish: str
    tokens: int
    reward: float
    flags: tuple[str, ...]
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """What the policy of a fine-tuning run said to one held-out prompt at a validation, and the corpus's own reply."""

    step: int
    prompt_id: str
    history: str
    reply: str
    reference: str


@dataclass(frozen=True)
class Run:
    """A run directory as read. `state` and `message` are the run's own words of how it ended."""

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    state: RunState = RunState.UNRECORDED
    message: str = ""
    metrics: Log = Log()
    warmup: Log = Log()

    @property
    def name(self) -> str:
        """The name in the settings, or the directory's."""
        return str(self.settings.get("name") or self.path.resolve().name)

    @property
    def fine_tunes(self) -> bool:
        """Whether this is a supervised run: by its settings, or by its metrics where there are none."""
        return bool(self.settings["job"] == "sft" if "job" in self.settings else "train/loss" in self.metrics.names)

    def samples(self) -> tuple[dict[int, list[Sample]], int]:
        """Return the sampled replies of each validation of a fine-tuning run, and how many files were unreadable."""
        found: dict[int, list[Sample]] = {}
        unreadable = 0
        for step in (int(row["step"]) for row in self.metrics.rows):
            path = self.path / "replies" / f"step-{step:06d}.parquet"
            if not path.exists():
                continue
            try:
                rows = pq.read_table(path, columns=list(SAMPLE)).to_pylist()
            except pa.ArrowInvalid:
                unreadable += 1
                continue
            if rows:
                found[step] = [Sample(step, **{name: row[name] or "" for name in SAMPLE}) for row in rows]
        return found, unreadable

    def replies(self) -> tuple[list[ReplyKey], int]:
        """Return the keys of all replies of logged steps, in order, and how many rollout files were unreadable.

        Files of later steps than the log's last are left out: they belong to a step that is not complete, or that a
        resumed run has yet to take again. Replies that nobody judged have no reward, and are left out.
        """
        keys: list[ReplyKey] = []
        unreadable = 0
        for row in self.metrics.rows:
            path = self._rollouts(int(row["step"]))
            if not path.exists():
                continue
            try:
                columns = pq.read_table(path, columns=["prompt_id", "reward", "flags"]).to_pydict()
            except pa.ArrowInvalid:  # the run was killed while it wrote
                unreadable += 1
                continue
            cells = zip(columns["prompt_id"], columns["reward"], columns["flags"], strict=True)
            keys += [
                ReplyKey(int(row["step"]), i, p, float(r), bool(f))
                for i, (p, r, f) in enumerate(cells)
                if r is not None
            ]
        return keys, unreadable

    def read(self, key: ReplyKey) -> Reply:
        """Return the whole reply behind `key`."""
        table = pq.read_table(self._rollouts(key.step)).slice(key.row, 1)
        row = table.to_pylist()[0]
        parts = {n.removeprefix(PART): float(v) for n, v in row.items() if n.startswith(PART) and v is not None}
        texts = {n: row[n] or "" for n in ("history", "reply", "reference", "emotion", "finish")}
        return Reply(step=key.step, prompt_id=key.prompt_id, sample=int(row["sample"]), tokens=int(row["tokens"]),
                     reward=key.reward, flags=tuple(row["flags"] or ()), parts=parts, **texts)  # fmt: skip

    def _rollouts(self, step: int) -> Path:
        return self.path / "rollouts" / f"step-{step:06d}.parquet"


def read_run(path: Path) -> Run:
    """Read what run directory `path` holds now; parts that were never written are empty.

    Raises `ValueError` when `path` is no directory, a JSON document in it is no JSON object, or the state is unknown.
    """
    if not path.is_dir():
        raise ValueError(f"a report is made from a run directory, and {path} is none: pass the folder of settings.json")
    status = _document(path / "status.json")
    state = status.get("state", RunState.UNRECORDED)
    if state not in set(RunState):
        raise ValueError(
            f"status.json: state must be one of {', '.join(RunState)}, not {state!r}: correct or delete it"
        )
    return Run(
        path=path,
        settings=_document(path / "settings.json"),
        provenance=_document(path / "provenance.json"),
        state=RunState(state),
        message=str(status.get("message") or ""),
        metrics=read_log(path / "metrics.jsonl"),
        warmup=read_log(path / "model" / "warmup.jsonl"),
    )


def read_log(path: Path) -> Log:
    """Read one JSON object per line; no file is an empty log.

    A line whose step is not beyond the last one comes from a run that resumed there: it replaces that step and all
    later ones, which the resumed run takes again.
    """
    if not path.exists():
        return Log()
    rows: dict[int, dict[str, float]] = {}
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            unreadable += bool(line.strip())
            continue
        while rows and next(reversed(rows)) >= step:
            rows.popitem()
        rows[step] = {name: math.nan if value is None else float(value) for name, value in record.items()
                      if value is None or isinstance(value, (int, float))}  # fmt: skip
    return Log(tuple(rows.values()), unreadable)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `(dotted.name, text)` for the leaves of a nested document, in order; lists of objects are numbered."""
    for name, value in tree.items():
        if isinstance(value, list) and any(isinstance(v, dict) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _document(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be JSON ({error}): restore or delete it, then report again") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} must be a JSON object, not {type(document).__name__}: restore or delete it")
    return document

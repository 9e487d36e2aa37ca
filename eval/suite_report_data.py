"""An evaluation as its report sees it: arms, figures, tests and replies (`eval.suite_report_read` reads them).

A figure that is null, missing or not finite is `nan` here: the page shows a dash and says why, never a 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from eval.metric import Better
from eval.suite_config import YARDSTICKS

T = TypeVar("T")
GROUPS = {
    "likeness": "Likeness to the therapist's reply",
    "quality": "Quality, as judged",
    "labels": "Emotion and dialogue act",
    "safety": "Safety",
    "variety": "Variety",
    "length": "Length",
}
NONE = math.nan


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval and how many replies it is about; nan is "none"."""

    value: float = NONE
    low: float = NONE
    high: float = NONE
    count: int | None = None

    @property
    def known(self) -> bool:
        """Whether there is a figure."""
        return math.isfinite(self.value)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Corpus:
    """Where the prompts came from, and what was left out of them."""

    name: str
    format: str
    split: str
    prompts: int
    dialogues: int
    left_out: int
    why_left_out: str


@dataclass(frozen=True)
class Arm:
    """One way to answer a client. `parameters`, `trainable`, seconds and gigabytes are nan where they were not recorded."""

    name: str
    title: str
    kind: str
    about: str
    model: str
    run: str
    trained: tuple[str, ...]
    replies: int
    failures: int
    reasons: Mapping[str, int]
    seconds: float
    parameters: float
    trainable: float
    train_seconds: float
    peak_gb: float

    @property
    def ranked(self) -> bool:
        """Whether the arm may be called best: the human reply and the echo are what others are held against, and not tested."""
        return self.kind not in YARDSTICKS


@dataclass(frozen=True)
class MetricOf:
    """A metric of the suite: what it is, which way is better, its unit, and the group that it is shown in."""

    name: str
    text: str
    better: Better
    unit: str
    group: str


@dataclass(frozen=True)
class Difference:
    """The first arm's figure less the second's, of the same prompts; `units` are the prompts."""

    corpus: str
    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str
    units: int
    significant: bool

    @property
    def flipped(self) -> Difference:
        """The same, the second less the first."""
        ends = {"value": -self.value, "low": -self.high, "high": -self.low}
        return Difference(**{**vars(self), **ends, "first": self.second, "second": self.first})


@dataclass(frozen=True)
class Published:
    """A figure of a paper: of its own data, models and code."""

    source: str
    arm: str
    ours: str
    metric: str
    value: float
    note: str


@dataclass(frozen=True)
class Said:
    """One reply as the suite recorded it; `scores` holds the metrics that say something of it."""

    corpus: str
    arm: str
    prompt_id: str
    sample: int
    history: str
    reply: str
    reference: str
    emotion: str
    tier: str
    finish: str
    error: str
    words: int
    flags: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Suite:
    """One evaluation. `main` is the metric by which examples are chosen, "" where the suite names none; `replies` is None
    where there is no `replies.parquet`."""

    name: str
    title: str
    question: str
    time: str
    seed: int
    draws: int
    against: str
    main: str
    corpora: tuple[Corpus, ...]
    arms: tuple[Arm, ...]
    metrics: Mapping[str, MetricOf]
    figures: Mapping[tuple[str, str, str], Estimate]
    differences: tuple[Difference, ...]
    published: tuple[Published, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    progress: Mapping[str, Sequence[Mapping[str, Any]]]
    agreement: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]
    human: tuple[Mapping[str, Any], ...]  # a pair of arms each
    crisis: Mapping[str, Any]
    replies: tuple[Said, ...] | None

    def title_of(self, arm: str) -> str:
        """What readers call an arm."""
        return self._titles.get(arm, arm)

    def between(self, corpus: str, metric: str, first: str, second: str) -> Difference | None:
        """The difference of two arms in one metric, whichever way it was recorded; None where it was not tested."""
        if found := self._tested.get((corpus, metric, first, second)):
            return found
        other = self._tested.get((corpus, metric, second, first))
        return other.flipped if other else None

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {arm.name: arm.title for arm in self.arms}

    @cached_property
    def _tested(self) -> dict[tuple[str, str, str, str], Difference]:
        return {(d.corpus, d.metric, d.first, d.second): d for d in self.differences}


def group_title(group: str) -> str:
    """What readers call a group of metrics."""
    return GROUPS.get(group, group.capitalize() or "Other")


def real(value: object) -> float:
    """A number as it stands; nan for null and for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else NONE


def estimate(told: Mapping[str, Any] | None) -> Estimate:
    """`value`, `low`, `high`, `count` of a record; none of null."""
    told = told or {}
    value, low, high = (
        found if math.isfinite(found := real(told.get(name))) else NONE for name in ("value", "low", "high")
    )
    count = real(told.get("count"))
    return Estimate(value, low, high, int(count) if math.isfinite(count) else None)


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Items by `key`, in the order in which the keys first occur."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found

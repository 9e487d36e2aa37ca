"""What the reward fleet asks of experts, and what they answer. Light: a run without experts loads nothing of the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rewards.panel import EXPERTS, Measurement
from rewards.types import Score, ScoredRollout
from rollout.types import Rollout


@dataclass(frozen=True)
class Opinion:
    """The value of the term `experts` for one reply, its red flags and what stands beside it; no value where nobody judged
    the reply in time."""

    value: float | None
    flags: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)


Combine = Callable[[Sequence[Measurement]], list[Score]]  # a mixture's


class Experts(Protocol):
    """Whoever the reward asks about a step's replies: `Synchronous` or `Asynchronous`."""

    def judge(self, rollouts: Sequence[Rollout], tiers: Sequence[str]) -> list[Opinion]:
        """One opinion per reply, in order; `tiers` are the clients' dangers."""

    def keep(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> None:
        """Remember what was measured of replies whose judgement is still to come."""

    def revise(self, scored: Sequence[ScoredRollout], combine: Combine) -> list[ScoredRollout]:
        """The step's batch, once what was said of earlier replies is in it."""

    def metrics(self) -> dict[str, float]:
        """`experts/*`."""

    def used(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """Tell the audit chain which replies the update of `step` learned from."""

    def saved(self, step: int, manifest: str) -> None:
        """Tell it that a checkpoint was saved after `step`; `manifest` is its sha256."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""


def with_opinion(measurement: Measurement, opinion: Opinion) -> Measurement:
    """What was measured, and what the experts say."""
    notes = {**measurement.notes, **{f"{EXPERTS}/{name}": number for name, number in opinion.notes.items()}}
    flags = tuple(dict.fromkeys([*measurement.flags, *opinion.flags]))
    if opinion.value is None:
        return replace(measurement, flags=flags, notes=notes, dropped=True)
    return replace(measurement, parts={**measurement.parts, EXPERTS: opinion.value}, flags=flags, notes=notes)

"""Scores that came late: earlier replies come back into a step's batch with what raters said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.experts.interface import Combine, Opinion, with_opinion
from rewards.experts.opinions import key_of, step_of
from rewards.panel import Measurement
from rewards.types import ScoredRollout
from rollout.types import Rollout


@dataclass(frozen=True)
class _Kept:
    rollout: Rollout
    measurement: Measurement


class LateScores:
    """Keeps the replies that raters have before them, for `window` steps.

    A late reply takes the place of a fresh one that nobody will rate and nothing flags, drawn at random, so that a batch
    stays as large as it was; at most `share` of a batch are late, and the others come with the next. Its tokens were sampled
    by an older policy: the learner weighs them by the truncated ratio of its own probability to the sampled one
    (`rl.losses.importance_weights`) and clips as ever. The surrogate's score, which it was paid once, stays paid; the raters'
    own comes on top, as a second lesson.
    """

    def __init__(self, *, window: int, share: float, seed: int) -> None:
        self._window, self._share, self._seed = window, share, seed
        self._kept: dict[str, _Kept] = {}
        self._come: dict[str, Opinion] = {}  # raters' scores that wait for room
        self._missed = 0

    def keep(self, rollouts: Sequence[Rollout], measurements: Sequence[Measurement], asked: set[str]) -> None:
        """Remember those that were put before raters; forget those whose time is over."""
        now = step_of(rollouts[0])
        for rollout, measurement in zip(rollouts, measurements, strict=True):
            if key_of(rollout) in asked:
                self._kept[key_of(rollout)] = _Kept(rollout, measurement)
        self._kept = {k: kept for k, kept in self._kept.items() if now - step_of(kept.rollout) <= self._window}

    def exchange(
        self,
        scored: Sequence[ScoredRollout],
        arrived: Mapping[str, Opinion],
        combine: Combine,
    ) -> list[ScoredRollout]:
        """The step's batch: fresh replies, some of them displaced by late ones. The late come last."""
        now = step_of(scored[0].rollout)
        come = self._come | dict(arrived)
        self._come = {key: opinion for key, opinion in come.items() if key in self._kept and opinion.value is not None}
        self._missed += len(come) - len(self._come)
        fresh = [i for i, s in enumerate(scored) if key_of(s.rollout) not in self._kept and not s.score.flags]
        room = min(int(self._share * len(scored)), len(fresh))
        newest = sorted(self._come, key=lambda key: (-step_of(self._kept[key].rollout), key))[:room]
        known = [(self._kept.pop(key), self._come.pop(key)) for key in newest]
        if not known:
            return list(scored)
        leaving = set(np.random.default_rng([self._seed, now]).choice(fresh, size=len(known), replace=False).tolist())
        scores = combine([with_opinion(kept.measurement, opinion) for kept, opinion in known])
        late = [ScoredRollout(kept.rollout, score) for (kept, _), score in zip(known, scores, strict=True)]
        return [item for i, item in enumerate(scored) if i not in leaving] + late

    def metrics(self) -> dict[str, float]:
        """`experts/missed`: scores so far that came when their replies' time was over, or no room was left."""
        return {"experts/missed": float(self._missed)}

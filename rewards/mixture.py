"""The mixture: what was measured becomes one number, and the safety gate has the last word.

It runs once, beside the loop: it holds the running statistics. Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.config import RewardsConfig
from rewards.crisis import Tier
from rewards.panel import Measurement, Panel
from rewards.safety import Flag
from rewards.types import RewardError, Score, ScoredRollout
from rollout.types import Rollout

_LEAST_STD = 1e-6  # rewards closer together than this are equal
_MOST_STDS = 10.0  # one odd reply must not swamp a batch


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all numbers seen (Welford 1962; batches merged as in Chan et al.
    1983). Sums are exact, so the order within a batch does not matter."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def seen(self, values: Sequence[float]) -> RunningMoments:
        """These moments after `values` as well."""
        if not values:
            return self
        count = self.count + len(values)
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        delta = mean - self.mean
        return RunningMoments(
            count,
            self.mean + delta * len(values) / count,
            self.squares + squares + delta**2 * self.count * len(values) / count,
        )

    def standardise(self, value: float) -> float:
        """(value - mean) / population standard deviation, within [-10, 10]; 0 before anything was seen."""
        if not self.count:
            return 0.0
        std = max(math.sqrt(self.squares / self.count), _LEAST_STD)
        return max(-_MOST_STDS, min(_MOST_STDS, (value - self.mean) / std))


class Mixture:
    """Measurements -> scores, over the paid terms i that apply to the reply:

        part_i = min(part_i, crisis_reply)       if the client is in danger and the cap is on
        part_i = floor                           if the reply has a red flag and the gate is on
        part_i = (part_i - mean_i) / std_i       when normalising terms
        total  = sum_i w_i part_i / sum_i w_i
        total  = 1 if total >= threshold else 0  when the score is binary and no red flag was found
        value  = total, or, when normalising, (total - mean) / std

    Means and stds are of all that was not gated so far, this call's included. Every map is monotone and the floor is at
    most 0, so a gated reply is never above another that the same terms apply to, normalised or not.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self._config = config
        self._weights = config.weights
        self._known = set(config.measured)
        self._moments = RunningMoments()
        self._terms: dict[str, RunningMoments] = {}

    def combine(self, measurements: Sequence[Measurement]) -> list[Score]:
        """One score per measurement, in order, with the raw parts, the flags and the notes.

        Raises `RewardError`, and leaves the statistics as they were, when a measurement has no paid part, or one that is
        not measured or not finite.
        """
        paid = [self._paid(i, measurement) for i, measurement in enumerate(measurements)]
        gated = [self._config.gate.enabled and bool(measurement.flags) for measurement in measurements]
        open_ = [parts for parts, shut in zip(paid, gated, strict=True) if parts and not shut]
        if self._config.normalise_terms:
            for name in self._weights:
                seen = [parts[name] for parts in open_ if name in parts]
                self._terms[name] = self._terms.get(name, RunningMoments()).seen(seen)
        values = [self._total(parts, shut) for parts, shut in zip(paid, gated, strict=True)]
        if self._config.normalise:
            known = [v for v, parts, shut in zip(values, paid, gated, strict=True) if parts and not shut]
            self._moments = self._moments.seen(known)
            values = [self._moments.standardise(value) for value in values]
        return [
            Score(value, dict(m.parts), m.flags, dict(m.notes), m.tier, dropped=not parts and not shut)
            for value, m, parts, shut in zip(values, measurements, paid, gated, strict=True)
        ]

    def _paid(self, i: int, measurement: Measurement) -> dict[str, float]:
        """The parts that have a weight, none above what the reply does for a client in danger."""
        parts = measurement.parts
        if measurement.dropped:
            return {}  # it teaches nothing, whatever other terms say; a red flag is paid its floor all the same
        paid = {name: part for name, part in parts.items() if name in self._weights}
        if not paid or not parts.keys() <= self._known:
            raise RewardError(f"measurement {i} must have parts among {sorted(self._weights)}, got {sorted(parts)}")
        if not all(map(math.isfinite, parts.values())):
            raise RewardError(f"measurement {i} must have finite parts, got {dict(parts)}")
        cap = parts.get("crisis_reply", 1.0) if self._config.crisis.cap else 1.0
        return {name: min(part, cap) for name, part in paid.items()}

    def _total(self, parts: Mapping[str, float], gated: bool) -> float:
        floor = self._config.floor
        parts = parts or dict.fromkeys(self._weights, floor)  # dropped
        if self._config.normalise_terms:
            parts = {
                n: self._terms.get(n, RunningMoments()).standardise(floor if gated else part)
                for n, part in parts.items()
            }
        elif gated:
            return floor
        weighed = math.fsum(self._weights[name] * part for name, part in parts.items())
        total = weighed / math.fsum(self._weights[name] for name in parts)
        return float(total >= self._config.threshold) if self._config.score == "binary" else total

    def state_dict(self) -> dict[str, Any]:
        """The running statistics, for a checkpoint."""
        return {**asdict(self._moments), "terms": {name: asdict(moments) for name, moments in self._terms.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the statistics that `state_dict` returned."""
        if state.keys() != {"count", "mean", "squares", "terms"}:
            raise ValueError(f"the mixture's state must hold count, mean and squares, and terms, got {sorted(state)}")
        self._moments = RunningMoments(**{name: state[name] for name in ("count", "mean", "squares")})
        self._terms = {name: RunningMoments(**moments) for name, moments in state["terms"].items()}


@dataclass(frozen=True)
class LocalReward:
    """A panel and a mixture in one process: the whole reward without a cluster."""

    panel: Panel
    mixture: Mixture

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`; see `Reward`."""
        return self.settle(rollouts, self.measure(rollouts))

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        """What the panel finds, in order."""
        return self.panel.measure(rollouts)

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        """The scores of replies that were measured; statistics move on."""
        return self.mixture.combine(measured)

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """As they are: nobody is asked here."""
        return list(scored)

    def metrics(self) -> dict[str, float]:
        """None beside those of the scores."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The mixture's statistics."""
        return self.mixture.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the mixture's statistics."""
        self.mixture.load_state_dict(state)


def describe(scores: Sequence[Score]) -> dict[str, float]:
    """Metrics of one batch of scores.

    `reward/{mean,std,min,max}` of the values (population std); `reward/TERM`, the mean over the replies that the term
    applies to, and `reward/TERM/NOTE` of what it noted; `safety/FLAG`, the share of replies with that flag, 0.0 for those
    never seen; `safety/gated`, the share with any flag; `tier/TIER/share`, the share of replies to clients in that danger,
    `tier/TIER/gated`, how many of those have a flag, and `tier/TIER/crisis_reply`, their mean of that term (both absent
    where there are none). Replies that were dropped are no part of the values; `reward/dropped` is their share where there are
    some. Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("describe needs at least one score, got none: log nothing for an empty batch")
    dropped = sum(score.dropped for score in scores)
    values = [score.value for score in scores if not score.dropped] or [math.nan]
    mean = _mean(values)
    terms = sorted({name for score in scores for name in score.parts})
    notes = sorted({name for score in scores for name in score.notes})
    flags = dict.fromkeys([*Flag, *sorted({flag for score in scores for flag in score.flags})])
    by_tier = {tier: [s for s in scores if s.tier == tier] for tier in Tier}
    helped = {tier: [s.parts["crisis_reply"] for s in of if "crisis_reply" in s.parts] for tier, of in by_tier.items()}
    return {
        "reward/mean": mean,
        "reward/std": math.sqrt(_mean([(value - mean) ** 2 for value in values])),
        "reward/min": min(values),
        "reward/max": max(values),
        **({"reward/dropped": dropped / len(scores)} if dropped else {}),
        **{f"reward/{term}": _mean([s.parts[term] for s in scores if term in s.parts]) for term in terms},
        **{f"reward/{note}": _mean([s.notes[note] for s in scores if note in s.notes]) for note in notes},
        **{f"safety/{flag}": _mean([flag in s.flags for s in scores]) for flag in flags},
        "safety/gated": _mean([bool(s.flags) for s in scores]),
        **{f"tier/{tier}/share": len(of) / len(scores) for tier, of in by_tier.items()},
        **{f"tier/{tier}/gated": _mean([bool(s.flags) for s in of]) for tier, of in by_tier.items() if of},
        **{f"tier/{tier}/crisis_reply": _mean(values) for tier, values in helped.items() if values},
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

"""The reward: terms measure, a mixture weighs, the safety gate has the last word.

    rollouts --Panel.measure--> measurements --Mixture.combine--> scores

A `Panel` is what runs in reward actors: it holds the models and no state that matters. The `Mixture` runs once, beside
the loop: it holds the running statistics. Importing this module imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.config import RewardsConfig
from rewards.emotion import EmotionAcknowledgement
from rewards.safety import Flag, SafetyGate
from rewards.similarity import Similarity
from rewards.text_rules import Inquiry, Length, Repetition
from rewards.types import Reward, RewardError, Score
from rollout.types import Rollout


class Term(Reward, Protocol):
    """A `Reward` with values in [0, 1] that may have nothing to say about some prompts."""

    def applies(self, rollout: Rollout) -> bool:
        """Whether the term can judge replies to this prompt; it looks at `rollout.prompt` only.

        Were it to look at the reply, the policy could learn to write what silences a strict term.
        """
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, to all of which the term applies."""
        ...


# A term is a section of `RewardsConfig` with a weight, and a line here.
TERMS: Mapping[str, Callable[[RewardsConfig], Term]] = {
    "similarity": lambda config: Similarity(config.similarity),
    "emotion": lambda config: EmotionAcknowledgement(),
    "inquiry": lambda config: Inquiry(),
    "length": lambda config: Length(config.length),
    "repetition": lambda config: Repetition(config.repetition),
}


@dataclass(frozen=True)
class Measurement:
    """What was found in one reply: the value in [0, 1] of each term that applies, and red flags."""

    parts: Mapping[str, float]
    flags: tuple[str, ...] = ()


class Panel:
    """The terms in use (those with a weight) and the safety rules, asked about the same replies."""

    def __init__(self, config: RewardsConfig) -> None:
        self._terms = {name: TERMS[name](config) for name in config.weights}
        self._gate = SafetyGate()

    def ready(self) -> int:
        """The process that holds this panel; an answer means that its models are loaded."""
        return os.getpid()

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        """One measurement per rollout, in order; a part is absent where its term does not apply.

        All replies to one prompt that were sampled together must arrive in one call. Flags are the gate's and any that
        a term raises. Raises `RewardError` when a term breaks its contract or fails, or when none applies to a reply.
        """
        judged = {name: ask(name, term, rollouts) for name, term in self._terms.items()}
        safety = ask("safety", self._gate, rollouts)
        measurements = []
        for i, rollout in enumerate(rollouts):
            scores = {name: found[i] for name, found in judged.items() if i in found}
            if not scores:
                raise RewardError(f"no term of {sorted(self._terms)} applies to {rollout.id}: give `length` a weight")
            flags = dict.fromkeys(flag for score in (safety[i], *scores.values()) for flag in score.flags)
            measurements.append(Measurement({name: score.value for name, score in scores.items()}, tuple(flags)))
        return measurements


def ask(name: str, term: Term, rollouts: Sequence[Rollout]) -> dict[int, Score]:
    """Score those of `rollouts` to which `term` applies, by their index, and hold it to its contract: one score per
    reply, each value in [0, 1].

    Whatever is raised inside comes out as a `RewardError` that names the term, with the cause in the message (causes
    are lost between processes) and chained.
    """
    try:
        applicable = [i for i, rollout in enumerate(rollouts) if term.applies(rollout)]
        scores = list(term.score([rollouts[i] for i in applicable])) if applicable else []
    except Exception as error:  # a term may fail in any way, and the message must name it
        cause = f"{type(error).__name__}: {error}"
        raise RewardError(f"{name} failed on {len(rollouts)} replies from {rollouts[0].id} on: {cause}") from error
    if len(scores) != len(applicable):
        count, start = f"{len(scores)} scores for {len(applicable)} replies", rollouts[applicable[0]].id
        raise RewardError(f"{name} must give one score per reply, got {count} from {start} on")
    for i, score in zip(applicable, scores, strict=True):
        if not 0 <= score.value <= 1:  # so written that NaN fails too
            raise RewardError(f"{name} must give a value in [0, 1], got {score.value} for {rollouts[i].id}")
    return dict(zip(applicable, scores, strict=True))


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
    """Measurements -> scores:

        total = sum_i w_i part_i / sum_i w_i    over the terms i that apply to the reply
        total = floor                           if it has a red flag and the gate is on
        value = total, or, when normalising, (total - mean) / std

    Mean and std are those of all ungated totals so far, this call's included. The floor is on the scale of the totals
    and passes through the same map, so a gated reply is never above any other, normalised or not.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self._weights = config.weights
        self._floor = config.floor
        self._gated = config.gate.enabled
        self._normalise = config.normalise
        self._moments = RunningMoments()

    def combine(self, measurements: Sequence[Measurement]) -> list[Score]:
        """One score per measurement, in order, with the raw parts and the flags.

        Raises `RewardError`, and leaves the statistics as they were, when a measurement has no part, or one that has no
        weight or is not finite.
        """
        totals = [self._total(i, measurement.parts) for i, measurement in enumerate(measurements)]
        gated = [self._gated and bool(measurement.flags) for measurement in measurements]
        values = [self._floor if shut else total for total, shut in zip(totals, gated, strict=True)]
        if self._normalise:
            self._moments = self._moments.seen([total for total, shut in zip(totals, gated, strict=True) if not shut])
            values = [self._moments.standardise(value) for value in values]
        return [Score(v, dict(m.parts), m.flags) for v, m in zip(values, measurements, strict=True)]

    def _total(self, i: int, parts: Mapping[str, float]) -> float:
        unknown = sorted(parts.keys() - self._weights.keys())
        if not parts or unknown:
            raise RewardError(f"measurement {i} must have parts among {sorted(self._weights)}, got {sorted(parts)}")
        total = math.fsum(self._weights[name] * part for name, part in parts.items())
        if not math.isfinite(total):
            raise RewardError(f"measurement {i} must have finite parts, got {dict(parts)}")
        return total / math.fsum(self._weights[name] for name in parts)

    def state_dict(self) -> dict[str, float]:
        """The running statistics, for a checkpoint."""
        return {"count": self._moments.count, "mean": self._moments.mean, "squares": self._moments.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the statistics that `state_dict` returned."""
        if state.keys() != {"count", "mean", "squares"}:
            raise ValueError(f"the mixture's state must hold count, mean and squares, got {sorted(state)}")
        self._moments = RunningMoments(int(state["count"]), state["mean"], state["squares"])


@dataclass(frozen=True)
class LocalReward:
    """A panel and a mixture in one process: the whole reward without a cluster."""

    panel: Panel
    mixture: Mixture

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`; see `Reward`."""
        return self.mixture.combine(self.panel.measure(rollouts))

    def state_dict(self) -> dict[str, float]:
        """The mixture's statistics."""
        return self.mixture.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the mixture's statistics."""
        self.mixture.load_state_dict(state)


def describe(scores: Sequence[Score]) -> dict[str, float]:
    """Metrics of one batch of scores.

    `reward/{mean,std,min,max}` of the values (population std); `reward/TERM`, the mean over the replies that the term
    applies to; `safety/FLAG`, the share of replies with that flag, 0.0 for those never seen; `safety/gated`, the share
    with any flag. Raises ValueError without scores.
    """
    if not scores:
        raise ValueError("describe needs at least one score, got none: log nothing for an empty batch")
    values = [score.value for score in scores]
    mean = _mean(values)
    terms = sorted({name for score in scores for name in score.parts})
    flags = dict.fromkeys([*Flag, *sorted({flag for score in scores for flag in score.flags})])
    return {
        "reward/mean": mean,
        "reward/std": math.sqrt(_mean([(value - mean) ** 2 for value in values])),
        "reward/min": min(values),
        "reward/max": max(values),
        **{f"reward/{term}": _mean([s.parts[term] for s in scores if term in s.parts]) for term in terms},
        **{f"safety/{flag}": _mean([flag in s.flags for s in scores]) for flag in flags},
        "safety/gated": _mean([bool(s.flags) for s in scores]),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

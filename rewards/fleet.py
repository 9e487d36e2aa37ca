"""Reward actors: replicas of the panel of terms score shares of a step in parallel; the mixture stays with the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import ray

from cluster.placement import Placement
from cluster.pool import Pool
from rewards.config import EncoderConfig, RewardsConfig
from rewards.experts.late import LateScores, with_opinion
from rewards.experts.meanwhile import Asynchronous
from rewards.experts.opinions import Synchronous
from rewards.experts.surrogate import Guess, Surrogate, Trial
from rewards.mixture import Mixture
from rewards.panel import Measurement, Panel
from rewards.preference_features import Answer
from rewards.rated_replies import RatedReply
from rewards.types import Score, ScoredRollout
from rollout.fleet import deal
from rollout.types import Rollout

FLEET = "reward actor"
_EXPERTS = "experts"  # their part of the state
Experts = Synchronous | Asynchronous


class RewardFleet:
    """A `Reward` of N actors. A dead actor is replaced and asked again; actors hold no state that a run needs.

    `experts`, where there are some, are asked when the actors have measured, and their opinion is one part more.
    """

    def __init__(
        self,
        config: RewardsConfig,
        placement: Placement,
        *,
        environment: Mapping[str, str],
        restarts: int = 3,
        experts: Experts | None = None,
        seed: int = 0,
    ) -> None:
        def spawn(index: int) -> Any:
            options = {**placement.options(FLEET, index), "runtime_env": {"env_vars": dict(environment)}}
            return ray.remote(Panel).options(**options).remote(config)

        self._mixture = Mixture(config)
        self._experts = experts
        self._late = LateScores(window=config.experts.window, share=config.experts.late_share, seed=seed)
        self._pool = Pool(FLEET, config.actors, spawn, restarts=restarts)

    @property
    def deaths(self) -> int:
        """Actors replaced so far."""
        return self._pool.deaths

    def ready(self) -> list[int]:
        """Wait until every actor can score; their process ids."""
        return self._pool.everyone(Panel.ready)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order (`Reward.score`). Replies to one prompt go to one actor together."""
        measured = self._measure(rollouts)
        if self._experts is not None:
            opinions = self._experts.judge(rollouts, [measurement.tier for measurement in measured])
            if isinstance(self._experts, Asynchronous):
                self._late.keep(rollouts, measured, self._experts.asked())
            measured = [with_opinion(m, opinion) for m, opinion in zip(measured, opinions, strict=True)]
        return self._mixture.combine(measured)

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """The step's batch once the raters' scores of earlier replies are in it; see `LateScores`."""
        if not isinstance(self._experts, Asynchronous):
            return list(scored)
        return self._late.exchange(scored, self._experts.arrived(), self._mixture.combine)

    def metrics(self) -> dict[str, float]:
        """`experts/*`."""
        if not isinstance(self._experts, Asynchronous):
            return {}
        return {**self._experts.metrics(), **self._late.metrics()}

    def _measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        groups = [list(indices) for _, indices in groupby(range(len(rollouts)), lambda i: rollouts[i].prompt.id)]
        hands = deal([sum(len(rollouts[i].response_ids) for i in group) for group in groups], len(self._pool))
        shares = [[index for group in hand for index in groups[group]] for hand in hands]
        answers = self._pool.map(Panel.measure, [([rollouts[i] for i in share],) for share in shares])
        measured = {
            i: m for share, answer in zip(shares, answers, strict=True) for i, m in zip(share, answer, strict=True)
        }
        return [measured[index] for index in range(len(rollouts))]

    def used(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """Tell the experts' audit chain which replies the update of `step` learned from."""
        if self._experts is not None:
            self._experts.used(step, scored)

    def saved(self, step: int, manifest: str) -> None:
        """Tell it that a checkpoint was saved after `step`, with the sha256 of its manifest."""
        if self._experts is not None:
            self._experts.saved(step, manifest)

    def state_dict(self) -> dict[str, Any]:
        """The mixture's running statistics, and what the surrogate of experts has learned from."""
        experts = {} if self._experts is None else {_EXPERTS: self._experts.state_dict()}
        return {**self._mixture.state_dict(), **experts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._mixture.load_state_dict({name: part for name, part in state.items() if name != _EXPERTS})
        if self._experts is not None:
            self._experts.load_state_dict(state.get(_EXPERTS, {}))


class SurrogateActor:
    """A `Surrogate` in a process of its own, so that fitting it takes no time from the loop."""

    def __init__(self, encoder: EncoderConfig, *, members: int, seed: int, environment: Mapping[str, str]) -> None:
        make = ray.remote(Surrogate).options(
            num_cpus=0, max_concurrency=2, runtime_env={"env_vars": dict(environment)}
        )  # it guesses while it fits
        self._actor: Any = make.remote(encoder, members=members, seed=seed)

    def guess(self, answers: Sequence[Answer]) -> list[Guess]:
        """`Surrogate.guess`."""
        return ray.get(self._actor.guess.remote(answers))

    def learn(self, rated: Sequence[RatedReply]) -> Trial | None:
        """`Surrogate.learn`."""
        return ray.get(self._actor.learn.remote(rated))

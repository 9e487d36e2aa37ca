"""Reward actors: replicas of the panel of terms score shares of a step in parallel; the mixture stays with the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import ray

from cluster.placement import Placement
from cluster.pool import Pool
from rewards.config import RewardsConfig
from rewards.experts.interface import Experts, with_opinion
from rewards.mixture import Mixture
from rewards.panel import EXPERTS, Measurement, Panel
from rewards.types import Score, ScoredRollout
from rollout.fleet import deal
from rollout.types import NO_ROUTING, Rollout

FLEET = "reward actor"


class RewardFleet:
    """A `Reward` of N actors. A dead actor is replaced and asked again; actors hold no state that a run needs.

    `panel` is the class of what an actor holds, built from `config`. `experts`, where there are some, are asked when the actors
    have measured, and their opinion is one part more.
    """

    def __init__(
        self,
        config: RewardsConfig,
        placement: Placement,
        *,
        environment: Mapping[str, str],
        restarts: int = 3,
        experts: Experts | None = None,
        panel: Callable[[RewardsConfig], object] = Panel,
    ) -> None:
        def spawn(index: int) -> Any:
            options = {**placement.options(FLEET, index), "runtime_env": {"env_vars": dict(environment)}}
            return ray.remote(panel).options(**options).remote(config)

        self._mixture = Mixture(config)
        self._experts = experts
        self._pool = Pool(FLEET, config.actors, spawn, restarts=restarts)

    @property
    def deaths(self) -> int:
        """Actors replaced so far."""
        return self._pool.deaths

    def close(self) -> None:
        """Give up what is being measured, and replace no actor any more."""
        self._pool.close()

    def ready(self) -> list[int]:
        """Wait until every actor can score; their process ids."""
        return self._pool.everyone(Panel.ready)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order (`Reward.score`)."""
        return self.settle(rollouts, self.measure(rollouts))

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        """The scores of replies that were measured: experts are asked, statistics move on. In the order of the steps."""
        if self._experts is not None:
            opinions = self._experts.judge(rollouts, [measurement.tier for measurement in measured])
            self._experts.keep(rollouts, measured)
            measured = [with_opinion(m, opinion) for m, opinion in zip(measured, opinions, strict=True)]
        return self._mixture.combine(measured)

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """The step's batch once the experts' scores of earlier replies are in it."""
        return list(scored) if self._experts is None else self._experts.revise(scored, self._mixture.combine)

    def metrics(self) -> dict[str, float]:
        """`experts/*`."""
        return {} if self._experts is None else self._experts.metrics()

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        """What the actors find, in order: nobody is asked, and no statistic is another for it. Replies to one prompt go to one
        actor together."""
        groups = [list(indices) for _, indices in groupby(range(len(rollouts)), lambda i: rollouts[i].prompt.id)]
        hands = deal([sum(len(rollouts[i].response_ids) for i in group) for group in groups], len(self._pool))
        shares = [[index for group in hand for index in groups[group]] for hand in hands]
        answers = self._pool.map(Panel.measure, [(spoken(rollouts[i] for i in share),) for share in shares])
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
        experts = {} if self._experts is None else {EXPERTS: self._experts.state_dict()}
        return {**self._mixture.state_dict(), **experts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._mixture.load_state_dict({name: part for name, part in state.items() if name != EXPERTS})
        if self._experts is not None:
            self._experts.load_state_dict(state.get(EXPERTS, {}))


def spoken(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Rollouts as terms read them: without log-probs and routing, which are most of the bytes."""
    return [replace(rollout, sampled_logprobs=(), routing=NO_ROUTING) for rollout in rollouts]

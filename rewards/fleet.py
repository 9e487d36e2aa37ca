"""Reward actors: replicas of the panel of terms score shares of a step in parallel; the mixture stays with the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import ray

from cluster.placement import Placement
from cluster.pool import Pool
from rewards.config import RewardsConfig
from rewards.mixture import Mixture
from rewards.panel import Panel
from rewards.types import Score
from rollout.fleet import deal
from rollout.types import Rollout

FLEET = "reward actor"


class RewardFleet:
    """A `Reward` of N actors. A dead actor is replaced and asked again; actors hold no state that a run needs."""

    def __init__(
        self, config: RewardsConfig, placement: Placement, *, environment: Mapping[str, str], restarts: int = 3
    ) -> None:
        def spawn(index: int) -> Any:
            options = {**placement.options(FLEET, index), "runtime_env": {"env_vars": dict(environment)}}
            return ray.remote(Panel).options(**options).remote(config)

        self._mixture = Mixture(config)
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
        groups = [list(indices) for _, indices in groupby(range(len(rollouts)), lambda i: rollouts[i].prompt.id)]
        hands = deal([sum(len(rollouts[i].response_ids) for i in group) for group in groups], len(self._pool))
        shares = [[index for group in hand for index in groups[group]] for hand in hands]
        answers = self._pool.map(Panel.measure, [([rollouts[i] for i in share],) for share in shares])
        measured = {
            i: m for share, answer in zip(shares, answers, strict=True) for i, m in zip(share, answer, strict=True)
        }
        return self._mixture.combine([measured[index] for index in range(len(rollouts))])

    def state_dict(self) -> dict[str, Any]:
        """The mixture's running statistics."""
        return self._mixture.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._mixture.load_state_dict(state)

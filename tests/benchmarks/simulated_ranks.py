"""Reward panels and learner ranks that sleep for as long as a cost model says, in place of `Panel` and `PpoLearner`.

A rank's answers are tensors of the real sizes; rank 0 sends real control messages to the engines' actors.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.config import RewardsConfig
from rl.config import PpoRecipe
from rollout.types import Rollout
from tests.benchmarks.simulated import PROBE_LOGPROB, Journal, World

if TYPE_CHECKING:
    from rewards.panel import Measurement
    from rl.batch import Batch, Experience, UpdateReport
    from rl.micro_batches import Pairs
    from rollout.weight_stream import EngineSyncClient


@dataclass(frozen=True)
class SimulatedRewards(RewardsConfig):
    """What a simulated panel is built from."""

    world: World = field(default_factory=World)


@dataclass(frozen=True)
class SimulatedRecipe(PpoRecipe):
    """What a simulated learner rank is built from."""

    world: World = field(default_factory=World)


class SimulatedPanel:
    """`Panel`'s methods: a value between 0 and 1 for every paid term."""

    def __init__(self, config: SimulatedRewards) -> None:
        self._terms, self._cost = tuple(config.weights), config.world.cost
        self._journal = Journal(config.world.folder, "reward")

    def ready(self) -> int:
        return os.getpid()

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        from rewards.panel import Measurement

        started, cost = time.time(), self._cost.reward(len(rollouts))
        found = [
            Measurement(dict.fromkeys(self._terms, random.Random(f"{r.id} {r.versions[0].version}").random()))
            for r in rollouts
        ]
        time.sleep(max(0.0, started + cost - time.time()))
        self._journal.note("measure", started, cost)
        return found


class SimulatedLearner:
    """`PpoLearner`'s methods."""

    def __init__(self, recipe: SimulatedRecipe) -> None:
        import torch

        torch.set_num_threads(1)
        self._world, self._epochs = recipe.world, recipe.ppo.epochs
        self._rank = int(os.environ["RANK"])
        self._journal = Journal(recipe.world.folder, f"learner{self._rank}")

    def annotate(self, batch: Batch) -> Experience:
        import torch

        from rl.batch import Experience

        tokens_B = batch.lengths_B
        names = ("logprobs_BT", "reference_logprobs_BT", "values_BT", "weights_BT", "advantages_BT", "returns_BT")
        return self._work(
            "annotate",
            self._world.cost.annotate(int(tokens_B.sum())),
            lambda: Experience(
                **vars(batch),
                **dict.fromkeys(names, batch.sampled_logprobs_BT),
                token_share_LE=torch.zeros(32, 8),
            ),
        )

    def update(self, experience: Experience) -> UpdateReport:
        from rl.batch import UpdateReport

        cost = self._world.cost.update(int(experience.lengths_B.sum()), self._epochs)
        metrics = {"policy/loss": float(experience.score_B.mean()), "policy/kl": 0.0, "policy/updates": 1.0}
        return self._work("update", cost, lambda: UpdateReport(metrics))

    def publish(self, client: EngineSyncClient, version: int, connect: bool) -> dict[str, float]:
        started, cost = time.time(), self._world.cost.publish()
        if self._rank == 0:
            if connect:
                client.init_weight_transfer_engine({})
            client.start_weight_update()
        time.sleep(cost)
        if self._rank == 0:
            client.update_weights({})
            client.finish_weight_update(str(version))
        self._journal.note("publish", started, cost)
        return {"publish/bytes": self._world.cost.publish_bytes, "publish/seconds": time.time() - started}

    def make_room(self) -> None:
        """There is nothing to give back."""

    def doing(self) -> str:
        return "asleep"

    def groups(self) -> list[str]:
        return []

    def resend(self, client: EngineSyncClient, version: int, group: str) -> None:
        """There is no group."""

    def probe(self, sequences: Pairs) -> list[list[float]]:
        return [[PROBE_LOGPROB] * len(reply) for _, reply in sequences]

    def router_margins(self, sequences: Pairs) -> list[float]:
        return [float("inf")] * len(sequences)

    def save(self, folder: Path) -> dict[str, float]:
        """There is nothing to save."""
        return {}

    def restore(self, folder: Path, state: Mapping[str, float]) -> None:
        """Nor to restore."""

    def _work(self, name: str, cost: float, answer: Callable[[], Any]) -> Any:
        started = time.time()
        result = answer()
        time.sleep(max(0.0, started + cost - time.time()))
        self._journal.note(name, started, cost)
        return result

"""The layouts: which devices engines and learner ranks compute on, what is claimed for them, how weights travel.

With `learner.ranks = 4` and `rollout.tensor_parallel = 2` (E an engine's device, R a learner rank's):

    placement.mode   devices                             weights            while the learner works
    dedicated        E0 E0 E1 E1 | R0 R1 R2 R3           NCCL               engines keep their memory
    colocated        E0 E0 E1 E1                         CUDA IPC           every engine sleeps
                     R0 R1 R2 R3
    mixed            E0 E0 E1 E1 | E2 E2 E3 E3           CUDA IPC | NCCL    E0 and E1 sleep
                     R0 R1 R2 R3

An engine's devices are always one bundle, so on one node. Shared devices are claimed by the ranks: the bundle of a
tensor-parallel group holds its ranks, and the engine beside them, which claims no GPU and is shown theirs. Ranks are
numbered node by node. On nodes without GPUs all fleets share the cores, and weights go through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.placement import Claim
from cluster.workers import Place
from rewards.fleet import FLEET as REWARDS
from rl.config import PpoRecipe
from rl.fleet import FLEET as LEARNER
from rl.placement_config import near_engines
from rollout.fleet import FLEET as ROLLOUT
from rollout.sharing import Sharing, SleepLevel


def claims(recipe: PpoRecipe, *, on_gpu: bool) -> list[Claim]:
    """What the recipe asks of the cluster, fleet by fleet. Raises ValueError where engines cannot sleep as it asks."""
    rollout, learner, width, near = recipe.rollout, recipe.learner, recipe.rollout.tensor_parallel, near_of(recipe)
    if near and recipe.placement.sleep and not on_gpu:
        raise ValueError(
            f'placement.mode = "{recipe.placement.mode}" needs GPUs (vLLM has no sleep mode on CPUs), the cluster has none or '
            "vLLM's CPU build is installed; set placement.sleep = false, and the fleets share the cores awake"
        )
    far = rollout.engines - near
    return [
        *([Claim(ROLLOUT, near, rollout.cpus, beside=LEARNER)] if near else []),
        *([Claim(ROLLOUT, far, rollout.cpus, width if on_gpu else 0)] if far else []),
        Claim(LEARNER, learner.ranks, learner.cpus, learner.gpus if on_gpu else 0, together=width if near else 1),
        Claim(REWARDS, recipe.rewards.actors, recipe.rewards.cpus, 0),
    ]


def near_of(recipe: PpoRecipe) -> int:
    """Engines on the learner's devices."""
    return near_engines(recipe.placement.mode, recipe.rollout, recipe.learner.ranks)


def sharing(recipe: PpoRecipe, places: Sequence[Place]) -> Sharing:
    """Which engines compute on which ranks' devices; `places` are the ranks', by seat."""
    width, config = recipe.rollout.tensor_parallel, recipe.placement
    seats = [places[engine * width : (engine + 1) * width] for engine in range(near_of(recipe))]
    devices = tuple(tuple(device for place in group for device in place.devices) for group in seats)
    return Sharing(devices, sleep_level(recipe), config.memory_utilization)


def sleep_level(recipe: PpoRecipe) -> SleepLevel:
    """How engines on the learner's devices sleep: weights may be dropped only where a publish brings every one of them."""
    if not near_of(recipe) or not recipe.placement.sleep:
        return 0
    return 2 if recipe.publish.part(recipe.model.tuning) == "full" else 1


def described(recipe: PpoRecipe, *, on_gpu: bool) -> str:
    """The layout in a line, for people."""
    rollout, near, level = recipe.rollout, near_of(recipe), sleep_level(recipe)
    far, ranks = rollout.engines - near, recipe.learner.ranks
    if not on_gpu:
        return f"{rollout.engines} engine(s) and {ranks} learner rank(s) share the cores; weights through shared memory"
    of = f"of {rollout.tensor_parallel} device(s), a group on one node"
    parts = []
    if near:
        sleeps = {0: "awake", 1: "asleep, weights in host memory,", 2: "asleep, weights dropped,"}[level]
        parts.append(f"{near} engine(s) {of}, on the learner's {ranks} devices, {sleeps} while it works; CUDA IPC")
    if far:
        parts.append(f"{far} engine(s) {of}, their own; NCCL")
    if not near:
        parts.append(f"{ranks} learner rank(s) on {ranks * recipe.learner.gpus:g} device(s) of their own")
    return f"{recipe.placement.mode}: " + "; ".join(parts)

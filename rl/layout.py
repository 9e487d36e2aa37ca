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
numbered node by node; those on devices of their own lie on one node where one has room for all. On nodes without GPUs all
fleets share the cores, and weights go through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.placement import Claim, Placement
from cluster.workers import Place
from rewards.fleet import FLEET as REWARDS
from rl.config import PpoRecipe
from rl.fleet import FLEET as LEARNER
from rollout.fleet import FLEET as ROLLOUT
from rollout.sharing import Sharing


def claims(recipe: PpoRecipe, *, on_gpu: bool) -> list[Claim]:
    """What the recipe asks of the cluster, fleet by fleet. Raises ValueError where engines cannot sleep as it asks."""
    rollout, learner, width, near = recipe.rollout, recipe.learner, recipe.rollout.tensor_parallel, recipe.near_engines
    if near and recipe.placement.sleep and not on_gpu:
        raise ValueError(
            f'placement.mode = "{recipe.placement.mode}" needs GPUs (vLLM has no sleep mode on CPUs), the cluster has none or '
            "vLLM's CPU build is installed; set placement.sleep = false, and the fleets share the cores awake"
        )
    far = rollout.engines - near
    return [
        *([Claim(ROLLOUT, near, rollout.cpus, beside=LEARNER)] if near else []),
        *([Claim(ROLLOUT, far, rollout.cpus, width if on_gpu else 0)] if far else []),
        Claim(
            LEARNER,
            learner.ranks,
            learner.cpus,
            learner.gpus if on_gpu else 0,
            together=width if near else 1,
            near=on_gpu and not near,  # ZeRO-3 gathers every weight several times a step
        ),
        Claim(REWARDS, recipe.rewards.actors, recipe.rewards.cpus, 0),
    ]


def sharing(recipe: PpoRecipe, places: Sequence[Place]) -> Sharing:
    """Which engines compute on which ranks' devices; `places` are the ranks', by seat."""
    width, config = recipe.rollout.tensor_parallel, recipe.placement
    seats = [places[engine * width : (engine + 1) * width] for engine in range(recipe.near_engines)]
    devices = tuple(tuple(device for place in group for device in place.devices) for group in seats)
    return Sharing(devices, recipe.sleep_level, config.memory_utilization)


def require_one_host(recipe: PpoRecipe, placement: Placement, *, on_gpu: bool) -> None:
    """Raise ValueError where weights go through a host's memory and an engine has its room on another host than rank 0."""
    adapter = recipe.publish.part(recipe.model.tuning) == "adapter"
    if not adapter and recipe.rollout.transfer(on_gpu=on_gpu) != "shared_memory":
        return
    home = placement.nodes(LEARNER)[0]
    away = [engine for engine, node in enumerate(placement.nodes(ROLLOUT)) if node != home]
    if away:
        what = "publish.what = adapter" if adapter else f"rollout.weight_transfer = {recipe.rollout.weight_transfer}"
        remedy = (
            "set publish.what = merged"
            if adapter and on_gpu
            else "lower what the fleets claim until one node holds all"
        )
        raise ValueError(
            f"{what} needs every engine on the node of learner rank 0, whose memory the weights go through; engine {away[0]} is on "
            f"another: {remedy}"
        )


def described(recipe: PpoRecipe, *, on_gpu: bool) -> str:
    """The layout in a line, for people."""
    rollout, near, level = recipe.rollout, recipe.near_engines, recipe.sleep_level
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

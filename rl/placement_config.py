"""Settings of the layout: which devices engines and learner ranks compute on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rollout.engine_config import RolloutConfig

Layout = Literal["dedicated", "colocated", "mixed"]


@dataclass(frozen=True)
class PlacementConfig:
    """Who shares devices with whom (`rl.layout` has the picture). On nodes without GPUs all share the cores anyway."""

    mode: Layout = "dedicated"
    sleep: bool = True  # an engine gives its memory on a shared device to the learner while that works; CUDA only
    # of a shared device, for an engine; beside it the learner's weights and states stay
    memory_utilization: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.memory_utilization < 1:
            raise ValueError(
                f"placement.memory_utilization must lie in (0, 1), is {self.memory_utilization}; 0.4 leaves the learner the rest"
            )


def near_engines(mode: Layout, rollout: RolloutConfig, ranks: int) -> int:
    """Engines that share devices with learner ranks: always the first ones of the fleet."""
    return {"dedicated": 0, "colocated": rollout.engines, "mixed": ranks // rollout.tensor_parallel}[mode]


def require_layout(placement: PlacementConfig, rollout: RolloutConfig, ranks: int, gpus: float) -> None:
    """Raise ValueError where `ranks` learner ranks, of `gpus` devices each, and the engines cannot be laid out as asked."""
    mode, width, engines = placement.mode, rollout.tensor_parallel, rollout.engines
    allowed = {"dedicated": ("auto", "nccl", "shared_memory"), "mixed": ("auto",)}.get(mode, ("auto", "ipc"))
    if not placement.sleep:
        allowed = (*allowed, "shared_memory")  # CPUs share cores, and have no memory to give back
    if rollout.weight_transfer not in allowed:
        raise ValueError(
            f'rollout.weight_transfer must be one of {", ".join(allowed)} with placement.mode = "{mode}", is '
            f"{rollout.weight_transfer}: CUDA IPC reaches engines on the learner's devices alone, NCCL all others; set auto"
        )
    if mode == "dedicated":
        return
    if placement.sleep and rollout.max_lag:
        raise ValueError(
            f'rollout.max_lag must be 0 with placement.mode = "{mode}", is {rollout.max_lag}: engines that sleep while the learner '
            'works write no replies ahead; set rollout.max_lag = 0 (and rollout.in_flight = false), or placement.mode = "dedicated"'
        )
    if gpus != 1:
        raise ValueError(
            f'learner.gpus must be 1 with placement.mode = "{mode}", is {gpus}: the engines beside the ranks claim nothing'
        )
    if mode == "colocated" and engines * width != ranks:
        raise ValueError(
            f"rollout.engines x rollout.tensor_parallel = {engines} x {width} must be learner.ranks = {ranks} with "
            f'placement.mode = "colocated"; set learner.ranks = {engines * width}, or placement.mode = "mixed" for more engines'
        )
    if mode == "mixed" and (ranks % width or engines * width <= ranks):
        raise ValueError(
            f"rollout.engines x rollout.tensor_parallel = {engines} x {width} must exceed learner.ranks = {ranks}, a multiple of "
            f'rollout.tensor_parallel, with placement.mode = "mixed"; set rollout.engines to at least {ranks // width + 1} and '
            f"learner.ranks to a multiple of {width}"
        )

"""What this process computes on: the only place that asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Device:
    """A kind of device and what follows from it. `backend` is torch.distributed's, `name` torch's device string."""

    kind: Literal["cpu", "cuda"]
    index: int
    backend: Literal["gloo", "nccl"]

    @property
    def name(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def torch(self) -> torch.device:
        return torch.device(self.name)


def current_device() -> Device:
    """The CUDA device that is current in this process (the first one that Ray gave it, unless set), or the CPU."""
    if torch.cuda.is_available():
        return Device("cuda", torch.cuda.current_device(), "nccl")
    return Device("cpu", 0, "gloo")


def release_cached_memory(device: Device) -> None:
    """Give memory that torch keeps for later, and that holds nothing now, back to the device (CUDA)."""
    if device.kind == "cuda":
        torch.cuda.empty_cache()


def peak_memory_bytes(device: Device) -> int:
    """Largest device memory in use so far (CUDA), or this process's peak resident set (CPU)."""
    if device.kind == "cuda":
        return torch.cuda.max_memory_allocated(device.torch)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

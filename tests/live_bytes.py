"""How many bytes of tensors live: what there is now, and how far allocations rise above it while a block runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Peak(NamedTuple):
    """Bytes of tensors before a call, and the most that it added at once."""

    before: int
    rise: int

    @property
    def total(self) -> int:
        return self.before + self.rise


def live_bytes() -> int:
    """Bytes of the storages of all tensors that Python can reach, each once, on the current kind of device."""
    gc.collect()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == kind:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_of(call: Callable[[], object]) -> Peak:
    """The peak of tensor memory during `call`: on CUDA the caching allocator's own count, on CPU every allocation that
    the profiler reports, those inside kernels included, added up over what lived before."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return Peak(before, torch.cuda.max_memory_allocated() - before)
    before = live_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = highest = 0
    for _, change in changes:
        held += change
        highest = max(highest, held)
    return Peak(before, highest)

"""The learner's side of a publish without vLLM: the stream's type, shared memory, and the control plane.

A `WeightStream` yields the policy's weights under the checkpoint's names, group by group (a group is what vLLM fuses or
packs together: one decoder layer's attention, its experts, the embedding, ...). Iterating it is a collective of the
learner's ranks; rank 0 gets the tensors, the others get them too or empty groups, but all must iterate.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK_BYTES = 1 << 30
_ALIGNMENT = 64  # oneDNN and AVX-512 read aligned rows faster


@dataclass(frozen=True)
class WeightGroup:
    """Tensors that must arrive together. `name` is for people ("layers.3.experts")."""

    name: str
    tensors: tuple[tuple[str, Tensor], ...]


@dataclass(frozen=True)
class TensorSpec:
    """What will be sent: checkpoint name, dtype, shape of the gathered tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightStream(Protocol):
    """A re-iterable source of weights. A fresh pass each time; every rank iterates in lockstep."""

    def specs(self) -> list[TensorSpec]:
        """What iteration yields, tensor by tensor, in order, without gathering anything."""
        ...

    def __iter__(self) -> Iterator[WeightGroup]: ...


class SyncClient(Protocol):
    """The engines' control plane: the four calls of vLLM's `VLLMWeightSyncClient`, fanned out to every engine."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


@dataclass(frozen=True)
class SharedMemoryUpdate:
    """One chunk of a publish: where it lies and how to read it. `last` and `first` bound the publish."""

    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    only_chunk: bool


class SharedMemorySender:
    """Sends a stream through anonymous shared memory to engines on the same node.

    The memory is a memfd that engines open through /proc/PID/fd: it vanishes with this process, however that ends.
    At most `chunk_bytes` (or one group, if that is larger) are staged at a time.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._fd = os.memfd_create("attune-weights")
        self._capacity = 0
        self._map: mmap.mmap | None = None

    def send(self, groups: Iterator[WeightGroup], client: SyncClient, version: int) -> int:
        """Publish every group as policy `version`; returns the bytes sent."""
        client.start_weight_update()
        sent = 0
        chunk: list[tuple[str, Tensor]] = []
        flushed = False
        for group in groups:
            if chunk and _bytes(chunk) + _bytes(group.tensors) > self._chunk_bytes:
                sent += self._flush(chunk, client, only_chunk=False)
                chunk, flushed = [], True
            chunk.extend(group.tensors)
        if chunk:
            sent += self._flush(chunk, client, only_chunk=not flushed)
        client.finish_weight_update(str(version))
        return sent

    def _flush(self, tensors: Sequence[tuple[str, Tensor]], client: SyncClient, *, only_chunk: bool) -> int:
        staging = self._staging(_bytes(tensors))
        offsets, offset = [], 0
        for _, tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            staging[offset : offset + size].copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
            offsets.append(offset)
            offset += _aligned(size)
        update = SharedMemoryUpdate(
            path=f"/proc/{os.getpid()}/fd/{self._fd}",
            names=[name for name, _ in tensors],
            dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
            shapes=[list(tensor.shape) for _, tensor in tensors],
            offsets=offsets,
            only_chunk=only_chunk,
        )
        client.update_weights(asdict(update))
        return offset

    def _staging(self, size: int) -> Tensor:
        if size > self._capacity or self._map is None:
            os.ftruncate(self._fd, size)
            self._map = mmap.mmap(self._fd, size)
            self._capacity = size
        return torch.frombuffer(self._map, dtype=torch.uint8)


def read_shared_memory(update: SharedMemoryUpdate) -> list[tuple[str, Tensor]]:
    """The engine's side: tensors of one chunk.

    Views into the shared memory where the publish has one chunk; copies where the sender will reuse the memory, since
    vLLM keeps padded parameters (an embedding whose vocabulary is rounded up) unread until the publish is finished.
    """
    with open(update.path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = []
    for name, dtype, shape, offset in zip(update.names, update.dtypes, update.shapes, update.offsets, strict=True):
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(memory, dtype=getattr(torch, dtype), count=count, offset=offset).view(shape)
        tensors.append((name, tensor if update.only_chunk else tensor.clone()))
    return tensors


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _bytes(tensors: Sequence[tuple[str, Tensor]]) -> int:
    return sum(_aligned(tensor.numel() * tensor.element_size()) for _, tensor in tensors)

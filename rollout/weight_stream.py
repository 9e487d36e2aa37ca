"""The learner's side of a publish without vLLM: the stream's type, shared memory, and the control plane.

A `WeightStream` yields the policy's weights under the checkpoint's names, group by group (a group is what vLLM fuses or
packs together: one decoder layer's attention, its experts, the embedding, ...). Iterating it is a collective of the
learner's ranks; rank 0 gets the tensors, the others get them too or empty groups, but all must iterate.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
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

    @property
    def bytes(self) -> int:
        """Room it takes in a chunk."""
        return _aligned(torch.Size(self.shape).numel() * self.dtype.itemsize)


@dataclass
class Progress:
    """What a rank's publish is at, in words: set as it goes, read by another thread when nothing comes back."""

    doing: str = "nothing"


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


class EngineSyncClient(SyncClient, Protocol):
    """A control plane that knows its engines."""

    @property
    def workers(self) -> int:
        """Workers of all engines: the receivers of an NCCL publish."""
        ...

    def at(self, version: int) -> EngineSyncClient:
        """The same engines; an update that names no version finishes as `version`."""
        ...

    def within(self, seconds: float) -> EngineSyncClient:
        """The same engines; an answer that is not there `seconds` from now is waited for no longer (ReplicaSilent)."""
        ...

    def by_transfer(self) -> Mapping[str, EngineSyncClient]:
        """The engines that weights reach in one way, way by way."""
        ...

    def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        """Put the adapter of an `AdapterUpdate` in the place of the former; every later token is of `weight_version`."""
        ...


@dataclass(frozen=True)
class SharedMemoryUpdate:
    """One chunk of a publish: where it lies and how to read it. `only_chunk`: the publish has no other."""

    path: str
    host: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    only_chunk: bool


@dataclass(frozen=True)
class AdapterUpdate:
    """A LoRA adapter: its A and B under PEFT's names (`MODULE.lora_A.weight`), its rank and alpha (scaling alpha / rank)."""

    tensors: SharedMemoryUpdate
    rank: int
    alpha: float


class SharedMemorySender:
    """Sends a stream through anonymous shared memory to engines on the same node.

    The memory is a memfd that engines open through /proc/PID/fd: it vanishes with this process, however that ends.
    Tensors are copied as they come (a gathered ZeRO-3 tensor does not outlive its turn), `chunk_bytes` at a time.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES, progress: Progress | None = None) -> None:
        self._chunk_bytes = chunk_bytes
        self._progress = progress or Progress()
        self._fd = os.memfd_create("attune-weights")
        self._staging = torch.empty(0, dtype=torch.uint8)

    def send(self, stream: WeightStream, client: SyncClient, version: int, *, connect: bool = False) -> int:
        """Publish the stream as policy `version`, after the handshake where asked to `connect`; returns the bytes sent.

        When an engine fails, the rest of the stream is still iterated, since the other ranks do; then it raises.
        """
        sizes = [spec.bytes for spec in stream.specs()]
        total = sum(sizes)
        self._reserve(max(min(total, self._chunk_bytes), max(sizes, default=0)))
        with _to_the_end(stream) as groups:
            self._progress.doing = "waiting for the engines to begin"
            if connect:
                client.init_weight_transfer_engine({})
            client.start_weight_update()
            update, used = _empty_update(self._path, only_chunk=total <= self._staging.numel()), 0
            for group in groups:
                for name, tensor in group.tensors:
                    size = tensor.numel() * tensor.element_size()
                    if used + size > self._staging.numel():
                        self._load(client, update)
                        update, used = _empty_update(self._path, only_chunk=False), 0
                    used = self._stage(update, name, tensor, used)
            if update.names:  # an empty stream has no memory that an engine could map
                self._load(client, update)
            self._progress.doing = "waiting for the engines to finish"
            client.finish_weight_update(str(version))
        return total

    def send_adapter(
        self, stream: WeightStream, client: EngineSyncClient, version: int, *, rank: int, alpha: float
    ) -> int:
        """Publish a LoRA adapter, all at once, as policy `version`; returns the bytes sent. Failures as in `send`."""
        total = sum(spec.bytes for spec in stream.specs())
        self._reserve(total)
        with _to_the_end(stream) as groups:
            update, used = _empty_update(self._path, only_chunk=True), 0
            for group in groups:
                for name, tensor in group.tensors:
                    used = self._stage(update, name, tensor, used)
            self._progress.doing = f"waiting for the engines to load {_span(update)}"
            client.load_adapter(asdict(AdapterUpdate(update, rank, alpha)), str(version))
        return total

    def _load(self, client: SyncClient, update: SharedMemoryUpdate) -> None:
        self._progress.doing = f"waiting for the engines to load {_span(update)}"
        client.update_weights(asdict(update))

    def _stage(self, update: SharedMemoryUpdate, name: str, tensor: Tensor, used: int) -> int:
        size = tensor.numel() * tensor.element_size()
        self._staging[used : used + size].copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
        update.names.append(name)
        update.dtypes.append(str(tensor.dtype).removeprefix("torch."))
        update.shapes.append(list(tensor.shape))
        update.offsets.append(used)
        return used + _aligned(size)

    @property
    def _path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def _reserve(self, size: int) -> None:
        if size > self._staging.numel():
            os.ftruncate(self._fd, size)
            self._staging = torch.frombuffer(mmap.mmap(self._fd, size), dtype=torch.uint8)


@contextmanager
def _to_the_end(stream: WeightStream) -> Iterator[Iterator[WeightGroup]]:
    """One pass over `stream` that is made to its end whatever happens to its reader: the other ranks make it too."""
    groups = iter(stream)
    try:
        yield groups
    except BaseException:
        for _ in groups:
            pass
        raise


def _span(update: SharedMemoryUpdate) -> str:
    return f"{update.names[0]} to {update.names[-1]}" if update.names else "nothing"


def _empty_update(path: str, *, only_chunk: bool) -> SharedMemoryUpdate:
    return SharedMemoryUpdate(path, this_host(), [], [], [], [], only_chunk)


def read_shared_memory(update: SharedMemoryUpdate) -> list[tuple[str, Tensor]]:
    """The engine's side: tensors of one chunk.

    Views into the shared memory where the publish has one chunk; copies where the sender will reuse the memory, since
    vLLM keeps padded parameters (an embedding whose vocabulary is rounded up) unread until the publish is finished. Raises
    ValueError on another host than the sender's.
    """
    if update.host != this_host():
        raise ValueError(
            "weights through shared memory reach engines on the host of learner rank 0 alone, this engine is on another; keep them "
            'together on one node or, on GPUs, set publish.what = "merged" or "full" and rollout.weight_transfer = "nccl"'
        )
    with open(update.path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = []
    for name, dtype, shape, offset in zip(update.names, update.dtypes, update.shapes, update.offsets, strict=True):
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(memory, dtype=getattr(torch, dtype), count=count, offset=offset).view(shape)
        tensors.append((name, tensor if update.only_chunk else tensor.clone()))
    return tensors


def this_host() -> str:
    """What tells hosts apart, and containers that do not see each other's processes."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

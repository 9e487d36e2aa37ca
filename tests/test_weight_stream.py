"""Weights through shared memory: what a second process reads is what was sent, bit for bit, whatever the chunks."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rollout.weight_stream import SharedMemorySender, SharedMemoryUpdate, TensorSpec, WeightGroup, read_shared_memory

Named = tuple[str, Tensor]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)


def tensor(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Random bits: NaN payloads, infinities and subnormals among them."""
    count = math.prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def bits(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(received: list[Named], sent: list[Named]) -> bool:
    """Names, order, dtypes, shapes and every bit."""

    def described(named: list[Named]) -> list[tuple[object, ...]]:
        return [(name, x.dtype, tuple(x.shape), bits(x)) for name, x in named]

    return described(received) == described(sent)


class Stream:
    """A `WeightStream` of given groups that counts its passes and, as a gather does, reuses a group's memory."""

    def __init__(self, *groups: list[Named]) -> None:
        self.groups = groups
        self.passes = self.yielded = 0

    @property
    def tensors(self) -> list[Named]:
        return [named for group in self.groups for named in group]

    def specs(self) -> list[TensorSpec]:
        return [TensorSpec(name, x.dtype, tuple(x.shape)) for name, x in self.tensors]

    def __iter__(self) -> Iterator[WeightGroup]:
        self.passes += 1
        for index, group in enumerate(self.groups):
            gathered = [(name, x.clone()) for name, x in group]
            self.yielded += 1
            yield WeightGroup(f"group {index}", tuple(gathered))
            for _, x in gathered:
                x.fill_(77)  # freed: a late reader would see this


class EngineFailed(RuntimeError):
    """What an engine raises in the middle of an update."""


@dataclass
class Client:
    """A `SyncClient` that insists on the order of calls, and reads each chunk when it comes, as an engine does."""

    read: Callable[[SharedMemoryUpdate], list[Named]] = read_shared_memory
    fail_at: str = ""  # the call that fails: "start", "chunk N" or "finish"
    calls: list[str] = field(default_factory=list)
    chunks: list[list[Named]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    version: str | None = None

    def _called(self, name: str, after: tuple[str, ...]) -> None:
        previous = self.calls[-1].split()[0] if self.calls else "nothing"
        assert previous in after, f"{name} after {previous}"
        self.calls.append(name)
        if name == self.fail_at:
            raise EngineFailed(name)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        raise AssertionError("the handshake is the learner's")

    def start_weight_update(self) -> None:
        self._called("start", ("nothing", "finish"))
        self.chunks, self.sizes = [], []

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._called(f"chunk {len(self.chunks)}", ("start", "chunk"))
        update = SharedMemoryUpdate(**update_info)
        assert update.names, "a chunk brings something"
        assert len(update.names) == len(update.dtypes) == len(update.shapes) == len(update.offsets)
        assert all(offset % 64 == 0 for offset in update.offsets)
        assert all(isinstance(x, str | int) for x in (*update.names, *update.dtypes, *chain(*update.shapes)))
        self.chunks.append(self.read(update))
        self.sizes.append(sum(x.numel() * x.element_size() for _, x in self.chunks[-1]))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._called("finish", ("start", "chunk"))
        self.version = weight_version

    @property
    def received(self) -> list[Named]:
        return [named for chunk in self.chunks for named in chunk]


def model(seed: int = 0) -> Stream:
    """Two layers of every dtype, with a scalar, odd sizes and a transposed view."""
    layers = []
    for layer in range(2):
        group = [
            (f"layers.{layer}.{str(dtype)[6:]}", tensor(dtype, 3, 5 + layer, seed=seed + layer)) for dtype in DTYPES
        ]
        group += [(f"layers.{layer}.scalar", tensor(torch.float32, seed=seed))]
        group += [(f"layers.{layer}.transposed", tensor(torch.float32, 7, 9, seed=seed).T)]
        layers.append(group)
    return Stream(*layers)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 512, 1], ids=["one chunk", "several", "one tensor each"])
def test_every_bit_arrives(chunk_bytes: int) -> None:
    """Names, dtypes, shapes and bits arrive in order, in chunks no larger than asked for unless one tensor is.

    The whole publish is one pass over the stream, finished as its version; the bytes said are the room it took.
    """
    stream, client = model(), Client()
    sent = SharedMemorySender(chunk_bytes).send(stream, client, 17)
    assert same(client.received, stream.tensors)
    assert client.version == "17" and client.calls[0] == "start" and client.calls[-1] == "finish"
    assert stream.passes == 1
    assert sent == sum(spec.bytes for spec in stream.specs()) >= sum(client.sizes)
    largest = max(x.numel() * x.element_size() for _, x in stream.tensors)
    assert all(size <= max(chunk_bytes, largest) for size in client.sizes)
    assert (len(client.chunks) == 1) == (chunk_bytes == 1 << 30)


shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
streams = st.lists(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), max_size=4), min_size=1, max_size=4).filter(any)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
@given(layout=streams, chunk_bytes=st.integers(1, 1500))
def test_every_layout_arrives(layout: list[list[tuple[torch.dtype, tuple[int, ...]]]], chunk_bytes: int) -> None:
    """However tensors are grouped (empty groups too) and whatever the chunk size, the same tensors come out."""
    groups = [
        [(f"{i}.{j}", tensor(dtype, *shape, seed=i + j)) for j, (dtype, shape) in enumerate(group)]
        for i, group in enumerate(layout)
    ]
    stream, client = Stream(*groups), Client()
    SharedMemorySender(chunk_bytes).send(stream, client, 0)
    assert same(client.received, stream.tensors)


def test_a_chunk_outlives_the_memory_it_came_in() -> None:
    """Where a publish has several chunks, what an earlier one delivered stays when the memory is used again.

    By the later chunks of its own publish (vLLM reads padded parameters only when it finishes), and by the next one.
    """
    sender, client = SharedMemorySender(chunk_bytes=256), Client()
    first, second = model(seed=1), model(seed=2)
    sender.send(first, client, 0)
    earlier = client.received
    assert same(earlier, first.tensors)
    sender.send(second, client, 1)
    assert same(client.received, second.tensors)
    assert same(earlier, first.tensors)


def test_a_larger_publish_after_a_smaller_one() -> None:
    """A sender grows with what it sends (adapters first, then all weights) and shrinks to a later small one."""
    sender, client = SharedMemorySender(), Client()
    small, large = Stream([("a", tensor(torch.float32, 2))]), model()
    for version, stream in enumerate((small, large, small)):
        sender.send(stream, client, version)
        assert same(client.received, stream.tensors) and len(client.chunks) == 1


def test_a_parameter_is_sent_as_a_value() -> None:
    """A weight that requires gradients arrives as its number, and stays a parameter."""
    weight = torch.nn.Parameter(torch.randn(4, 4))
    client = Client()
    SharedMemorySender().send(Stream([("w", weight)]), client, 0)
    assert same(client.received, [("w", weight.detach())])
    assert weight.requires_grad and not client.received[0][1].requires_grad


@pytest.mark.parametrize("fail_at", ["start", "chunk 0", "chunk 3", "finish"])
def test_a_failing_engine_does_not_strand_the_other_ranks(fail_at: str) -> None:
    """The stream is a collective: it is iterated to its end, once, and then the engine's own error is raised."""
    stream, client = model(), Client(fail_at=fail_at)
    with pytest.raises(EngineFailed, match=fail_at):
        SharedMemorySender(chunk_bytes=128).send(stream, client, 0)
    assert (stream.passes, stream.yielded) == (1, len(stream.groups))
    assert client.version is None


def test_a_failure_does_not_stick() -> None:
    """After a failed publish the same sender sends to new engines."""
    sender, stream = SharedMemorySender(chunk_bytes=128), model()
    with pytest.raises(EngineFailed):
        sender.send(stream, Client(fail_at="chunk 1"), 0)
    client = Client()
    sender.send(stream, client, 0)
    assert same(client.received, stream.tensors)


def test_a_stream_of_nothing_publishes_only_a_version() -> None:
    """No chunk is sent (there is no memory to read), and the engines still learn that a new version holds."""
    client = Client()
    assert SharedMemorySender().send(Stream(), client, 3) == 0
    assert client.calls == ["start", "finish"] and client.version == "3"


def engine(pipe: Connection) -> None:
    """A second process: opens each chunk when told, and reads them when the publish is finished, as vLLM may."""
    chunks: list[list[Named]] = []
    while (update := pipe.recv()) is not None:
        if update == "finish":
            pipe.send([(name, str(x.dtype), list(x.shape), bits(x)) for chunk in chunks for name, x in chunk])
            chunks = []
        else:
            chunks.append(read_shared_memory(update))
            pipe.send(len(chunks))


def test_another_process_reads_the_bits() -> None:
    """A process that shares nothing with the sender but its user and machine reads each publish as it was sent."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=engine, args=(theirs,), daemon=True)
    process.start()

    def read(update: SharedMemoryUpdate) -> list[Named]:
        ours.send(update)
        assert ours.poll(30) and ours.recv() > 0
        return []

    for chunk_bytes, stream in ((1 << 30, model(seed=1)), (512, model(seed=2))):
        sender = SharedMemorySender(chunk_bytes)
        for version in range(2):
            sender.send(stream, Client(read=read), version)
            ours.send("finish")
            assert ours.poll(30)
            assert ours.recv() == [(name, str(x.dtype), list(x.shape), bits(x)) for name, x in stream.tensors]
    ours.send(None)
    process.join(30)
    assert process.exitcode == 0


def sender_that_waits(pipe: Connection) -> None:
    def read(update: SharedMemoryUpdate) -> list[Named]:
        pipe.send(update)
        pipe.recv()
        return []

    SharedMemorySender().send(model(), Client(read=read), 0)


def test_the_memory_goes_with_its_sender() -> None:
    """A killed learner leaves nothing behind: its memory cannot be opened any more."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=sender_that_waits, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(30)
    update = ours.recv()
    assert same(read_shared_memory(update), model().tensors)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    with pytest.raises(OSError):
        read_shared_memory(update)


def test_another_host_is_told_so() -> None:
    """What an engine elsewhere would open under the same path is another process's, or nothing."""

    def read(update: SharedMemoryUpdate) -> list[Named]:
        with pytest.raises(ValueError, match=r"host of learner rank 0 alone.*rollout\.weight_transfer"):
            read_shared_memory(replace(update, host="elsewhere"))
        return read_shared_memory(update)

    SharedMemorySender().send(model(), Client(read=read), 0)

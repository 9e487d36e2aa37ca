"""One rank's part of a publish: what is sent, and the way that it goes. Every method is a collective."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster.pool import ReplicaSilent
from rl.config import PpoRecipe
from rollout.weight_stream import (
    EngineSyncClient,
    Progress,
    SharedMemorySender,
    TensorSpec,
    WeightGroup,
    WeightStream,
)

if TYPE_CHECKING:
    from rl.zero import ZeroEngine

_ADAPTER = "the adapter"


class Publisher:
    """Sends the policy of `zero` as `publish.what` says, through shared memory or vLLM's trainer engines for CUDA.

    An adapter is tens of MB: it goes through the host's shared memory, and one call, whatever carries weights. `progress`
    says what this rank is at.
    """

    def __init__(self, recipe: PpoRecipe, zero: ZeroEngine) -> None:
        from rl.zero import (  # the driver names who holds this, and saves DeepSpeed's seconds
            AdapterStream,
            PolicyStream,
        )

        self.progress = Progress()
        self._limit_s = recipe.publish.timeout_s
        self._lora = recipe.model.lora
        self._part = recipe.publish.part(recipe.model.tuning)
        self._rank = zero.rank
        policy: Any = zero.engine.module.policy
        self._stream: WeightStream = (
            AdapterStream(policy, progress=self.progress)
            if self._part == "adapter"
            else PolicyStream(policy, only_trained=self._part == "merged", progress=self.progress)
        )
        self._sender = SharedMemorySender(progress=self.progress)
        self._ways: set[str] = set()  # of the last publish: two where some engines are on the learner's devices
        self._trainers: dict[str, Any] = {}  # vLLM's, by way

    def publish(self, client: EngineSyncClient, version: int, connect: bool) -> dict[str, float]:
        """`PpoLearner.publish`: metrics `publish/bytes` (what the engines are given to read) and `publish/seconds`.

        Raises ReplicaSilent when an engine does not answer within `publish.timeout_s`, with the tensors that it was sent.
        """
        started, client = time.perf_counter(), client.within(self._limit_s)
        try:
            sent = self._send(client, version, connect)
        except ReplicaSilent as error:
            raise ReplicaSilent(f"{error}; learner rank {self._rank} was {self.progress.doing}") from error
        self.progress.doing = "done"
        return {"publish/bytes": float(sent), "publish/seconds": time.perf_counter() - started}

    def resend(self, client: EngineSyncClient, version: int, group: str) -> None:
        """Send one of `groups` again, the others not."""
        client = client.within(self._limit_s)
        if self._part == "adapter":
            self._send(client, version, connect=False)
        else:
            self._send_shared(_OneGroup(self._stream, group), client, version, connect=False)

    def groups(self) -> list[str]:
        """What `resend` can send alone: through shared memory each tensor group, or the adapter; by CUDA nothing."""
        if self._part == "adapter":
            return [_ADAPTER]
        return [group.name for group in self._stream] if self._ways == {"shared_memory"} else []

    def _send(self, client: EngineSyncClient, version: int, connect: bool) -> int:
        if self._part == "adapter":
            if self._rank != 0:
                return _only_gather(self._stream)
            rank, alpha = self._lora.rank, self._lora.alpha
            return self._sender.send_adapter(self._stream, client, version, rank=rank, alpha=alpha)
        ways = client.by_transfer()
        self._ways = set(ways)
        return sum(self._send_by(way, engines, version, connect) for way, engines in ways.items())

    def _send_by(self, way: str, engines: EngineSyncClient, version: int, connect: bool) -> int:
        if way == "shared_memory":
            return self._send_shared(self._stream, engines, version, connect)
        return self._send_cuda(way, engines, version, connect)

    def _send_shared(self, stream: WeightStream, client: EngineSyncClient, version: int, connect: bool) -> int:
        if self._rank != 0:
            return _only_gather(stream)
        return self._sender.send(stream, client, version, connect=connect)

    def _send_cuda(self, way: str, client: EngineSyncClient, version: int, connect: bool) -> int:
        from rollout.vllm_weights import cuda_publish, cuda_trainer

        trainer = self._trainers.get(way)
        if connect or trainer is None:
            self.progress.doing = f"waiting for the engines' {way} handshake"
            if trainer is not None:
                trainer.shutdown()
            trainer = self._trainers[way] = cuda_trainer(way, self._stream, client, rank=self._rank)
        cuda_publish(way, trainer, client, version)
        return sum(spec.bytes for spec in self._stream.specs())


class _OneGroup:
    """One group of a stream; the collective still passes every layer."""

    def __init__(self, stream: WeightStream, group: str) -> None:
        self._stream, self._group = stream, group

    def specs(self) -> list[TensorSpec]:
        return self._stream.specs()

    def __iter__(self) -> Iterator[WeightGroup]:
        return (group for group in self._stream if group.name == self._group)


def _only_gather(stream: WeightStream) -> int:
    for _ in stream:
        pass
    return 0

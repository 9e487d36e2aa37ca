"""Engines that share devices with the learner: what they are told, and how one gives its memory back and takes it again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from rollout.engine_config import EngineSpec

WEIGHTS, CACHE = "weights", "kv_cache"  # vLLM's names of what sleeps and wakes apart, in the order of waking
SleepLevel = Literal[0, 1, 2]  # never; weights wait in host memory; they are dropped, and the next publish brings all


@dataclass(frozen=True)
class Sharing:
    """Engine i < len(devices) computes on `devices[i]`, as the learner's ranks there name them; the others on their own."""

    devices: tuple[tuple[str, ...], ...] = ()
    sleep_level: SleepLevel = 0
    memory_utilization: float = 1.0  # of a shared device, for the engine

    def spec(self, own: EngineSpec, index: int) -> EngineSpec:
        """What engine `index` needs: `own` where it has devices of its own, or none at all (CPUs)."""
        if index >= len(self.devices) or not self.devices[index]:
            return own
        visible = {
            # Ray has lent them to the ranks, and sets nothing here
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices[index]),
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # a CUDA IPC handle reaches vLLM's core as a pickle
        }
        return replace(
            own,
            weight_transfer="ipc" if own.weight_transfer == "nccl" else own.weight_transfer,
            memory_utilization=self.memory_utilization,
            sleep_level=self.sleep_level,
            environment={**own.environment, **visible},
        )


class Sleeper(Protocol):
    """vLLM's AsyncLLM, as far as it sleeps."""

    async def sleep(self, level: int = 1) -> None: ...

    async def wake_up(self, tags: list[str] | None = None) -> object: ...


class Rest:
    """One engine's sleep. `sleep` when the learner wants the device, `wake` before tokens, `wake_weights` before weights.

    Each does what is still to do, so that an engine that was replaced in between (it starts awake) needs no special care.
    """

    def __init__(self, llm: Sleeper, level: SleepLevel) -> None:
        self._llm, self._level = llm, level
        self._asleep: tuple[str, ...] = ()
        self._lost = False  # the weights were dropped, and no publish has brought others
        self._seconds = {"time/sleep_s": 0.0, "time/wake_s": 0.0}

    async def sleep(self) -> None:
        """Give the device's memory back; no request may be running."""
        if not self._level or self._asleep == (WEIGHTS, CACHE):
            return
        started = time.perf_counter()
        self._lost = self._lost or self._level == 2
        await self._llm.sleep(self._level)
        self._asleep = (WEIGHTS, CACHE)
        self._seconds["time/sleep_s"] += time.perf_counter() - started

    async def wake(self) -> None:
        """Take all memory again, to generate."""
        assert not self._lost, "the weights were dropped for the learner: publish before generating"
        await self._wake((WEIGHTS, CACHE))

    async def wake_weights(self) -> None:
        """Take the weights' memory again, to receive a publish; the cache waits until the learner has made room."""
        await self._wake((WEIGHTS,))

    def renewed(self) -> None:
        """A publish has brought every weight that was dropped."""
        self._lost = False

    def seconds(self) -> dict[str, float]:
        """`time/sleep_s` and `time/wake_s` since they were last asked for; none where the engine never sleeps."""
        told = dict(self._seconds) if self._level else {}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return told

    async def _wake(self, parts: Sequence[str]) -> None:
        wanted = [part for part in parts if part in self._asleep]
        if not wanted:
            return
        started = time.perf_counter()
        await self._llm.wake_up(wanted)
        self._asleep = tuple(part for part in self._asleep if part not in wanted)
        self._seconds["time/wake_s"] += time.perf_counter() - started

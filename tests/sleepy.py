"""Engines and learner ranks that only mind whose a shared device is. They load nothing: a cluster of them starts quickly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from rollout.engine_config import EngineSpec
from rollout.sharing import CACHE, WEIGHTS, Rest
from rollout.types import Finish, Prompt, Rollout, Sampling, VersionSpan


class SleepyLlm:
    """vLLM's sleep mode as vLLM keeps it: what sleeps cannot be used, what sleeps at level 2 is lost, and every misuse raises."""

    def __init__(self, version: int = -1) -> None:
        self.awake = {WEIGHTS, CACHE}
        self.version: int | None = version  # of the weights; None: whatever lay in the memory
        self.receiving = False
        self.told: list[str] = []

    async def sleep(self, level: int = 1) -> None:
        """Give up all memory; level 2 keeps no copy of the weights."""
        assert level in (1, 2) and WEIGHTS in self.awake and not self.receiving
        self.told.append(f"sleep {level}")
        self.awake = set()
        if level == 2:
            self.version = None

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        """Take memory again. vLLM ignores the whole call when one of `tags` is awake."""
        wanted = {WEIGHTS, CACHE} if tags is None else set(tags)
        assert not wanted & self.awake, f"{wanted & self.awake} is awake"
        self.told.append(f"wake {' '.join(sorted(wanted))}")
        self.awake |= wanted
        return self.awake == {WEIGHTS, CACHE}

    async def start_weight_update(self) -> None:
        """Weights must have memory; the cache need not."""
        assert WEIGHTS in self.awake, "weights were sent to an engine whose weights sleep"
        self.told.append("start" if CACHE in self.awake else "start without cache")
        self.receiving = True

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """From now on the weights are of this version."""
        assert self.receiving and weight_version is not None
        self.receiving, self.version = False, int(weight_version)
        self.told.append(f"version {weight_version}")

    def use(self) -> int:
        """What a token is sampled with."""
        assert self.awake == {WEIGHTS, CACHE}, f"asked while {({WEIGHTS, CACHE}) - self.awake} sleeps"
        assert self.version is not None and not self.receiving, "asked while the memory holds no weights"
        self.told.append("generate")
        return self.version


class SleepyEngine:
    """`VllmEngine` round a `SleepyLlm`. A file named `dies` in ATTUNE_TEST_FOLDER kills the next that is told to sleep, one named
    `hangs` keeps all of them from it."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.update(spec.environment)
        self._spec, self._llm = spec, SleepyLlm()
        self._rest = Rest(self._llm, spec.sleep_level)

    async def ready(self) -> int:
        """This process."""
        return os.getpid()

    async def where(self) -> tuple[str, str, str]:
        """Node, devices that it sees, how weights come."""
        node = ray.get_runtime_context().get_node_id()
        return node, os.environ.get("CUDA_VISIBLE_DEVICES", ""), self._spec.weight_transfer

    async def told(self) -> list[str]:
        """What vLLM was told so far."""
        return list(self._llm.told)

    async def awake(self) -> set[str]:
        """What has device memory."""
        return set(self._llm.awake)

    async def generate(self, prompts: Sequence[Prompt], samples: Sequence[int], sampling: Sampling) -> list[Rollout]:
        """One word per prompt."""
        await self._rest.wake()
        spans = (VersionSpan(self._llm.use(), 0, 1),)
        return [
            Rollout(p, s, (1,), (-1.0,), spans, "well", Finish.STOPPED) for p, s in zip(prompts, samples, strict=True)
        ]

    async def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """As the ranks have them where the weights are theirs."""
        await self._rest.wake()
        return [[-float(self._llm.use())] * len(reply) for _, reply in sequences]

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Needs no memory."""

    async def start_weight_update(self) -> None:
        """As `VllmEngine` does it."""
        await self._rest.wake_weights()
        await self._llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Only between start and finish."""
        assert self._llm.receiving

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """As `VllmEngine` does it."""
        await self._llm.finish_weight_update(weight_version)
        self._rest.renewed()

    async def sleep(self) -> None:
        """As `VllmEngine` does it, or death."""
        dies = Path(self._spec.environment["ATTUNE_TEST_FOLDER"]) / "dies"
        if dies.exists():
            dies.unlink()
            os._exit(1)
        while dies.with_name("hangs").exists():
            await asyncio.sleep(0.1)
        await self._rest.sleep()

    async def rest_seconds(self) -> dict[str, float]:
        """As `VllmEngine` does it."""
        return self._rest.seconds()


class SleepyRank:
    """`PpoLearner` without a model: it works only where no engine on its device holds memory."""

    def __init__(self, recipe: object) -> None:
        self._rank, self._version = int(os.environ["RANK"]), -1
        self._near: list[Any] = []
        self._room = True

    def where(self) -> tuple[int, str, str, str]:
        """Rank, node, devices that it sees, and their index there."""
        node = ray.get_runtime_context().get_node_id()
        return self._rank, node, os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.environ["LOCAL_RANK"]

    def annotate(self, batch: object) -> object:
        """The device must be the learner's."""
        self._work()
        return batch

    def update(self, experience: object) -> Mapping[str, float]:
        """The device must be the learner's."""
        self._work()
        return {}

    def _work(self) -> None:
        for engine in self._near:
            assert ray.get(engine.awake.remote()) == set(), "out of memory: an engine holds the device"
        self._room = False  # torch keeps what the work took

    def make_room(self) -> None:
        """What torch kept goes back."""
        self._room = True

    def doing(self) -> str:
        """Nothing hangs here."""
        return "nothing"

    def publish(self, client: Any, version: int, connect: bool) -> dict[str, float]:
        """Rank 0 sends, one way after another."""
        self._version = version
        ways = client.by_transfer()
        assert self._room or "ipc" not in ways, "out of memory: an engine wakes beside what torch kept"
        self._near = ways["ipc"]._engines if "ipc" in ways else []
        if self._rank == 0:
            for engines in ways.values():
                if connect:
                    engines.init_weight_transfer_engine({})
                engines.start_weight_update()
                engines.update_weights({})
                engines.at(version).finish_weight_update()
        return {"publish/ways": float(len(ways))}

    def probe(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """A number that tells versions apart."""
        return [[-float(self._version)] * len(reply) for _, reply in sequences]

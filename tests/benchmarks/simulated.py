"""Engines that sleep for as long as a cost model says, and answer as the real ones do; simulated_ranks.py has the rest of a run.

They stand in for `VllmEngine` behind the real fleet: same methods, same types, as many bytes. Nothing heavy is imported here, so
that a machine holds hundreds. Each call leaves a line in a journal of its own process: who worked from when to when (seconds since
the epoch), and the cost that the model asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rollout.engine_config import EngineSpec
from rollout.types import Finish, Prompt, Rollout, Sampling, VersionSpan

PROBE_LOGPROB = -1.0  # nats: engines and learner agree on every token
_VOCABULARY, _POOL = 32_000, 8192
_TEXT = "I hear how tired you are and that nothing which used to help seems to reach you now. What would help tonight? "


@dataclass(frozen=True)
class CostModel:
    """Seconds of Mixtral-8x7B in bf16 on H100 devices. Where a source gives a bound, the bound is taken: real fleets are
    slower, so that what driver and Ray add counts for more here than it would there."""

    decode_step_s: float = 93_405_577_216 / (2 * 3.35e12)
    """One token of every running reply: each weight is read once (sizes of the published safetensors; 16 replies x 2 of 8
    experts leave hardly one unread) by two H100 SXM at the 3.35 TB/s of NVIDIA's data sheet."""
    prefill_tokens_per_s: float = 2 * 468e12 / (2 * 12.9e9)
    """2 FLOP per token and active parameter (12.9e9, Mixtral's paper, arXiv:2401.04088) at the rate of `device_flops`."""
    texts_per_s: float = 42.9
    """Of one reward actor with all offline terms on a CPU core: measured, eval/LOG.md (`tests.benchmarks.rewards`)."""
    learner_devices: int = 256
    device_flops: float = 468e12
    """Per H100, training Mixtral-8x7B in bf16: published by Megatron-Core for its MoE training."""
    forward_flops: float = 2 * 12.9e9
    """Per token; a backward is twice that."""
    publish_bytes: float = 2 * 1.34e9
    """Attention of all 32 layers in bf16, adapters merged."""
    publish_bytes_per_s: float = 8.25e9
    """OpenRLHF's published NCCL weight sync."""
    engine_start_s: float = 18.0
    """A replacement: measured for a small model on CPU (AsyncLLM); a large one loads its weights besides."""

    def rollout(self, prompt_tokens: int, lengths: Sequence[int]) -> float:
        """Replies of these lengths, all running at once, behind one prefill of each prompt."""
        return prompt_tokens / self.prefill_tokens_per_s + max(lengths) * self.decode_step_s

    def reward(self, texts: int) -> float:
        """Texts of one actor."""
        return texts / self.texts_per_s

    def annotate(self, tokens: int) -> float:
        """Forward passes of policy, reference and critic."""
        return 3 * self.forward_flops * tokens / (self.device_flops * self.learner_devices)

    def update(self, tokens: int, epochs: int) -> float:
        """Forward and backward passes of policy and critic."""
        return epochs * 2 * 3 * self.forward_flops * tokens / (self.device_flops * self.learner_devices)

    def publish(self) -> float:
        """Sending what training changed."""
        return self.publish_bytes / self.publish_bytes_per_s


@dataclass(frozen=True)
class Lengths:
    """Tokens of a reply: `mean`, or lognormal round it with `spread` (standard deviation of the logarithm; 0: all alike)."""

    mean: int = 1000
    spread: float = 0.0

    def draw(self, seed: str) -> int:
        """The length of the reply with this seed, before the token budget cuts it."""
        noise = random.Random(seed).gauss(-(self.spread**2) / 2, self.spread) if self.spread else 0.0
        return max(1, round(self.mean * 2.718281828459045**noise))


@dataclass(frozen=True)
class World:
    """What every simulated part knows."""

    folder: str = ""  # of the journals
    cost: CostModel = field(default_factory=CostModel)
    lengths: Lengths = field(default_factory=Lengths)


@dataclass(frozen=True)
class SimulatedSpec(EngineSpec):
    """What a simulated engine is built from."""

    world: World = field(default_factory=World)


class Journal:
    """The lines of one part."""

    _numbers = itertools.count()  # of this process

    def __init__(self, folder: str, part: str) -> None:
        self._who = f"{os.getpid()}-{next(self._numbers)}"
        self._file = (Path(folder) / f"{part}-{self._who}.jsonl").open("a")
        self._part = part

    def note(self, work: str, started: float, cost: float, step: int | None = None) -> None:
        """`work` that began at `started` ends now; the model says it takes `cost` seconds."""
        line = {"part": self._part, "who": self._who, "work": work, "step": step}
        line |= {"start": started, "end": time.time(), "cost": cost}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class SimulatedEngine:
    """`VllmEngine`'s methods. `behave` and `die_in` are for experiments."""

    def __init__(self, spec: SimulatedSpec) -> None:
        self._cost, self._lengths, self._journal = (
            spec.world.cost,
            spec.world.lengths,
            Journal(spec.world.folder, "rollout"),
        )
        self._born, self._slowness, self._version = time.time(), 1.0, -1
        self._open, self._closing = asyncio.Event(), asyncio.Event()  # while weights arrive: closed, closing
        self._open.set()
        noise = random.Random(0)
        self._ids = array("i", (noise.randrange(_VOCABULARY) for _ in range(_POOL)))
        self._logprobs = array("d", (-noise.expovariate(1.0) for _ in range(_POOL)))
        self._text = _TEXT * (4 * _POOL // len(_TEXT) + 1)  # four letters a token

    async def ready(self) -> int:
        """Answer once the model would be loaded."""
        await asyncio.sleep(max(0.0, self._born + self._cost.engine_start_s - time.time()))
        return os.getpid()

    async def generate(self, prompts: Sequence[Prompt], samples: Sequence[int], sampling: Sampling) -> list[Rollout]:
        await self.ready()
        started, worked = time.time(), 0.0
        replies = [self._reply(p, k, sampling) for p, k in zip(prompts, samples, strict=True)]
        prefill = self._cost.rollout(sum({p.id: len(p.token_ids) for p in prompts}.values()), [0])
        longest = max(len(reply.response_ids) for reply in replies)
        cost = self._slowness * (prefill + longest * self._cost.decode_step_s)
        changes = list[tuple[int, int]]()  # (first token, version)
        while True:
            await self._open.wait()  # weights that arrive stop the replies where they are
            resumed = time.time() if changes else started
            token = int(max(worked / self._slowness - prefill, 0.0) / self._cost.decode_step_s)
            changes.append((token, self._version))
            try:
                await asyncio.wait_for(self._closing.wait(), max(resumed + cost - worked - time.time(), 0.0))
                worked += time.time() - resumed
            except TimeoutError:
                break
        self._journal.note("generate", started, cost, step=sampling.seed)
        return [replace(reply, versions=_spans(changes, len(reply.response_ids))) for reply in replies]

    async def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        await self.ready()
        started, cost = time.time(), self._cost.rollout(sum(len(p) + len(r) for p, r in sequences), [1])
        await asyncio.sleep(cost)
        self._journal.note("probe", started, cost)
        return [[PROBE_LOGPROB] * len(reply) for _, reply in sequences]

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self.ready()

    async def start_weight_update(self) -> None:
        self._open.clear()
        self._closing.set()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """The learner's rank sleeps for both ends."""

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert weight_version is not None
        self._version = int(weight_version)
        self._closing.clear()
        self._open.set()

    async def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        """As `finish_weight_update`."""
        await self.finish_weight_update(weight_version)

    async def sleep(self) -> None:
        """Its devices are its own."""

    async def rest_seconds(self) -> dict[str, float]:
        return {}

    async def end(self) -> None:
        os._exit(1)

    async def shutdown(self) -> None:
        """Nothing is held."""

    async def behave(self, lengths: Lengths, slowness: float) -> None:
        """Write replies of these lengths from now on, `slowness` times as slowly as the model says."""
        self._lengths, self._slowness = lengths, slowness

    async def die_in(self, seconds: float) -> None:
        """End the process then, as a crash does."""
        asyncio.get_running_loop().call_later(seconds, os._exit, 1)

    def _reply(self, prompt: Prompt, sample: int, sampling: Sampling) -> Rollout:
        seed = f"{sampling.seed} {prompt.id} {sample}"
        wanted = self._lengths.draw(seed)
        count = min(wanted, sampling.max_tokens)
        first = random.Random(seed).randrange(_POOL)
        ids, logprobs = (
            pool[first : first + count] + pool[: max(0, first + count - _POOL)] for pool in (self._ids, self._logprobs)
        )
        letter = first % len(_TEXT)
        return Rollout(
            prompt=prompt,
            sample=sample,
            response_ids=ids,
            sampled_logprobs=logprobs,
            versions=(),
            text=self._text[letter : letter + 4 * count],
            finish=Finish.TRUNCATED if wanted > sampling.max_tokens else Finish.STOPPED,
        )


class Host:
    """One process for several engines, which answer as if each were an actor of its own (`Tenant`).

    A process of Ray's that has nothing to do wakes 60 times a second: 256 of them are more than two cores.
    """

    def __init__(self) -> None:
        self._engines: dict[int, SimulatedEngine] = {}

    async def house(self, index: int, spec: SimulatedSpec) -> None:
        """An engine of this name begins to start."""
        self._engines[index] = SimulatedEngine(spec)

    async def call(self, index: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the engine answers."""
        return await getattr(self._engines[index], method)(*args, **kwargs)


@dataclass(frozen=True)
class Tenant:
    """What an actor's handle is to its engine: `tenant.generate.remote(...)`."""

    host: Any
    index: int

    def __getattr__(self, method: str) -> _Method:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method)


@dataclass(frozen=True)
class _Method:
    tenant: Tenant
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """A reference to the answer."""
        return self.tenant.host.call.remote(self.tenant.index, self.name, *args, **kwargs)


def _spans(changes: Sequence[tuple[int, int]], count: int) -> tuple[VersionSpan, ...]:
    """The versions of a reply of `count` tokens, when the engine's was another from those tokens on."""
    stops = [*(token for token, _ in changes[1:]), count]
    return tuple(
        VersionSpan(version, start, min(stop, count))
        for (start, version), stop in zip(changes, stops, strict=True)
        if start < min(stop, count)
    )

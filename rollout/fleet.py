"""The fleet of vLLM engines as one `RolloutEngine`: placement, balance, failure policy, control plane of publishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.placement import NO_DEVICES, Placement, has_gpus
from cluster.pool import DEATHS, Pool, ReplicaSilent
from rollout.engine_config import EngineSpec, RolloutConfig
from rollout.sharing import Sharing
from rollout.types import Prompt, Rollout, Sampling

FLEET = "rollout engine"
SLEEP_LIMIT_S = 600.0  # copying the weights of any engine to host memory takes seconds


class EngineLost(RuntimeError):
    """An engine died during a publish; the fleet replaces it and the publish is made again."""


class EngineClient:
    """vLLM's weight-sync control plane over Ray, fanned out to every engine. Travels to the learner's ranks."""

    def __init__(
        self,
        engines: Sequence[ActorHandle[Any]],
        tensor_parallel: int,
        version: int | None = None,
        deadline: float | None = None,
        transfers: Sequence[str] = (),
    ) -> None:
        """`transfers`: by engine, how weights reach it (`EngineSpec.weight_transfer`)."""
        self._engines = list(engines)
        self._tensor_parallel = tensor_parallel
        self._version = version
        self._deadline = deadline  # on this process's monotonic clock
        self._transfers = list(transfers)

    def at(self, version: int) -> EngineClient:
        """The same engines; an update that names no version (vLLM's own trainers) finishes as `version`."""
        return self._but(_version=version)

    def within(self, seconds: float) -> EngineClient:
        """The same engines; an answer that is not there `seconds` from now is waited for no longer (ReplicaSilent)."""
        return self._but(_deadline=time.monotonic() + seconds)

    def by_transfer(self) -> dict[str, EngineClient]:
        """The engines that weights reach in one way, way by way: a publish is made once for each."""
        engines: dict[str, list[ActorHandle[Any]]] = {}
        for transfer, engine in zip(self._transfers, self._engines, strict=True):
            engines.setdefault(transfer, []).append(engine)
        return {way: self._but(_engines=some, _transfers=[way] * len(some)) for way, some in engines.items()}

    def _but(self, **changed: Any) -> EngineClient:
        other = copy(self)
        vars(other).update(changed)
        return other

    @property
    def engines(self) -> tuple[ActorHandle[Any], ...]:
        """Who they are: one that was replaced is another."""
        return tuple(self._engines)

    @property
    def workers(self) -> int:
        """Workers of all engines: the receivers of an NCCL publish."""
        return len(self._engines) * self._tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self._engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:  # NCCL: each engine's workers have ranks of their own
                info["rank_offset"] += index * self._tensor_parallel
        self._get(
            "the handshake",
            [e.init_weight_transfer_engine.remote(i) for e, i in zip(self._engines, infos, strict=True)],
        )

    def start_weight_update(self) -> None:
        self._get("the start of an update", [e.start_weight_update.remote() for e in self._engines])

    def update_weights(self, update_info: Any) -> None:
        self._get("new weights", [e.update_weights.remote(update_info) for e in self._engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        version = str(self._version) if weight_version is None else weight_version
        self._get("the end of an update", [e.finish_weight_update.remote(version) for e in self._engines])

    def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        self._get("a new adapter", [e.load_adapter.remote(update, weight_version) for e in self._engines])

    def _get(self, what: str, refs: list[Any]) -> None:
        pending = list(refs)
        while pending:  # one by one as they end: in a collective the death of one engine keeps the others waiting
            left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                raise ReplicaSilent(f"{FLEET} {refs.index(pending[0])} of {len(refs)} does not answer {what}")
            if pending:  # and who else has: hundreds, one at a time, would take as many looks at all of them
                more, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
                done += more
            try:
                ray.get(done)
            except DEATHS as error:
                raise EngineLost(f"a rollout engine died while it received weights: {error}") from error


class RolloutFleet:
    """N engines behind one `generate`. A dead engine is replaced, given the current weights, and asked again.

    `engine` is the class of an engine, built from `spec`; None: `VllmEngine`, to whose methods any other answers too. Engines that
    share devices with the learner (`sharing`) sleep when they are told to, and wake by themselves for whatever they are asked next.
    """

    def __init__(
        self,
        spec: EngineSpec,
        engines: int,
        placement: Placement,
        *,
        restarts: int,
        engine: Callable[[EngineSpec], object] | None = None,
        sharing: Sharing = Sharing(),  # noqa: B008  frozen
    ) -> None:
        self._spec = spec
        self._specs = [sharing.spec(spec, index) for index in range(engines)]
        self._near = sum(1 for devices in sharing.devices if devices)
        self._sleepers = self._near if sharing.sleep_level else 0
        self._engine = engine
        self._placement = placement
        self._pool = Pool(FLEET, engines, self._spawn, restarts=restarts)

    def _spawn(self, index: int) -> ActorHandle[Any]:
        from rollout.vllm_engine import VllmEngine

        spec = self._specs[index]
        environment = {**spec.environment, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        options = self._placement.options(FLEET, index)
        actor = ray.remote(self._engine or VllmEngine)
        return actor.options(runtime_env={"env_vars": environment}, **options).remote(spec)

    def ready(self) -> list[int]:
        """Wait until every engine can generate; their process ids."""
        from rollout.vllm_engine import VllmEngine

        return self._pool.everyone(VllmEngine.ready)

    @property
    def deaths(self) -> int:
        """Engines replaced so far."""
        return self._pool.deaths

    def on_replace(self, publish: Callable[[], None]) -> None:
        """How a replacement gets the current weights."""
        self._pool.revive = publish

    def restart(self, client: EngineClient) -> None:
        """Replace every engine of `client`: one that was in the middle of an update is of no use any more."""
        self._pool.replace(client.engines)

    def close(self) -> None:
        """Give up what is being generated, and replace no engine any more."""
        self._pool.close()

    def client(self) -> EngineClient:
        """The control plane of the engines that live now."""
        transfers = [spec.weight_transfer for spec in self._specs]
        return EngineClient(self._pool.replicas, self._spec.tensor_parallel, transfers=transfers)

    @property
    def shares_devices(self) -> bool:
        """Whether engines compute on the learner's devices."""
        return self._near > 0

    def settle(self) -> None:
        """Return when the learner may load: at once where it has its devices alone, else when the engines there sleep.

        vLLM measures a device's memory while it starts: nobody else may change it then.
        """
        from rollout.vllm_engine import VllmEngine

        self._pool.map(VllmEngine.ready, [()] * self._near)
        self.sleep()

    def sleep(self) -> None:
        """Leave shared devices to the learner; on return it has them. Engines with devices of their own stay awake.

        Raises ReplicaSilent when one does not sleep within `SLEEP_LIMIT_S`.
        """
        from rollout.vllm_engine import VllmEngine

        deaths = -1
        while self._sleepers and deaths != self._pool.deaths:  # a replacement was given weights: that woke the others
            deaths = self._pool.deaths
            self._pool.map(VllmEngine.sleep, [()] * self._sleepers, limit_s=SLEEP_LIMIT_S)

    def rest_seconds(self) -> dict[str, float]:
        """`time/sleep_s` and `time/wake_s` since last asked for, of the slowest engine; none where none sleeps."""
        from rollout.vllm_engine import VllmEngine

        told = self._pool.map(VllmEngine.rest_seconds, [()] * self._sleepers)
        return {name: max(seconds.get(name, 0.0) for seconds in told) for seconds in told[:1] for name in seconds}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.n` rollouts per prompt, in prompt order (`RolloutEngine.generate`).

        Prompts are dealt out by outstanding tokens, largest first, siblings together (they share a prefix); the deal
        depends on the prompts alone, so a run repeats whichever engine dies.
        """
        from rollout.vllm_engine import VllmEngine

        shares = deal([len(p.token_ids) + sampling.n * sampling.max_tokens for p in prompts], len(self._pool))
        asks = [
            (
                [prompts[i] for i in share for _ in range(sampling.n)],
                [k for _ in share for k in range(sampling.n)],
                sampling,
            )
            for share in shares
        ]
        answers: dict[int, list[Rollout]] = {}
        for share, rollouts in zip(shares, self._pool.map(VllmEngine.generate, asks), strict=True):
            for position, index in enumerate(share):
                answers[index] = rollouts[position * sampling.n : (position + 1) * sampling.n]
        return [rollout for index in range(len(prompts)) for rollout in answers[index]]

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Reply log-probs (`RolloutEngine.logprobs`) from the first engine; see `every_logprobs` for all."""
        return self.every_logprobs(sequences)[0]

    def every_logprobs(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, limit_s: float | None = None
    ) -> list[list[list[float]]]:
        """The same question to every engine: the probe must hold for each. ReplicaSilent where one takes over `limit_s`."""
        from rollout.vllm_engine import VllmEngine

        return self._pool.everyone(VllmEngine.logprobs, sequences, limit_s=limit_s)

    def kill(self) -> None:
        """End every engine with all its processes, also one that no longer answers."""
        from rollout.vllm_engine import VllmEngine

        self._pool.kill(VllmEngine.end)


def engine_spec(config: RolloutConfig, model: str, revision: str, dtype: str, end_ids: tuple[int, ...]) -> EngineSpec:
    """What one engine needs to serve `model` as `config` says, on the kind of device that this cluster has."""
    require_routing(config)
    on_gpu = has_gpus()
    environment = {"VLLM_LOGGING_LEVEL": "WARNING"}
    if not on_gpu:
        environment |= NO_DEVICES
    if config.router_replay:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "1"  # the other one does not say which experts it chose
    return EngineSpec(
        model=model,
        revision=revision or None,
        dtype=dtype,
        end_ids=end_ids,
        tensor_parallel=config.tensor_parallel,
        max_model_len=config.max_model_len,
        max_concurrent=config.max_concurrent,
        max_batched_tokens=None if on_gpu else max(8192, config.max_model_len),
        chunked_prefill=on_gpu,
        kv_cache_bytes=int(config.kv_cache_gb * 2**30) or None,
        memory_utilization=config.memory_utilization,
        eager=config.eager,
        weight_transfer=config.transfer(on_gpu=on_gpu),
        router_replay=config.router_replay,
        environment=environment,
        threads=None if on_gpu else config.threads,
    )


def require_routing(config: RolloutConfig) -> None:
    """Raise ValueError when engines are asked for their experts on a cluster where vLLM does not tell them."""
    if config.router_replay and not has_gpus():
        raise ValueError(
            "rollout.router_replay must be false where engines compute on CPUs, is true: vLLM tells which experts it chose only "
            "on CUDA; set rollout.router_replay = false"
        )


def deal(weights: Sequence[int], hands: int) -> list[list[int]]:
    """Deal items to `hands` hands: the heaviest first, each to the lightest hand; items of a hand in index order.

    Hands may stay empty when there are fewer items.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [0] * hands
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        lightest = loads.index(min(loads))
        dealt[lightest].append(index)
        loads[lightest] += weights[index]
    return [sorted(hand) for hand in dealt]

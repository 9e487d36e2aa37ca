"""Settings of the rollout engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.settings import require_at_least

WeightTransfer = Literal["auto", "shared_memory", "nccl", "ipc"]


@dataclass(frozen=True)
class RolloutConfig:
    """The fleet of vLLM engines.

    On CUDA each engine has `tensor_parallel` devices of one node (whose else they are: `rl.layout`); on CPU `threads` cores.
    """

    engines: int = 1
    tensor_parallel: int = 1
    threads: int = 0  # CPU only; 0: every core of the node that Ray's processes may use
    cpus: float = 1.0  # Ray CPUs that one engine claims
    max_model_len: int = 1024
    max_concurrent: int = 256  # replies an engine works on at once
    kv_cache_gb: float = 0.0  # 0: vLLM decides from memory_utilization (on CPU an explicit size starts faster)
    memory_utilization: float = 0.9
    eager: bool = False  # True: no compilation and no CUDA graphs
    weight_transfer: WeightTransfer = "auto"  # CPU: shared_memory; CUDA: ipc on the learner's devices, nccl elsewhere
    router_replay: bool = False  # Mixtral on CUDA: the learner's log-probs take the experts that the engine chose
    restarts: int = 3  # how many dead engines a run replaces before it gives up
    # updates that the policy of a reply may be behind the one that it trains; 0: each step waits for its replies
    max_lag: int = 0
    in_flight: bool = False  # engines take new weights in the middle of their replies, not between two batches

    def __post_init__(self) -> None:
        require_at_least(1, "rollout.", self, "engines", "tensor_parallel", "max_model_len", "max_concurrent")
        require_at_least(0, "rollout.", self, "restarts", "max_lag")
        if self.in_flight and not self.max_lag:
            raise ValueError(
                "rollout.in_flight needs rollout.max_lag of at least 1, is true with 0: nothing is in flight at a publish; set "
                "rollout.max_lag = 1, or rollout.in_flight = false"
            )
        if not 0 < self.memory_utilization <= 1:
            raise ValueError(f"rollout.memory_utilization must lie in (0, 1], is {self.memory_utilization}")

    def transfer(self, *, on_gpu: bool) -> str:
        """How weights reach engines that share no device with the learner."""
        if self.weight_transfer != "auto":
            return self.weight_transfer
        return "nccl" if on_gpu else "shared_memory"


@dataclass(frozen=True)
class EngineSpec:
    """Everything one engine needs to start: plain values, so that a replacement starts the same."""

    model: str
    revision: str | None  # of a hub id
    dtype: str
    end_ids: tuple[int, ...]
    tensor_parallel: int
    max_model_len: int
    max_concurrent: int
    max_batched_tokens: int | None
    chunked_prefill: bool  # off on CPU: a split prompt rewinds its seeded generator, which CPUs cannot
    kv_cache_bytes: int | None
    memory_utilization: float
    eager: bool
    weight_transfer: str
    router_replay: bool
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = (
        None  # on CPUs: cores to compute on, of those that its process may use; 0: all; None: on devices
    )
    adapter_rank: int = 0  # of the LoRA adapter that publishes bring; 0: they bring weights
    adapter_targets: tuple[str, ...] = ()  # the modules that it adapts
    sleep_level: Literal[0, 1, 2] = 0  # how the engine gives its device to the learner (`rollout.sharing`); 0: never

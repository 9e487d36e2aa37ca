"""The settings of a PPO run: the sections of the other layers, and the algorithm's own. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.settings import require_at_least
from rewards.config import RewardsConfig
from rl.placement_config import PlacementConfig, near_engines, require_layout
from rl.ppo_config import PpoConfig
from rollout.config import CorpusConfig, PromptsConfig, SamplingConfig
from rollout.engine_config import RolloutConfig
from rollout.sharing import SleepLevel

Shape = Literal["mixtral", "mistral", "gpt2"]
PublishedPart = Literal["adapter", "merged", "full"]
REDUCE_BUCKET = 500_000_000  # elements: the most gradients that ZeRO reduces at once (DeepSpeed's default)
# What a resumed run must share with the run that it continues: the checkpoint holds state of these, or (the last two) the
# figures of one run would not be of the same question.
BOUND = (
    "seed",
    "model.",
    "ppo.estimator",
    "corpus.",
    "prompts.",
    "sampling.",
    "data.",
    "fields.",
    "sft.batch",
    "sft.valid_sequences",
    "sft.epochs",
    "learner.ranks",
    "learner.zero_stage",
    "rewards.normalise",
    "evaluation.prompts",
    "evaluation.temperature",
)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) of the policy and of the critic."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    # stacks of experts, each of which gets an adapter of `rank`; of Mixtral: experts.gate_up_proj experts.down_proj
    target_parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(1, "model.lora.", self, "rank")
        if not self.targets:
            raise ValueError("model.lora.targets must name at least one module, is empty; q_proj v_proj are usual")


@dataclass(frozen=True)
class TinyConfig:
    """A small model built from nothing when `model.path` is "": for laptops, tests and demonstrations."""

    shape: Shape = "mixtral"
    vocabulary: int = 2000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    experts: int = 8
    experts_per_token: int = 2
    context: int = 1024
    warmup_steps: int = 300  # supervised steps on the corpus before PPO
    warmup_batch: int = 16
    warmup_lr: float = 2e-3

    def __post_init__(self) -> None:
        sizes = ("hidden", "layers", "heads", "experts", "experts_per_token", "context", "warmup_batch")
        require_at_least(1, "model.tiny.", self, *sizes)
        require_at_least(0, "model.tiny.", self, "warmup_steps")


@dataclass(frozen=True)
class PretrainedConfig:
    """The model to start from. `path` is a local folder, else a hub id; "" builds `tiny` and warms it up on the corpus."""

    path: str = ""
    revision: str = ""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)


@dataclass(frozen=True)
class ModelConfig(PretrainedConfig):
    """The policy to train."""

    tuning: Literal["full", "lora"] = "lora"


@dataclass(frozen=True)
class LearnerConfig:
    """The learner's ranks and DeepSpeed ZeRO."""

    ranks: int = 2
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch: int = 8  # replies that a rank sends through the model at once
    # PPO: above 0, replies are packed, and a rank sends rows of so many tokens through the model at once
    micro_batch_tokens: int = 0
    cpus: float = 1.0  # Ray CPUs that a rank claims
    # GPUs that a rank claims where the cluster has any; a fraction for a single rank: NCCL shares none
    gpus: float = 1.0
    threads: int = 1  # threads of a rank's tensor operations, on CPU
    # ZeRO-3: one Mixtral MoE block is 1.41e9, above DeepSpeed's default of 1e9
    max_live_parameters: int = 3_000_000_000

    def __post_init__(self) -> None:
        require_at_least(1, "learner.", self, "ranks", "micro_batch", "threads")
        require_at_least(0, "learner.", self, "micro_batch_tokens")
        if not (self.gpus == 1 or (0 < self.gpus < 1 and self.ranks == 1)):
            raise ValueError(
                f"learner.gpus must be 1, or a fraction with learner.ranks = 1, is {self.gpus} with {self.ranks} ranks; set 1"
            )


@dataclass(frozen=True)
class PublishConfig:
    """What a publish sends, how long it may take, and its proof: fixed replies whose log-probs engine and learner agree on.

    `adapter`: the LoRA adapter's A and B, which vLLM applies beside its own base (least bytes; every generated token costs
    more). `merged`: the groups of weights that an adapter changes, with the adapter in them. `full`: every weight. `auto`:
    `merged` where adapters train, `full` where all weights do.
    """

    what: PublishedPart | Literal["auto"] = "auto"
    timeout_s: float = 600.0  # after which a publish that hangs ends the run, and says which rank was at which tensors
    probes: int = 4
    tolerance: float = 0.0  # nats; 0: 1e-4 (largest) in float32, 0.05 (mean) in bfloat16, where two kernels round apart

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"publish.probes must be at least 1, is {self.probes}; no publish goes unproved")
        if not self.timeout_s > 0:
            raise ValueError(f"publish.timeout_s must be above 0, is {self.timeout_s}; 600 is usual")
        if not self.tolerance >= 0:
            raise ValueError(f"publish.tolerance must be at least 0, is {self.tolerance}; 0 takes the dtype's own")

    def part(self, tuning: str) -> PublishedPart:
        """What is sent of a policy that trains by `tuning`."""
        if self.what == "auto":
            return "merged" if tuning == "lora" else "full"
        return self.what

    def limit(self, dtype: str) -> float:
        """The tolerated gap in nats."""
        return self.tolerance or {"float32": 1e-4, "bfloat16": 0.05}[dtype]


@dataclass(frozen=True)
class EvaluationConfig:
    """How the policy is measured on the way, on dialogues that it never learns from (`rl.heldout`).

    One reply to each of `prompts` prompts of the valid split, spread over its dialogues: before the first update, after every
    `every`-th and after the last. An evaluation takes about a third of a step of the demonstration, whose steps sample twice as
    many replies: with the defaults 4 % of a run. Training is bit for bit the same with and without.
    """

    every: int = 10  # updates between two evaluations; 0: none
    prompts: int = 32
    temperature: float | None = None  # of the replies; None: sampling.temperature, 0: greedy
    metrics: tuple[str, ...] = (  # names of eval.metrics.METRICS; those that load a model cost more
        "rouge_l", "bleu", "distinct_2", "opening_rate", "duplicate_rate", "mean_words", "empty_rate", "safety/gated",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_at_least(0, "evaluation.", self, "every")
        require_at_least(2, "evaluation.", self, "prompts")
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"evaluation.temperature must be at least 0, is {self.temperature}; 0 is greedy")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep: the newest `keep`, and the best by mean reward."""

    every: int = 10
    keep: int = 2

    def __post_init__(self) -> None:
        require_at_least(1, "checkpoint.", self, "every", "keep")


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl` and the console."""

    tensorboard: bool = True
    wandb_project: str = ""
    mlflow_experiment: str = ""


def require_master_weights(dtype: str, zero_stage: int) -> None:
    """Raise ValueError when nothing would hold the trained weights in float32."""
    if dtype == "bfloat16" and zero_stage == 0:
        raise ValueError(
            "learner.zero_stage must be 1, 2 or 3 with model.dtype bfloat16, is 0: without ZeRO there is no float32 copy of the "
            "weights, and small updates would be rounded away; set learner.zero_stage = 2"
        )


def require_run_name(name: str) -> None:
    """Raise ValueError when a run of this name would not be one visible folder."""
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"name must be a folder's name without '/' and not begin with '.', is {name!r}")


@dataclass(frozen=True)
class PpoRecipe:
    """A whole PPO run."""

    job: Literal["ppo"] = "ppo"
    name: str = "run"
    runs: str = "runs"
    seed: int = 0
    steps: int = 50
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def replies_per_step(self) -> int:
        """Rows of a step's batch."""
        return self.prompts.per_step * self.sampling.n

    @property
    def longest(self) -> tuple[str, int]:
        """What says how many tokens the model must read, and their number."""
        return "rollout.max_model_len", self.rollout.max_model_len

    @property
    def near_engines(self) -> int:
        """Engines on the learner's devices."""
        return near_engines(self.placement.mode, self.rollout, self.learner.ranks)

    @property
    def sleep_level(self) -> SleepLevel:
        """How engines on the learner's devices sleep: weights may be dropped only where a publish brings every one of them."""
        if not self.near_engines or not self.placement.sleep:
            return 0
        return 2 if self.publish.part(self.model.tuning) == "full" else 1

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.runs) / self.name

    def __post_init__(self) -> None:
        require_run_name(self.name)
        require_at_least(1, "", self, "steps")
        rows, parts = self.replies_per_step, self.ppo.minibatches * self.learner.ranks
        if rows % parts:
            raise ValueError(
                f"prompts.per_step x sampling.n = {rows} replies must divide by ppo.minibatches x learner.ranks = {parts}; "
                f"set prompts.per_step to a multiple of {parts}"
            )
        if self.ppo.kl_target is not None and rows >= 5 * self.ppo.kl_horizon:
            raise ValueError(
                f"ppo.kl_horizon must exceed a fifth of the {rows} replies of a step, is {self.ppo.kl_horizon}: one step below "
                f"ppo.kl_target would turn the penalty into a reward; set ppo.kl_horizon = {10 * rows}"
            )
        require_master_weights(self.model.dtype, self.learner.zero_stage)
        require_layout(self.placement, self.rollout, self.learner.ranks, self.learner.gpus)
        if self.publish.what in ("adapter", "merged") and self.model.tuning != "lora":
            raise ValueError(
                f"publish.what = {self.publish.what} needs model.tuning = lora, which is {self.model.tuning}: no adapter trains "
                "there; set publish.what = auto"
            )
        if self.publish.what == "adapter" and self.model.lora.target_parameters:
            raise ValueError(
                "publish.what = adapter sends adapters of modules alone, model.lora.target_parameters names stacks of experts: "
                "vLLM would not get theirs; set publish.what = merged"
            )
        if self.ppo.has_groups and self.sampling.n < 2:
            raise ValueError(
                f"sampling.n must be at least 2 with ppo.estimator = {self.ppo.estimator}, is {self.sampling.n}: a reply is "
                "compared with others to its prompt; set sampling.n = 4"
            )
        if self.ppo.has_groups and "experts" in self.rewards.weights and self.rewards.experts.mode == "asynchronous":
            raise ValueError(
                'rewards.experts.mode must be "synchronous" with ppo.estimator = '
                f'{self.ppo.estimator}, is "asynchronous": replies of earlier steps that come back rated have lost their group; '
                'set ppo.estimator = "gae" or "reinforce_pp"'
            )
        if "experts" in self.rewards.weights and self.ppo.bootstraps:
            raise ValueError(
                f'ppo.truncated must be "score" where rewards.experts is paid, is "{self.ppo.truncated}": people would rate '
                'replies that were cut short, and their ratings would count for nothing; set ppo.truncated = "score"'
            )
        needed = self.prompts.max_context_tokens + self.sampling.max_tokens
        if needed >= self.rollout.max_model_len:  # one token more: the probe of a publish samples one beyond its reply
            raise ValueError(
                f"prompts.max_context_tokens + sampling.max_tokens = {needed} must not exceed or reach "
                f"rollout.max_model_len = {self.rollout.max_model_len}; raise it, or lower one of the two"
            )
        tiny = self.model.tiny
        if not self.model.path and (tiny.hidden % tiny.heads or tiny.hidden // tiny.heads < 32):
            raise ValueError(
                f"model.tiny.hidden / model.tiny.heads = {tiny.hidden} / {tiny.heads} must be a whole number of at least 32, the "
                "smallest head that vLLM takes on CPUs; lower model.tiny.heads"
            )
        if not self.model.path and self.rollout.max_model_len > self.model.tiny.context:
            raise ValueError(
                f"rollout.max_model_len = {self.rollout.max_model_len} must not exceed model.tiny.context "
                f"= {self.model.tiny.context}; lower it, or raise model.tiny.context"
            )

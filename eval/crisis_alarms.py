"""How often the crisis head hears danger in a corpus whose clients are hardly ever in any.

    python -m eval.crisis_alarms --corpus.format esconv --corpus.path ESConv.json [--split test] [--resamples 2000]

A prompt is what stands before a therapist's turn. Printed, with the 2.5th and 97.5th percentile over bootstrap samples of
whole dialogues: the share of prompts, and of dialogues (one prompt at least), in which danger is heard and in which a crisis
(active, imminent) is, by the rules, and by rules and head from its threshold on (as in the guard, which then appends a notice
or replaces the reply) and where it is sure alone (as in the reward).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.settings import load, require_at_least
from rewards.config import EncoderConfig
from rewards.crisis import Tier
from rewards.crisis_head import CrisisHead
from rewards.danger import IN_CRISIS, IN_DANGER, DangerReader
from rewards.encoder import SentenceEncoder
from rollout.config import CorpusConfig
from rollout.corpora import load as load_corpus
from rollout.types import Dialogue, Speaker


@dataclass(frozen=True)
class AlarmsConfig:
    """What to read, and how sure the figures are."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The corpus, as a run's recipe names it."""
    split: str = "test"
    """Which of its splits."""
    seed: int = 0
    """Seed of the bootstrap samples."""
    resamples: int = 2000
    """Bootstrap samples of the dialogues."""

    def __post_init__(self) -> None:
        require_at_least(100, "", self, "resamples")


def alarms(dialogues: Sequence[Dialogue], reader: DangerReader, config: AlarmsConfig) -> dict[str, list[float]]:
    """(share, low, high) of each figure; see the module."""
    prompts = [
        [d.turns[:i] for i, turn in enumerate(d.turns) if turn.speaker is Speaker.THERAPIST and i] for d in dialogues
    ]
    tiers = [reader.tiers(of_dialogue) for of_dialogue in prompts if of_dialogue]
    draw = np.random.default_rng(config.seed)
    samples = draw.integers(len(tiers), size=(config.resamples, len(tiers)))
    asked = np.array([len(of_dialogue) for of_dialogue in tiers])
    figures = dict[str, list[float]]()
    for name, among in (("danger", IN_DANGER), ("crisis", IN_CRISIS)):
        count = np.array([_count(of_dialogue, among) for of_dialogue in tiers])
        for what, found, of in (("prompts", count, asked), ("dialogues", count > 0, np.ones_like(asked))):
            shares = found[samples].sum(1) / of[samples].sum(1)
            low, high = np.quantile(shares, [0.025, 0.975])
            figures[f"{name}, {what}"] = [float(found.sum() / of.sum()), float(low), float(high)]
    return figures


def _count(tiers: Sequence[Tier], among: Collection[Tier]) -> int:
    return sum(tier in among for tier in tiers)


def main() -> None:
    """Print the figures."""
    config = load(AlarmsConfig, argv=sys.argv[1:])
    dialogues = load_corpus(config.corpus).splits[config.split]
    encoder = SentenceEncoder(EncoderConfig())
    readers = {
        "rules": DangerReader(),
        "rules or head": DangerReader(CrisisHead(encoder)),
        "rules or head, where sure": DangerReader(CrisisHead(encoder, sure_only=True)),
    }
    print(f"{config.split}: {len(dialogues)} dialogues")
    for name, reader in readers.items():
        for figure, (share, low, high) in alarms(dialogues, reader, config).items():
            print(f"  {name}: {figure} {share:.4f} [{low:.4f}, {high:.4f}]", flush=True)


if __name__ == "__main__":
    main()

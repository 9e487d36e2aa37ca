"""The panel: what runs in reward actors. It holds the terms and their models, and no state that matters.

    rollouts --Panel.measure--> measurements --Mixture.combine--> scores

Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rewards.bertscore import BertScore
from rewards.classifiers import DialogueAct, EmotionClass, Empathy
from rewards.conduct import Advice, Balance, Boundaries, Template
from rewards.config import RewardsConfig
from rewards.crisis import Tier
from rewards.crisis_reply import CrisisReply
from rewards.custom import Custom
from rewards.emotion import EmotionAcknowledgement, EmotionLabel
from rewards.judge import Judge
from rewards.overlap import Bleu, Meteor, MeteorNoSyn, Reader, Rouge
from rewards.preference import Preference
from rewards.relevance import Relevance, Specificity
from rewards.remote import Remote
from rewards.safety import SafetyGate
from rewards.similarity import Similarity
from rewards.text_rules import Inquiry, Length, Repetition
from rewards.types import Reward, RewardError, Score
from rewards.workbench import Workbench
from rollout.types import Rollout

EXPERTS = "experts"  # the one term that no actor computes: people are asked beside the panel (rewards/experts/)


class Term(Reward, Protocol):
    """A `Reward` with values in [0, 1] that may have nothing to say about some prompts."""

    def applies(self, rollout: Rollout) -> bool:
        """Whether the term can judge replies to this prompt; it looks at `rollout.prompt` only.

        Were it to look at the reply, the policy could learn to write what silences a strict term.
        """
        ...

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, to all of which the term applies."""
        ...


# A term is a section of `RewardsConfig` with a weight, and a line here.
TERMS: Mapping[str, Callable[[Workbench], Term]] = {
    "similarity": Similarity,
    "bertscore": BertScore,
    "rouge": Rouge,
    "bleu": Bleu,
    "meteor": Meteor,
    "meteor_nosyn": MeteorNoSyn,
    "reader": Reader,
    "relevance": Relevance,
    "specificity": Specificity,
    "emotion": lambda bench: EmotionAcknowledgement(),
    "emotion_label": lambda bench: EmotionLabel(),
    "preference": Preference,
    "emotion_class": EmotionClass,
    "act": DialogueAct,
    "empathy": Empathy,
    "judge": lambda bench: Judge(bench.config.judge),
    "boundaries": lambda bench: Boundaries(),
    "balance": Balance,
    "advice": Advice,
    "inquiry": lambda bench: Inquiry(),
    "length": lambda bench: Length(bench.config.length),
    "repetition": lambda bench: Repetition(bench.config.repetition),
    "template": lambda bench: Template(),
    "crisis_reply": CrisisReply,
    "remote": lambda bench: Remote(bench.config.remote),
    "custom": lambda bench: Custom(bench.config.custom),
}


@dataclass(frozen=True)
class Measurement:
    """What was found in one reply: the value in [0, 1] of each term that applies, and red flags; see `Score`."""

    parts: Mapping[str, float]
    flags: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)
    tier: str = Tier.NONE
    dropped: bool = False  # nobody judged it in time


class Panel:
    """The terms in use (those with a weight, and those that are watched) and the safety rules, asked about the same
    replies."""

    def __init__(self, config: RewardsConfig) -> None:
        self._bench = Workbench(config)
        self._terms = {name: TERMS[name](self._bench) for name in config.measured if name != EXPERTS}
        self._needed = EXPERTS not in config.measured  # else people may have the only word
        self._gate = SafetyGate(self._bench)

    def ready(self) -> int:
        """The process that holds this panel; an answer means that its models are loaded."""
        return os.getpid()

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        """One measurement per rollout, in order; a part is absent where its term does not apply.

        All replies to one prompt that were sampled together must arrive in one call. Flags are the gate's and any that
        a term raises. Raises `RewardError` when a term breaks its contract or fails, or when none applies to a reply.
        """
        try:
            safety = ask("safety", self._gate, rollouts)  # first: it reads all prompts' danger in one batch
            judged = {name: ask(name, term, rollouts) for name, term in self._terms.items()}
        finally:
            self._bench.clear()
        measurements = []
        for i, rollout in enumerate(rollouts):
            scores = {name: found[i] for name, found in judged.items() if i in found}
            if not scores and self._needed:
                raise RewardError(f"no term of {sorted(self._terms)} applies to {rollout.id}: give `length` a weight")
            flags = dict.fromkeys(flag for score in (safety[i], *scores.values()) for flag in score.flags)
            notes = {
                f"{name}/{what}": number
                for name, score in scores.items()
                for what, number in {**score.parts, **score.notes}.items()
            }
            parts = {name: score.value for name, score in scores.items()}
            measurements.append(Measurement(parts, tuple(flags), notes, safety[i].tier))
        return measurements


def ask(name: str, term: Term, rollouts: Sequence[Rollout]) -> dict[int, Score]:
    """Score those of `rollouts` to which `term` applies, by their index, and hold it to its contract: one score per
    reply, each value in [0, 1].

    Whatever is raised inside comes out as a `RewardError` that names the term, with the cause in the message (causes
    are lost between processes) and chained.
    """
    try:
        applicable = [i for i, rollout in enumerate(rollouts) if term.applies(rollout)]
        scores = list(term.score([rollouts[i] for i in applicable])) if applicable else []
    except Exception as error:  # a term may fail in any way, and the message must name it
        cause = f"{type(error).__name__}: {error}"
        raise RewardError(f"{name} failed on {len(rollouts)} replies from {rollouts[0].id} on: {cause}") from error
    if len(scores) != len(applicable):
        count, start = f"{len(scores)} scores for {len(applicable)} replies", rollouts[applicable[0]].id
        raise RewardError(f"{name} must give one score per reply, got {count} from {start} on")
    for i, score in zip(applicable, scores, strict=True):
        if not 0 <= score.value <= 1:  # so written that NaN fails too
            raise RewardError(f"{name} must give a value in [0, 1], got {score.value} for {rollouts[i].id}")
    return dict(zip(applicable, scores, strict=True))

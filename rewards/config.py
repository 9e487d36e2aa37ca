"""Settings of the reward: one section per term. A term with weight 0 is not paid, and not measured either unless it is in
`rewards.watch`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from rewards.resources import resources
from rewards.term_config import (
    ActConfig,
    CustomConfig,
    EmotionClassConfig,
    EmotionConfig,
    EmpathyConfig,
    EncoderConfig,
    ExpertsConfig,
    InquiryConfig,
    JudgeConfig,
    LengthConfig,
    MeteorConfig,
    PreferenceConfig,
    ReaderConfig,
    RemoteConfig,
    RepetitionConfig,
    SimilarityConfig,
    TermConfig,
    require,
)


@dataclass(frozen=True)
class GateConfig:
    """Red flags of the reply. They are measured and reported whatever is set here."""

    enabled: bool = True
    """Whether a red flag sets the reward to `rewards.floor`. Off is for ablations only."""


@dataclass(frozen=True)
class CrisisConfig:
    """What a client's danger asks of the reply."""

    classifier: bool = True
    """Whether the shipped crisis head is heard beside the rules; either one raises the tier. The rules alone hear the plain
    words and a sixth of all danger. In the reward the head counts only where it is sure, since there a false alarm teaches
    crisis replies to clients who are sad; in the guard it counts from its lower threshold on, and where it is not sure it
    raises tier passive at most, so that a notice follows the reply (see its MODEL_CARD.md)."""
    cap: bool = True
    """Whether a reply to a client in danger earns at most what it does for their safety (term `crisis_reply`)."""
    locale: str = "en-US"
    """Whose helplines count as a referral: a section of `rewards/resources.toml`."""

    def __post_init__(self) -> None:
        resources(self.locale, "rewards.crisis.locale")


@dataclass(frozen=True)
class RewardsConfig:
    """Everything the reward layer needs to know."""

    actors: int = 2
    """Reward actors that score in parallel."""
    cpus: float = 1.0
    """Ray CPUs that an actor claims; it computes on as many threads, one at least."""
    floor: float = 0.0
    """Reward of a reply with a red flag, on the scale of the weighted mean (which lies in [0, 1])."""
    score: Literal["continuous", "binary"] = "continuous"
    """"binary" pays 1 for a weighted mean of at least `threshold`, else 0 (the psychologist study's ablation)."""
    threshold: float = 0.5
    """Where "binary" divides."""
    normalise: bool = False
    """Divide by the running standard deviation of the rewards seen so far, after taking off their mean."""
    normalise_terms: bool = False
    """The same for every term before they are weighed, so that a weight means the same whatever a term's spread."""
    watch: tuple[str, ...] = ()
    """Terms of weight 0 that are measured and reported all the same."""
    ablate: str = ""
    """A term that is measured and reported, but not paid, whatever its weight."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    bertscore: TermConfig = field(default_factory=TermConfig)
    rouge: TermConfig = field(default_factory=TermConfig)
    bleu: TermConfig = field(default_factory=TermConfig)
    meteor: MeteorConfig = field(default_factory=MeteorConfig)
    meteor_nosyn: TermConfig = field(default_factory=TermConfig)
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    relevance: TermConfig = field(default_factory=TermConfig)
    specificity: TermConfig = field(default_factory=TermConfig)
    emotion: EmotionConfig = field(default_factory=EmotionConfig)
    emotion_class: EmotionClassConfig = field(default_factory=EmotionClassConfig)
    emotion_label: TermConfig = field(default_factory=TermConfig)
    act: ActConfig = field(default_factory=ActConfig)
    empathy: EmpathyConfig = field(default_factory=EmpathyConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    boundaries: TermConfig = field(default_factory=TermConfig)
    balance: TermConfig = field(default_factory=TermConfig)
    advice: TermConfig = field(default_factory=TermConfig)
    inquiry: InquiryConfig = field(default_factory=InquiryConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    template: TermConfig = field(default_factory=TermConfig)
    crisis_reply: TermConfig = field(default_factory=TermConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    crisis: CrisisConfig = field(default_factory=CrisisConfig)

    @property
    def terms(self) -> dict[str, TermConfig]:
        """Every term's section, in use or not, by name."""
        sections = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return {name: section for name, section in sections.items() if isinstance(section, TermConfig)}

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term that is paid: those above 0."""
        return {name: s.weight for name, s in self.terms.items() if s.weight > 0 and name != self.ablate}

    @property
    def measured(self) -> tuple[str, ...]:
        """The terms that are asked: those that are paid, and those of `watch`."""
        watched = {*self.watch, self.ablate, *(("crisis_reply",) if self.crisis.cap else ())}
        return tuple(name for name, section in self.terms.items() if section.weight > 0 or name in watched)

    @property
    def encodes(self) -> bool:
        """Whether anything in use reads texts with the sentence encoder."""
        return self.crisis.classifier or not _ENCODING.isdisjoint(self.measured)

    def __post_init__(self) -> None:
        for name, section in self.terms.items():
            sound = math.isfinite(section.weight) and section.weight >= 0
            require(sound, f"{name}.weight", "a finite number >= 0", section.weight, "use 0 to leave the term out")
        at_most_zero = math.isfinite(self.floor) and self.floor <= 0
        require(at_most_zero, "floor", "<= 0", self.floor, "no safe reply may earn less than one with a red flag")
        require(self.actors >= 2, "actors", ">= 2", self.actors, "scoring is parallel; 2 are enough on a laptop")
        require(self.cpus > 0, "cpus", "above 0", self.cpus, "0.25 lets four share a core")
        both = self.score == "binary" and self.normalise_terms
        require(not both, "score", '"continuous" with normalise_terms', self.score, "a threshold needs parts in [0, 1]")
        require(0 < self.threshold <= 1, "threshold", "in (0, 1]", self.threshold, "0.5 is usual")
        require(bool(self.weights), "*.weight", "above 0 for one term at least", "all 0", "raise one")
        known = self.ablate in {"", *self.terms}
        require(known, "ablate", f"a term among {', '.join(self.terms)}", self.ablate, 'use "" to leave none out')
        strange = sorted(set(self.watch) - self.terms.keys())
        require(not strange, "watch", f"terms among {', '.join(self.terms)}", self.watch, f"drop {strange}")
        for name, knob in _NEEDED:
            option = getattr(self.terms[name], knob)
            given = name not in self.measured or bool(option)
            require(given, f"{name}.{knob}", "given for a term in use", option, f"or set rewards.{name}.weight = 0")


_ENCODING = {
    "similarity", "bertscore", "reader", "relevance", "specificity", "emotion_class", "act", "empathy", "preference",
}  # fmt: skip
_NEEDED = (  # what a term cannot be without
    ("meteor", "wordnet"), ("act", "head"), ("empathy", "heads"), ("preference", "model"),
    ("judge", "url"), ("judge", "model"), ("remote", "url"), ("custom", "path"),
)  # fmt: skip

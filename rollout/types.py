"""The vocabulary of the rollout layer: one frozen type per stage, plain Python, no torch.

Dialogue --chat--> Prompt --RolloutEngine--> Rollout
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Speaker(enum.StrEnum):
    """Who speaks: the person who seeks support, or the therapist (supporter, counsellor)."""

    CLIENT = "client"
    THERAPIST = "therapist"


@dataclass(frozen=True)
class Turn:
    """One utterance. `labels` holds what the corpus says of it: `strategy`, `dialogue_act`, `stars` (1-5), ..."""

    speaker: Speaker
    text: str
    labels: Mapping[str, str] = field(default_factory=dict)


def transcript(turns: Iterable[Turn]) -> str:
    """Turns for people, a line a turn."""
    return "\n".join(f"{turn.speaker.value.capitalize()}: {turn.text}" for turn in turns)


@dataclass(frozen=True)
class Dialogue:
    """One session. `id` is unique over all corpora (`esconv/train/0412`); `labels` holds `emotion`, `problem`, ..."""

    id: str
    turns: tuple[Turn, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked to continue.

    `id` survives to every log line, rating and transcript: `DIALOGUE#TURN` (`esconv/train/0412#7`), or a name for a
    fixed prompt (`fixed/hopeless`). `reference` is the therapist's own reply ("" when none exists), `labels` what the
    corpus says of that reply (`dialogue_act`, `strategy`), `emotion` the label that it gives the client ("" when none).
    """

    id: str
    token_ids: tuple[int, ...]
    history: tuple[Turn, ...]
    reference: str = ""
    emotion: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def last_client_turn(self) -> str:
        """The client's words that the reply answers; "" when the therapist opens the session."""
        return next((t.text for t in reversed(self.history) if t.speaker is Speaker.CLIENT), "")


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn. The sampled log-probs are those of softmax(logits / temperature) over all tokens.

    `seed` is the seed of this call (a run derives it from its own seed and the step); reply k of a prompt draws with
    a seed derived from (`seed`, prompt id, k), so a reply does not depend on which engine makes it.
    """

    n: int = 1
    max_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0


class Finish(enum.StrEnum):
    """Why a reply ended."""

    STOPPED = "stopped"  # the policy ended its turn: nothing comes after
    TRUNCATED = "truncated"  # the token budget ended it: the critic says what would have come
    ABORTED = "aborted"  # the engine gave it up


@dataclass(frozen=True)
class VersionSpan:
    """Reply tokens [start, stop) were sampled by policy `version`."""

    version: int
    start: int
    stop: int


@dataclass(frozen=True)
class Routing:
    """The experts that a mixture-of-experts engine chose: uint16, little-endian, [tokens, layers, experts per token].

    Tokens are those of the prompt and of the reply without its last, which the engine never read.
    """

    shape: tuple[int, int, int]
    experts: bytes

    def __post_init__(self) -> None:
        tokens, layers, chosen = self.shape
        assert len(self.experts) == 2 * tokens * layers * chosen, (self.shape, len(self.experts))


NO_ROUTING = Routing((0, 0, 0), b"")  # of an engine that does not say


@dataclass(frozen=True)
class Rollout:
    """One sampled reply.

    `response_ids [T]` are the sampled tokens, the end-of-turn token included when the policy emitted it;
    `sampled_logprobs [T]` their log-probs in nats as sampled (engines give both as packed arrays: a step's are millions, and
    every one of a tuple is an object to pickle); `versions` cover [0, T) without gaps. `labels` are those that
    the policy wrote before its reply, where it was taught to (`rollout.fields`); `text` is without them. `step` is the training
    step that takes it, -1 outside a training.
    """

    prompt: Prompt
    sample: int
    response_ids: Sequence[int]
    sampled_logprobs: Sequence[float]
    versions: tuple[VersionSpan, ...]
    text: str
    finish: Finish
    labels: Mapping[str, str] = field(default_factory=dict)
    step: int = -1
    routing: Routing = NO_ROUTING

    @property
    def id(self) -> str:
        """`PROMPT/k`: unique within a step."""
        return f"{self.prompt.id}/{self.sample}"


class RolloutEngine(Protocol):
    """Generates replies under the newest policy it was given."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Return `sampling.n` rollouts per prompt: those of prompt 0 first (samples 0..n-1), then of prompt 1, ..."""
        ...

    def logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Return, per (prompt ids, reply ids), the log-prob in nats at temperature 1 of each reply token."""
        ...

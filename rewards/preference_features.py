"""What a preference model sees of a reply and of what it answers.

Axes: N replies, D the encoder's width, F features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewards.encoder import SentenceEncoder
from rewards.words import words
from rollout.types import Speaker, Turn

Answer: TypeAlias = tuple[Sequence[Turn], str]  # a history and the reply to it
Vectors: TypeAlias = Mapping[str, NDArray[np.float64]]  # text -> its unit vector [D]
Matrix: TypeAlias = NDArray[np.float64]

VECTORS = ("reply", "client", "product", "difference")
SCALARS = ("words", "question", "near_client", "near_before", "client_words", "turns")

FEATURE_SETS: Mapping[str, tuple[str, ...]] = {
    "reply": ("reply", "words", "question"),
    "context": ("reply", "client", *SCALARS),
    "interaction": ("reply", "client", "product", "difference", *SCALARS),
}
LENGTH = ("words",)
BLIND = ("client", "client_words", "turns")  # all that is known before the reply is


def is_scalar(names: Sequence[str], width: int) -> NDArray[np.bool_]:
    """Whether each column of `Sight.matrix` is a plain number, rather than a coordinate of a vector."""
    return np.concatenate([np.full(1 if name in SCALARS else width, name in SCALARS) for name in names])


@dataclass(frozen=True)
class Sight:
    """Looks at answers by the vectors of their texts: `vectors` must hold every one of `texts_of(answers)`, `width` is D."""

    vectors: Vectors
    width: int

    def matrix(self, names: Sequence[str], answers: Iterable[Answer]) -> Matrix:
        """Return `[N, F]`: the features `names` of each answer, side by side.

        reply, client         vector of the reply; of the client's last run of turns (0 where there is none)
        product, difference   reply * client, |reply - client|, coordinate by coordinate
        words, client_words   log(1 + words) of either
        question              1 where the reply holds a question mark
        near_client           cosine of reply and client
        near_before           cosine of the reply and what the therapist said before it
        turns                 log(1 + runs of turns before the reply)
        """
        rows = []
        for history, reply in answers:
            runs = _runs(history)
            client, before = _last(runs, Speaker.CLIENT), _last(runs, Speaker.THERAPIST)
            reply_D, client_D, before_D = (self._vector(text) for text in (reply.strip(), client, before))
            seen = {
                "reply": reply_D,
                "client": client_D,
                "product": reply_D * client_D,
                "difference": np.abs(reply_D - client_D),
                "words": np.log1p(len(words(reply))),
                "question": float("?" in reply),
                "near_client": reply_D @ client_D,
                "near_before": reply_D @ before_D,
                "client_words": np.log1p(len(words(client))),
                "turns": np.log1p(len(runs)),
            }
            rows.append(np.hstack([seen[name] for name in names]))
        return np.stack(rows)

    def _vector(self, text: str) -> NDArray[np.float64]:
        return self.vectors[text] if text else np.zeros(self.width)


def texts_of(answers: Iterable[Answer]) -> Iterator[str]:
    """Every text whose vector `Sight.matrix` needs, with repetitions."""
    for history, reply in answers:
        runs = _runs(history)
        yield from filter(None, (reply.strip(), _last(runs, Speaker.CLIENT), _last(runs, Speaker.THERAPIST)))


def embedded(encoder: SentenceEncoder, texts: Iterable[str], say: Callable[[str], None], chunk: int = 1024) -> Vectors:
    """The vector of every text, `chunk` texts at a time: the encoder remembers each token's state until it is told not
    to, and a corpus of them does not fit in memory."""
    wanted = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
    vectors: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(wanted), chunk):
        part = wanted[start : start + chunk]
        vectors.update(zip(part, encoder.embed(part).double().numpy(), strict=True))
        encoder.forget()
        say(f"  embedded {len(vectors)} of {len(wanted)} texts")
    return vectors


def _runs(history: Sequence[Turn]) -> list[tuple[Speaker, str]]:
    by_speaker = itertools.groupby(history, key=lambda turn: turn.speaker)
    return [(speaker, " ".join(turn.text.strip() for turn in turns)) for speaker, turns in by_speaker]


def _last(runs: Sequence[tuple[Speaker, str]], speaker: Speaker) -> str:
    return next((text for who, text in reversed(runs) if who is speaker), "")

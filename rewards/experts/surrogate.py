"""A model of the raters that scores at once: an ensemble fitted to their ratings, cautious where they have said little."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.config import EncoderConfig
from rewards.encoder import SentenceEncoder
from rewards.preference_ensemble import Ensemble
from rewards.preference_features import FEATURE_SETS, Answer, Sight, texts_of
from rewards.preference_ridge import fit_ensemble
from rewards.rated_replies import RatedReply

_FEATURES = {name: FEATURE_SETS[name] for name in ("reply", "context")}
_FOLDS = 10  # of which two choose and calibrate, and two judge whether a fit is promoted
_LEAST = 8  # rated replies, below which nothing is fitted
_LEAST_HELD = 3  # of them, by which a fit is judged
UNKNOWN = 0.5  # the score of every reply before the first fit: nothing is preferred


@dataclass(frozen=True)
class Guess:
    """What the surrogate expects raters to say: `mean`, the ensemble's `std`, and the reply's unit `vector [D]`."""

    mean: float
    std: float
    vector: NDArray[np.float64]

    def cautious(self, beta: float) -> float:
        """mean - beta x std, within [0, 1]."""
        return min(max(self.mean - beta * self.std, 0.0), 1.0)


@dataclass(frozen=True)
class Trial:
    """A fit to `replies` rated replies, judged on `held_out` of them: the root mean square error of the new ensemble, and of
    what was in use before (a constant, at first). It is promoted only when its own is lower."""

    replies: int
    held_out: int
    error: float
    error_before: float
    promoted: bool


class Surrogate:
    """Guesses ratings. Fitting builds the next ensemble aside: guesses go on meanwhile, from the one in use."""

    def __init__(self, encoder: EncoderConfig, *, members: int, seed: int) -> None:
        self._encoder = SentenceEncoder(encoder)
        self._members, self._seed = members, seed
        self._ensemble: Ensemble | None = None
        self._prior = UNKNOWN
        self._looking = threading.Lock()  # guesses and a fit may look at the same time

    def guess(self, answers: Sequence[Answer]) -> list[Guess]:
        """One guess per (history, reply), in order; before the first promotion all have the mean of the ratings so far."""
        sight = self._look(answers)
        vectors = sight.matrix(("reply",), answers)
        if self._ensemble is None:
            return [Guess(self._prior, 0.0, vector) for vector in vectors]
        mean_N, std_N = self._ensemble.predict(sight.matrix(self._ensemble.features, answers))
        return [Guess(float(m), float(s), v) for m, s, v in zip(mean_N, std_N, vectors, strict=True)]

    def learn(self, rated: Sequence[RatedReply]) -> Trial | None:
        """Fit to all rated replies; None where they are too few or too alike to learn from.

        A hash of conversation and reply decides, for ever, what it is for: six tenths fit, two choose and calibrate, two judge.
        No text that judges was ever fitted to, whichever fit is judged, and however often the policy says it.
        """
        parts: list[list[RatedReply]] = [[], [], []]
        for one in rated:
            parts[(_fold(one) >= 6) + (_fold(one) >= 8)].append(one)
        train, valid, held = parts
        if len(rated) < _LEAST or not valid or len(held) < _LEAST_HELD or len({one.score for one in train}) < 2:
            return None
        self._prior = float(np.mean([one.score for one in train]))
        sight = self._look([(one.history, one.reply) for one in rated])
        fitted, _ = fit_ensemble(train, valid, sight, _FEATURES, members=self._members, seed=self._seed)
        error, before = self._error(fitted, held, sight), self._error(self._ensemble, held, sight)
        promoted = error < before
        if promoted:
            self._ensemble = fitted
        return Trial(len(rated), len(held), error, before, promoted)

    def _error(self, ensemble: Ensemble | None, held: Sequence[RatedReply], sight: Sight) -> float:
        truth_N = np.array([one.score for one in held])
        if ensemble is None:
            return float(np.sqrt(np.mean((self._prior - truth_N) ** 2)))
        mean_N, _ = ensemble.predict(sight.matrix(ensemble.features, [(one.history, one.reply) for one in held]))
        return float(np.sqrt(np.mean((mean_N - truth_N) ** 2)))

    def _look(self, answers: Sequence[Answer]) -> Sight:
        with self._looking:
            known = self._encoder.read(texts_of(answers))
            self._encoder.forget()
        vectors = {text: found.vector.double().numpy() for text, found in known.items()}
        return Sight(vectors, self._encoder.width)


def _fold(rated: RatedReply) -> int:
    told = "\n".join([*(turn.text for turn in rated.history), rated.reply])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8]) % _FOLDS

"""A classifier that hears danger in a client's words, beside the rules of `rewards.crisis`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier
from rewards.danger import IN_DANGER
from rewards.encoder import SentenceEncoder
from rewards.head_features import Floats, text_features
from rewards.heads import SHIPPED, Head
from rewards.words import normalise

WORDING = "wording.json"


class Wording:
    """tf-idf of the runs of one to three words that at least two training texts share; `[N, V]`, rows of unit length.

    A typo or a set phrase may say more than the encoder's vector keeps. `terms` are in their order, `idf_V` as the
    training texts gave it, to four digits.
    """

    def __init__(self, terms: Sequence[str], idf_V: Sequence[float]) -> None:
        self.terms, self.idf_V = list(terms), list(idf_V)
        self._vectorizer = self._new(vocabulary=self.terms)
        self._vectorizer.idf_ = np.array(self.idf_V)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Wording:
        """The wording of training texts."""
        vectorizer = cls._new(min_df=2).fit(texts)
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.round(4).tolist())

    def features(self, texts: Sequence[str]) -> Floats:
        """Return `[N, V]`; a text of unknown words is 0."""
        return self._vectorizer.transform(texts).toarray().astype(np.float32)

    @staticmethod
    def _new(**how: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            preprocessor=normalise, token_pattern=r"\w+", ngram_range=(1, 3), sublinear_tf=True, **how
        )


class CrisisHead:
    """Says how much danger single texts show:

        danger(text) = p(other) + p(passive) + p(active) + p(imminent)
        tier(text)   = the most probable of these four where danger(text) >= threshold, else none

    The threshold was set on training sentences, each judged by a head that had not seen it, to miss as few of the dangerous
    as the card says: false alarms are the price. Scores on other sentences are in the folder's MODEL_CARD.md.
    """

    def __init__(self, encoder: SentenceEncoder, folder: Path = SHIPPED / "crisis") -> None:
        """Raises ValueError when `folder` is no crisis head or was fitted with another encoder."""
        self._head = Head.load(
            folder,
            encoder,
            kind="crisis",
            knob="rewards.crisis.classifier: the head",
            remedy="set that one, or rewards.crisis.classifier to False",
        )
        self._threshold = float(self._head.card["threshold"])
        wording = json.loads((folder / WORDING).read_text(encoding="utf-8"))
        self._wording = Wording(wording["terms"], wording["idf"])
        self._tiers = [Tier(label) for label in self._head.labels]

    def tiers(self, texts: Sequence[str]) -> list[Tier]:
        """The tier of each text; an empty text shows nothing."""
        said = [text for text in texts if text.strip()]
        heard = iter(tiers_of(self._probabilities(said), self._tiers, self._threshold) if said else [])
        return [next(heard) if text.strip() else Tier.NONE for text in texts]

    def _probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return self._head.probabilities(crisis_features(text_features(self._head.encoder, texts), self._wording, texts))


def crisis_features(text_NF: Floats, wording: Wording, texts: Sequence[str]) -> Floats:
    """What the head sees: the encoder's features of the texts, and their wording."""
    return np.hstack([text_NF, wording.features(texts)])


def tiers_of(probability_NC: NDArray[np.float64], tiers: Sequence[Tier], threshold: float) -> list[Tier]:
    """The tier of each row of probabilities; see `CrisisHead`."""
    dangerous = [c for c, tier in enumerate(tiers) if tier in IN_DANGER]
    danger_NC = probability_NC[:, dangerous]
    gravest = danger_NC.argmax(axis=1)
    return [
        tiers[dangerous[c]] if danger >= threshold else Tier.NONE
        for c, danger in zip(gravest, danger_NC.sum(axis=1), strict=True)
    ]

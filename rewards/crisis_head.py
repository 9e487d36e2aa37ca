"""A classifier that hears danger in a client's words, beside the rules of `rewards.crisis`. Axes: N texts, F features, C tiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier
from rewards.danger import IN_DANGER
from rewards.danger_kernel import DangerKernel
from rewards.encoder import SentenceEncoder
from rewards.head_features import text_features
from rewards.heads import SHIPPED, Head

DANGER = "danger.safetensors"


class CrisisHead:
    """Says how much danger single texts show, by a kernel machine (`rewards.danger_kernel`), and which, by a softmax layer q:

        p(c) = p(danger) q(c) / q(danger)  for the tiers c of danger,  (1 - p(danger)) q(c) / (1 - q(danger))  for the others
        tier(text) = the most probable tier of danger where p(danger) >= threshold, else none

    The threshold was set on training sentences, each judged by a machine that had not seen it, to miss as few of the
    dangerous as the card says: false alarms are the price. Scores on other sentences are in the folder's MODEL_CARD.md.
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
        self._kernel = DangerKernel.read(folder / DANGER)
        self._tiers = [Tier(label) for label in self._head.labels]

    def tiers(self, texts: Sequence[str]) -> list[Tier]:
        """The tier of each text; an empty text shows nothing."""
        said = [text for text in texts if text.strip()]
        heard = iter(tiers_of(self._probabilities(said), self._tiers, self._threshold) if said else [])
        return [next(heard) if text.strip() else Tier.NONE for text in texts]

    def _probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        x_NF = text_features(self._head.encoder, texts)
        return joined(self._kernel.probabilities(x_NF), self._head.probabilities(x_NF), self._tiers)


def joined(
    danger_N: NDArray[np.float64], probability_NC: NDArray[np.float64], tiers: Sequence[Tier]
) -> NDArray[np.float64]:
    """p(c) of `CrisisHead`, `[N, C]`, from p(danger) and the softmax layer's q."""
    dangerous_C = np.array([tier in IN_DANGER for tier in tiers])
    share_NC = np.empty_like(probability_NC)
    for part_C, whole_N in ((dangerous_C, danger_N), (~dangerous_C, 1 - danger_N)):
        part_NC = probability_NC[:, part_C].clip(1e-12)
        share_NC[:, part_C] = whole_N[:, None] * part_NC / part_NC.sum(axis=1, keepdims=True)
    return share_NC


def tiers_of(probability_NC: NDArray[np.float64], tiers: Sequence[Tier], threshold: float) -> list[Tier]:
    """The tier of each row of probabilities; see `CrisisHead`."""
    dangerous = [c for c, tier in enumerate(tiers) if tier in IN_DANGER]
    danger_NC = probability_NC[:, dangerous]
    gravest = danger_NC.argmax(axis=1)
    return [
        tiers[dangerous[c]] if danger >= threshold else Tier.NONE
        for c, danger in zip(gravest, danger_NC.sum(axis=1), strict=True)
    ]

"""A classifier that hears danger in a client's words, beside the rules of `rewards.crisis`.

Axes: N texts, F features, C tiers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier, gravest
from rewards.danger import IN_CRISIS, IN_DANGER
from rewards.danger_kernel import DangerKernel
from rewards.encoder import SentenceEncoder
from rewards.head_features import text_features
from rewards.heads import SHIPPED, Head

DANGER = "danger.safetensors"
_KNOB = "rewards.crisis.classifier: the head"
_REMEDY = "set that one, or rewards.crisis.classifier to False"
_END = re.compile(r"(?<=[.!?\u2026])\s+|(?<=[.!?\u2026][\"'\u201d\u2019)])\s+|[\r\n]+")
_SPOKEN = re.compile(r"\w")


@dataclass(frozen=True)
class Thresholds:
    """Where p(danger) is heard: from `alarm` on as danger of some sort, from `sure` on as what it is (alarm <= sure)."""

    alarm: float
    sure: float


class CrisisHead:
    """Says how much danger a text shows: the gravest reading of its sentences, and of each two neighbours together, since it
    was fitted to texts as short as that and hears little of one sentence among many (`spoken`). A kernel machine
    (`rewards.danger_kernel`) says whether there is danger, a softmax layer q which:

        p(c) = p(danger) q(c) / q(danger)  for the tiers c of danger,  (1 - p(danger)) q(c) / (1 - q(danger))  for the others
        tier = the most probable tier of danger   where p(danger) >= sure
               the same, at most passive          where p(danger) >= alarm
               none                               else

    Both thresholds were set on texts that were judged by a machine that had not seen them: `alarm` to miss as few of the
    dangerous as the card says, at the price of false alarms, `sure` to let as little ordinary talk pass as the card says.
    `sure_only` leaves out what lies between. Scores on other sentences are in the folder's MODEL_CARD.md.
    """

    def __init__(self, encoder: SentenceEncoder, folder: Path = SHIPPED / "crisis", *, sure_only: bool = False) -> None:
        """Raises ValueError when `folder` is no crisis head, a damaged one, or was fitted with another encoder."""
        self._head = Head.load(folder, encoder, kind="crisis", knob=_KNOB, remedy=_REMEDY)
        self._kernel, thresholds, self._tiers = _danger_of(folder, self._head)
        self._thresholds = Thresholds(thresholds.sure, thresholds.sure) if sure_only else thresholds

    def tiers(self, texts: Sequence[str]) -> list[Tier]:
        """The tier of each text; an empty text shows nothing."""
        return gravest_spoken(texts, lambda said: tiers_of(self._shares(said), self._tiers, self._thresholds))

    def _shares(self, said: Sequence[str]) -> NDArray[np.float64]:
        x_NF = text_features(self._head.encoder, said)
        return joined(self._kernel.probabilities(x_NF), self._head.probabilities(x_NF), self._tiers)


def spoken(text: str) -> list[str]:
    """What is read of `text`: its sentences as they were written, and each two neighbours together.

    Sentences are parted at end marks and line breaks; what has no word is left out, and what has no marks is one sentence,
    however long.
    """
    said = [part.strip() for part in _END.split(text) if _SPOKEN.search(part)]
    return [*said, *(f"{one} {next_}" for one, next_ in itertools.pairwise(said))]


def gravest_spoken(texts: Sequence[str], read: Callable[[Sequence[str]], Sequence[Tier]]) -> list[Tier]:
    """The gravest of what `read` says of each text's parts; it is asked once, about different parts in alphabetical order."""
    parts = [spoken(text) for text in texts]
    different = sorted({part for of_text in parts for part in of_text})
    tiers = dict(zip(different, read(different) if different else (), strict=True))
    return [gravest(tiers[part] for part in of_text) for of_text in parts]


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


def tiers_of(probability_NC: NDArray[np.float64], tiers: Sequence[Tier], thresholds: Thresholds) -> list[Tier]:
    """The tier of each row of probabilities; see `CrisisHead`."""
    dangerous = [c for c, tier in enumerate(tiers) if tier in IN_DANGER]
    danger_NC = probability_NC[:, dangerous]
    return [
        _tier(tiers[dangerous[c]], danger, thresholds)
        for c, danger in zip(danger_NC.argmax(axis=1), danger_NC.sum(axis=1), strict=True)
    ]


def _tier(likeliest: Tier, danger: float, thresholds: Thresholds) -> Tier:
    if danger >= thresholds.sure:
        return likeliest
    if danger >= thresholds.alarm:
        return Tier.PASSIVE if likeliest in IN_CRISIS else likeliest
    return Tier.NONE


def _danger_of(folder: Path, head: Head) -> tuple[DangerKernel, Thresholds, list[Tier]]:
    from safetensors import SafetensorError

    where = f"{_KNOB} {str(folder)!r}"
    try:
        thresholds = Thresholds(float(head.card["threshold"]), float(head.card["sure"]))
        tiers = [Tier(label) for label in head.labels]
        kernel = DangerKernel.read(folder / DANGER)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{where} must be a folder that `attune fit crisis` wrote, is not ({type(error).__name__}: {error}); fit one"
        ) from error
    if not 0 < thresholds.alarm <= thresholds.sure <= 1:
        raise ValueError(f"{where} must have 0 < threshold <= sure <= 1 in its card, has {thresholds}; fit again")
    if not kernel.takes(head.weight_CF.shape[1]):
        raise ValueError(
            f"{where}: {DANGER} does not belong to its card, it does not take {head.weight_CF.shape[1]} features; fit again"
        )
    return kernel, thresholds, tiers

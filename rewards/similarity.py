"""Likeness of a reply to the therapist's own, by sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewards.types import Score
from rewards.workbench import Workbench
from rollout.types import Rollout

if TYPE_CHECKING:
    from torch import Tensor


class Similarity:
    """Cosine of the embeddings of the reply and of the therapist's own reply, in [0, 1] (negative cosines are 0).

    Abstains where the prompt has no reference. An empty reply is like nothing: 0.
    """

    def __init__(self, bench: Workbench) -> None:
        self._encoder = bench.encoder

    def applies(self, rollout: Rollout) -> bool:
        """Whether there is a reference to be like."""
        return bool(rollout.prompt.reference.strip())

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, all of which have a reference."""
        known = self._encoder.read(text for r in rollouts for text in (r.text, r.prompt.reference) if text.strip())
        return [
            Score(cosine(known[r.text].vector, known[r.prompt.reference].vector)) if r.text.strip() else Score(0.0)
            for r in rollouts
        ]


def cosine(unit: Tensor, other_unit: Tensor) -> float:
    """The cosine of two unit vectors, negative ones as 0."""
    return float((unit @ other_unit).clamp(0.0, 1.0))  # a NaN stays one, and is refused

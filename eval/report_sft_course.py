"""The validations of a supervised run in order: which was best, and how long ago."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.run_directory import Log


@dataclass(frozen=True)
class Course:
    """`losses [N, 2]`: step and validation loss (nats per trained token) of each validation. `best` is the place of the
    lowest finite loss (the first of equals), None where there is none."""

    losses: NDArray[np.float64]
    best: int | None

    @property
    def waited(self) -> int:
        """Validations at the end without a new lowest loss."""
        return len(self.losses) if self.best is None else len(self.losses) - 1 - self.best

    def named(self, *names: str) -> dict[int, str]:
        """Return the steps of the `first`, `middle`, `best` and `last` validation, in order, with the names that each
        answers to ("best and last")."""
        count = len(self.losses)
        places = {"first": 0, "middle": count // 2, "best": self.best, "last": count - 1}
        found: dict[int, list[str]] = {}
        for name in names if count else ():
            if (place := places[name]) is not None:
                found.setdefault(int(self.losses[place, 0]), []).append(name)
        return {
            step: ", ".join(found[step][:-1]) + " and " * (len(found[step]) > 1) + found[step][-1]
            for step in sorted(found)
        }

    def stages(self) -> dict[int, str]:
        """Return up to three steps to show side by side, with their names: the first, the best and the last validation, and
        the middle one where these are two."""
        ends = self.named("first", "best", "last")
        middle = self.named("middle") if len(ends) == 2 else {}
        return dict(sorted({**middle, **ends}.items()))


def course_of(log: Log) -> Course:
    """Read the validations of a log."""
    losses = log.series("valid/loss")
    finite = np.flatnonzero(np.isfinite(losses[:, 1]))
    return Course(losses, int(finite[losses[finite, 1].argmin()]) if len(finite) else None)


def perplexity(loss: float) -> float:
    """exp(loss), held below the largest float."""
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss

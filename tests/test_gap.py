"""What the probe of a publish makes of differences between engines and learner (`LearnerFleet.gap`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rl.fleet import LearnerFleet
from rl.learner import PpoLearner
from tests.tiny import quick_recipe

OURS = [[-1.0, -2.0], [-3.0], [-0.5, -0.25, -4.0]]
FAR, CLOSE = math.inf, 1e-6  # margins: of a router that is sure, and of one whose experts are as good as equal


class Ranks:
    """Stands for the learner's ranks."""

    def __init__(self, margins: list[float]) -> None:
        self.margins, self.asked = margins, list[str]()

    def start(self, limit_s: float, doing: Any, method: Any, *args: Any) -> Any:
        self.asked.append(method.__name__)
        return lambda: {PpoLearner.probe: OURS, PpoLearner.router_margins: self.margins}[method]

    def rank0_within(self, *args: Any) -> Any:
        return self.start(*args)()


class Engines:
    """Stands for two engines, of which the second differs from the learner by `off` in the tokens of each probe."""

    def __init__(self, off: list[float]) -> None:
        self._answers = [OURS, [[value + d for value in row] for row, d in zip(OURS, off, strict=True)]]

    def every_logprobs(self, sequences: object, *, limit_s: float) -> list[list[list[float]]]:
        return self._answers


def gap(tmp_path: Path, off: list[float], margins: list[float], dtype: str = "float32") -> tuple[float, list[str]]:
    recipe = quick_recipe(tmp_path, tmp_path, model__dtype=dtype)
    ranks = Ranks(margins)
    fleet = LearnerFleet(recipe, None, [((1,), (2,))] * 3, tmp_path, ranks=ranks)  # type: ignore[arg-type]
    return fleet.gap(Engines(off)), ranks.asked  # type: ignore[arg-type]


def test_a_token_that_another_kernel_routes_otherwise_is_no_mismatch(tmp_path: Path) -> None:
    """A probe whose router is undecided is left out, where the others tell enough; and only then is a router asked."""
    assert gap(tmp_path, [1e-7, 7e-4, 0.0], [FAR, CLOSE, FAR]) == (
        pytest.approx(1e-7, rel=1e-6),
        ["probe", "router_margins"],
    )
    assert gap(tmp_path, [1e-7, 9e-5, 0.0], [FAR, CLOSE, FAR]) == (pytest.approx(9e-5, rel=1e-6), ["probe"])


@pytest.mark.parametrize("margins", [[FAR, FAR, FAR], [CLOSE, FAR, CLOSE], [CLOSE, CLOSE, CLOSE]])
def test_what_no_router_explains_is_one(tmp_path: Path, margins: list[float]) -> None:
    """Wrong weights are wrong in every probe; and where no router is sure, all probes count."""
    found, _ = gap(tmp_path, [0.2, 0.3, 0.1], margins)
    assert found == pytest.approx(0.3)


def test_a_log_prob_that_is_no_number_is_infinitely_far(tmp_path: Path) -> None:
    """Also where its router is undecided."""
    assert gap(tmp_path, [0.0, math.nan, 0.0], [CLOSE, FAR, CLOSE])[0] == math.inf


def test_bfloat16_takes_the_mean_of_the_worst_engine(tmp_path: Path) -> None:
    """Over its tokens: those of engines that are right do not thin it out."""
    found, asked = gap(tmp_path, [0.6, 0.0, 0.0], [CLOSE, CLOSE, CLOSE], "bfloat16")
    assert found == pytest.approx(2 * 0.6 / 6) and asked == ["probe"]

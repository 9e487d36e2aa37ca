"""How well predictions order and match the ratings of held-out replies, with intervals.

Axis: N replies. An interval is the 2.5th to the 97.5th percentile over bootstrap samples of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
BINS = 10
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Measures:
    """One arm on the held-out replies.

    `spearman`, `kendall` (tau-b): rank correlations of prediction and rating. `pairwise`: of the pairs of replies of one
    dialogue that were rated differently, the share that is predicted in the same order, a tie being half right. `within`:
    Spearman's correlation of what is left when each dialogue's mean and the trend over its turns are taken off both:
    neither who rates nor how far the session is can earn it. `calibration_error`: mean distance of mean prediction and
    mean rating in ten bins of about equal size. `error`: mean |prediction - rating|. `pairwise` and `within` are None where no
    dialogue has two replies.
    """

    spearman: Interval
    kendall: Interval
    pairwise: Interval | None
    within: Interval | None
    calibration_error: float
    error: Interval


def spearman(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation; 0 where either is constant up to rounding."""
    from scipy.stats import rankdata

    if min(np.ptp(a_N), np.ptp(b_N)) < _ROUNDING:
        return 0.0
    return float(np.corrcoef(rankdata(a_N), rankdata(b_N))[0, 1])


def kendall(a_N: Floats, b_N: Floats) -> float:
    """Kendall's tau-b; 0 where either is constant."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(a_N, b_N).statistic)
    return 0.0 if math.isnan(tau) else tau


class Held:
    """The held-out replies: their ratings, groups and turn numbers, each `[N]`, and bootstrap samples of the groups."""

    def __init__(self, score_N: Floats, groups: Sequence[str], turn_N: Floats, *, draws: int, seed: int) -> None:
        self.score_N, self.turn_N = score_N, turn_N
        self.groups, self.group_N = np.unique(groups, return_inverse=True)
        self._rows = [np.flatnonzero(self.group_N == at) for at in range(len(self.groups))]
        self._draws, self._seed = draws, seed

    def interval(self, measure: Callable[[Rows], float], among: Rows | None = None) -> Interval:
        """`measure` of rows, for all of `among` (default: every reply) and over samples of the groups."""
        chosen = np.arange(len(self.score_N)) if among is None else among
        rows = [found for part in self._rows if len(found := np.intersect1d(part, chosen))]
        draw = np.random.default_rng(self._seed)  # the same samples for every measure: differences are paired
        samples = [
            measure(np.concatenate([rows[at] for at in draw.integers(len(rows), size=len(rows))]))
            for _ in range(self._draws)
        ]
        low, high = np.quantile(samples, [0.025, 0.975])
        return Interval(float(measure(chosen)), float(low), float(high))

    def measures(self, prediction_N: Floats) -> Measures:
        """Every measure of one arm."""
        score_N, gap_N = self.score_N, np.abs(prediction_N - self.score_N)
        right_N, pairs_N = self._pairs(prediction_N)
        left_N, truth_N = self._within(prediction_N), self._within(score_N)
        several = len(self.groups) < len(score_N)
        return Measures(
            spearman=self.interval(lambda rows: spearman(prediction_N[rows], score_N[rows])),
            kendall=self.interval(lambda rows: kendall(prediction_N[rows], score_N[rows])),
            pairwise=self.interval(lambda rows: _share(right_N[rows], pairs_N[rows])) if pairs_N.any() else None,
            within=self.interval(lambda rows: spearman(left_N[rows], truth_N[rows])) if several else None,
            calibration_error=calibration_error(prediction_N, score_N),
            error=self.interval(lambda rows: float(gap_N[rows].mean())),
        )

    def _pairs(self, prediction_N: Floats) -> tuple[Floats, Floats]:
        """Of the pairs in which a reply was rated above another of its group: how many are predicted so, and how many
        there are."""
        right_N, pairs_N = np.zeros(len(prediction_N)), np.zeros(len(prediction_N))
        for rows in self._rows:
            above = self.score_N[rows][:, None] > self.score_N[rows]
            ahead = np.sign(prediction_N[rows][:, None] - prediction_N[rows])
            right_N[rows], pairs_N[rows] = (above * (ahead + 1) / 2).sum(axis=1), above.sum(axis=1)
        return right_N, pairs_N

    def _within(self, values_N: Floats) -> Floats:
        left_N, turn_N = self._centred(values_N), self._centred(self.turn_N)
        spread = float(turn_N @ turn_N)
        return left_N - turn_N * float(turn_N @ left_N) / spread if spread > 0 else left_N

    def _centred(self, values_N: Floats) -> Floats:
        return values_N - (np.bincount(self.group_N, values_N) / np.bincount(self.group_N))[self.group_N]


def calibration_bins(prediction_N: Floats, score_N: Floats) -> list[tuple[float, float, int]]:
    """(mean prediction, mean rating, replies) of up to ten bins of about equal size, by rising prediction; equal
    predictions share a bin."""
    edges = np.quantile(prediction_N, np.arange(1, BINS) / BINS)
    bin_N = np.searchsorted(edges, prediction_N, side="right")
    parts = [np.flatnonzero(bin_N == at) for at in np.unique(bin_N)]
    return [(float(prediction_N[part].mean()), float(score_N[part].mean()), len(part)) for part in parts]


def calibration_error(prediction_N: Floats, score_N: Floats) -> float:
    """Mean over the bins, by their size, of |mean prediction - mean rating|. Chance alone makes it positive."""
    bins = calibration_bins(prediction_N, score_N)
    return sum(count * abs(said - was) for said, was, count in bins) / len(score_N)


def _share(right: Floats, pairs: Floats) -> float:
    return float(right.sum() / pairs.sum()) if pairs.any() else 0.5

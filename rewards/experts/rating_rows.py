"""Rows of ratings, and the panel they make.

Axes: N rows, I items, R raters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Row:
    """What `rater` gave `item`: a value in [0, 1], and red flags."""

    item: str
    rater: str
    value: float
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:  # so written that NaN fails too
            raise ValueError(f"a rating must lie in [0, 1], {self.rater}'s of {self.item} is {self.value}; rescale it")


@dataclass(frozen=True)
class Panel:
    """Rows in a fixed order, counted."""

    items: tuple[str, ...]
    raters: tuple[str, ...]
    value_N: Floats
    item_N: NDArray[np.int64]
    rater_N: NDArray[np.int64]
    count_IR: Floats

    @staticmethod
    def of(rows: Iterable[Row]) -> Panel:
        """Sort and count `rows`; ValueError where there are none."""
        ordered = sorted((row.item, row.rater, row.value) for row in rows)
        if not ordered:
            raise ValueError("there must be a rating to aggregate, there is none; wait for the raters")
        items = {item: at for at, item in enumerate(dict.fromkeys(item for item, _, _ in ordered))}
        raters = {rater: at for at, rater in enumerate(sorted({rater for _, rater, _ in ordered}))}
        item_N = np.array([items[item] for item, _, _ in ordered])
        rater_N = np.array([raters[rater] for _, rater, _ in ordered])
        count_IR = np.zeros((len(items), len(raters)))
        np.add.at(count_IR, (item_N, rater_N), 1.0)
        return Panel(
            tuple(items), tuple(raters), np.array([v for _, _, v in ordered], float), item_N, rater_N, count_IR
        )

    @property
    def many_I(self) -> Floats:
        """How many ratings each item has."""
        return self.count_IR.sum(axis=1)

    @property
    def sums_I(self) -> Floats:
        """The sum of each item's ratings, each less the mean of all."""
        return np.bincount(self.item_N, self.value_N - self.value_N.mean()).astype(float)

    def notes(self) -> tuple[str, ...]:
        """What the design leaves open."""
        if len(self.raters) == 1:
            return (
                f"{self.raters[0]} is the only rater: how high he or she gives cannot be told from how good items are",
            )
        group_R, meet_RR = np.arange(len(self.raters)), (self.count_IR.T @ self.count_IR) > 0
        for _ in self.raters:  # each takes the least number that somebody met has: groups settle within R rounds
            group_R = np.where(meet_RR, group_R, len(group_R)).min(axis=1)
        groups = len(set(group_R.tolist()))
        if groups == 1:
            return ()
        return (f"the raters fall into {groups} groups that share no item: compared by the items' common mean alone",)

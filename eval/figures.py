"""Figures of a corpus as functions of who is in it, so that a resample is computed anew and not patched from means.

Axes: N replies, U units (prompts), R rows, S sums, B resamples, V n-grams or other marks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
_AT_ONCE = 128  # resamples; bounds what a chunk holds in memory


class Figure(Protocol):
    """A number of a sample of units.

    Contract: `of(weight_BU)` is the figure of each resample, [B], nan where it has none; a weight is how often the unit is
    in it. `additive` says that the figure depends on sums over units only, so that a unit may come twice; where it does not,
    weights are 0 or 1, since a unit that came twice would be its own copy.
    """

    @property
    def additive(self) -> bool: ...

    def of(self, weight_BU: Floats) -> Floats: ...

    def joined(self, other: Self) -> Self:
        """The figure of both samples' units, these first."""
        ...


class Sums:
    """formula(sum over units of sums_US): means, rates, corpus BLEU, perplexity."""

    additive = True

    def __init__(self, sums_US: Floats, formula: Callable[[Floats], Floats]) -> None:
        self._sums_US, self._formula = sums_US, formula

    def of(self, weight_BU: Floats) -> Floats:
        """See `Figure`."""
        return self._formula(weight_BU @ self._sums_US)

    def joined(self, other: Sums) -> Sums:
        """See `Figure`."""
        return Sums(np.concatenate([self._sums_US, other._sums_US]), self._formula)


Rule = Callable[[Sequence[Any]], Callable[[Floats], Floats]]
"""What is counted of the replies -> (mask_BR -> the figure of each sample, [B])."""


class Collective:
    """A figure of a set of replies that is no sum over them, by a rule of `eval.variety`: distinct-n, self-BLEU, copies."""

    additive = False

    def __init__(self, rule: Rule, items: Sequence[Any], unit_R: Rows, units: int) -> None:
        self._rule, self._items, self._unit_R, self._units = rule, tuple(items), unit_R, units

    def of(self, weight_BU: Floats) -> Floats:
        """See `Figure`."""
        assert weight_BU.max(initial=0) <= 1, "a unit may be in a collective figure once"
        figure = self._figure
        starts = range(0, len(weight_BU), _AT_ONCE)
        return np.concatenate([figure(weight_BU[s : s + _AT_ONCE, self._unit_R]) for s in starts])

    @cached_property
    def _figure(self) -> Callable[[Floats], Floats]:
        return self._rule(self._items)

    def joined(self, other: Collective) -> Collective:
        """See `Figure`."""
        unit_R = np.concatenate([self._unit_R, other._unit_R + self._units])
        return Collective(self._rule, self._items + other._items, unit_R, self._units + other._units)


@dataclass(frozen=True)
class Measured:
    """One metric of one arm.

    `values_N` are the replies' own, in the order of the pairs; nan where the metric says nothing of a reply (the gate of a
    tier that the client was not in). `units` are the sorted ids of what is resampled, `unit_N` each reply's place in it.
    `value` is the figure of the whole, which for a corpus-level metric is not the mean of `values_N`; it is nan when
    `count`, the replies that it is about, is 0. `rate` says that it is a share of replies, each of which is 0 or 1.
    """

    metric: str
    units: tuple[str, ...]
    unit_N: Rows
    values_N: Floats
    figure: Figure
    rate: bool

    @property
    def value(self) -> float:
        """The figure of all replies."""
        return float(self.figure.of(np.ones((1, len(self.units))))[0])

    @property
    def count(self) -> int:
        """How many replies the metric says something of."""
        return int(np.isfinite(self.values_N).sum())


class Ledger:
    """Writes replies' values down by unit."""

    def __init__(self, unit_ids: Sequence[str]) -> None:
        units, unit_N = np.unique(unit_ids, return_inverse=True)
        self._units, self._unit_N = tuple(units.tolist()), unit_N.astype(np.int64)

    def mean(self, metric: str, values: ArrayLike, *, rate: bool = False, scale: float = 1.0) -> Measured:
        """`scale` times the mean over the replies that have a value."""
        values_N = np.asarray(values, dtype=np.float64)
        known_N = ~np.isnan(values_N)
        assert not rate or np.isin(values_N[known_N], (0, 1)).all(), metric
        return self.sums(
            metric,
            scale * values_N,
            np.stack([np.where(known_N, values_N, 0.0), known_N], axis=1),
            lambda sums_BS: scale * quotient(sums_BS[:, 0], sums_BS[:, 1], nothing=np.nan),
            rate=rate,
        )

    def sums(
        self, metric: str, values: ArrayLike, parts: ArrayLike, formula: Callable[[Floats], Floats], rate: bool = False
    ) -> Measured:
        """`formula` of the sums of `parts` [N, S]."""
        parts_NS = np.asarray(parts, dtype=np.float64)
        sums_US = np.zeros((len(self._units), parts_NS.shape[1]))
        np.add.at(sums_US, self._unit_N, parts_NS)
        return self._measured(metric, values, Sums(sums_US, formula), rate)

    def collective(
        self, metric: str, values: ArrayLike, items: Sequence[Any], rule: Rule, rate: bool = False
    ) -> Measured:
        """The figure that `rule` gives for `items`, one per reply."""
        return self._measured(metric, values, Collective(rule, items, self._unit_N, len(self._units)), rate)

    def _measured(self, metric: str, values: ArrayLike, figure: Figure, rate: bool) -> Measured:
        values_N = np.asarray(values, dtype=np.float64)
        assert values_N.shape == self._unit_N.shape, metric
        return Measured(metric, self._units, self._unit_N, values_N, figure, rate)


def quotient(above: Floats, below: Floats, *, nothing: float) -> Floats:
    """above / below, and `nothing` where `below` is 0."""
    found = np.full(np.broadcast_shapes(above.shape, below.shape), nothing)
    return np.divide(above, below, out=found, where=below != 0)

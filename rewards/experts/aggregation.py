"""What the ratings of an item are worth: three ways from (item, rater, value) to a value and how sure it is.

    mean            the average of an item's ratings: mostly says who rated
    standardised    every rater's ratings are brought to the panel's mean and spread, then averaged
    random_effects  value = mu + item + rater + noise, all shrunk; the reward is `stepwise`, which shrinks within a step only

Values lie in [0, 1]. The numbers depend on which rows there are, not on their order. A hidden repeat is no row: it would
count as one more opinion. Axes: N rows, I items, R raters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rewards.experts.rating_rows import Floats, Panel, Row
from rewards.experts.variance_components import PRIOR, Moments, Prior, Solved, Variances, fitted

LEAST = 3  # ratings that a rater must have given for a mean and a spread of his or her own
_ROUNDING = 1e-9


class Estimate(NamedTuple):
    """An item's value in [0, 1] and its standard error, on the same scale."""

    value: float
    std: float


@dataclass(frozen=True)
class Aggregate:
    """What a panel's ratings are worth. `raters`: how much higher than the panel each rater gives (0 where the method does
    not ask). `mean`: the value of the average item. `notes`: what a reader of the numbers should know, a line each."""

    method: str
    items: Mapping[str, Estimate]
    raters: Mapping[str, float]
    mean: float
    variances: Variances | None = None
    notes: tuple[str, ...] = ()


def flags(rows: Iterable[Row]) -> dict[str, tuple[str, ...]]:
    """The red flags of every item that has a row, sorted: a flag that any rater raised counts, whoever did not."""
    raised: dict[str, set[str]] = {}
    for row in rows:
        raised.setdefault(row.item, set()).update(row.flags)
    return {item: tuple(sorted(raised[item])) for item in sorted(raised)}


def mean(rows: Iterable[Row]) -> Aggregate:
    """The plain mean of each item's ratings. The standard error is that of ratings which differ by chance alone: their
    spread within items, pooled over items and with `PRIOR` as one rating more, over the root of their number."""
    panel = Panel.of(rows)
    items = _averaged(panel, panel.value_N)
    return Aggregate("mean", items, dict.fromkeys(panel.raters, 0.0), float(panel.value_N.mean()))


def standardised(rows: Iterable[Row]) -> Aggregate:
    """The mean of each item's ratings after every rater's were brought to the mean and the standard deviation of all.

    Whoever rated better items than others loses that, too. Ratings of somebody who gave fewer than `LEAST` stay as they
    are, those of somebody who always gives the same become the panel's mean; `notes` names both. Standard errors as in
    `mean`.
    """
    panel = Panel.of(rows)
    value_N, centre, spread = panel.value_N.copy(), float(panel.value_N.mean()), float(panel.value_N.std())
    biases, notes = {}, []
    for at, rater in enumerate(panel.raters):
        own = panel.rater_N == at
        given = panel.value_N[own]
        biases[rater] = float(given.mean()) - centre
        if len(given) < LEAST:
            notes.append(f"{rater} gave {len(given)} of the {LEAST} ratings that standardising needs: taken as given")
        elif given.std() < _ROUNDING:
            notes.append(f"{rater} gave {given[0]:.3g} to every item: taken as the panel's mean")
            value_N[own] = centre
        else:
            value_N[own] = centre + spread * (given - given.mean()) / given.std()
    return Aggregate("standardised", _averaged(panel, value_N), biases, centre, notes=tuple(notes))


def random_effects(rows: Iterable[Row], *, variances: Variances | None = None, prior: Prior = PRIOR) -> Aggregate:
    """Crossed random effects: value = mu + item + rater + noise, three independent normal terms.

    An item's value is mu plus its best linear unbiased prediction (Henderson 1975), kept within [0, 1]; its `std` is the
    standard deviation of that given the ratings and the variances, which counts that mu is not known either: with few
    raters most of it is common to all items. The fewer ratings an item has, the nearer to mu it stays. `raters` are
    predictions of the raters' terms. That the variances are estimates is not counted: in simulation value +- 1.96 `std`
    holds the truth 85 to 95 times in a hundred, the fewer raters there are and the farther apart the less often.

    The variances are `fitted` unless given (those of an earlier Aggregate, say). Raters who share no item are compared by
    the items' common mean alone, which takes it that they were dealt items as good: `notes` says so. One rater cannot be
    told from mu.
    """
    panel = Panel.of(rows)
    moments = Moments.of(panel)
    found = fitted(moments, prior) if variances is None else variances
    gamma, ratio = found.item / found.noise, found.rater / found.noise
    solved = Solved.of(moments, gamma, ratio)
    bias_R = ratio * solved.reach_RJ @ solved.rest_J

    kept_I = 1 / (1 + gamma * panel.many_I)  # how much of mu an item keeps; the rest is its own ratings'
    value_I = moments.origin + kept_I * (solved.centre + gamma * (panel.sums_I - panel.count_IR @ bias_R))
    # Three things are not known: the item's own term, mu (and the raters with it), and the raters given mu.
    own_IR = gamma * kept_I[:, None] * panel.count_IR
    moved_I = kept_I + own_IR @ (ratio * solved.reach_RJ @ solved.one_J)
    raters_I = ratio * ((own_IR @ solved.inverse_RR) * own_IR).sum(axis=1)
    std_I = np.sqrt(found.item * kept_I + found.noise * (moved_I**2 / solved.known + raters_I))
    biases = dict(zip(panel.raters, map(float, bias_R), strict=True))
    centre = moments.origin + solved.centre
    return Aggregate("random effects", _estimates(panel, value_I, std_I), biases, centre, found, panel.notes())


def _averaged(panel: Panel, value_N: Floats) -> dict[str, Estimate]:
    """Each item's mean of `value_N`, and the standard error that `mean` describes."""
    many_I = panel.many_I
    mean_I = np.bincount(panel.item_N, value_N) / many_I
    within = float(((value_N - mean_I[panel.item_N]) ** 2).sum()) + PRIOR.ratings * PRIOR.std**2
    std_I = np.sqrt(within / (len(value_N) - len(many_I) + PRIOR.ratings) / many_I)
    return _estimates(panel, mean_I, std_I)


def _estimates(panel: Panel, value_I: Floats, std_I: Floats) -> dict[str, Estimate]:
    """By item, values kept within [0, 1]."""
    pairs = zip(np.clip(value_I, 0, 1).tolist(), std_I.tolist(), strict=True)
    return {item: Estimate(value, std) for item, (value, std) in zip(panel.items, pairs, strict=True)}

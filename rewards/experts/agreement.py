"""How far raters agree with each other, and with themselves.

Every interval is a 95 % one; those of `agreement` and `consistency` are percentiles over bootstrap samples of the items.
Where nothing differs at all there is nothing to agree about, and a coefficient is 0. Axes: I items, R raters, B bootstrap
samples, N repeated pairs or ratings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.experts.aggregation import Aggregate
from rewards.experts.rating_rows import Floats, Panel, Row
from rewards.experts.variance_components import Moments, Prior, fitted
from rewards.preference_measures import Interval

LEAST = 3  # pairs for a correlation, comparable ratings for a slope
_PLAIN = Prior(ratings=0, shares=0)  # what raters agree on is for the ratings alone to say
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Agreement:
    """Agreement of a panel.

    `icc_a1`: ICC(A,1), how much of the variance of one rating is the item's. `icc_ak`, `icc_ck`: ICC(A,k) and ICC(C,k), the
    same for the mean of `k` ratings, with who rated counted as error (A) or not (C). `alpha`: Krippendorff's, interval
    metric. `complete`: everybody rated everything, once; else the ICCs come from variance components (see `iccs`).
    `items` have two raters at least.
    """

    icc_a1: Interval
    icc_ak: Interval
    icc_ck: Interval
    alpha: Interval
    k: float
    items: int
    raters: int
    complete: bool


@dataclass(frozen=True)
class Consistency:
    """A rater asked twice: `pairs` of a first and a second rating of one item.

    `difference`: mean |second - first|, on the ratings' scale. `shift`: mean second - first. `correlation` is Pearson's, `icc`
    is ICC(A,1) of the two askings, which a shift lowers too; both are None below `LEAST` pairs and where either asking had
    one answer only.
    """

    pairs: int
    difference: Interval
    shift: float
    correlation: float | None
    icc: float | None


def agreement(rows: Iterable[Row], *, draws: int = 500, seed: int = 0) -> Agreement | None:
    """Every coefficient with its interval; None while fewer than two items have two raters.

    The intervals take the raters as they are and ask what other items would have given: with few raters the ICC(A,.) of
    another panel may lie outside.
    """
    panel = Panel.of(rows)
    shared_I = (panel.count_IR > 0).sum(axis=1) >= 2
    if shared_I.sum() < 2:
        return None
    items = len(panel.items)
    rng = np.random.default_rng(seed)
    weight_BI = np.vstack([np.ones(items), rng.multinomial(items, np.full(items, 1 / items), size=draws)])
    # A sample without two shared items says nothing of agreement: it is left out, as it would be among real panels.
    weight_BI = weight_BI[((weight_BI[:, shared_I] > 0).sum(axis=1) >= 2)]
    complete = is_complete(panel)
    k = float(items / (1 / panel.many_I).sum())
    icc_B3 = _mean_square_iccs(panel, weight_BI) if complete else _component_iccs(panel, weight_BI, k)
    a1, ak, ck = (_percentiles(icc_B) for icc_B in icc_B3.T)
    alpha = _percentiles(_alphas(panel, weight_BI))
    return Agreement(a1, ak, ck, alpha, k, int(shared_I.sum()), len(panel.raters), complete)


def is_complete(panel: Panel) -> bool:
    """Whether two raters at least rated two items at least, all of them the same, once each."""
    return min(panel.count_IR.shape) >= 2 and bool((panel.count_IR == 1).all())


def iccs(rows: Iterable[Row]) -> tuple[float, float, float]:
    """ICC(A,1), ICC(A,k), ICC(C,k) of McGraw & Wong (1996, Psychological Methods 1(1), table 4, case 2).

    A complete table: from its mean squares of items R, raters C and error E,

        ICC(A,1) = (R - E) / (R + (k - 1) E + k/n (C - E))
        ICC(A,k) = (R - E) / (R + (C - E) / n)
        ICC(C,k) = (R - E) / R

    which may be negative. Any other table: all its ratings are used, those of items with one rater too, by REML variances
    i, r, e of item, rater and noise,

        ICC(A,1) = i / (i + r + e)      ICC(A,k) = i / (i + (r + e) / k)      ICC(C,k) = i / (i + e / k)

    with k the harmonic mean of the items' numbers of ratings. Both agree on a complete table wherever no variance would
    be negative. Raises ValueError while fewer than two items have two raters.
    """
    panel = Panel.of(rows)
    shared = int(((panel.count_IR > 0).sum(axis=1) >= 2).sum())
    if shared < 2:
        raise ValueError(f"agreement needs two items with two raters each, there are {shared}; wait for more ratings")
    weight_BI = np.ones((1, len(panel.items)))
    if is_complete(panel):
        found = _mean_square_iccs(panel, weight_BI)[0]
    else:
        found = _component_iccs(panel, weight_BI, float(len(panel.items) / (1 / panel.many_I).sum()))[0]
    return float(found[0]), float(found[1]), float(found[2])


def krippendorff_alpha(rows: Iterable[Row]) -> float:
    """Krippendorff's alpha for interval data: 1 - D_o / D_e (Krippendorff 2018, Content Analysis, 4th ed., section 12.3).

    D_o is the mean squared difference of ratings of one item, each item weighted by its number of ratings, D_e that of any two
    ratings. Items with one rating are left out of both. Raises ValueError where no item has two.
    """
    panel = Panel.of(rows)
    if panel.many_I.max() < 2:
        raise ValueError("Krippendorff's alpha needs an item with two ratings, there is none; wait for more ratings")
    return float(_alphas(panel, np.ones((1, len(panel.items))))[0])


def consistency(pairs: Sequence[tuple[float, float]], *, draws: int = 500, seed: int = 0) -> Consistency | None:
    """How one rater agrees with himself or herself, from (first, second) ratings of the same items; None without any."""
    if not pairs:
        return None
    pair_N2 = np.array(pairs, float)
    gap_N = np.abs(pair_N2[:, 1] - pair_N2[:, 0])
    rng = np.random.default_rng(seed)
    sampled_B = gap_N[rng.integers(len(gap_N), size=(draws, len(gap_N)))].mean(axis=1)
    difference = _percentiles(np.append(gap_N.mean(), sampled_B))
    shift = float((pair_N2[:, 1] - pair_N2[:, 0]).mean())
    if len(pairs) < LEAST or np.ptp(pair_N2, axis=0).min() < _ROUNDING:
        return Consistency(len(pairs), difference, shift, None, None)
    askings = [Row(str(at), str(time), float(pair_N2[at, time])) for at in range(len(pairs)) for time in (0, 1)]
    return Consistency(len(pairs), difference, shift, float(np.corrcoef(pair_N2.T)[0, 1]), iccs(askings)[0])


def drift(rows: Sequence[Row], aggregate: Aggregate) -> dict[str, Interval]:
    """How much higher each rater gives after a hundred ratings more, by least squares with a t interval.

    `rows` stand in the order in which they were given, `aggregate` is `random_effects` of the same rows. A rating is
    compared with the mean of the others' ratings of that item, their bias taken off, which counts the more the more
    there are. The shrunken value of the item would not do: it holds the rating itself, and as a policy learns its replies
    get better, which would look like raters growing mild. So a drift that all raters share is not seen, and one rater's
    shows in the others with the opposite sign, in the share of their comparisons that are with him or her: of two raters
    nobody can say which drifts. Raters with fewer than `LEAST` comparable ratings are left out.
    """
    from scipy.special import stdtrit

    totals: dict[str, tuple[int, float]] = {}
    for row in rows:
        many, total = totals.get(row.item, (0, 0.0))
        totals[row.item] = many + 1, total + row.value - aggregate.raters[row.rater]
    given: dict[str, int] = {}
    compared: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        given[row.rater] = given.get(row.rater, 0) + 1
        own = row.value - aggregate.raters[row.rater]
        others = totals[row.item][0] - 1
        if others:
            gap = own - (totals[row.item][1] - own) / others
            compared.setdefault(row.rater, []).append((given[row.rater] / 100, gap, others / (others + 1)))
    slopes = {}
    for rater in sorted(rater for rater, points in compared.items() if len(points) >= LEAST):
        at_N, gap_N, weight_N = np.array(compared[rater]).T
        at_N, gap_N = at_N - np.average(at_N, weights=weight_N), gap_N - np.average(gap_N, weights=weight_N)
        spread = float(weight_N @ at_N**2)
        slope = float(weight_N @ (at_N * gap_N)) / spread
        error = np.sqrt(weight_N @ (gap_N - slope * at_N) ** 2 / (len(at_N) - 2) / spread)
        reach = float(stdtrit(len(at_N) - 2, 0.975) * error)
        slopes[rater] = Interval(slope, slope - reach, slope + reach)
    return slopes


def _percentiles(value_B: Floats) -> Interval:
    low, high = np.quantile(value_B[1:], [0.025, 0.975])
    return Interval(float(value_B[0]), float(low), float(high))


def _ratio(over_B: Floats, under_B: Floats) -> Floats:
    """over / under, and 0 where there is nothing under."""
    some_B = np.abs(under_B) > _ROUNDING
    return np.where(some_B, over_B / np.where(some_B, under_B, 1.0), 0.0)


def _mean_square_iccs(panel: Panel, weight_BI: Floats) -> Floats:
    items, raters = panel.count_IR.shape
    value_IR = np.zeros((items, raters))
    value_IR[panel.item_N, panel.rater_N] = panel.value_N - panel.value_N.mean()
    row_I = value_IR.mean(axis=1)
    grand_B, column_BR = weight_BI @ row_I / items, weight_BI @ value_IR / items
    total_B = weight_BI @ (value_IR**2).sum(axis=1) - items * raters * grand_B**2
    rows_B = raters * (weight_BI @ row_I**2 - items * grand_B**2)
    columns_B = items * ((column_BR - grand_B[:, None]) ** 2).sum(axis=1)
    r_B, c_B = rows_B / (items - 1), columns_B / (raters - 1)
    e_B = (total_B - rows_B - columns_B) / ((items - 1) * (raters - 1))
    item_B, apart_B = r_B - e_B, (c_B - e_B) / items
    under = (r_B + (raters - 1) * e_B + raters * apart_B, r_B + apart_B, r_B)
    return np.column_stack([_ratio(item_B, under_B) for under_B in under])


def _component_iccs(panel: Panel, weight_BI: Floats, k: float) -> Floats:
    found_B3, first = np.zeros((len(weight_BI), 3)), None
    for at, weight_I in enumerate(weight_BI):
        if np.ptp(panel.value_N[weight_I[panel.item_N] > 0]) > _ROUNDING:
            found = fitted(Moments.of(panel, weight_I), _PLAIN, first)
            first = first or found
            found_B3[at] = found.item, found.rater, found.noise
    item_B, rater_B, noise_B = found_B3.T
    under = (item_B + rater_B + noise_B, item_B + (rater_B + noise_B) / k, item_B + noise_B / k)
    return np.column_stack([_ratio(item_B, under_B) for under_B in under])


def _alphas(panel: Panel, weight_BI: Floats) -> Floats:
    paired_I = panel.many_I >= 2
    many_I, weight_BI = panel.many_I[paired_I], weight_BI[:, paired_I]
    value_N = panel.value_N - panel.value_N.mean()
    sum_I = np.bincount(panel.item_N, value_N)[paired_I]
    square_I = np.bincount(panel.item_N, value_N**2)[paired_I]
    many_B, sum_B, square_B = weight_BI @ many_I, weight_BI @ sum_I, weight_BI @ square_I
    within_B = weight_BI @ ((many_I * square_I - sum_I**2) / (many_I - 1))
    between_B = (many_B * square_B - sum_B**2) / (many_B - 1)
    return np.where(between_B > _ROUNDING, 1 - _ratio(within_B, between_B), 0.0)

"""What ratings are worth where the policy learns: compared and shrunk within a step, never across steps.

    value = m_g + item + rater + noise

m_g, the mean of group g (a step's replies), is for the ratings alone to say: a fixed effect each. The other three terms are
independent, normal, and centred on 0, as in `aggregation.random_effects`. So improvement is neither shrunk to what came
before nor taken for a rater's mildness, and raters are compared by replies of one step. Axes: N rows, I items, R raters,
J = R + 1 (raters and value), G groups, K the different numbers of ratings that items have.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.experts.aggregation import Estimate
from rewards.experts.rating_rows import Floats, Panel, Row
from rewards.experts.variance_components import LEAST_NOISE, PRIOR, WIDEST, Moments, Prior, Variances


@dataclass(frozen=True)
class Stepwise:
    """Values by item; how much higher than the others each rater gives; how much things vary within a step; and what a
    reader of the numbers should know."""

    items: Mapping[str, Estimate]
    raters: Mapping[str, float]
    variances: Variances
    notes: tuple[str, ...]


def stepwise(rows: Iterable[Row], groups: Mapping[str, Hashable], *, prior: Prior = PRIOR) -> Stepwise:
    """An item's value is its group's mean plus what is left of its difference from it when chance is taken off:

        y_i      = mean over i's ratings of (value - rater)
        m_g      = mean of y_i over the items of i's group
        lambda_i = var_item / (var_item + var_noise / n_i)        n_i ratings
        value_i  = m_g + lambda_i (y_i - m_g),  kept within [0, 1]
        std_i    = sqrt((1 - lambda_i) var_item)

    An item that is alone in its group is worth y_i. Raters' effects and the variances come from all rows: restricted maximum
    likelihood times `prior`, with a mean per group as fixed effects. Where every item has one rating, item and noise cannot
    be told apart and the prior decides: lambda is about 1/2. `std` leaves out that m_g, the raters' effects and the variances
    are estimates; the first matters in small groups, the others with few raters. Raters who never met in a group are not
    compared at all, which `notes` says.
    """
    panel = Panel.of(rows)
    group_I = _numbered(groups[item] for item in panel.items)
    moments, sums = Moments.of(panel), _Sums.of(panel, group_I)
    gamma, ratio = _ratios(moments, sums, prior)
    solved = _Solved.of(moments, sums, gamma, ratio)
    noise = solved.noise(moments, prior)
    rater_R = ratio * solved.inverse_RR @ solved.left_JJ[:-1, -1]

    many_I = panel.many_I
    own_I = moments.origin + (panel.sums_I - panel.count_IR @ rater_R) / many_I
    mean_G = np.bincount(group_I, own_I) / np.bincount(group_I)
    kept_I = gamma / (gamma + 1 / many_I)
    value_I = mean_G[group_I] + kept_I * (own_I - mean_G[group_I])
    std_I = np.sqrt((1 - kept_I) * gamma * noise)
    told = zip(np.clip(value_I, 0, 1).tolist(), std_I.tolist(), strict=True)
    return Stepwise(
        {item: Estimate(*each) for item, each in zip(panel.items, told, strict=True)},
        dict(zip(panel.raters, rater_R.tolist(), strict=True)),
        Variances(gamma * noise, ratio * noise, noise),
        _notes(panel, group_I),
    )


@dataclass(frozen=True)
class _Sums:
    """By group and number of ratings: how many ratings there are, and their sums of [raters' indicators, value]."""

    many_GK: Floats
    sums_GKJ: Floats

    @staticmethod
    def of(panel: Panel, group_I: NDArray[np.int64]) -> _Sums:
        many_K, kind_I = np.unique(panel.many_I, return_inverse=True)
        shape = (int(group_I.max()) + 1, len(many_K))
        many_GK, sums_GKJ = np.zeros(shape), np.zeros((*shape, len(panel.raters) + 1))
        np.add.at(many_GK, (group_I, kind_I), panel.many_I)
        np.add.at(sums_GKJ, (group_I, kind_I), np.column_stack([panel.count_IR, panel.sums_I]))
        return _Sums(many_GK, sums_GKJ)


@dataclass(frozen=True)
class _Solved:
    """The mixed-model equations at `gamma` = item / noise and `ratio` = rater / noise: `left_JJ` the cross products of
    [raters' indicators, value] without items and groups, `inverse_RR` = (1 + ratio left_RR)^-1, `weight_G` how well each
    group's mean is known, `total` = 1 + gamma + ratio."""

    inverse_RR: Floats
    left_JJ: Floats
    weight_G: Floats
    ratio: float
    total: float

    @staticmethod
    def of(moments: Moments, sums: _Sums, gamma: float, ratio: float) -> _Solved:
        kept_K = 1 / (1 + gamma * moments.many_K)
        cross_JJ = moments.plain_JJ - np.tensordot(gamma * kept_K, moments.cross_KJJ, 1)
        weight_G, sums_GJ = sums.many_GK @ kept_K, np.tensordot(sums.sums_GKJ, kept_K, (1, 0))
        left_JJ = cross_JJ - sums_GJ.T @ (sums_GJ / weight_G[:, None])
        inverse_RR = np.linalg.inv(np.eye(len(left_JJ) - 1) + ratio * left_JJ[:-1, :-1])
        return _Solved(inverse_RR, left_JJ, weight_G, ratio, 1 + gamma + ratio)

    def freedom(self, moments: Moments, prior: Prior) -> float:
        """Ratings that are left for the variances."""
        return max(moments.ratings - len(self.weight_G) + prior.ratings, 1.0)

    def noise(self, moments: Moments, prior: Prior) -> float:
        """Its best variance."""
        reach_R = self.left_JJ[:-1, -1]
        misfit = float(self.left_JJ[-1, -1] - self.ratio * reach_R @ self.inverse_RR @ reach_R)
        misfit += prior.ratings * prior.std**2 / self.total
        return max(misfit / self.freedom(moments, prior), LEAST_NOISE)


def _ratios(moments: Moments, sums: _Sums, prior: Prior) -> tuple[float, float]:
    """gamma and ratio: the criterion of `variance_components.criterion`, with groups in the place of the one mean."""
    from scipy.optimize import minimize

    def criterion(logs: Floats) -> float:
        gamma, ratio = map(float, np.exp(logs))
        solved = _Solved.of(moments, sums, gamma, ratio)
        return (
            solved.freedom(moments, prior) * math.log(solved.noise(moments, prior))
            + prior.ratings * math.log(solved.total)
            + float(moments.items_K @ np.log(1 + gamma * moments.many_K))
            + float(np.log(solved.weight_G).sum())
            - float(np.linalg.slogdet(solved.inverse_RR)[1])
            - 2 * prior.shares * (float(logs.sum()) - 3 * math.log(solved.total))
        )

    bounds = [(-WIDEST, WIDEST)] * 2
    best = minimize(criterion, np.zeros(2), method="L-BFGS-B", jac="3-point", bounds=bounds, options={"ftol": 1e-12})
    gamma, ratio = map(float, np.exp(best.x))
    return gamma, ratio


def _notes(panel: Panel, group_I: NDArray[np.int64]) -> tuple[str, ...]:
    """What the design leaves open."""
    if len(panel.raters) == 1:
        return (
            f"{panel.raters[0]} is the only rater: how high he or she gives cannot be told from how good items are",
        )
    notes = []
    met_GR = np.zeros((int(group_I.max()) + 1, len(panel.raters)))
    np.add.at(met_GR, group_I, panel.count_IR)
    if (sets := _sets(panel.count_IR)) > 1:
        notes.append(f"the raters fall into {sets} sets that share no item: compared by the means of steps they share")
    if (sets := _sets(met_GR)) > 1:
        notes.append(
            f"the raters fall into {sets} sets that share no step: not compared, each set's mean is taken as given"
        )
    return tuple(notes)


def _sets(count_XR: Floats) -> int:
    """How many sets of raters have nothing in common."""
    set_R, meet_RR = np.arange(count_XR.shape[1]), (count_XR.T @ count_XR) > 0
    for _ in set_R:  # each takes the least number that somebody met has: sets settle within R rounds
        set_R = np.where(meet_RR, set_R, len(set_R)).min(axis=1)
    return len(set(set_R.tolist()))


def _numbered(groups: Iterable[Hashable]) -> NDArray[np.int64]:
    """0, 1, ... in the order of their first item."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)

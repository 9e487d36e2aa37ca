"""How much items, raters and chance differ in a panel's ratings: variance components by REML, times a prior.

value = mu + item + rater + noise, three independent normal terms, in crossed designs with holes. Axes: I items, R raters,
J = R + 1, K the different numbers of ratings that items have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rewards.experts.rating_rows import Floats, Panel

LEAST_NOISE = 1e-12
WIDEST = math.log(1e6)  # of a variance over the noise's, either way: a share of a millionth is as good as none


@dataclass(frozen=True)
class Variances:
    """How much items, raters, and ratings of one item by one rater differ: three variances of values in [0, 1]."""

    item: float
    rater: float
    noise: float

    def __post_init__(self) -> None:
        if not (self.item >= 0 and self.rater >= 0 and self.noise > 0 and math.isfinite(self.total)):
            raise ValueError(
                f"the variances of items and raters must be 0 or more and that of the noise above 0, all finite, are {self}; "
                "take them from an Aggregate"
            )

    @property
    def total(self) -> float:
        """The variance of one rating of some item by some rater."""
        return self.item + self.rater + self.noise


@dataclass(frozen=True)
class Prior:
    """What is thought of the variances before there are ratings, so that one or two of them give no silly answer.

    The total is that of `ratings` ratings with standard deviation `std`. The shares of item, rater and noise in it are held
    off zero by `shares` * log(share) each, added to the log-likelihood: 1/2 is the default of Chung et al. (2013), which
    moves an estimate by less than about one standard error. Neither depends on how much the ratings spread; both fade as
    ratings come in. `Prior(0, shares=0)` is plain REML.
    """

    ratings: float = 1.0
    std: float = 0.25
    shares: float = 0.5


PRIOR = Prior()


@dataclass(frozen=True)
class Moments:
    """All that the likelihood needs of a panel, so that its cost does not grow with the ratings.

    Ratings are less `origin`. `plain_JJ` holds the cross products of [raters' indicators, value] over rows, `cross_KJJ`
    those of their sums within an item over the `items_K` items that have `many_K` ratings each: eliminating the items from
    the mixed-model equations is plain_JJ - sum_K gamma / (1 + gamma many) cross_KJJ.
    """

    ratings: float
    origin: float
    many_K: Floats
    items_K: Floats
    cross_KJJ: Floats
    plain_JJ: Floats

    @staticmethod
    def of(panel: Panel, weight_I: Floats | None = None) -> Moments:
        """Of each item counted `weight_I` times (default: once)."""
        weight_I = np.ones(len(panel.items)) if weight_I is None else weight_I
        weight_N, value_N = weight_I[panel.item_N], panel.value_N - panel.value_N.mean()
        each_R = np.bincount(panel.rater_N, weight_N)
        given_R = np.bincount(panel.rater_N, weight_N * value_N)
        square = float(weight_N @ value_N**2)
        plain_JJ = np.block([[np.diag(each_R), given_R[:, None]], [given_R, np.array(square)]])
        many_I, sums_IJ = panel.many_I, np.column_stack([panel.count_IR, panel.sums_I])
        many_K = np.unique(many_I[weight_I > 0])
        parts = [many_I == many for many in many_K]
        cross_KJJ = np.stack([(sums_IJ[part] * weight_I[part, None]).T @ sums_IJ[part] for part in parts])
        items_K = np.array([weight_I[part].sum() for part in parts])
        return Moments(float(weight_N.sum()), float(panel.value_N.mean()), many_K, items_K, cross_KJJ, plain_JJ)


@dataclass(frozen=True)
class Solved:
    """The mixed-model equations at variances over the noise's: `gamma` = item / noise, `ratio` = rater / noise.

    With B the cross products without the items, M its raters' block and E = I + ratio M: `reach_RJ` = E^-1 [M, c], `left_JJ`
    the cross products without items and raters, `known` the precision of mu in ratings' worth, `centre` mu less the origin,
    `one_J` the column of mu and `rest_J` what is left of the values when mu is taken off.
    """

    inverse_RR: Floats
    reach_RJ: Floats
    left_JJ: Floats
    one_J: Floats
    rest_J: Floats
    known: float
    centre: float

    @staticmethod
    def of(moments: Moments, gamma: float, ratio: float) -> Solved:
        raters = len(moments.plain_JJ) - 1
        weight_K = gamma / (1 + gamma * moments.many_K)
        cross_JJ = moments.plain_JJ - np.tensordot(weight_K, moments.cross_KJJ, 1)
        inverse_RR = np.linalg.inv(np.eye(raters) + ratio * cross_JJ[:raters, :raters])
        reach_RJ = inverse_RR @ cross_JJ[:raters]
        left_JJ = cross_JJ - ratio * cross_JJ[:, :raters] @ reach_RJ
        one_J = np.append(np.ones(raters), 0.0)
        known = float(one_J @ left_JJ @ one_J)
        centre = float(one_J @ left_JJ[:, raters]) / known
        return Solved(inverse_RR, reach_RJ, left_JJ, one_J, np.append(np.full(raters, -centre), 1.0), known, centre)


def fitted(moments: Moments, prior: Prior = PRIOR, start: Variances | None = None) -> Variances:
    """Variances by restricted maximum likelihood (Patterson & Thompson 1971) times `prior`.

    The criterion is profiled over mu and the total as in Bates et al. (2015, J. Stat. Softw. 67(1), section 3.4), and
    minimised over the logarithms of gamma and ratio, with its gradient, from equal shares on (or from `start`, which is
    quicker if it is near).
    """
    from scipy.optimize import minimize

    bounds = [(-WIDEST, WIDEST)] * 2
    # not from the edges, where the criterion is so flat in the logarithms that nothing would move
    first = np.ones(2) if start is None else np.clip(np.array([start.item, start.rater]) / start.noise, 0.01, 100)
    options = {"ftol": 1e-13, "gtol": 1e-7}
    best = minimize(criterion, np.log(first), (moments, prior), "L-BFGS-B", jac=True, bounds=bounds, options=options)
    gamma, ratio = map(float, np.exp(best.x))
    noise = _noise(moments, prior, gamma, ratio, Solved.of(moments, gamma, ratio))
    return Variances(gamma * noise, ratio * noise, noise)


def _noise(moments: Moments, prior: Prior, gamma: float, ratio: float, solved: Solved) -> float:
    misfit = float(solved.rest_J @ solved.left_JJ @ solved.rest_J) + prior.ratings * prior.std**2 / (1 + gamma + ratio)
    return max(misfit / max(moments.ratings - 1 + prior.ratings, 1.0), LEAST_NOISE)


def criterion(logs: Floats, moments: Moments, prior: Prior) -> tuple[float, Floats]:
    """-2 log(restricted likelihood x prior), up to a constant, at the best noise; and its gradient.

    `logs` are the logarithms of gamma and ratio.
    """
    gamma, ratio = map(float, np.exp(logs))
    solved, total = Solved.of(moments, gamma, ratio), 1 + gamma + ratio
    noise = _noise(moments, prior, gamma, ratio, solved)
    swollen_K = 1 + gamma * moments.many_K
    shares = 2 * prior.shares
    value = (
        (moments.ratings - 1 + prior.ratings) * math.log(noise)
        + prior.ratings * math.log(total)
        + float(moments.items_K @ np.log(swollen_K))
        - float(np.linalg.slogdet(solved.inverse_RR)[1])
        + math.log(solved.known)
        - shares * (float(logs.sum()) - 3 * math.log(total))
    )
    # Along gamma all follows from the derivative of the cross products without items, seen past the raters; along ratio
    # a quadratic form of the cross products without raters falls by the square of its reach.
    slope_JJ = -np.tensordot(swollen_K**-2.0, moments.cross_KJJ, 1)
    raters = len(solved.inverse_RR)
    past_JJ = np.eye(raters + 1)
    past_JJ[:raters] -= ratio * solved.reach_RJ
    known_slope, misfit_slope = (
        np.array([(past_JJ @ of_J) @ slope_JJ @ (past_JJ @ of_J), -((solved.reach_RJ @ of_J) ** 2).sum()])
        for of_J in (solved.one_J, solved.rest_J)
    )
    determinant_slope = np.array(
        [
            float(moments.items_K @ (moments.many_K / swollen_K))
            + ratio * float((solved.inverse_RR * slope_JJ[:raters, :raters]).sum()),
            float(np.trace(solved.reach_RJ[:, :raters])),
        ]
    )
    prior_slope = prior.ratings / total * (1 - prior.std**2 / (total * noise)) - shares * (np.exp(-logs) - 3 / total)
    slope = misfit_slope / noise + known_slope / solved.known + determinant_slope + prior_slope
    return value, slope * np.exp(logs)

"""The fit of a preference model to rated replies.

Axes: N replies, F features, K members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.preference_ensemble import Ensemble, Floats, Scaling
from rewards.preference_features import VECTORS, Matrix, Sight, is_scalar
from rewards.preference_measures import spearman
from rewards.rated_replies import RatedReply

PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.01)  # per rated reply; the strongest first


@dataclass(frozen=True)
class Candidate:
    """What was tried: a feature set, a ridge penalty per rated reply, and what they reached on the valid split."""

    features: str
    penalty: float
    valid_spearman: float


def ridit(scores: Floats) -> Callable[[Floats], Floats]:
    """The map of a score to its mid-rank among `scores`, as a share: P(less) + P(equal) / 2 (Bross 1958)."""
    ordered = np.sort(scores)
    return lambda s: (np.searchsorted(ordered, s, "left") + np.searchsorted(ordered, s, "right")) / (2 * len(ordered))


def scores_of(replies: Sequence[RatedReply]) -> Floats:
    """The ratings, `[N]`."""
    return np.array([rated.score for rated in replies], dtype=np.float64)


def seen(sight: Sight, names: Sequence[str], replies: Sequence[RatedReply]) -> Matrix:
    """The features of rated replies, `[N, F]`."""
    return sight.matrix(names, [(rated.history, rated.reply) for rated in replies])


def fit_ensemble(
    train: Sequence[RatedReply],
    valid: Sequence[RatedReply],
    sight: Sight,
    feature_sets: Mapping[str, tuple[str, ...]],
    *,
    members: int,
    seed: int,
) -> tuple[Ensemble, list[Candidate]]:
    """Fit on `train`, choose and calibrate by `valid`; the ensemble, and all that was tried, the choice first.

    Ratings are skewed (half of ESConv's stars are fives). The members therefore learn a score's ridit in the train split
    instead of the score: a step is worth the share of replies that it passes, so a few ones do not outweigh the line
    between the many fours and fives.

    Member k minimises ridge regression's loss on a bootstrap sample of the groups, its weights drawn to a random prior
    instead of to 0 (Osband et al. 2018, arXiv:1806.03335; Pearce et al. 2020, arXiv:1810.05546):

        sum_i n_ki (y_i - b - w . z_i)^2 + alpha |w - prior_k|^2,    prior_k ~ Normal(0, sigma^2 / alpha)

    n_ki is how often i's group was drawn, sigma^2 the residual variance. Where the ratings say nothing the members keep
    their priors and disagree; the priors sum to 0, so the mean there is ridge regression's. A plain number is scaled to
    weigh as much as a whole vector, and clipped to its 1st to 99th percentile: no length is paid that no rated reply had.

    Feature set and penalty are those with the highest Spearman correlation on `valid`. The mean is calibrated to the
    ratings by least squares on `valid`, the slope at least 0: a model that learned nothing says the mean rating of
    everything. Raises ValueError when all scores of `train` are the same.
    """
    from sklearn.linear_model import Ridge

    score_N, truth_N = scores_of(train), scores_of(valid)
    if len(np.unique(score_N)) < 2:
        raise ValueError(
            f"the train split's scores must differ, all {len(score_N)} are {score_N[0]:g}; rate more replies"
        )
    target_N = ridit(score_N)(score_N)
    tried: list[Candidate] = []
    alpha = variance = 0.0
    for name, names in feature_sets.items():
        x_NF = seen(sight, names, train)
        scaling = _scaling(names, x_NF, sight.width)
        z_NF, valid_NF = scaling.apply(x_NF), scaling.apply(seen(sight, names, valid))
        for penalty in PENALTIES:
            head = Ridge(alpha=penalty * len(train), solver="cholesky").fit(z_NF, target_N)
            candidate = Candidate(name, penalty, spearman(head.predict(valid_NF), truth_N))
            if all(candidate.valid_spearman > other.valid_spearman for other in tried):
                alpha, variance = penalty * len(train), float(np.mean((target_N - head.predict(z_NF)) ** 2))
            tried.append(candidate)
    tried.sort(key=lambda candidate: -candidate.valid_spearman)  # stable: of equals, the first tried was taken
    names = feature_sets[tried[0].features]
    x_NF = seen(sight, names, train)
    scaling = _scaling(names, x_NF, sight.width)
    z_NF = scaling.apply(x_NF)

    prior_KF = np.random.default_rng(seed).normal(0, np.sqrt(variance / alpha), (members, z_NF.shape[1]))
    prior_KF -= prior_KF.mean(axis=0)
    groups, group_N = np.unique([rated.group for rated in train], return_inverse=True)
    weights_KF, intercepts_K = np.empty_like(prior_KF), np.empty(members)
    for member, prior_F in enumerate(prior_KF):
        drawn = np.random.default_rng([seed, member]).integers(len(groups), size=len(groups))
        count_N = np.bincount(drawn, minlength=len(groups))[group_N].astype(np.float64)
        head = Ridge(alpha=alpha, solver="cholesky").fit(z_NF, target_N - z_NF @ prior_F, sample_weight=count_N)
        weights_KF[member], intercepts_K[member] = prior_F + head.coef_, head.intercept_
    valid_NF = seen(sight, names, valid)
    raw_N, _ = Ensemble(names, scaling, weights_KF, intercepts_K, np.array([1.0, 0.0])).predict(valid_NF)
    return Ensemble(names, scaling, weights_KF, intercepts_K, _line(raw_N, truth_N)), tried


def _scaling(names: Sequence[str], x_NF: Matrix, width: int) -> Scaling:
    scalar_F = is_scalar(names, width)
    low_F = np.where(scalar_F, np.quantile(x_NF, 0.01, axis=0), -np.inf)
    high_F = np.where(scalar_F, np.quantile(x_NF, 0.99, axis=0), np.inf)
    kept_NF = np.clip(x_NF, low_F, high_F)
    std_F = kept_NF.std(axis=0)
    worth = np.sqrt(width) if set(names) & set(VECTORS) else 1.0
    scale_F = np.where(std_F > 1e-9, std_F, 1.0) / np.where(scalar_F, worth, 1.0)
    return Scaling(low_F, high_F, kept_NF.mean(axis=0), scale_F)


def _line(raw_N: Floats, truth_N: Floats) -> Floats:
    """(slope, offset) of least squares, the slope at least 0."""
    centred_N = raw_N - raw_N.mean()
    spread = float(centred_N @ centred_N)
    slope = max(0.0, float(centred_N @ truth_N) / spread) if spread > 0 else 0.0
    return np.array([slope, truth_N.mean() - slope * raw_N.mean()])

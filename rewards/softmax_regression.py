"""Multinomial logistic regression with balanced classes, and the temperature that calibrates it.

Axes: N rows, F features, C labels; y_N holds label numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.head_features import Floats
from rewards.heads import logits, softmax

Labels = NDArray[np.int64]
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Inverse weights of the L2 penalty that are tried (scikit-learn's C)."""
_COLDEST, _HOTTEST = 0.05, 20.0
_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Fit:
    """The layer that one penalty gave."""

    strength: float
    weight_CF: Floats
    bias_C: Floats

    def logits(self, x_NF: Floats) -> NDArray[np.float64]:
        """`[N, C]`."""
        return logits(x_NF, self.weight_CF, self.bias_C)


def fit(x_NF: Floats, y_N: Labels, strength: float) -> Fit:
    """Minimise  sum_n v(y_n) * -log softmax(W x_n + b)[y_n] + |W|^2 / (2 strength),  v(c) = N / (C * rows of c).

    Every label must have a row.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=_MOST_ITERATIONS)
    model.fit(x_NF, y_N)
    weight_CF, bias_C = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row there: the logit of the second label against the first
        weight_CF, bias_C = np.vstack([0 * weight_CF, weight_CF]), np.hstack([0 * bias_C, bias_C])
    return Fit(strength, weight_CF.astype(np.float32), bias_C.astype(np.float32))


def fits(x_NF: Floats, y_N: Labels, say: Callable[[str], None]) -> Iterator[Fit]:
    """One fit per penalty, the strongest penalty first."""
    for strength in STRENGTHS:
        yield fit(x_NF, y_N, strength)
        say(f"  fitted with strength {strength:g}")


def temperature(logit_NC: NDArray[np.float64], y_N: Labels) -> float:
    """The T in [0.05, 20] at which softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017,
    arXiv:1706.04599), to four digits; 1 where no other is better."""
    from scipy.optimize import minimize_scalar

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    found = minimize_scalar(lambda log_t: nll(logit_NC / np.exp(log_t), y_N), bounds=bounds, method="bounded")
    best = round(float(np.exp(found.x)), 4)
    return best if nll(logit_NC / best, y_N) < nll(logit_NC, y_N) else 1.0


def nll(logit_NC: NDArray[np.float64], y_N: Labels) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    return float(-np.log(softmax(logit_NC)[np.arange(len(y_N)), y_N].clip(1e-300)).mean())

"""BLEU from its counts, for whole arrays of them at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from eval.figures import Floats

ORDER = 4


def bleu(
    correct: ArrayLike, total: ArrayLike, length: ArrayLike, reference_length: ArrayLike, *, effective_order: bool
) -> Floats:
    """BLEU-4 (Papineni et al. 2002) in [0, 1] as sacrebleu computes it, with exponential smoothing.

        BLEU = min(1, exp(1 - r / c)) exp(mean over n of log p_n),  p_n = correct_n / total_n

    `correct` and `total` are [..., 4] counts of n-grams, `length` c and `reference_length` r are [...]; they broadcast. The
    k-th order without a match counts 1 / (2^k total_n). Where an order has no n-grams the mean is over those before it
    (`effective_order`, for sentences) or BLEU is 0 (for corpora). It is 0 without any match.
    """
    correct_XO, total_XO = np.broadcast_arrays(np.asarray(correct, np.float64), np.asarray(total, np.float64))
    c_X, r_X = np.asarray(length, np.float64), np.asarray(reference_length, np.float64)
    shape = np.broadcast_shapes(correct_XO.shape[:-1], c_X.shape, r_X.shape)
    smooth_X, log_X, orders_X, going_X = np.ones(shape), np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    for n in range(ORDER):
        right_X, all_X = correct_XO[..., n], total_XO[..., n]
        going_X = going_X & (all_X > 0)
        smooth_X = np.where(going_X & (right_X == 0), 2 * smooth_X, smooth_X)
        counted_X = np.where(right_X > 0, right_X, 1 / smooth_X)
        log_X = log_X + np.where(going_X, np.log(counted_X / np.where(all_X > 0, all_X, 1.0)), 0.0)
        orders_X = orders_X + going_X
    brevity_X = np.where(c_X < r_X, np.exp(1 - r_X / np.maximum(c_X, 1.0)), 1.0)
    value_X = brevity_X * np.exp(log_X / np.maximum(orders_X, 1.0))
    whole_X = orders_X > 0 if effective_order else orders_X == ORDER
    return np.where(whole_X & (correct_XO.sum(axis=-1) > 0) & (c_X > 0), value_X, 0.0)

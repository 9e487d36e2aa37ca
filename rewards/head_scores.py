"""How well a head reads held-out rows, with intervals, and the majority baseline beside it.

Axes: N rows, C labels. An interval is the 2.5th to the 97.5th percentile over bootstrap samples of the rows, that of a share
Wilson's, which is none of zero width where all rows agree; numbers are kept to four digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
_DIGITS = 4

Rows = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def bootstrap(measure: Callable[[Rows], float], count: int, resamples: int, seed: int) -> dict[str, float]:
    """`value` of all `count` rows, and `low` and `high` over samples of as many rows with replacement.

    The samples are the same for every measure of one (count, resamples, seed): differences are paired.
    """
    draw = np.random.default_rng(seed)
    samples = [measure(draw.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    values = {"value": measure(np.arange(count)), "low": low, "high": high}
    return {name: round(float(number), _DIGITS) for name, number in values.items()}


def wilson(holds_N: NDArray[np.bool_]) -> dict[str, float]:
    """`value`, the share of the rows in which it holds, its `low` and `high` (Wilson 1927, 95 %), and `rows`:

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   z = 1.96
    """
    rows, z = len(holds_N), 1.959964
    share, whole = float(holds_N.mean()), 1 + z**2 / rows
    middle = (share + z**2 / (2 * rows)) / whole
    half = z * float(np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))) / whole
    values = {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
    return {**{name: round(number, _DIGITS) for name, number in values.items()}, "rows": rows}


def scores(
    before_NC: Probabilities,
    after_NC: Probabilities,
    y_N: Rows,
    labels: Sequence[str],
    *,
    majority: int,
    resamples: int,
    seed: int,
    models: tuple[str, str] = ("before", "after"),
) -> dict[str, Any]:
    """Scores of probabilities `after_NC`, `before_NC` beside them for the calibration error; `models` names the two.

    `macro_f1`: mean F1 of the labels that the rows have. `accuracy`, and `majority_accuracy` of always saying `majority`, the
    most frequent label of the train split. `ece_before`, `ece_after` (or as `models` says): expected calibration error of the
    most probable label, 15 bins. `by_label`: precision, recall and F1 of each, and `support`, its rows.
    """
    said_N, total = after_NC.argmax(axis=1), len(y_N)

    def counts(rows: Rows) -> NDArray[np.int64]:
        return confusion(said_N[rows], y_N[rows], len(labels))

    def interval(measure: Callable[[Rows], float]) -> dict[str, float]:
        return bootstrap(measure, total, resamples, seed)

    precision_C, recall_C, f1_C = per_label(counts(np.arange(total)))
    return {
        "rows": total,
        "macro_f1": interval(lambda rows: macro_f1(counts(rows))),
        "accuracy": interval(lambda rows: float((said_N[rows] == y_N[rows]).mean())),
        "majority_label": labels[majority],
        "majority_accuracy": interval(lambda rows: float((y_N[rows] == majority).mean())),
        f"ece_{models[0]}": interval(lambda rows: calibration_error(before_NC[rows], y_N[rows])),
        f"ece_{models[1]}": interval(lambda rows: calibration_error(after_NC[rows], y_N[rows])),
        "by_label": {
            label: {
                "precision": round(float(precision_C[c]), _DIGITS),
                "recall": round(float(recall_C[c]), _DIGITS),
                "f1": round(float(f1_C[c]), _DIGITS),
                "support": int((y_N == c).sum()),
            }
            for c, label in enumerate(labels)
        },
    }


def per_label(confusion_CC: NDArray[np.int64]) -> tuple[Probabilities, Probabilities, Probabilities]:
    """Precision, recall and F1 of each label, from counts of (true, said); 0 where nothing is there to divide by."""
    right_C = np.diag(confusion_CC).astype(np.float64)
    precision_C = right_C / confusion_CC.sum(axis=0).clip(1)
    recall_C = right_C / confusion_CC.sum(axis=1).clip(1)
    f1_C = 2 * right_C / (confusion_CC.sum(axis=0) + confusion_CC.sum(axis=1)).clip(1)
    return precision_C, recall_C, f1_C


def macro_f1(confusion_CC: NDArray[np.int64]) -> float:
    """Mean F1 of the labels that have a row."""
    return float(per_label(confusion_CC)[2][confusion_CC.sum(axis=1) > 0].mean())


def confusion(said_N: Rows, y_N: Rows, labels: int) -> NDArray[np.int64]:
    """Counts of (true, said), `[C, C]`."""
    return np.bincount(y_N * labels + said_N, minlength=labels**2).reshape(labels, labels)


def reliability(probability_NC: Probabilities, y_N: Rows) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, rows) of each bin of the most probable label's probability that has rows."""
    top_N = probability_NC.max(axis=1)
    right_N = probability_NC.argmax(axis=1) == y_N
    bin_N = np.minimum((top_N * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bin_N, minlength=BINS)
    told, right = (np.bincount(bin_N, values, minlength=BINS) for values in (top_N, right_N))
    return [(told[b] / counts[b], right[b] / counts[b], int(counts[b])) for b in range(BINS) if counts[b]]


def calibration_error(probability_NC: Probabilities, y_N: Rows) -> float:
    """Expected calibration error (Guo et al. 2017):  sum_b rows_b / N * |share right_b - mean probability_b|."""
    return sum(count * abs(right - told) for told, right, count in reliability(probability_NC, y_N)) / len(y_N)

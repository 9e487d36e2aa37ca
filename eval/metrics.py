"""The metrics by name, and one call that measures an arm.

    pairs = pair_up(prompts, replies)
    figures = measure(["rouge_l", "bleu", "distinct_2", "safety/gated"], pairs)
    figures["bleu"].value          # the corpus's figure;  .values_N are the replies' own
    eval.comparison                # intervals, and what differs between arms

Importing this module imports no torch. Figures are those of the libraries on the same pairs (tests/test_metrics.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from eval.conduct_metrics import CONDUCT_METRICS
from eval.figures import Measured
from eval.instruments import Instruments, MetricsConfig, Readings
from eval.label_metrics import LABEL_METRICS
from eval.metric import Better, Metric, Need
from eval.pair import Pair, Unit, pair_up, unit_ids
from eval.quality_metrics import QUALITY_METRICS
from eval.reference_metrics import REFERENCE_METRICS
from rewards.types import Score

__all__ = [
    "METRICS",
    "Better",
    "Instruments",
    "Measured",
    "Metric",
    "MetricsConfig",
    "Need",
    "Pair",
    "chosen",
    "measure",
    "pair_up",
]

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (*REFERENCE_METRICS, *LABEL_METRICS, *QUALITY_METRICS, *CONDUCT_METRICS)
}


def chosen(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once, in order. Raises ValueError for a name that is none, or for no name."""
    metrics = []
    for name in dict.fromkeys(names):
        if name not in METRICS:
            near = ", ".join(difflib.get_close_matches(name, METRICS, n=3)) or ", ".join(METRICS)
            raise ValueError(f"metrics must be names of eval.metrics.METRICS, got {name!r}: did you mean {near}?")
        metrics.append(METRICS[name])
    if not metrics:
        raise ValueError(f"metrics must name one at least, got none: choose among {', '.join(METRICS)}")
    return metrics


def measure(
    names: Iterable[str], pairs: Sequence[Pair], instruments: Instruments | None = None, *, by: Unit = "prompt"
) -> dict[str, Measured]:
    """Measure one arm: every named metric of `pairs`.

    `by` says what will be resampled (`eval.pair.unit_ids`). Pass the same `instruments` for every arm, so that models are
    loaded once. What is missing is found before anything is computed. Raises ValueError when there are no pairs, a name is
    unknown, or a pair lacks what a metric needs; an empty reply is no error, its value is in the metric's text.
    """
    return _read(names, pairs, instruments or Instruments(), by, gate=False)[0]


def read(
    names: Iterable[str], pairs: Sequence[Pair], instruments: Instruments, *, by: Unit = "prompt"
) -> tuple[dict[str, Measured], list[Score]]:
    """What `measure` returns, and what the safety gate says of each reply: its flags and its prompt's tier."""
    return _read(names, pairs, instruments, by, gate=True)


def _read(
    names: Iterable[str], pairs: Sequence[Pair], instruments: Instruments, by: Unit, *, gate: bool
) -> tuple[dict[str, Measured], list[Score]]:
    metrics, pairs = chosen(names), list(pairs)
    if not pairs:
        raise ValueError("pairs must hold at least one, is an empty list: generate some replies first")
    for metric in metrics:
        metric.check(pairs, instruments)
    readings = Readings(pairs, unit_ids(pairs, by), instruments, {metric.name for metric in metrics})
    try:
        figures = {metric.name: metric.read(readings, metric.name) for metric in metrics}
        return figures, readings.gate if gate else []
    finally:
        instruments.forget()

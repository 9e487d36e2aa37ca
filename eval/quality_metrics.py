"""Quality as a model sees it: the preference model's value, and a judge's, criterion by criterion."""

from __future__ import annotations

from eval.figures import Measured
from eval.instruments import Readings
from eval.metric import Better, Metric, Need, metric
from rewards.config import JudgeConfig


def _preference(readings: Readings, name: str) -> Measured:
    """Mean value of `rewards.preference`: what the ensemble expects raters to give, less beta times its own doubt. A model
    that was trained on this value is not judged by it."""
    return readings.ledger.mean(name, [score.value for score in readings.preference])


def _judge(readings: Readings, name: str) -> Measured:
    """Mean over replies and criteria of a judge's values (`rewards.judge`). Judges over-rate and miss what is unsafe; take
    another one than the reward's, and calibrate it on experts' items."""
    return readings.ledger.mean(name, [score.value for score in readings.judge])


def _criterion(criterion: str) -> Metric:
    def read(readings: Readings, name: str) -> Measured:
        return readings.ledger.mean(name, [score.parts[criterion] for score in readings.judge])

    text = f"Mean of a judge's values on the criterion {criterion} (`rewards/judge_prompts`); 0 for an empty reply."
    return metric(read, f"judge/{criterion}", Need.JUDGE, better=Better.HIGHER, unit="0 to 1", text=text)


QUALITY_METRICS = (
    metric(_preference, "preference", Need.PREFERENCE, better=Better.HIGHER, unit="0 to 1"),
    metric(_judge, "judge", Need.JUDGE, better=Better.HIGHER, unit="0 to 1"),
    *map(_criterion, JudgeConfig().criteria),
)

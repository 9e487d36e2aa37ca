"""What to look at before a fine-tuned model is used: over-fitting, replies that collapse, and what is not proven."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eval.report_charts import number
from eval.report_sft_course import Course, perplexity
from eval.run_directory import Log, Sample

STEREOTYPES = (  # share of the replies, how it is said, by how much it must exceed the references' own share
    ("duplicate_rate", "{} % are the same text as another one", 0.2),
    ("opening_rate", "{} % open with the same four words as another one", 0.3),
    ("template_rate", "{} % hold a stock phrase", 0.2),
    ("empty_rate", "{} % are empty", 0.1),
)
POOR = 0.75  # distinct-2 below this share of the references' own is told
WORSE = 1.02  # a perplexity beyond this multiple of the best one is told


def warnings(log: Log, course: Course, own: Mapping[str, float]) -> list[str]:
    """Return what to look at before the model is used: over-fitting, and replies that collapse."""
    told = overfitting(log, course)
    rows = {int(row["step"]): row for row in log.rows}
    for step, name in course.named("best", "last").items():
        if signs := collapse_signs(rows[step], own):
            told.append(
                f"The sampled replies of step {step}, the {name} validation, show signs of collapse: {'; '.join(signs)}."
            )
    return told


def overfitting(log: Log, course: Course) -> list[str]:
    """Say so where the validation loss rose after its best while the training loss went on falling."""
    if course.best is None:
        return []
    (step, best), (last_step, last) = course.losses[course.best], course.losses[-1]
    train = log.series("train/loss")
    train = train[np.isfinite(train[:, 1])]
    before, after = train[train[:, 0] <= step][-5:, 1], train[train[:, 0] > step][-5:, 1]
    risen = math.isfinite(last) and perplexity(last) > WORSE * perplexity(best)
    if not (risen and len(before) and len(after) and after.mean() < before.mean()):
        return []
    return [
        f"The model over-fits: from step {step:.0f} to {last_step:.0f} the validation loss rose from {number(best)} to "
        f"{number(last)} while the training loss fell from {number(before.mean())} to {number(after.mean())}. "
        "Use checkpoints/best, not the last one."
    ]


def collapse_signs(row: Mapping[str, float], own: Mapping[str, float]) -> list[str]:
    """Return how the replies of a validation are poorer than the references, `own` being the references' figures."""
    signs = []
    for name, text, more in STEREOTYPES:
        value, usual = row.get(f"valid/{name}", 0.0), own.get(name, 0.0)
        if value - usual >= more:
            signs.append(text.format(number(100 * value, places=0)) + beside(own, name, 100, " %"))
    value, usual = row.get("valid/distinct_2", math.nan), own.get("distinct_2", 0.0)
    if value < POOR * usual:
        lengths = [number(words, places=0) for words in (row.get("valid/mean_words", 0.0), own["mean_words"])]
        signs.append(f"distinct-2 is {number(value, places=2)} (references: {number(usual, places=2)}; "
                     f"{lengths[0]} words a reply against {lengths[1]})")  # fmt: skip
    return signs


def caution(course: Course, samples: Mapping[int, Sequence[Sample]]) -> list[str]:
    """Return what a low perplexity does not prove."""
    if course.best is None:
        return []
    told = ["A low perplexity is likeness to the words of this corpus's therapists, no proof of good replies."]
    if samples:
        told.append(
            f"The figures of replies rest on {len(samples[max(samples)])} samples a validation: read them "
            "below, and trust judges that took no part in training."
        )
    return told


def beside(own: Mapping[str, float], name: str, scale: float, unit: str, places: int = 0) -> str:
    """The references' own figure in brackets, where there is one."""
    return f" (references: {number(scale * own[name], places=places)}{unit})" if name in own else ""

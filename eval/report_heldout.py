"""The held-out dialogues of a PPO run, as the report's section: reward in training beside the held-out one, figures with their
intervals, and what tells of over-optimisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.comparison import Resamples, interval
from eval.figures import Measured
from eval.heldout import PREFIX, REWARD, STEP, Answers, evaluated, metrics_of, read_answers
from eval.metric import Better
from eval.metrics import METRICS, Need, measure
from eval.over_optimisation import one_scale, seen
from eval.pair import Pair
from eval.report_charts import DASHES, LINES, Line, Panel, chart, number, swatch
from eval.report_figures import Figure, thin
from eval.run_directory import Run

BANDS = 24  # evaluations whose intervals are computed, evenly spread
_DRAWS = 1000
_OF_TEXT = ("distinct_1", "distinct_2", "distinct_3", "duplicate_rate", "opening_rate", "template_rate", "empty_rate",
            "mean_words", "repetition", "self_bleu")  # fmt: skip
_BETTER = {Better.HIGHER: "higher is better", Better.LOWER: "lower is better", Better.NEITHER: "a description"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutPart:
    """The section: what it rests on in a sentence, and its charts."""

    told: str
    reward: Sequence[Figure]
    figures: Sequence[Figure]


def warnings(run: Run) -> list[str]:
    """What tells of over-optimisation anywhere in the course; of a tell that was seen early what it is now."""
    told = []
    for first, last in seen(run):
        if last is None:
            told.append(f"{first.sentence} At the last evaluation this is not seen any more.")
        else:
            since = "" if first.step == last.step else f" First seen after {first.step} updates."
            told.append(f"{last.sentence}{since}")
    return told


def held_out_part(run: Run) -> HeldOutPart | None:
    """The section of a run that was evaluated on its way; None of any other."""
    steps = evaluated(run.metrics)
    if not steps:
        return None
    spread = sorted({steps[round(k * (len(steps) - 1) / max(BANDS - 1, 1))] for k in range(BANDS)})
    known = [answers for answers in (read_answers(run.path, step) for step in spread) if answers is not None]
    count = len(known[-1].pairs) if known else 0
    of = f"the same {count} prompts of the valid split" if count else "the same prompts of the valid split"
    told = (
        f"The policy never learns from these: {of}, one reply each, asked again after every so many updates. Bands are 95 % "
        "intervals over the prompts. Rewards here are those of the terms alone, without people and running statistics."
    )
    names = metrics_of(run.metrics)
    own = therapists(known[-1], names) if known else {}
    return HeldOutPart(told, reward_figures(run, known), [metric_figure(run, known, name, own) for name in names])


def reward_figures(run: Run, known: Sequence[Answers]) -> list[Figure]:
    """Reward in training and held out, on one axis where they are on one scale."""
    training, held = thin(run.metrics.series("reward/mean")), run.metrics.series(STEP, REWARD)[:, 1:]
    if not len(held):
        return []
    lines = [
        Line("training", training, LINES[0], DASHES[1]),
        Line("held-out", held, LINES[1], band=band([(a.step, a.reward) for a in known])),
    ]
    together = one_scale(run.settings)
    panels = [Panel("reward (no unit)", lines, 150)] if together else [
        Panel("held-out reward (no unit)", lines[1:]), Panel("training reward, as it is paid", lines[:1]),
    ]  # fmt: skip
    caption = (
        "" if together else "The training reward is on a scale of its own (standardised, or with people's ratings)."
    )
    title, legend = "Reward in training and held out", tuple((swatch(line), line.name) for line in lines)
    return [Figure(title, chart(title, panels), caption, legend, chart(title, panels, width=1120))]


def metric_figure(run: Run, known: Sequence[Answers], name: str, own: Mapping[str, float]) -> Figure:
    """One metric over the evaluations, with the therapists' own figure where there is one."""
    metric = METRICS[name]
    points = run.metrics.series(STEP, f"{PREFIX}{name}")[:, 1:]
    line = Line(name, points, LINES[1], band=band([(a.step, a.measured(name)) for a in known if _has(a, name)]))
    rule = (own[name], f"therapists {number(own[name])}") if name in own else None
    panel = Panel(f"{name}, {metric.unit}", [line], 96, (0.0,), rule=rule)
    return Figure(name.replace("_", " "), chart(f"Held-out {name}", [panel]), f"{_BETTER[metric.better].capitalize()}.")


def band(figures: Sequence[tuple[int, Measured]]) -> Floats | None:
    """Step, low and high of each evaluation's figure; None where no interval can be had."""
    rows = [
        (step, found.low, found.high)
        for step, figure in figures
        if len(figure.units) > 1
        for found in [interval(figure, Resamples(figure.units, draws=_DRAWS))]
        if math.isfinite(found.value)
    ]
    return np.array(rows, dtype=np.float64) if len(rows) > 1 else None


def therapists(answers: Answers, names: Sequence[str]) -> dict[str, float]:
    """What the figures of the references are, of those that read texts alone."""
    replies = [Pair(p.prompt_id, p.prompt, p.history, p.reference) for p in answers.pairs if p.reference.strip()]
    asked = [
        name for name in names if name in _OF_TEXT and not (Need.OTHERS in METRICS[name].needs and len(replies) < 2)
    ]
    return {name: figure.value for name, figure in measure(asked, replies).items()} if asked and replies else {}


def _has(answers: Answers, name: str) -> bool:
    return name in answers.scores

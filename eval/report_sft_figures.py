"""The curves of a supervised run: losses, what its sampled replies are like, and whether the training is healthy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eval.report_charts import DASHES, LINES, Line, Panel, chart, number, swatch
from eval.report_figures import TALL, Curve, Figure, curve_pair, thin, time_figure
from eval.report_sft_course import Course, perplexity
from eval.run_directory import Log

WIDE_SPAN = 100  # perplexities further apart than this are drawn on a log axis
RATES = ("duplicate_rate", "opening_rate", "template_rate", "empty_rate")
RATE_NAMES = ("same text as another", "same first four words", "stock phrase", "empty")
Mark = tuple[float, float, str]


def loss_figure(log: Log, course: Course) -> list[Figure]:
    """Training and validation loss over steps, the best validation marked."""
    curves = (("training", thin(log.series("train/loss"))), ("validation", thin(course.losses)))
    lines = [Line(name, points, LINES[i], DASHES[i]) for i, (name, points) in enumerate(curves) if len(points)]
    if not lines:
        return []
    panel = Panel("loss, nats per trained token", lines, height=220, marks=best_mark(course))
    legend = tuple((swatch(line), line.name) for line in lines)
    title = "Loss by step"
    caption = (
        "Training: mean over the trained tokens of the step's own batch, before its update. Validation: held-out "
        "dialogues. Where the two part, the model learns its training dialogues by heart."
    )
    return [Figure(title, chart(title, [panel]), caption, legend, wide=chart(title, [panel], width=1120))]


def best_mark(course: Course) -> tuple[Mark, ...]:
    """The best validation as a mark of a loss panel."""
    if course.best is None:
        return ()
    step, loss = course.losses[course.best]
    return ((step, loss, f"best {number(loss)}, step {step:.0f}"),)


def reply_figures(log: Log, course: Course, own: Mapping[str, float]) -> list[Figure]:
    """Perplexity, and the figures of the sampled replies beside those of the references, `own`."""
    likeness = [_perplexity(log, course), _beside(log, {}, "rouge1", "ROUGE-1 of the sampled replies, %", 64, 100)]
    names = (("distinct_2", "distinct-2"), ("distinct_1", "distinct-1"), ("mean_words", "mean length, words"))
    variety = [_beside(log, own, name, label, 58) for name, label in names]
    return [
        *_figure(
            "Likeness to the corpus",
            likeness,
            "Perplexity: among how many equally likely tokens the model is undecided, on average. ROUGE-1: words shared "
            "with the corpus's own reply.",
        ),
        *_figure(
            "Variety and length",
            variety,
            "Distinct: different word pairs, and words, among all that were said. Falls when replies become alike, and when "
            "they become longer.",
        ),
        *rates_figure(log, own),
    ]


def rates_figure(log: Log, own: Mapping[str, float]) -> list[Figure]:
    """Shares of stereotyped replies; those that stay 0 are named, not drawn."""
    names = dict(zip(RATES, RATE_NAMES, strict=True))
    series = {rate: points for rate in RATES if len(points := thin(log.series(f"valid/{rate}")) * [1, 100])}
    if not series:
        return []
    never = [rate for rate, points in series.items() if not np.nansum(points[:, 1])]
    drawn = [rate for rate in series if rate not in never] or list(series)[:1]
    lines = [Line(names[rate], series[rate], LINES[i], DASHES[i]) for i, rate in enumerate(drawn)]
    told = [f"{names[rate]} {number(100 * own[rate], places=0)}\N{NO-BREAK SPACE}%" for rate in series if own]
    caption = f"0 % throughout: {', '.join(names[rate] for rate in never)}. " if never else ""
    caption += f"The references: {', '.join(told)}." if told else ""
    panel = Panel("share of the sampled replies, %", lines, TALL, (0, 1))
    title = "Stereotyped replies"
    return [Figure(title, chart(title, [panel]), caption, tuple((swatch(line), line.name) for line in lines))]


def health_figures(log: Log) -> list[Figure]:
    """Learning rate, gradient, pace, memory and time."""
    rate = (Curve("train/lr", "learning rate", (0,)), Curve("train/grad_norm", "gradient norm", (0,)))
    pace = (
        Curve("train/tokens_per_s", "tokens/s, all ranks together", (0,)),
        Curve("learner/peak_memory_bytes", "peak memory of a rank, GiB", (0,), 1 / 2**30),
    )
    return [
        *curve_pair(log, "Learning rate and gradient", "The gradient's norm is taken before it is clipped.", rate),
        *curve_pair(
            log, "Pace and memory", "Pace: of the updates alone, without validating, sampling and saving.", pace
        ),
        *time_figure(log),
    ]


def _perplexity(log: Log, course: Course) -> Panel | None:
    """Validation perplexity, the best one marked; on a log axis where it falls far."""
    points = log.series("valid/perplexity")
    values = points[np.isfinite(points[:, 1]), 1]
    if not len(points):
        return None
    far = len(values) > 0 and bool(values.max() > WIDE_SPAN * values.min())
    marks = [(step, perplexity(loss), f"best {number(perplexity(loss))}") for step, loss, _ in best_mark(course)]
    label = "validation perplexity" + (" (log axis)" if far else "")
    return Panel(label, [Line("validation perplexity", thin(points))], 110, log=far, marks=marks)


def _beside(log: Log, own: Mapping[str, float], name: str, label: str, height: int, scale: float = 1.0) -> Panel | None:
    """A figure of the replies over the validations, with the references' level where `own` has it."""
    points = thin(log.series(f"valid/{name}")) * [1, scale]
    if not len(points):
        return None
    lines = [Line(label.split(",")[0], points)]
    if name in own:
        level = [[step, scale * own[name]] for step in (points[0, 0], points[-1, 0])]
        lines.append(Line("references", np.array(level), LINES[1], DASHES[1]))
    return Panel(label, lines, height)


def _figure(title: str, panels: list[Panel | None], caption: str) -> list[Figure]:
    """A figure of the panels that have data, with a legend where one shows the references."""
    drawn = [panel for panel in panels if panel]
    lines = next((panel.lines for panel in drawn if len(panel.lines) > 1), ())
    legend = tuple((swatch(line), name) for line, name in zip(lines, ("sampled replies", "references"), strict=False))
    return [Figure(title, chart(title, drawn), caption, legend)] if drawn else []

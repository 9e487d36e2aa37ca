"""Which curves the report draws, and what it says beneath each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report_charts import DASHES, FILLS, LINES, Line, Panel, chart, number, swatch
from eval.report_summary import COUNTS, Change
from eval.run_directory import Log, Run, flatten

MAX_POINTS = 240
TALL = 210  # a single panel as high as two
PHASES = ("time/rollout_s", "time/reward_s", "time/annotate_s", "time/update_s", "time/publish_s")  # as the loop runs


@dataclass(frozen=True)
class Figure:
    """A titled chart, what to see in it, and (sign, text) of a legend. `wide` is the same chart for a wide screen."""

    title: str
    svg: Markup
    caption: str = ""
    legend: tuple[tuple[Markup, str], ...] = ()
    wide: Markup | None = None


@dataclass(frozen=True)
class Curve:
    """One metric as a panel."""

    metric: str
    label: str
    include: tuple[float, ...] = ()
    scale: float = 1.0
    clip: tuple[float, float] = (-math.inf, math.inf)


PAIRS: tuple[tuple[str, str, tuple[Curve, Curve]], ...] = (
    (
        "Distance from the reference",
        "How far the policy has moved from the model it started as, and how hard it is held back.",
        (Curve("policy/kl", "KL to the reference, nats per reply", (0,)), Curve("kl/coef", "KL coefficient", (0,))),
    ),
    (
        "Reply length",
        "A mean that runs to the token budget, or to a few words, is a sign of collapse.",
        (
            Curve("rollout/length", "mean length, tokens", (0,)),
            Curve("rollout/truncated", "cut at the budget, %", (0, 1), 100),
        ),
    ),
    (
        "Entropy and gradient",
        "Entropy that falls towards 0 means that the policy repeats itself.",
        (
            Curve("policy/entropy", "policy entropy, nats per token", (0,)),
            Curve("policy/grad_norm", "gradient norm", (0,)),
        ),
    ),
    (
        "Policy",
        "Clipped: the share of tokens on which PPO refused to move further.",
        (Curve("policy/loss", "policy loss"), Curve("policy/clip_fraction", "clipped tokens, %", (0,), 100)),
    ),
    (
        "Critic",
        "Explained variance is 1 for a perfect critic and 0 for a constant one; below -1 is drawn at -1.",
        (
            Curve("value/loss", "value loss", (0,)),
            Curve("value/explained_variance", "explained variance", (0, 1), 1, (-1, 1)),
        ),
    ),
    (
        "Size of the updates",
        "What one update does to the probability of the sampled tokens.",
        (
            Curve("policy/approx_kl", "KL of one update, nats per token", (0,)),
            Curve("policy/ratio_max", "largest probability ratio", (1,)),
        ),
    ),
)


_WHOLE = tuple(f"reward/{name}" for name in ("mean", "std", "min", "max", "dropped"))  # no parts


def reward_figure(log: Log, change: Change | None) -> list[Figure]:
    """Mean reward over steps in a band of one standard deviation, with the levels that the summary compares."""
    mean, spread = thin(log.series("reward/mean")), thin(log.series("reward/mean", "reward/std"))
    if not len(mean):
        return []
    band = np.column_stack([spread[:, 0], spread[:, 1] - spread[:, 2], spread[:, 1] + spread[:, 2]])
    spans = []
    steps = log.series("reward/mean")
    steps = steps[np.isfinite(steps[:, 1])][:, 0]
    if change:
        count = COUNTS[change.window]
        spans = [(steps[0], steps[change.window - 1], change.first, f"first {count}: {number(change.first)}"),
                 (steps[-change.window], steps[-1], change.last, f"last {count}: {number(change.last)}")]  # fmt: skip
    panel = Panel("reward (no unit)", [Line("mean reward", mean, band=band)], height=220, spans=spans)
    caption = (
        "Line: mean over the replies of a step. Band: one standard deviation of the replies, not the error of the mean."
    )
    title = "Mean reward by step"
    return [Figure(title, chart(title, [panel]), caption, wide=chart(title, [panel], width=1120))]


def part_figures(log: Log) -> list[Figure]:
    """One small chart per reward part, all on one scale; what a part notes of itself (`reward/PART/NOTE`) is not drawn."""
    names = [n for n in log.names if n.startswith("reward/") and n.count("/") == 1 and n not in _WHOLE]
    series = {n.removeprefix("reward/"): thin(log.series(n)) for n in names}
    values = np.concatenate([s[:, 1] for s in series.values()]) if series else np.zeros(0)
    values = values[np.isfinite(values)]
    include = (0.0, float(values.min()), float(values.max())) if len(values) else (0.0,)
    return [
        Figure(name, chart(f"Reward part {name}", [Panel("mean", [Line("mean", s, LINES[5])], 72, include)], width=190))
        for name, s in series.items()
    ]


def training_figures(run: Run) -> list[Figure]:
    """The curves that tell whether training is healthy; those without data are left out."""
    log = run.metrics
    figures = [figure for title, caption, curves in PAIRS for figure in curve_pair(log, title, caption, curves)]
    return figures + gap_figure(log, gap_tolerance(run)) + time_figure(log) + safety_figure(log)


def gap_tolerance(run: Run) -> float | None:
    """Return the tolerated gap in nats: metric `publish/tolerance`, or the setting `publish.tolerance` where it is not
    0 (0: derived by the run); None where neither tells."""
    logged = run.metrics.series("publish/tolerance")[:, 1]
    chosen = [*logged[-1:].tolist(), *(float(t) for name, t in flatten(run.settings) if name == "publish.tolerance")]
    return next((value for value in chosen if value > 0), None)


def gap_figure(log: Log, tolerance: float | None) -> list[Figure]:
    """Engine against learner: log-probs of the same replies, on a log axis, with the tolerance."""
    gaps = log.series("publish/logprob_gap")
    if not len(gaps):
        return []
    over = [f"{step:.0f}" for step, gap in gaps if tolerance is not None and not gap <= tolerance]
    caption = "How much the rollout engine and the learner disagree on the same replies after a publish. "
    if tolerance is None:
        caption += "The run names no tolerance."
    elif over:
        caption += (
            f"Over the tolerance in {len(over)} of {len(gaps)} steps: {', '.join(over[:8])}{', ...' * (len(over) > 8)}."
        )
    else:
        caption += "Within the tolerance in every step."
    rule = None if tolerance is None else (tolerance, f"tolerance {number(tolerance)}")
    line = Line("log-prob gap", thin(gaps, worst=True))
    panel = Panel("log-prob gap, nats (log axis)", [line], TALL, log=True, rule=rule)
    return [Figure("Published weights", chart("Published weights", [panel]), caption)]


def time_figure(log: Log) -> list[Figure]:
    """Seconds per phase, stacked; what `time/step_s` holds beyond the phases is `other`."""
    names = [n for n in log.names if n.startswith("time/") and n != "time/step_s"]
    names.sort(key=lambda n: PHASES.index(n) if n in PHASES else len(PHASES))
    rows = [[row["step"], *(row.get(n, 0.0) for n in names), row.get("time/step_s", 0.0)] for row in log.rows]
    if not names:
        return []
    table = thin(np.array(rows, dtype=np.float64))
    phases = [n.removeprefix("time/").removesuffix("_s") for n in names] + ["other"]
    seconds = np.column_stack([table[:, 1:-1], np.maximum(0, table[:, -1] - table[:, 1:-1].sum(1))])
    lines = [Line(p, np.column_stack([table[:, 0], s]), FILLS[i % len(FILLS)])
             for i, (p, s) in enumerate(zip(phases, seconds.T, strict=True)) if s.any()]  # fmt: skip
    if not lines:
        return []
    total = sum(float(np.nansum(line.points[:, 1])) for line in lines)
    shares = [100 * float(np.nansum(line.points[:, 1])) / total for line in lines]
    legend = tuple((swatch(li, area=True), f"{li.name} {share:.0f} %") for li, share in zip(lines, shares, strict=True))
    panel = Panel("seconds per step", lines, TALL, (0,), stacked=True)
    caption = "Stacked in the order of the legend, from the bottom; shares of the whole run."
    return [Figure("Time per phase", chart("Time per phase", [panel]), caption, legend)]


def safety_figure(log: Log) -> list[Figure]:
    """Share of replies per safety flag; flags that were never raised are named, not drawn."""
    names = [n for n in log.names if n.startswith("safety/")]
    series = {n.removeprefix("safety/").replace("_", " "): log.series(n) for n in names}
    raised = sorted(
        (f for f, s in series.items() if np.nansum(s[:, 1]) > 0), key=lambda f: -np.nanmean(series[f][:, 1])
    )
    if not series:
        return []
    lines = []
    for i, flag in enumerate(raised):
        points = thin(series[flag]) * [1, 100]
        lines.append(Line(flag, points, LINES[i % len(LINES)], DASHES[i % len(DASHES)]))
    never = [f for f in series if f not in raised]
    caption = f"Never raised: {', '.join(never)}." if never else ""
    legend = tuple((swatch(line), line.name) for line in lines)
    panel = Panel("flagged, % of replies", lines, TALL, (0, 1))
    return [Figure("Safety flags", chart("Safety flags", [panel]), caption, legend)]


def warmup_figures(log: Log) -> list[Figure]:
    """Loss of the supervised warm-up on training and held-out dialogues, and the held-out perplexity."""
    names = (("loss", "training"), ("valid/loss", "held-out"))
    lines = [Line(name, thin(log.series(metric)), LINES[i], DASHES[i])
             for i, (metric, name) in enumerate(names) if metric in log.names]  # fmt: skip
    panels = [Panel("loss, nats per token", lines)] if lines else []
    if "valid/perplexity" in log.names:
        panels.append(
            Panel("held-out perplexity", [Line("held-out perplexity", thin(log.series("valid/perplexity")))], 64)
        )
    legend = tuple((swatch(line), line.name) for line in lines)
    return [Figure("Supervised warm-up", chart("Supervised warm-up", panels), "", legend)] if panels else []


def thin(series: NDArray[np.float64], *, worst: bool = False) -> NDArray[np.float64]:
    """Average `[N, K]` rows over at most 240 equal bins of steps, so that a long run stays a light page.

    With `worst` the bins keep their largest value, for metrics whose spikes matter. NaN makes its bin NaN. The first
    and the last step stay where they are.
    """
    if len(series) <= MAX_POINTS:
        return series
    bins = np.array_split(series, MAX_POINTS)
    thinned = np.array([[b[:, 0].mean(), *(b[:, 1:].max(0) if worst else b[:, 1:].mean(0))] for b in bins])
    thinned[[0, -1], 0] = series[[0, -1], 0]
    return thinned


def curve_pair(log: Log, title: str, caption: str, curves: Sequence[Curve]) -> list[Figure]:
    panels = []
    for curve, height in zip(curves, (110, 64), strict=True):
        if len(points := thin(log.series(curve.metric)) * [1, curve.scale]):
            line = Line(curve.label.split(",")[0], points)
            panels.append(Panel(curve.label, [line], height, curve.include, curve.clip))
    return [Figure(title, chart(title, panels), caption)] if panels else []

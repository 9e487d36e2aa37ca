"""Pictures of a search, as PNG: the metric by each setting, parallel coordinates, learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.sweep_config import Plan
from rl.sweep_results import State, TrialLog, best_of, labels, ranked, shown
from rl.sweep_space import Choice, Range

BEST, PLAIN, CUT = "#c1440e", "#31688e", "#9aa5ad"
_MANY = 12  # trials in a legend, tick labels on an axis


def write_plots(plan: Plan, trials: Sequence[TrialLog]) -> list[Path]:
    """Write `plots/` and return its files; nothing when no trial has a value."""
    sweep = plan.sweep
    measured = [trial for trial in ranked(trials, sweep) if trial.best(sweep)]
    if not measured:
        return []
    folder = plan.directory / "plots"
    folder.mkdir(exist_ok=True)
    pictures = {"by_setting": _by_setting, "parallel": _parallel, "curves": _curves}
    for name, draw in pictures.items():
        draw(plan, measured).savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    return [folder / f"{name}.png" for name in pictures]


def _by_setting(plan: Plan, trials: Sequence[TrialLog]) -> Figure:
    sweep, metric = plan.sweep, plan.sweep.metric
    best = best_of(trials, sweep)
    columns = min(len(plan.space), 3)
    rows = math.ceil(len(plan.space) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    for at, name in enumerate(plan.space, 1):
        axes = figure.add_subplot(rows, columns, at)
        place = _placed(axes, plan, name, trials)
        for trial in reversed(trials):
            colour = BEST if trial is best else PLAIN if trial.state is State.FINISHED else CUT
            _, value = trial.best(sweep) or (0, math.nan)
            axes.scatter(place(trial), value, color=colour, s=70 if trial is best else 36, zorder=2 + (trial is best))
        axes.set_xlabel(name)
        axes.set_ylabel(f"best {metric}")
        axes.grid(alpha=0.25)
    keys = [("best", BEST), ("finished", PLAIN), ("stopped early, failed or interrupted", CUT)]
    handles = [figure.axes[0].scatter([], [], color=colour) for _, colour in keys]
    figure.legend(handles, [label for label, _ in keys], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{plan.name}: {metric} ({sweep.mode}) by setting")
    return figure


def _placed(axes: Axes, plan: Plan, name: str, trials: Sequence[TrialLog]) -> Callable[[TrialLog], float]:
    """Lay out the x axis for a setting, choices side by side; where on it each trial stands."""
    law, sweep = plan.space[name], plan.sweep
    if isinstance(law, Choice):
        kinds = _ordered(law)
        axes.set_xticks(range(len(kinds)), [_short(k) for k in kinds], rotation=20 if max(map(len, kinds)) > 8 else 0)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        return lambda trial: kinds.index(shown(trial.settings(sweep)[name]))
    if law.law == "loguniform":
        axes.set_xscale("log")
    axes.axvspan(law.low, law.high, color="black", alpha=0.03)  # PBT may leave it
    return lambda trial: trial.settings(sweep)[name]


def _ordered(law: Choice) -> list[str]:
    """Choices as shown, numbers rising."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in law.values)
    return [shown(v) for v in (sorted(law.values) if numbers else law.values)]


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"…{text[-17:]}"


def _parallel(plan: Plan, trials: Sequence[TrialLog]) -> Figure:
    """One vertical axis per setting and one for the metric, which also gives the lines their colours."""
    sweep, metric = plan.sweep, plan.sweep.metric
    values = [(trial.best(sweep) or (0, math.nan))[1] for trial in trials]
    names = [*plan.space, metric]
    figure = Figure(figsize=(2.0 * len(names) + 2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    heights = []
    for at, name in enumerate(names):
        law = plan.space.get(name)
        mine = values if law is None else [trial.settings(sweep)[name] for trial in trials]
        spots, ticks = _heights(law, mine)
        heights.append(spots)
        axes.axvline(at, color="black", lw=1)
        for height, text in ticks:
            axes.text(at + 0.04, height, _short(text), fontsize=8, va="center", zorder=4,
                      bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    low, high = min(values), max(values)
    for index in reversed(range(len(trials))):
        good = (values[index] - low) / (high - low) if high > low else 1.0
        colour = BEST if index == 0 else colormaps["viridis"](0.9 * (good if sweep.mode == "max" else 1 - good))
        axes.plot(range(len(names)), [spots[index] for spots in heights], color=colour, alpha=0.85,
                  lw=3.2 if index == 0 else 1.4, zorder=3 if index == 0 else 2)  # fmt: skip
    short = labels(list(plan.space)) | {metric: f"best {metric}"}
    axes.set_xticks(range(len(names)), [short[name] for name in names])
    axes.set_xlim(-0.2, len(names) - 0.5)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{plan.name}: the thick line is the best, the brighter the better {metric}")
    return figure


def _heights(law: Choice | Range | None, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where in [0, 1] each value lies on its axis, and the axis's labelled heights."""
    if isinstance(law, Choice):
        at = {kind: i / max(len(law.values) - 1, 1) for i, kind in enumerate(_ordered(law))}
        return [at[shown(v)] for v in values], [(height, kind) for kind, height in at.items()]
    low, high = (law.low, law.high) if law else (min(values), max(values))
    if low == high:  # the metric of one trial
        return [0.5] * len(values), [(0.5, f"{low:.3g}")]
    log = law is not None and law.law == "loguniform"
    scale: Callable[[float], float] = math.log10 if log else float
    span = scale(high) - scale(low)
    ticks = [low + share * span if not log else 10 ** (scale(low) + share * span) for share in (0, 0.25, 0.5, 0.75, 1)]
    if law is not None and law.law == "randint":
        ticks = sorted({float(round(tick)) for tick in ticks})
    return (
        [(scale(value) - scale(low)) / span for value in values],
        [((scale(tick) - scale(low)) / span, f"{tick:.3g}") for tick in ticks],
    )


def _curves(plan: Plan, trials: Sequence[TrialLog]) -> Figure:
    metric, short = plan.sweep.metric, labels(list(plan.space))
    figure = Figure(figsize=(8.5, 4.8))
    axes = figure.add_subplot()
    shades = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for rank, trial in enumerate(trials):
        points = [(step, row[metric]) for step, row in trial.reports.items() if metric in row]
        sample = trial.settings(plan.sweep)
        said = ", ".join(f"{short[name]} {shown(sample[name])}" for name in plan.space)
        colour = BEST if rank == 0 else shades[rank % len(shades)] if len(trials) <= _MANY else CUT
        axes.plot(*zip(*points, strict=True), color=colour, lw=2.6 if rank == 0 else 1.2, zorder=3 if rank == 0 else 2,
                  alpha=1 if rank == 0 else 0.8, label=said if len(trials) <= _MANY or rank == 0 else None,
                  marker="o" if len(points) == 1 else None)  # fmt: skip
        if trial.state is not State.FINISHED:
            axes.plot(*points[-1], color=colour, marker="x", zorder=3)
    axes.set_xlabel("step (x: stopped early, failed or interrupted)")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="best first")
    axes.set_title(f"{plan.name}: learning curves of {len(trials)} trials")
    return figure

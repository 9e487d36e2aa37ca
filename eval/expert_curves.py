"""The true quality of the replies of runs with simulated raters, step by step, in one picture:

    python -m eval.expert_curves --out curves.png "synchronous=RUN" "binary=RUN" "asynchronous, a tenth=RUN"

What a run was paid (0 or 1, a surrogate's guess, a rater's slip) is not what its replies are worth; the simulated panel's truth is
known, and is the same for all. Prints first and last five steps with 95 % intervals over replies.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rewards.experts.config import FOLDER
from rewards.experts.simulated_quality import true_quality
from rewards.experts.store import DATABASE
from rollout.types import Speaker, Turn

_COLOURS = ("#0b6e75", "#b4530a", "#5b3f9e", "#3d6b12")
_ENDS = 5  # steps at either end that are compared
_DRAWS = 1000


def truths(run: Path) -> list[NDArray[np.float64]]:
    """The true quality of every reply that was sampled in each step of a run.

    A reply that came back into a later step's batch with a late score counts once, where it was sampled.
    """
    steps = []
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        rows = pq.read_table(file, columns=["history", "reply", "policy_version"]).to_pylist()
        step = int(file.stem.removeprefix("step-"))
        own = [row for row in rows if row["policy_version"] == step]
        steps.append(np.array([true_quality(_history(row["history"]), row["reply"]).overall for row in own]))
    if not steps:
        raise ValueError(f"{run} must be the directory of a PPO run, holds no rollouts; name one")
    return steps


def _history(told: str) -> list[Turn]:
    turns = (line.partition(": ") for line in told.splitlines())
    return [Turn(Speaker(speaker.lower()), text) for speaker, _, text in turns]


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (_DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def draw(curves: Mapping[str, Sequence[NDArray[np.float64]]], out: Path) -> None:
    """Mean true quality by step, a moving mean over five steps, a line a run."""
    figure = Figure(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, steps), colour in zip(curves.items(), _COLOURS, strict=False):
        means = np.array([step.mean() for step in steps])
        smooth = np.array([means[max(0, i - 2) : i + 3].mean() for i in range(len(means))])
        axes.plot(means, color=colour, alpha=0.25, linewidth=1)
        axes.plot(smooth, color=colour, linewidth=2, label=name)
    axes.set(xlabel="step", ylabel="true quality of the replies", ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    given = parser.parse_args()
    curves = {name: truths(Path(run)) for name, _, run in (word.partition("=") for word in given.runs)}
    draw(curves, given.out)
    for word in given.runs:
        name, _, run = word.partition("=")
        first, last = (np.concatenate(part) for part in (curves[name][:_ENDS], curves[name][-_ENDS:]))
        ends = [f"{part.mean():.3f} [{interval(part)[0]:.3f}, {interval(part)[1]:.3f}]" for part in (first, last)]
        print(f"{name}: {ends[0]} -> {ends[1]} over {len(curves[name])} steps, {_ratings(Path(run))} ratings")
    print(given.out)


def _ratings(run: Path) -> int:
    from rewards.experts import ledger

    with ledger.opened(run / FOLDER / DATABASE) as db:
        return int(db.execute("SELECT count(*) FROM ratings WHERE undone = 0 AND repeat = 0").fetchone()[0])


if __name__ == "__main__":
    main()

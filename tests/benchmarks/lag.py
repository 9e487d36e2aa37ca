"""Asynchrony against none, on real engines and a real learner: time, staleness, and what is learned of a task with a known optimum.

The task: the share of a reply's tokens with ids below 300, half of the vocabulary. From the same untrained tiny Mixtral, chance is
a half, the optimum 1. Every arm is trained with every seed, the arms one after another within a seed, on the same fleets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import ray

from cluster.placement import Placement, connect, has_gpus
from cluster.tracking import Clock
from rewards.panel import Measurement
from rewards.types import Score, ScoredRollout
from rl.checkpoints import Checkpoints
from rl.config import PpoRecipe
from rl.layout import claims
from rl.loop import train
from rl.ppo import Job
from rollout.corpora import load
from rollout.types import Rollout, Sampling
from tests.ranks import learner_of
from tests.tiny import quick_recipe, save_tiny

ARMS = {"lag 0": (0, False), "lag 1": (1, False), "lag 1, in flight": (1, True), "lag 2": (2, False)}
LAST = 4  # steps whose mean reward is called final
FIGURES = ("final", "time/step_s", "ratio", "lag/steps", "lag/mean", "lag/stale", "rollout/importance_weight",
           "idle/rollout", "idle/learner", "idle/reward")  # fmt: skip


class LowIds:
    """Pays the share of low ids (`rl.loop.StepReward`)."""

    def measure(self, rollouts: Sequence[Rollout]) -> list[Measurement]:
        return [
            Measurement({"low_ids": sum(i < 300 for i in r.response_ids) / len(r.response_ids)}, ()) for r in rollouts
        ]

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        return [Score(measurement.parts["low_ids"]) for measurement in measured]

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        return list(scored)

    def metrics(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class Rows:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))

    def close(self) -> None:
        """Nothing to close."""


def trained(job: Job, recipe: PpoRecipe, max_lag: int, in_flight: bool) -> list[dict[str, float]]:
    """The metrics of a whole training of `recipe` from its first weights, on the job's fleets."""
    rows, drawn, start = Rows(), recipe.sampling, job.prompts.state_dict()
    job.learner = learner_of(recipe, job.learner, None, [], recipe.directory / "diverged")
    never = Checkpoints(recipe.directory / "none", every=sys.maxsize, keep=1, steps=sys.maxsize)
    train(
        steps=recipe.steps, prompts_per_step=recipe.prompts.per_step,
        sampling=Sampling(drawn.n, drawn.max_tokens, drawn.temperature, recipe.seed), prompts=job.prompts, engine=job.engine,
        reward=LowIds(), learner=job.learner, checkpoints=never, trackers=lambda first_step: rows,
        record=lambda step, scored: None, clock=Clock(), max_lag=max_lag, in_flight=in_flight,
    )  # fmt: skip
    job.prompts.load_state_dict(start)
    return rows.rows


def figures(rows: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of one training; `ratio` is its time to that of the `plain` one of the same seed. Times leave the first two steps out."""
    step_s = median(row["time/step_s"] for row in rows[2:])
    total_s = sum(row["time/step_s"] for row in rows[2:])
    idle = {f"idle/{fleet}": sum(row[f"idle/{fleet}_s"] for row in rows[2:]) / total_s
            for fleet in ("rollout", "learner", "reward")}  # fmt: skip
    return {
        "final": mean(row["reward/mean"] for row in rows[-LAST:]),
        "time/step_s": step_s,
        "ratio": total_s / sum(row["time/step_s"] for row in plain[2:]),
        "lag/steps": max(row["lag/steps"] for row in rows),
        **{name: mean(row[name] for row in rows) for name in ("lag/mean", "lag/stale", "rollout/importance_weight")},
        **idle,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.lag", description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=8, help="a reply's budget")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="the first is what the others stand against"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    args = parser.parse_args(argv)
    if args.steps <= LAST:
        parser.error(f"--steps must be above {LAST}, is {args.steps}")
    runs: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in args.arms}
    with tempfile.TemporaryDirectory(prefix="attune-lag-") as folder:
        recipe = quick_recipe(
            save_tiny(Path(folder) / "model"), Path(folder) / "runs", steps=args.steps, rollout__cpus=0.25,
            learner__cpus=0.25, rewards__cpus=0.25, prompts__per_step=8, sampling__n=4, sampling__max_tokens=args.max_tokens,
            learner__micro_batch=16, ppo__policy_lr=3e-3, ppo__critic_lr=3e-3, ppo__kl_coef=0.0, ppo__kl_target=None,
            ppo__truncated="score", ppo__clip_high=1.0, evaluation__every=0,
        )  # fmt: skip
        recipe.directory.mkdir(parents=True)
        connect()
        placement = Placement(claims(recipe, on_gpu=has_gpus()))
        try:
            job = Job(recipe, load(recipe.corpus), placement, recipe.directory)
            job.ready()
            print(f"load {os.getloadavg()[0]:.1f}", flush=True)
            trained(job, replace(recipe, steps=2), 0, False)  # the first calls of everything
            for seed in range(args.seeds):
                for arm in args.arms:
                    runs[arm].append(trained(job, replace(recipe, seed=seed), *ARMS[arm]))
                    found = figures(runs[arm][-1], runs[args.arms[0]][-1])
                    print(
                        f"seed {seed}, {arm}: reward {found['final']:.3f}, {found['time/step_s']:.2f} s/step",
                        flush=True,
                    )
        finally:
            placement.release()
            ray.shutdown()
    table = {
        arm: [figures(rows, plain) for rows, plain in zip(of, runs[args.arms[0]], strict=True)]
        for arm, of in runs.items()
    }
    print(f"\n{args.seeds} seeds x {args.steps} steps; mean (least to most) over seeds; idle as shares of the time")
    for name in FIGURES:
        print(name)
        for arm, found in table.items():
            values = [one[name] for one in found]
            print(f"    {arm:<20}{mean(values):8.3f}  ({min(values):.3f} to {max(values):.3f})")
    print(f"load {os.getloadavg()[0]:.1f}")
    if args.out:
        args.out.write_text(json.dumps({"figures": table, "rows": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

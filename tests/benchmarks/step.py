"""Speed and memory of the whole job, as ratios within one run; README.md beside this file says how to read them."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray

from cluster.findings import size
from cluster.placement import Placement, connect, has_gpus
from cluster.settings import flat, load
from cluster.tracking import Clock, ConsoleTracker, Tracker, Trackers
from rewards.types import ScoredRollout
from rl.batch import collate
from rl.config import PpoRecipe
from rl.intake import with_model
from rl.layout import claims
from rl.loop import attach, step_sampling
from rl.ppo import SHOWN, Job
from rl.records import PROCESSES, provenance, trackers
from rollout.corpora import Corpus
from rollout.corpora import load as load_corpus
from rollout.types import Sampling
from tests.benchmarks import peer
from tests.benchmarks.memory import MemoryPeak

ROOT = Path(__file__).parents[2]
WARM_UP_ROUNDS, WARM_UP_STEPS = 2, 60  # rounds that do not count; supervised steps of a model that is built here
PHASES = ("rollout", "reward", "annotate", "update", "publish", "record", "log")
SPEED = ("time/", "publish/", "rollout/", "learner/")  # of a step's metrics, those that a row keeps
GENTLE = 1e-6  # learning rates: as much work as any, and the replies stay as long as they were
Figure = tuple[float, float, float]  # median, least, most
LINES = {
    "time/step_s": "A: the loop's step, s",
    "alone/step_s": "B: generation + learner alone, s",
    "ratio": "A / B, pair by pair",
    "ratio/tokens": "reply tokens of A / of B",
    "rate/generated_tokens_per_s": "generated tokens/s (generating)",
    "rate/trained_tokens_per_s": "trained tokens/s (updating)",
    "rate/replies_per_s": "replies/s (whole step)",
    "publish/seconds": "publish: sending, s",
    "publish/bytes": "publish: sent, bytes",
    "publish/logprob_gap": "publish: gap, nats",
}


class Rounds:
    """A tracker: behind each step that the loop reports (A) comes the same work with nothing around it (B).

    A row a round: the step's metrics (`time/PHASE_s`), B's seconds (`alone/PHASE_s`), what follows (`ratio`, `rate/*`).
    """

    def __init__(self, job: Job, sampling: Sampling) -> None:
        self.rows: list[dict[str, float]] = []
        self.clock = Clock()
        self._job, self._sampling = job, sampling
        self._scored: Sequence[ScoredRollout] = ()
        self._inner: Tracker

    def open(self, first_step: int) -> Rounds:
        recipe = self._job.recipe
        console = ConsoleTracker(first_step, recipe.steps, SHOWN)
        self._inner = Trackers([*trackers(recipe, self._job.directory, first_step), console])
        return self

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        self._scored = scored

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        started = time.perf_counter()
        self._inner.log(step, metrics)
        log_s = time.perf_counter() - started
        row = {name: value for name, value in metrics.items() if name.startswith(SPEED)} | self._alone(step)
        row |= {"time/log_s": log_s, "time/step_s": row["time/step_s"] + log_s}
        passes = metrics["policy/updates"] / self._job.recipe.ppo.minibatches
        row |= {
            "ratio": row["time/step_s"] / row["alone/step_s"],
            "ratio/tokens": row["rollout/tokens"] / row["alone/tokens"],
            "rate/generated_tokens_per_s": row["rollout/tokens"] / row["time/rollout_s"],
            "rate/trained_tokens_per_s": row["rollout/tokens"] * passes / row["time/update_s"],
            "rate/replies_per_s": row["rollout/replies"] / row["time/step_s"],
            **{f"share/{phase}": row[f"time/{phase}_s"] / row["time/step_s"] for phase in PHASES},
        }
        self.rows.append(row)
        self._job.learner.publish(self._job.engine)  # the next step samples from the newest policy, as in a run
        self.clock.lap()

    def close(self) -> None:
        self._inner.close()

    def _alone(self, step: int) -> dict[str, float]:
        job, clock = self._job, Clock()
        prompts = [item.rollout.prompt for item in self._scored[:: self._sampling.n]]
        with clock("rollout"):
            rollouts = job.engine.generate(prompts, step_sampling(self._sampling, step))
        batch = collate(attach(rollouts, job.reward.score(rollouts)))
        with clock("annotate"):
            experience = job.learner.annotate(batch)
        with clock("update"):
            job.learner.update(experience)
        lap = clock.lap()
        seconds = {f"alone/{phase}_s": lap[f"time/{phase}_s"] for phase in ("rollout", "annotate", "update")}
        tokens = sum(len(rollout.response_ids) for rollout in rollouts)
        return {**seconds, "alone/step_s": sum(seconds.values()), "alone/tokens": float(tokens)}


def measure(recipe: PpoRecipe, corpus: Corpus) -> dict[str, Any]:
    """Run the recipe's job for its steps; figures over the rounds behind the warm-up, and the memory at its peak."""
    memory, sampling = MemoryPeak(), recipe.sampling
    drawn = Sampling(sampling.n, sampling.max_tokens, sampling.temperature, recipe.seed)
    with memory.watched():
        connect()
        placement = Placement(claims(recipe, on_gpu=has_gpus()))
        try:
            job = Job(recipe, corpus, placement, recipe.directory)
            job.ready()
            rounds = Rounds(job, drawn)
            peer.drive(job, drawn, rounds)
        finally:
            placement.release()
            ray.shutdown()
    kinds = memory.by_kind(json.loads((recipe.directory / PROCESSES).read_text()))
    counted = rounds.rows[WARM_UP_ROUNDS:]
    columns = {name: [row[name] for row in counted] for name in counted[0]}
    return {
        "figures": {name: (median(column), min(column), max(column)) for name, column in columns.items()},
        "memory": kinds,
        "sampler_cpu": memory.cpu_share,
        "replaced": job.engine.deaths + job.reward.deaths,
        "rows": rounds.rows,
    }


def first_step(recipe: str, model: str, folder: Path) -> dict[str, float]:
    """Seconds from the start of `python -m rl ppo` to the line of its first step, and to its end."""
    words = ["ppo", recipe, "--steps", "1", "--model.path", model, "--runs", str(folder), "--name", "first-step"]
    started, seconds = time.perf_counter(), dict[str, float]()
    with subprocess.Popen([sys.executable, "-m", "rl", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        for line in job.stdout:
            now = time.perf_counter() - started
            print(f"{now:7.1f} s  {line}", end="", flush=True)
            if re.search(r"step +1/", line):
                seconds["first_step_s"] = now
    if job.returncode:
        raise SystemExit(f"the job failed with exit code {job.returncode}: nothing was measured")
    return {**seconds, "end_s": time.perf_counter() - started}


def show(figures: Mapping[str, Figure], memory: Mapping[str, tuple[int, int]]) -> None:
    """Print the tables of a measurement."""
    print(f"\n{'':<34}{'median':>12}{'least':>12}{'most':>12}")
    for name, label in LINES.items():
        print(f"{label:<34}" + "".join(f"{value:12.4g}" for value in figures[name]))
    print(f"\n{'phase of A':<34}{'median s':>12}{'share %':>12}{'B: median s':>12}")
    for phase in PHASES:
        alone = f"{figures[f'alone/{phase}_s'][0]:12.4f}" if f"alone/{phase}_s" in figures else ""
        print(f"{phase:<34}{figures[f'time/{phase}_s'][0]:12.4f}{100 * figures[f'share/{phase}'][0]:12.1f}{alone}")
    print(f"\n{'memory at its peak (PSS)':<34}{'processes':>12}{'MB':>12}")
    total = sum(count for count, _ in memory.values()), sum(pss for _, pss in memory.values())
    for kind, (count, pss) in {"all": total, **memory}.items():
        print(f"{kind:<34}{count:12}{pss / 1e6:12.0f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.step", description=__doc__, allow_abbrev=False)
    parser.add_argument("--recipe", default="local", help="a shipped recipe, or a .toml file")
    parser.add_argument("--steps", type=int, default=12, help=f"steps that count, behind {WARM_UP_ROUNDS} that do not")
    parser.add_argument("--model", type=Path, help="a model's folder; else the recipe's tiny one is built")
    parser.add_argument("--first-step", action="store_true", help="measure the time to a run's first step instead")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    peer.add_arguments(parser)
    args = parser.parse_args(argv)
    measured: dict[str, Any]
    path = Path(args.recipe) if args.recipe.endswith(".toml") else ROOT / "rl" / "recipes" / f"{args.recipe}.toml"
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, is {args.steps}")
    with tempfile.TemporaryDirectory(prefix="attune-benchmark-") as folder:
        if args.peer:
            measured = peer.run(args, Path(folder))
            if args.out:
                args.out.write_text(json.dumps(measured, indent=1) + "\n")
            return
        sample = {"runs": folder, "steps": args.steps + WARM_UP_ROUNDS, "model.tiny.warmup_steps": WARM_UP_STEPS}
        sample |= {"model.path": str(args.model.resolve())} if args.model else {}
        recipe = load(PpoRecipe, path, sample={**sample, "ppo.policy_lr": GENTLE, "ppo.critic_lr": GENTLE})
        corpus = load_corpus(recipe.corpus)
        recipe.directory.mkdir(parents=True)
        recipe = with_model(recipe, corpus, recipe.directory)
        facts = provenance(recipe, corpus.provenance, recipe.model.path) | {"load_before": os.getloadavg()}
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(f"{facts['machine']}, {size(facts['memory_bytes'])}, load {os.getloadavg()[0]:.1f}")
        versions = {"python": facts["python"], **facts["packages"]}
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
        if args.first_step:
            measured = first_step(str(path.resolve()), recipe.model.path, Path(folder))
            print(f"\nfirst step within {measured['first_step_s']:.1f} s, end {measured['end_s']:.1f} s")
        else:
            measured = measure(recipe, corpus)
            show(measured["figures"], measured["memory"])
            print(
                f"\nreplicas replaced {measured['replaced']}, CPU of the memory's sampler {measured['sampler_cpu']:.1%}"
            )
        facts["load_after"] = os.getloadavg()
        if args.out:
            args.out.write_text(json.dumps({"machine": facts, "settings": flat(recipe), **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()

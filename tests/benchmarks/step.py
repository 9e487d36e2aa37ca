"""Speed and memory of the whole job, as ratios within one run; README.md beside this file says how to read them."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import ray

from cluster.findings import size
from cluster.placement import Placement, connect
from cluster.settings import flat, load
from cluster.tracking import Clock, Tracker
from rewards.types import ScoredRollout
from rl.batch import collate
from rl.checkpoints import Checkpoints
from rl.config import PpoRecipe
from rl.loop import attach, step_sampling, train
from rl.ppo import Job, claims, trackers, with_model
from rl.records import PROCESSES, provenance, write_rollouts
from rollout.corpora import Corpus
from rollout.corpora import load as load_corpus
from rollout.types import Sampling

ROOT = Path(__file__).parents[2]
WARM_UP_ROUNDS, WARM_UP_STEPS = 2, 60  # rounds that do not count; supervised steps of a model that is built here
PHASES = ("rollout", "reward", "annotate", "update", "publish", "record", "log")
Figure = tuple[float, float, float]  # median, least, most


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
        self._inner = trackers(self._job.recipe, self._job.directory, first_step)
        return self

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        with self.clock("record"):
            write_rollouts(self._job.directory, step, scored)
        self._scored = scored

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        started = time.perf_counter()
        self._inner.log(step, metrics)
        log_s = time.perf_counter() - started
        row = {**metrics, "time/log_s": log_s, "time/step_s": metrics["time/step_s"] + log_s, **self._alone(step)}
        passes = row["policy/updates"] / self._job.recipe.ppo.minibatches
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
        tokens = float(sum(len(r.response_ids) for r in rollouts))
        return {**seconds, "alone/step_s": sum(seconds.values()), "alone/tokens": tokens}


class Process(NamedTuple):
    """A process and its proportional share (PSS) of the memory that it maps, in bytes."""

    parent: int
    name: str
    pss: int


class MemoryPeak:
    """This process and its descendants at the moment, looked for every second, when they held the most memory."""

    def __init__(self) -> None:
        self.family: dict[int, Process] = {}
        self.cpu_share = 0.0  # of one core, taken by the looking

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        started = time.perf_counter()
        while not done.wait(1.0):
            self.family = max(self.family, family(os.getpid()), key=lambda now: sum(p.pss for p in now.values()))
            self.cpu_share = time.thread_time() / (time.perf_counter() - started)

    def by_kind(self, fleets: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
        """(processes, bytes) by fleet and, of what fleets and driver started, by name; the largest first."""
        fleet_of = {pid: fleet for fleet, pids in fleets.items() for pid in pids}
        kinds: dict[str, tuple[int, int]] = {}
        for pid, process in self.family.items():
            above = pid
            while above not in fleet_of:
                above = self.family[above].parent
            owner = "Ray" if fleet_of[above] == "driver" else fleet_of[above]
            kind = fleet_of[pid] if above == pid else f"{owner}: {process.name}"
            count, pss = kinds.get(kind, (0, 0))
            kinds[kind] = count + 1, pss + process.pss
        return dict(sorted(kinds.items(), key=lambda item: -item[1][1]))


def family(root: int) -> dict[int, Process]:
    """`root` and its descendants by process id; those that end meanwhile are left out."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found, waiting = dict[int, Process](), [(root, 0)]
    while waiting:
        pid, parent = waiting.pop()
        if pss := re.search(r"^Pss:\s+(\d+) kB", _read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE):
            words = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").split() or [""]
            scripts = [word for word in words if word.endswith(".py")] if "python" in words[0] else []
            found[pid] = Process(parent, Path([*scripts, words[0]][0]).name, int(pss[1]) * 1024)
            waiting += [(child, pid) for child in children[pid]]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def measure(recipe: PpoRecipe, corpus: Corpus) -> dict[str, Any]:
    """Run the recipe's job for its steps; figures over the rounds behind the warm-up, and the memory at its peak."""
    memory, sampling = MemoryPeak(), recipe.sampling
    drawn = Sampling(sampling.n, sampling.max_tokens, sampling.temperature, recipe.seed)
    with memory.watched():
        connect()
        placement = Placement(claims(recipe))
        try:
            job = Job(recipe, corpus, placement, recipe.directory)
            job.ready()
            rounds = Rounds(job, drawn)
            never = Checkpoints(recipe.directory, every=sys.maxsize, keep=1, steps=sys.maxsize)
            train(
                steps=recipe.steps, prompts_per_step=recipe.prompts.per_step, sampling=drawn, prompts=job.prompts,
                engine=job.engine, reward=job.reward, learner=job.learner, checkpoints=never, trackers=rounds.open,
                record=rounds.record, clock=rounds.clock,
            )  # fmt: skip
        finally:
            placement.release()
            ray.shutdown()
    kinds = memory.by_kind(json.loads((recipe.directory / PROCESSES).read_text()))
    counted = rounds.rows[WARM_UP_ROUNDS:]
    columns = {name: [row[name] for row in counted] for name in counted[0]}
    return {
        "figures": {name: (median(column), min(column), max(column)) for name, column in columns.items()},
        "memory": kinds, "sampler_cpu_share": memory.cpu_share, "replaced": job.engine.deaths + job.reward.deaths,
        "rows": rounds.rows,
    }  # fmt: skip

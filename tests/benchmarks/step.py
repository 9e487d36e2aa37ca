"""Speed and memory of the whole job, as ratios within one run; README.md beside this file says how to read them.

    python -m tests.benchmarks.step [--recipe local] [--steps 12] [--model FOLDER] [--out FILE.json] [--dotted.name value ...]
    python -m tests.benchmarks.step --first-step [...]
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray

from cluster.findings import size
from cluster.placement import Placement, connect
from cluster.settings import load, to_json
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
WARM_UP_ROUNDS, WARM_UP_STEPS = 2, 60  # rounds that do not count; supervised steps of a model built here
PHASES = ("rollout", "reward", "annotate", "update", "publish", "record", "log")


@dataclass(frozen=True)
class Round:
    """`full`: the metrics of a step of the loop; `alone`: those of engine and learner on the same prompts. `*_s`: seconds."""

    full: Mapping[str, float]
    alone: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """Seconds of the step over seconds of its generation and training alone."""
        return self.full["time/step_s"] / self.alone["time/step_s"]


class Rounds:
    """A tracker: behind each step that the loop reports comes a round of the same work with nothing around it."""

    def __init__(self, job: Job, sampling: Sampling) -> None:
        self.rounds: list[Round] = []
        self.clock = Clock()
        self._job, self._sampling = job, sampling
        self._scored: Sequence[ScoredRollout] = ()
        self._inner: Tracker

    def opened(self, first_step: int) -> Rounds:
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
        full = {**metrics, "time/log_s": log_s, "time/step_s": metrics["time/step_s"] + log_s}
        self.rounds.append(Round(full, self._alone(step)))
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
        phases = {name: seconds for name, seconds in clock.lap().items() if name != "time/step_s"}
        tokens = float(sum(len(r.response_ids) for r in rollouts))
        return {**phases, "time/step_s": sum(phases.values()), "rollout/tokens": tokens}


@dataclass(frozen=True)
class Process:
    """A process and its proportional share (PSS) of the memory that it maps, in bytes."""

    parent: int
    command: str
    pss: int


class MemoryPeak:
    """The moment, looked for every second, when this process and its descendants held the most memory."""

    def __init__(self) -> None:
        self.peak: dict[int, Process] = {}
        self.samples, self.cpu_s, self.seconds = 0, 0.0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look while the block runs."""
        done, started = threading.Event(), time.perf_counter()
        thread = threading.Thread(target=self._watch, args=(done,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.seconds = time.perf_counter() - started

    def _watch(self, done: threading.Event) -> None:
        most = 0
        while not done.wait(1.0):
            family = processes(os.getpid())
            now = sum(process.pss for process in family.values())
            if now > most:
                most, self.peak = now, family
            self.samples, self.cpu_s = self.samples + 1, time.thread_time()

    def by_kind(self, fleets: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
        """(processes, bytes) at the peak by fleet; what belongs to no fleet by its command, as a part of Ray."""
        roots = {pid: fleet for fleet, pids in fleets.items() for pid in pids}
        kinds: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for pid, process in self.peak.items():
            kind = roots.get(pid) or self._ray_or_fleet(process, roots)
            count, pss = kinds[kind]
            kinds[kind] = count + 1, pss + process.pss
        return dict(sorted(kinds.items(), key=lambda item: -item[1][1]))

    def _ray_or_fleet(self, process: Process, roots: Mapping[int, str]) -> str:
        ancestor = process.parent
        while ancestor in self.peak:
            if ancestor in roots and roots[ancestor] != "driver":
                return f"{roots[ancestor]}: {process.command}"
            ancestor = self.peak[ancestor].parent
        return f"Ray: {process.command.removeprefix('ray::')}"


def processes(root: int) -> dict[int, Process]:
    """`root` and its descendants by process id, with memory and a short name; those that end meanwhile are left out."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    family, waiting = dict[int, Process](), [(root, 0)]
    while waiting:
        pid, parent = waiting.pop()
        waiting += [(child, pid) for child in children[pid]]
        if found := re.search(r"^Pss:\s+(\d+) kB", _read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE):
            words = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").split()
            name = Path(words[0]).name if words else ""
            if name.startswith("python"):
                name = next((Path(word).name for word in words if word.endswith(".py")), name)
            family[pid] = Process(parent, name, int(found[1]) * 1024)
    return family


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def measure(recipe: PpoRecipe, corpus: Corpus) -> dict[str, Any]:
    """Run the recipe's job for its steps, each followed by its work alone; the rounds and the memory at its peak."""
    memory, sampling = MemoryPeak(), recipe.sampling
    with memory.watched():
        connect()
        placement = Placement(claims(recipe))
        try:
            job = Job(recipe, corpus, placement, recipe.directory)
            job.ready()
            drawn = Sampling(sampling.n, sampling.max_tokens, sampling.temperature, recipe.seed)
            rounds = Rounds(job, drawn)
            train(
                steps=recipe.steps,
                prompts_per_step=recipe.prompts.per_step,
                sampling=drawn,
                prompts=job.prompts,
                engine=job.engine,
                reward=job.reward,
                learner=job.learner,
                checkpoints=Checkpoints(recipe.directory / "checkpoints", every=sys.maxsize, keep=1, steps=sys.maxsize),
                trackers=rounds.opened,
                record=rounds.record,
                clock=rounds.clock,
            )
        finally:
            placement.release()
            ray.shutdown()
    return {
        "rounds": [asdict(each) for each in rounds.rounds],
        "memory": memory.by_kind(json.loads((recipe.directory / PROCESSES).read_text())),
        "sampler": {"samples": memory.samples, "cpu_share": memory.cpu_s / memory.seconds},
        "replaced": job.engine.deaths + job.reward.deaths,
        **summary(rounds.rounds[WARM_UP_ROUNDS:], recipe),
    }


def summary(rounds: Sequence[Round], recipe: PpoRecipe) -> dict[str, Any]:
    """The figures: each (median, least, most) over `rounds`."""

    def over(figure: Callable[[Round], float]) -> tuple[float, float, float]:
        values = [figure(each) for each in rounds]
        return median(values), min(values), max(values)

    def phase(name: str) -> dict[str, tuple[float, float, float]]:
        key = f"time/{name}_s"
        return {
            "full_s": over(lambda r: r.full[key]),
            "share": over(lambda r: r.full[key] / r.full["time/step_s"]),
            "alone_s": over(lambda r: r.alone.get(key, 0.0)),
        }

    passes = [each.full["policy/updates"] / recipe.ppo.minibatches for each in rounds]
    trained = {id(each): each.full["rollout/tokens"] * n for each, n in zip(rounds, passes, strict=True)}
    return {
        "full_s": over(lambda r: r.full["time/step_s"]),
        "alone_s": over(lambda r: r.alone["time/step_s"]),
        "ratio": over(lambda r: r.ratio),
        "tokens_ratio": over(lambda r: r.full["rollout/tokens"] / r.alone["rollout/tokens"]),
        "phases": {name: phase(name) for name in PHASES},
        "generated_tokens_per_s": over(lambda r: r.full["rollout/tokens"] / r.full["time/rollout_s"]),
        "trained_tokens_per_s": over(lambda r: trained[id(r)] / r.full["time/update_s"]),
        "replies_per_s": over(lambda r: r.full["rollout/replies"] / r.full["time/step_s"]),
        "publish_s": over(lambda r: r.full["publish/seconds"]),
        "publish_bytes": over(lambda r: r.full["publish/bytes"]),
        "publish_gap_nats": over(lambda r: r.full["publish/logprob_gap"]),
    }

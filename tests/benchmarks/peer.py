"""Our step against TRL's GRPO trainer, in turn within one run: replies/s at fixed and at mixed lengths.

README.md beside this file says what both sides share and how to read the figures. `python -m tests.benchmarks.step --peer trl`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from unittest.mock import patch

import ray

from cluster.placement import Placement, connect, has_gpus
from cluster.settings import load
from cluster.tracking import Clock, Tracker, Trackers
from rewards.types import ScoredRollout
from rl.checkpoints import Checkpoints
from rl.config import PpoRecipe
from rl.intake import with_model
from rl.layout import claims
from rl.loop import train
from rl.ppo import Job, spec_of
from rl.records import trackers, write_rollouts
from rollout.chat import Chat
from rollout.corpora import Corpus
from rollout.corpora import load as load_corpus
from rollout.prompts import PromptStream, build_prompts, crisis_prompts, fixed_prompts
from rollout.tokenizer import load_tokenizer
from rollout.types import Sampling, Speaker
from tests.benchmarks.peer_trl import PeerSettings

ROOT = Path(__file__).parents[2]
WARM_UP_ROUNDS, WARM_UP_STEPS = 2, 60  # rounds that do not count; supervised steps of the model
GROUP, SHORTEST_CONTEXT = 4, 192
LR, KL_COEF = 1e-6, 0.01  # replies keep their length
LOW, HIGH, BAND = 8, 30, 10  # the reward: words of a reply
OURS: Mapping[str, Any] = {  # on top of the recipe: what the peer does too, and how this job is laid out on few cores
    "model.tiny.warmup_steps": WARM_UP_STEPS,
    "ppo.estimator": "grpo",
    "ppo.epochs": 1,
    "ppo.minibatches": 1,
    "ppo.kl_coef": KL_COEF,
    "ppo.kl_target": None,
    "ppo.policy_lr": LR,
    "ppo.lr_warmup": 0,
    "ppo.betas": (0.9, 0.999),
    "rewards.similarity.weight": 0.0,
    "rewards.emotion.weight": 0.0,
    "rewards.inquiry.weight": 0.0,
    "rewards.length.weight": 1.0,
    "rewards.length.low": LOW,
    "rewards.length.high": HIGH,
    "rewards.length.band": BAND,
    "rewards.crisis.classifier": False,
    "sampling.n": GROUP,
    "learner.micro_batch_tokens": 8192,
    "evaluation.every": 0,
    "tracking.tensorboard": True,
}


@dataclass(frozen=True)
class Cell:
    """One comparison: replies a step, their budget of tokens, and what ends them before it.

    `ends`: "fixed" nothing; "mixed" any of a few words of the corpus, so chosen that the chance is about 3 / budget per token
    (lengths are spread over the whole budget, their mean about a third of it); "natural" the end of the turn.
    """

    replies: int
    budget: int
    ends: str

    @property
    def label(self) -> str:
        return f"{self.replies} x {self.budget} {self.ends}"


HEADLINE = (Cell(64, 64, "fixed"), Cell(64, 256, "mixed"))
SWEEP = tuple(
    Cell(replies, budget, ends) for ends in ("fixed", "mixed") for replies in (32, 64, 128) for budget in (64, 128, 256)
)


class Peer:
    """The peer's process: idle until asked for a step."""

    def __init__(self, settings: PeerSettings, python: str, log: Path) -> None:
        path = Path(settings.folder) / "settings.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(settings)))
        self._log = log
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.peer_trl", str(path)],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
        )  # fmt: skip
        self._answer()

    def step(self) -> dict[str, float]:
        """One whole step of the peer; its seconds as seen from here too."""
        started = time.perf_counter()
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = self._answer()
        return {**answer, "seen_s": time.perf_counter() - started}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"'):  # the trainer prints dictionaries of its own
                return json.loads(line)
        raise SystemExit(f"the peer ended with exit code {self._process.wait()}:\n{self._log.read_text()[-2000:]}")


class Turns:
    """A tracker: behind each step of ours comes one of the peer's, and a row holds both."""

    def __init__(self, job: Job, peer: Peer) -> None:
        self.rows: list[dict[str, float]] = []
        self.clock = Clock()
        self._job, self._peer = job, peer
        self._inner: Tracker

    def open(self, first_step: int) -> Turns:
        self._inner = Trackers(trackers(self._job.recipe, self._job.directory, first_step))
        return self

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """There is nothing beyond what `drive` writes."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        started = time.perf_counter()
        self._inner.log(step, metrics)
        ours_s = metrics["time/step_s"] + time.perf_counter() - started
        theirs = self._peer.step()
        phases = {f"ours/{name[5:-2]}_s": value for name, value in metrics.items() if name.startswith("time/")}
        self.rows.append(
            {
                **phases,
                **{f"peer/{name}": value for name, value in theirs.items()},
                "ours/step_s": ours_s,
                "ours/tokens": metrics["rollout/tokens"],
                "ours/truncated": metrics["rollout/truncated"],
                "ours/gap": metrics["publish/logprob_gap"],
                "ratio": theirs["seen_s"] / ours_s,
                "ratio/tokens": metrics["rollout/tokens"] / theirs["tokens"],
                "load": os.getloadavg()[0],
            }
        )
        self.clock.lap()

    def close(self) -> None:
        self._inner.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--peer` takes."""
    group = parser.add_argument_group("against another trainer")
    group.add_argument("--peer", choices=["trl"], help="measure our step against this trainer's instead")
    group.add_argument("--peer-python", default=sys.executable, help="the interpreter that has it")
    group.add_argument("--sweep", action="store_true", help="every batch with every length, fixed and mixed")
    group.add_argument("--cells", nargs="+", metavar="64:256:mixed", help="these: replies:tokens:fixed|mixed|natural")
    group.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a setting of ours"
    )
    group.add_argument("--peer-threads", type=int, default=os.cpu_count())
    group.add_argument("--peer-micro-batch", type=int, default=64, help="replies at once in its training")
    group.add_argument("--peer-experts", default="eager", choices=["eager", "batched_mm", "grouped_mm"])
    group.add_argument("--peer-continuous", action="store_true", help="its continuous batching instead of its generate")


def run(args: Any, folder: Path) -> dict[str, Any]:
    """Measure the cells; print a line each; everything as JSON."""
    path = ROOT / "rl" / "recipes" / "local.toml"
    longest = SHORTEST_CONTEXT + max(cell.budget for cell in SWEEP) + 64
    shared = {**OURS, **dict(args.set), "runs": str(folder), "rollout.max_model_len": longest}
    shared |= {"model.path": str(args.model.resolve())} if args.model else {"model.tiny.context": longest}
    recipe = load(PpoRecipe, path, sample=shared)
    corpus = load_corpus(recipe.corpus)
    recipe.directory.mkdir(parents=True)
    recipe = with_model(recipe, corpus, recipe.directory)
    shared |= {"model.path": recipe.model.path}
    rounds = args.steps + WARM_UP_ROUNDS
    connect()
    measured = {}
    print(f"{'replies x tokens':<18}{'ours replies/s':>15}{'TRL replies/s':>15}   {'ratio':<24}{'tokens ours/TRL':>16}")
    try:
        for number, cell in enumerate(chosen_cells(args)):
            sample = {
                **shared, "name": f"cell-{number}", "steps": rounds, "prompts.per_step": cell.replies // GROUP,
                "sampling.max_tokens": cell.budget,
            }  # fmt: skip
            rows = measure(load(PpoRecipe, path, sample=sample), corpus, cell, args)
            measured[cell.label] = rows
            print(line(cell, rows[WARM_UP_ROUNDS:]), flush=True)
    finally:
        ray.shutdown()
    return {"peer": {"replies": measured}}


def chosen_cells(args: Any) -> Sequence[Cell]:
    """The cells that the command line names."""
    if args.cells:
        return [Cell(int(a), int(b), c) for a, b, c in (word.split(":") for word in args.cells)]
    return SWEEP if args.sweep else HEADLINE


def measure(recipe: PpoRecipe, corpus: Corpus, cell: Cell, args: Any) -> list[dict[str, float]]:
    """Rounds of one cell: ours, theirs, ours, ..."""
    recipe.directory.mkdir(parents=True)
    chat = Chat(load_tokenizer(recipe.model.path, recipe.model.revision), system=recipe.prompts.system)
    ends = end_ids(cell, chat, corpus)
    stream = prompts_of(recipe, corpus, chat)
    drawn = [prompt.token_ids for _ in range(recipe.steps) for prompt in stream.draw(recipe.prompts.per_step)]
    settings = PeerSettings(
        model=recipe.model.path, prompts=drawn, prompts_per_step=recipe.prompts.per_step, n=GROUP,
        max_tokens=cell.budget, end_ids=ends, low=LOW, high=HIGH, band=BAND, kl_coef=KL_COEF, lr=LR, steps=recipe.steps,
        threads=args.peer_threads, micro_batch=min(args.peer_micro_batch, cell.replies), experts=args.peer_experts,
        continuous=args.peer_continuous, folder=str(recipe.directory / "peer"),
    )  # fmt: skip
    placement = Placement(claims(recipe, on_gpu=has_gpus()))
    try:
        with patch("rl.ppo.spec_of", lambda recipe, _: spec_of(recipe, ends)):
            job = Job(recipe, corpus, placement, recipe.directory)
        job.ready()
        peer = Peer(settings, args.peer_python, recipe.directory / "peer.log")
        turns = Turns(job, peer)
        sampling = Sampling(GROUP, cell.budget, recipe.sampling.temperature, recipe.seed)
        drive(job, sampling, turns)
        peer.close()
    finally:
        placement.release()
    return turns.rows


class Watcher(Tracker, Protocol):
    """A tracker that times the loop's steps."""

    clock: Clock

    def open(self, first_step: int) -> Tracker: ...

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None: ...


def drive(job: Job, sampling: Sampling, watcher: Watcher) -> None:
    """The steps of the job's recipe, as a run makes them but for checkpoints: none falls due."""
    recipe = job.recipe
    train(
        steps=recipe.steps,
        prompts_per_step=recipe.prompts.per_step,
        sampling=sampling,
        prompts=job.prompts,
        engine=job.engine,
        reward=job.reward,
        learner=job.learner,
        checkpoints=Checkpoints(recipe.directory, every=sys.maxsize, keep=1, steps=sys.maxsize),
        trackers=watcher.open,
        record=watcher.record,
        clock=watcher.clock,
        write=partial(write_rollouts, job.directory),
    )


def end_ids(cell: Cell, chat: Chat, corpus: Corpus) -> tuple[int, ...]:
    """The tokens that end a reply, on both sides (see `Cell`)."""
    if cell.ends == "fixed":
        return ()
    if cell.ends == "natural":
        return chat.end_ids
    said = Counter(
        token
        for dialogue in corpus.train
        for turn in dialogue.turns
        if turn.speaker is Speaker.THERAPIST
        for token in chat.tokenizer(turn.text)["input_ids"]
    )
    wanted, chosen = 3 / cell.budget * said.total(), list[int]()
    for token, count in said.most_common():
        if count <= wanted:
            chosen.append(token)
            wanted -= count
    return tuple(chosen)


def prompts_of(recipe: PpoRecipe, corpus: Corpus, chat: Chat) -> PromptStream:
    """The stream that the job draws from."""
    limit, wanted = recipe.prompts.max_context_tokens, recipe.prompts.min_reference_words
    return PromptStream(
        build_prompts(corpus.train, chat, max_tokens=limit, min_reference_words=wanted),
        fixed_prompts(recipe.prompts.fixed, chat, max_tokens=limit),
        crisis_prompts(chat, max_tokens=limit),
        recipe.prompts,
        recipe.seed,
    )


def line(cell: Cell, rows: Sequence[Mapping[str, float]]) -> str:
    """A cell's line of the table, and below it where either side's time goes."""

    def middle(name: str) -> float:
        return median(row[name] for row in rows)

    ratios = sorted(row["ratio"] for row in rows)
    phases = ("rollout", "reward", "annotate", "update", "publish", "record")
    shares = ", ".join(f"{phase} {middle(f'ours/{phase}_s'):.3f}" for phase in phases)
    rest = middle("peer/seen_s") - middle("peer/rollout_s")
    return (
        f"{cell.label:<18}{cell.replies / middle('ours/step_s'):15.1f}{cell.replies / middle('peer/seen_s'):15.1f}   "
        f"{f'{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})':<24}{middle('ratio/tokens'):16.2f}\n"
        f"    ours {middle('ours/step_s'):.3f} s: {shares}; {middle('ours/tokens'):.0f} tokens\n"
        f"    TRL  {middle('peer/seen_s'):.3f} s: generation {middle('peer/rollout_s'):.3f}, rest {rest:.3f}; "
        f"{middle('peer/tokens'):.0f} tokens, longest {middle('peer/longest'):.0f}; load {rows[-1]['load']:.1f}"
    )

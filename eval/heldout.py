"""The evaluations that a PPO run made on its way: the same held-out prompts, answered by the policy after so many updates.

    for step in evaluated(run.metrics):          # updates that the policy had made
        answers = read_answers(run.path, step)   # the replies, their rewards and scores
        answers.measured("rouge_l").value

`replies/step-000050.parquet` holds the policy's answers after 50 updates; `heldout/*` of the log their figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eval.figures import Ledger, Measured
from eval.metrics import METRICS, measure
from eval.pair import Pair, unit_ids
from eval.run_directory import Log
from rewards.words import words

PREFIX, SCORE = "heldout/", "score/"
STEP, REWARD = f"{PREFIX}step", f"{PREFIX}reward"
SPREAD = frozenset({"distinct_1", "distinct_2", "distinct_3", "self_bleu"})  # these move with the amount of text
TOGETHER = SPREAD | {"duplicate_rate", "opening_rate", "bleu"}  # no mean over replies: read off the texts again

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What the policy said after `step` updates, one reply a prompt. `rewards` and `scores` are in the order of `pairs`, nan
    where there is none."""

    step: int
    pairs: tuple[Pair, ...]
    rewards: Floats
    scores: Mapping[str, Floats]

    @property
    def replies(self) -> list[str]:
        """The texts."""
        return [pair.reply for pair in self.pairs]

    def measured(self, metric: str) -> Measured:
        """The figure of a metric that the run measured, with the prompts as units."""
        if metric in TOGETHER:
            return measure([metric], self.pairs)[metric]
        if metric not in self.scores:
            raise ValueError(f"metric must be one that the run measured, is {metric!r}: {', '.join(self.scores)}")
        return self._mean(metric, self.scores[metric])

    @property
    def reward(self) -> Measured:
        """The mean reward."""
        return self._mean("reward", self.rewards)

    def only(self, prompt_ids: Iterable[str]) -> Answers:
        """The answers to these prompts, in order of their ids."""
        place = {pair.prompt_id: at for at, pair in enumerate(self.pairs)}
        kept = [place[prompt_id] for prompt_id in sorted(prompt_ids)]
        scores = {name: values[kept] for name, values in self.scores.items()}
        return Answers(self.step, tuple(self.pairs[at] for at in kept), self.rewards[kept], scores)

    def _mean(self, name: str, values: Floats) -> Measured:
        return Ledger(unit_ids(self.pairs, "prompt")).mean(name, values)


def evaluated(log: Log) -> list[int]:
    """The evaluations in the log, each as the updates that its policy had made, in order."""
    return [int(step) for step in log.series(STEP)[:, 1]]


def metrics_of(log: Log) -> list[str]:
    """The metrics of `eval.metrics` that the evaluations measured, in the order of that table."""
    logged = set(log.names)
    return [name for name in METRICS if f"{PREFIX}{name}" in logged]


def read_answers(run: Path, step: int) -> Answers | None:
    """The answers after `step` updates; None where they are not on file, or cannot be read."""
    path = run / "replies" / f"step-{step:06d}.parquet"
    try:
        columns = pq.read_table(path).to_pydict()
        texts = zip(*(columns[name] for name in ("prompt_id", "history", "reply", "reference")), strict=True)
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None
    pairs = tuple(Pair(prompt, history, (), reply, reference) for prompt, history, reply, reference in texts)
    numbers = {name: np.array(values, dtype=np.float64) for name, values in columns.items() if name.startswith(SCORE)}
    rewards = np.array(columns.get("reward", [math.nan] * len(pairs)), dtype=np.float64)
    return Answers(step, pairs, rewards, {name.removeprefix(SCORE): values for name, values in numbers.items()})


def paired(first: Answers, last: Answers) -> tuple[Answers, Answers]:
    """Both, with the prompts that both answered."""
    shared = {pair.prompt_id for pair in first.pairs} & {pair.prompt_id for pair in last.pairs}
    return first.only(shared), last.only(shared)


def as_long(first: Answers, last: Answers) -> tuple[Answers, Answers]:
    """Both with every two replies to a prompt cut to as many words as the shorter has: how varied a list of replies is falls
    with its length, and a policy that only says more is not less varied for it. For `paired` answers."""
    cut: tuple[list[Pair], list[Pair]] = ([], [])
    for one, other in zip(first.pairs, last.pairs, strict=True):
        said = words(one.reply), words(other.reply)
        count = min(map(len, said))
        for side, pair, spoken in zip(cut, (one, other), said, strict=True):
            side.append(_saying(pair, spoken[:count]))
    return (
        Answers(first.step, tuple(cut[0]), first.rewards, first.scores),
        Answers(last.step, tuple(cut[1]), last.rewards, last.scores),
    )


def _saying(pair: Pair, spoken: Sequence[str]) -> Pair:
    return Pair(pair.prompt_id, pair.prompt, pair.history, " ".join(spoken), pair.reference)

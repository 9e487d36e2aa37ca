"""One rank of a supervised run: the loop, and rank 0's records of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed

from cluster.tracking import Clock, Tracker, Trackers
from eval.collapse import collapse_figures
from eval.overlap import rouge1
from eval.run_directory import RunState
from rewards.guard_file import guard_settings
from rl.checkpoints import Checkpoints, DamagedCheckpoint, SavesLearner
from rl.endings import NonFiniteLoss
from rl.records import trackers, write_replies, write_status
from rl.sequences import draw, read_examples, write_examples
from rl.sft_config import SftRecipe
from rl.sft_learner import SftLearner
from rl.sft_lesson import Lesson
from rollout.chat import Example
from rollout.fields import read_labels

R = TypeVar("R")


class EarlyStopping:
    """Ends a run after `patience` validations without a lower loss (0: never)."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.best, self.waited = math.inf, 0

    def note(self, loss: float) -> bool:
        """Whether the run ends here."""
        self.best, self.waited = (loss, 0) if loss < self.best else (self.best, self.waited + 1)
        return 0 < self._patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = float(state["best"]), int(state["waited"])


class SftRank:
    """One rank of a run; `WorkerGroup` and Ray Train both hold it."""

    def __init__(self, recipe: SftRecipe, lesson: Lesson) -> None:
        self._recipe, self._lesson = recipe, lesson
        self._learner = SftLearner(recipe, lesson.tokenizer, lesson.label_words, lesson.updates)

    def fit(self, report: Callable[[dict[str, float]], None] | None = None) -> None:
        """The loop: update, and every so often validate, sample, save. A collective; rank 0 keeps the records."""
        recipe, lesson, learner, sft = self._recipe, self._lesson, self._learner, self._recipe.sft
        train, valid = (read_examples(lesson.examples(split)) for split in ("train", "valid"))
        checkpoints = Checkpoints(
            lesson.directory / "checkpoints", keep=recipe.keep, guard=guard_settings(recipe.locale)
        )
        stopping, clock, constant = EarlyStopping(sft.patience), Clock(), learner.describe()
        first, best, waited = _led(
            learner, lambda every: (checkpoints.restore(every, stopping=stopping), stopping.best, stopping.waited)
        )
        stopping.best, stopping.waited = best, waited
        tracker: Tracker = Trackers(trackers(recipe, lesson.directory, first) if learner.rank == 0 else [])
        if 0 < sft.patience <= stopping.waited:  # the run had ended early
            return
        for step in range(first, lesson.updates):
            batch = draw(train, sft.batch, step, recipe.seed)
            with clock("update"):
                row = self._update(batch, step)
            row["train/tokens_per_s"] = row["train/tokens"] / clock.seconds("update")
            due, ends = (step + 1) % lesson.valid_every == 0 or step + 1 == lesson.updates, False
            if due:
                with clock("validate"):
                    row |= {**constant, **learner.validate(valid)}
                with clock("sample"):
                    replies = [read_labels(text)[1] for text in learner.sample([p.token_ids for p in lesson.prompts])]
                if replies:
                    row |= {f"valid/{name}": value for name, value in collapse_figures(replies).items()}
                    row["valid/rouge1"] = rouge1(replies, [prompt.reference for prompt in lesson.prompts])
                if learner.rank == 0 and replies:
                    write_replies(lesson.directory, step, lesson.prompts, replies)
                ends = stopping.note(row["valid/loss"])
                checkpoints.note(-row["valid/loss"])
            tracker.log(step, {**row, **clock.lap()})
            if learner.rank == 0:
                write_status(lesson.directory, RunState.RUNNING, step + 1)
            if due:
                with clock("save"):
                    _led(learner, lambda every, at=step: str(checkpoints.save(at, every, stopping=stopping)))  # type: ignore[misc]
                if report is not None:
                    report(row)
            if ends:
                break
        tracker.close()

    def _update(self, batch: list[Example], step: int) -> dict[str, float]:
        """The learner's update; a batch whose loss is not finite is kept for inspection before the error goes on."""
        try:
            return self._learner.update(batch)
        except NonFiniteLoss as error:
            path = self._lesson.directory / "diverged" / f"update-{step:06d}.parquet"
            if self._learner.rank == 0:
                write_examples(path, batch)
            raise NonFiniteLoss(f"{error}; its batch is in {path}") from error


class _Leader:
    """The learner as rank 0's checkpoints see it: what it is asked, every rank does."""

    def __init__(self, learner: SftLearner) -> None:
        self._learner = learner

    def save(self, folder: Path) -> dict[str, Any]:
        _share(("save", folder))
        return self._learner.save(folder)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        _share(("restore", folder, dict(state)))
        self._learner.restore(folder, state)


def _led(learner: SftLearner, lead: Callable[[SavesLearner], R]) -> R:
    """Run `lead` on rank 0, with the other ranks taking part in what it asks of the learner; its answer on every rank."""
    if learner.rank == 0:
        try:
            answer = lead(_Leader(learner))
        except DamagedCheckpoint as error:  # found before the others were asked for anything
            _share(("error", error))
            raise
        _share(("answer", answer))
        return answer
    while True:
        match _share(None):
            case ("save", folder):
                learner.save(folder)
            case ("restore", folder, state):
                learner.restore(folder, state)
            case ("error", error):
                raise error
            case ("answer", answer):
                return answer


def _share(message: Any) -> Any:
    """Rank 0's message, on every rank."""
    held = [message]
    torch.distributed.broadcast_object_list(held)
    return held[0]

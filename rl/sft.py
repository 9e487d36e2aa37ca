"""The composition root of supervised fine-tuning: recipe -> run directory, on Ray Train or inside a Tune trial.

The learner, its checkpoints and its renderer are PPO's; `checkpoints/best/policy` is a model for `attune ppo`.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.placement import Claim, Placement, connect, require_room
from cluster.tracking import METRICS_FILE, Clock, ConsoleTracker, Stages, Tracker, Trackers, TuneTracker, follow
from cluster.workers import WorkerDied, WorkerGroup
from eval.collapse import collapse_figures
from eval.overlap import rouge1
from eval.run_directory import RunState
from rl.checkpoints import Checkpoints, SavesLearner
from rl.endings import NonFiniteLoss, first_line, reported
from rl.fleet import FLEET
from rl.intake import check_tuning, tokenizer_of, with_model
from rl.ppo import NO_DEVICES, has_gpus
from rl.records import PROVENANCE, claimed, provenance, trackers, write_atomically, write_replies, write_status
from rl.sequences import draw, read_examples, trained_tokens, write_examples
from rl.sft_config import SftRecipe
from rl.sft_learner import SftLearner
from rollout.chat import Chat
from rollout.config import CorpusConfig
from rollout.corpora import Corpus, load
from rollout.corpora.hope import SPELLINGS
from rollout.fields import check_fields, label_words, read_labels
from rollout.pairs import make_pairs
from rollout.prompts import build_prompts
from rollout.tokenizer import load_tokenizer
from rollout.types import Prompt

R = TypeVar("R")
SHOWN = {"train/loss": "loss", "valid/perplexity": "valid perplexity", "train/tokens_per_s": "tokens/s"}


@dataclass(frozen=True)
class Lesson:
    """What every rank needs besides the recipe: files in the run directory, and the prompts of the sample replies."""

    directory: Path
    label_words: Mapping[int, str]
    prompts: tuple[Prompt, ...]
    updates: int
    valid_every: int

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer"

    def examples(self, split: str) -> Path:
        """The rendered sequences of a split."""
        return self.directory / "sequences" / f"{split}.parquet"


def run(recipe: SftRecipe) -> Path:
    """Fine-tune to the end of the recipe or until it stops early, from the last checkpoint when there is one.

    Returns the run directory. Raises what went wrong, after `status.json` and the report say so: ValueError (bad settings
    or input), NonFiniteLoss (diverged), WorkerDied (a rank died more often than `sft.restarts`), OSError (disk).
    """
    stage = Stages()
    with claimed(recipe) as directory, reported(directory):
        with stage("reading corpus and model"):
            corpus = load(recipe.corpus)
            check_fields(recipe.fields, {"train": corpus.train, "valid": corpus.valid}, known_acts(recipe.corpus))
            tokenizer_of(recipe.model, corpus, *recipe.longest)
            if recipe.model.path:
                check_tuning(recipe.model)
        with stage("connecting to Ray"):
            connect()
            require_room(claims(recipe))
        recipe = with_model(recipe, corpus, directory)
        with stage("rendering sequences"):
            lesson = prepare(recipe, corpus, directory)
        write_atomically(
            directory / PROVENANCE, json.dumps(provenance(recipe, corpus.provenance, recipe.model.path), indent=1)
        )
        in_trial = ray.util.get_current_placement_group() is not None
        (_in_trial if in_trial else _on_ray_train)(recipe, lesson)
    return directory


def claims(recipe: SftRecipe) -> list[Claim]:
    """What the recipe asks of the cluster."""
    return [Claim(FLEET, recipe.learner.ranks, recipe.learner.cpus, 1 if has_gpus() else 0)]


def known_acts(corpus: CorpusConfig) -> tuple[str, ...]:
    """The dialogue acts that a corpus of this format may have; none where any may be."""
    return tuple(SPELLINGS) if corpus.format in ("hope", "sample") else ()


def prepare(recipe: SftRecipe, corpus: Corpus, directory: Path) -> Lesson:
    """Render the corpus once for all ranks: tokenizer with label tokens, sequences, prompts of the sample replies.

    Raises ValueError when a split gives nothing to train or to validate on.
    """
    tokenizer, sft, data = load_tokenizer(recipe.model.path, recipe.model.revision), recipe.sft, recipe.data
    pairs = {split: make_pairs(corpus.splits[split], data.pairs) for split in ("train", "valid")}
    plain = Chat(tokenizer, fields=recipe.fields)
    tokens = plain.fields.tokens(corpus.train)
    if tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    chat = Chat(tokenizer, fields=recipe.fields)
    words = {tokenizer.convert_tokens_to_ids(token): label_words(token) for token in tokens}
    lesson_examples = {
        split: [e for d in held for e in chat.dialogue(d, data.max_tokens, context_tokens=data.context_tokens)]
        for split, held in pairs.items()
    }
    for split, examples in lesson_examples.items():
        if not trained_tokens(examples):
            raise ValueError(
                f"data.pairs = {data.pairs} must make a sequence with a reply of the {split} split, makes none within "
                f"data.max_tokens = {data.max_tokens}; raise it, or choose other pairs"
            )
    stride = max(len(lesson_examples["valid"]) / sft.valid_sequences, 1.0)
    count = min(len(lesson_examples["valid"]), sft.valid_sequences)
    lesson_examples["valid"] = [lesson_examples["valid"][int(k * stride)] for k in range(count)]
    room = data.max_tokens - sft.sample_tokens
    asked = build_prompts(
        pairs["valid"], chat, max_tokens=min(data.context_tokens or room, room), min_reference_words=1
    )
    step = max(len(asked) // max(sft.samples, 1), 1)
    updates = max(math.ceil(sft.epochs * len(lesson_examples["train"]) / sft.batch), 1)
    every = min(sft.valid_every or max(len(lesson_examples["train"]) // sft.batch, 1), updates)
    lesson = Lesson(directory.resolve(), words, tuple(asked[::step][: sft.samples]), updates, every)
    chat.tokenizer.save_pretrained(lesson.tokenizer)
    for split, examples in lesson_examples.items():
        write_examples(lesson.examples(split), examples)
    return lesson


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
        checkpoints = Checkpoints(lesson.directory / "checkpoints", every=1, keep=recipe.keep, steps=lesson.updates)
        stopping, clock, constant = EarlyStopping(sft.patience), Clock(), learner.describe()
        first, best, waited = _led(
            learner, lambda every: (checkpoints.restore(every, stopping=stopping), stopping.best, stopping.waited)
        )
        stopping.best, stopping.waited = best, waited
        tracker: Tracker = Trackers(trackers(recipe, lesson.directory, first) if learner.rank == 0 else [])
        if 0 < sft.patience <= stopping.waited:  # the run had ended early
            return
        for step in range(first, lesson.updates):
            with clock("update"):
                row = learner.update(draw(train, sft.batch, step, recipe.seed))
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


def _first_step(lesson: Lesson) -> int:
    """Where the run begins, as far as can be told before the ranks have looked at the newest checkpoint."""
    folders = sorted((lesson.directory / "checkpoints").glob("step-*"))
    return int(folders[-1].name.partition("-")[2]) if folders else 0


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
        answer = lead(_Leader(learner))
        _share(("answer", answer))
        return answer
    while True:
        match _share(None):
            case ("save", folder):
                learner.save(folder)
            case ("restore", folder, state):
                learner.restore(folder, state)
            case ("answer", answer):
                return answer


def _share(message: Any) -> Any:
    """Rank 0's message, on every rank."""
    held = [message]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def _on_ray_train(recipe: SftRecipe, lesson: Lesson) -> None:
    """Ray Train's ranks; one that dies is followed by a restart of all from the last checkpoint, `sft.restarts` times."""
    first_step = _first_step(lesson)
    console = ConsoleTracker(first_step, lesson.updates, SHOWN)
    claim = claims(recipe)[0]
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={"recipe": recipe, "lesson": lesson},
        torch_config=TorchConfig(backend="nccl" if claim.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=claim.count,
            use_gpu=bool(claim.gpus),
            resources_per_worker={"CPU": claim.cpus, **({"GPU": claim.gpus} if claim.gpus else {})},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(lesson.directory / "ray"),
            failure_config=FailureConfig(max_failures=recipe.sft.restarts),
        ),
    )
    failure = lesson.directory / "failure"
    failure.unlink(missing_ok=True)
    with _following(lesson, first_step, lambda row: console.log(row["step"], row)):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error, recipe) from error
    if failure.exists():
        kind, _, message = failure.read_text().partition("\n")
        raise NonFiniteLoss(message) if kind == NonFiniteLoss.__name__ else ValueError(message)


def _train_rank(config: Mapping[str, Any]) -> None:
    recipe, lesson = config["recipe"], config["lesson"]
    threads = str(recipe.learner.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(ray.train.torch.get_device())
    try:
        SftRank(recipe, lesson).fit(ray.train.report)
    except (NonFiniteLoss, ValueError) as error:  # would come again: no reason for Ray Train to start over
        write_atomically(lesson.directory / "failure", f"{type(error).__name__}\n{first_line(error)}")


def _cause(error: TrainingFailedError, recipe: SftRecipe) -> Exception:
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    causes = [vars(failure).get("_base_exc", failure) for failure in failures.values()]
    told = next((e for e in causes if isinstance(e, OSError)), None)
    if told is not None:
        return told
    what = first_line(causes[0]) if causes else first_line(error)
    return WorkerDied(
        f"{FLEET} failed {recipe.sft.restarts + 1} times (sft.restarts = {recipe.sft.restarts}), last: {what}; the run ends "
        "here: the same command resumes from the last checkpoint"
    )


def _in_trial(recipe: SftRecipe, lesson: Lesson) -> None:
    """Ranks in the trial's own placement group; Tune starts a failed trial again, and it resumes."""
    placement = Placement(claims(recipe))
    threads = str(recipe.learner.threads)
    group = WorkerGroup(
        FLEET,
        recipe.learner.ranks,
        SftRank,
        (recipe, lesson),
        placement,
        environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **({} if has_gpus() else NO_DEVICES)},
    )
    tune, failures, ended = TuneTracker(), list[BaseException](), threading.Event()

    def fit() -> None:
        try:
            group.all(SftRank.fit)
        except BaseException as error:  # raised again below, in the trial's own thread
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=fit, daemon=True).start()
    for row in follow(lesson.directory / METRICS_FILE, ended, first_step=_first_step(lesson)):
        if "valid/loss" in row:
            tune.log(row["step"], {name: value for name, value in row.items() if name != "step"})
    group.kill()
    if failures:
        raise failures[0]


@contextmanager
def _following(lesson: Lesson, first_step: int, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    ended = threading.Event()

    def read() -> None:
        for row in follow(lesson.directory / METRICS_FILE, ended, first_step=first_step):
            show(row)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join(timeout=5.0)

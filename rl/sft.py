"""The composition root of supervised fine-tuning: recipe -> run directory, on Ray Train or inside a Tune trial.

The learner, its checkpoints and its renderer are PPO's; `checkpoints/best/policy` is a model for `attune ppo`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.placement import NO_DEVICES, Claim, ClusterTooSmall, Placement, connect, has_gpus, require_room
from cluster.tracking import METRICS_FILE, ConsoleTracker, JsonlTracker, Stages, TuneTracker, follow
from cluster.workers import WorkerDied, WorkerGroup
from rl.endings import NonFiniteLoss, first_line, reported
from rl.fleet import FLEET
from rl.intake import check_tuning, tokenizer_of, with_model
from rl.records import PROVENANCE, check_same_corpus, claimed, finished, provenance, write_atomically
from rl.sft_config import SftRecipe
from rl.sft_lesson import Lesson, prepare
from rl.sft_rank import SftRank
from rollout.corpora import known_acts, load
from rollout.fields import check_fields

SHOWN = {"train/loss": "loss", "valid/perplexity": "valid perplexity", "train/tokens_per_s": "tokens/s"}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FINAL: dict[str, type[Exception]] = {"diverged": NonFiniteLoss, "input": ValueError, "disk": OSError}
_SECONDS_TO_SAVE = 60.0


def run(recipe: SftRecipe) -> Path:
    """Fine-tune to the end of the recipe or until it stops early, from the last checkpoint when there is one.

    Returns the run directory. Raises what went wrong, after `status.json` and the report say so: ValueError (bad settings
    or input), NonFiniteLoss (diverged), WorkerDied (a rank died more often than `sft.restarts`), OSError (disk).
    """
    stage, done = Stages(), finished(recipe)
    with claimed(recipe) as directory, reported(directory):
        if done:
            print(f"{directory} is finished and begins no more; change a setting to go on, or choose another --name")
            return directory
        with stage("reading corpus and model"):
            corpus = load(recipe.corpus)
            check_same_corpus(directory, corpus.provenance)
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
        print(lesson.summary, flush=True)
        write_atomically(
            directory / PROVENANCE, json.dumps(provenance(recipe, corpus.provenance, recipe.model.path), indent=1)
        )
        first_step = _first_step(lesson)
        JsonlTracker(directory, first_step).close()  # what a former start did after its last checkpoint is made again
        if ray.util.get_current_placement_group() is not None:
            _in_trial(recipe, lesson, first_step)
        else:
            _on_ray_train(recipe, lesson, first_step)
    return directory


def claims(recipe: SftRecipe) -> list[Claim]:
    """What the recipe asks of the cluster."""
    learner = recipe.learner
    return [Claim(FLEET, learner.ranks, learner.cpus, learner.gpus if has_gpus() else 0)]


def _on_ray_train(recipe: SftRecipe, lesson: Lesson, first_step: int) -> None:
    """Ray Train's ranks; one that dies is followed by a restart of all from the last checkpoint, `sft.restarts` times."""
    claim = claims(recipe)[0]
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={"recipe": recipe, "lesson": lesson, "gpus": claim.gpus},
        torch_config=TorchConfig(backend="nccl" if claim.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=claim.count,
            use_gpu=bool(claim.gpus),
            resources_per_worker={"CPU": claim.cpus, **({"GPU": claim.gpus} if claim.gpus else {})},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(lesson.directory / "ray"),
            failure_config=FailureConfig(max_failures=recipe.sft.restarts, controller_failure_limit=2),
        ),
    )
    lesson.failure.unlink(missing_ok=True)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with _shown(lesson, first_step):
            trainer.fit()
    except SystemExit as error:  # Ray Train's answer to Ctrl-C
        raise KeyboardInterrupt from error
    except TrainingFailedError as error:
        _raise_final(lesson)
        raise _cause(error, recipe) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
    _raise_final(lesson)


def _train_rank(config: Mapping[str, Any]) -> None:
    recipe, lesson = config["recipe"], config["lesson"]
    if lesson.failure.exists():  # Ray Train starts again after every failure; this one would come again
        return
    threads = str(recipe.learner.threads)
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if config["gpus"]:
        torch.cuda.set_device(ray.train.torch.get_device())
    else:
        os.environ.update(NO_DEVICES)
    try:
        SftRank(recipe, lesson).fit(ray.train.report)
    except NonFiniteLoss as error:  # raised on every rank, as is ValueError: all return
        _note(lesson, "diverged", error)
    except ValueError as error:
        _note(lesson, "input", error)
    except OSError as error:  # on one rank: the others are in a collective, and Ray Train ends them
        if error.errno in _FULL_DISK:
            _note(lesson, "disk", error)
        raise


def _note(lesson: Lesson, kind: str, error: Exception) -> None:
    partial = lesson.failure.with_name(f".failure-{os.getpid()}")
    partial.write_text(f"{kind}\n{first_line(error)}")
    os.replace(partial, lesson.failure)


def _raise_final(lesson: Lesson) -> None:
    if lesson.failure.exists():
        kind, _, message = lesson.failure.read_text().partition("\n")
        raise _FINAL[kind](message)


def _cause(error: TrainingFailedError, recipe: SftRecipe) -> Exception:
    if not isinstance(error, WorkerGroupError):
        claim = claims(recipe)[0]
        return ClusterTooSmall(
            f"Ray Train found no room for {claim.count} x ({claim.cpus:g} CPU, {claim.gpus:g} GPU) ({first_line(error)}); wait for "
            "other jobs to end, add nodes, or lower learner.ranks or learner.cpus"
        )
    causes = [vars(failure).get("_base_exc", failure) for failure in error.worker_failures.values()]
    told = next((e for e in causes if isinstance(e, OSError)), None)
    if told is not None:
        return told
    return WorkerDied(
        f"{FLEET} failed {recipe.sft.restarts + 1} times (sft.restarts = {recipe.sft.restarts}), last: {first_line(causes[0])}; "
        "the run ends here: the same command resumes from the last checkpoint"
    )


def _in_trial(recipe: SftRecipe, lesson: Lesson, first_step: int) -> None:
    """Ranks in the trial's own placement group; Tune starts a failed trial again, and it resumes.

    The trial reports each validation once its checkpoint is whole, since it may be what another trial takes over.
    """
    threads = str(recipe.learner.threads)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **({} if has_gpus() else NO_DEVICES)}
    placement = Placement(claims(recipe))
    group = WorkerGroup(FLEET, recipe.learner.ranks, SftRank, (recipe, lesson), placement, environment=environment)
    tune, failures, ended = TuneTracker(), list[BaseException](), threading.Event()

    def fit() -> None:
        try:
            group.all(SftRank.fit)
        except BaseException as error:  # raised again below, in the trial's own thread
            failures.append(error)
        finally:
            ended.set()

    threading.Thread(target=fit, daemon=True).start()
    try:
        for row in follow(lesson.directory / METRICS_FILE, ended, first_step=first_step):
            if "valid/loss" in row:
                _wait_for_checkpoint(lesson, row["step"] + 1, ended)
                tune.log(row["step"], {name: value for name, value in row.items() if name != "step"})
    finally:  # the search may have stopped the trial: nothing of it writes on
        group.kill()
    if failures:
        raise failures[0]


def _wait_for_checkpoint(lesson: Lesson, step: int, ended: threading.Event) -> None:
    deadline = time.monotonic() + _SECONDS_TO_SAVE
    while _first_step(lesson) < step and not ended.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)


def _first_step(lesson: Lesson) -> int:
    """Updates in the newest checkpoint, before the ranks have looked whether it is sound."""
    folders = sorted((lesson.directory / "checkpoints").glob("step-*"))
    return int(folders[-1].name.partition("-")[2]) if folders else 0


@contextmanager
def _shown(lesson: Lesson, first_step: int) -> Iterator[None]:
    """A line on the console for every update that the ranks make."""
    console, ended = ConsoleTracker(first_step, lesson.updates, SHOWN), threading.Event()

    def read() -> None:
        for row in follow(lesson.directory / METRICS_FILE, ended, first_step=first_step):
            console.log(row["step"], row)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5.0)

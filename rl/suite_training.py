"""The models that a suite compares: found, put together, or trained first."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.settings import SettingsError, load, overrides
from cluster.tracking import METRICS_FILE, read_metrics
from eval.adapters import merged_model
from eval.answer_cache import model_key
from eval.suite_config import BEFORE, Suite
from rewards.config import RewardsConfig
from rl.config import PpoRecipe
from rl.recipe_files import find, job_of, recipe_type
from rl.records import SETTINGS
from rl.sft_config import SftRecipe
from rollout.corpora import load as load_corpus

Recipe = TypeVar("Recipe", bound=PpoRecipe | SftRecipe)
CURVES = ("reward/mean", "policy/kl", "rollout/length", "heldout/reward")


@dataclass(frozen=True)
class Model:
    """Where an arm's model is, and what training it took. `run` is its last training run, `start` what the first began with."""

    source: str
    revision: str = ""
    start: str = ""
    run: Path | None = None
    commands: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)


def recipes(suite: Suite, name: str) -> list[PpoRecipe | SftRecipe]:
    """The training runs of an arm, in order, without the models that stand for {ARM} yet.

    Raises SettingsError for a command that is none, a recipe that is not there and settings that are wrong.
    """
    return [_recipe(suite, name, place, command) for place, command in enumerate(suite.arms[name].train)]


def make(suite: Suite, name: str, models: Mapping[str, Model], say: Callable[[str], object]) -> Model:
    """The model of an arm, trained now where it is not yet: a finished run is taken as it is, a broken one goes on."""
    arm = suite.arms[name]
    runs: list[Path] = []
    for place, command in enumerate(arm.train):
        known = {**models, BEFORE: Model(_policy(runs[-1]))} if runs else models
        say(f"training {name}: {command}")
        runs.append(_run(_named(_recipe(suite, name, place, _filled(command, known)))))
    source = _filled(arm.model, models) if arm.model else _policy(runs[-1])
    if arm.adapter:
        adapter = Path(_filled(arm.adapter, models))
        parts = [model_key(source, arm.revision), model_key(str(adapter), "")]
        folder = suite.directory / "cache" / f"{name}-merged-{_short(parts)}"
        source = str(merged_model(source, arm.revision, adapter, folder))
    if Path(source).is_dir():
        source = str(Path(source).resolve())  # engines start elsewhere
    start = _start(runs[0]) if runs else ""
    return Model(source, arm.revision, start, runs[-1] if runs else None, arm.train, _facts(runs))


def _recipe(suite: Suite, name: str, place: int, command: str) -> PpoRecipe | SftRecipe:
    job, *words = shlex.split(command)
    if job not in ("ppo", "sft") or not words:
        raise SettingsError(
            f"arms.{name}.train must be commands such as 'sft RECIPE --dotted.name value', is {command!r}"
        )
    path = find(words[0])
    if job_of(path) != job:
        raise SettingsError(
            f"arms.{name}.train: attune {job} takes recipes of job {job!r}, {path} is of {job_of(path)!r}"
        )
    given = {dotted for dotted, _ in overrides(words[1:])}
    corpus = next((part for part in suite.corpora.values() if part.questions == "dialogues"), None)
    ours: dict[str, Any] = {
        "runs": str(suite.directory / "runs"),
        "name": f"{name}_{place + 1}_{job}",
        "seed": suite.settings.seed,
    }
    if corpus is not None:
        ours |= {
            f"corpus.{knob}": getattr(corpus, knob)
            for knob in ("format", "path", "split_seed", "valid_share", "test_share")
        }
    sample = {dotted: value for dotted, value in ours.items() if dotted not in given}
    try:
        return load(recipe_type(job), path, sample=sample, origin=f"suite {suite.settings.name}", argv=words[1:])
    except SettingsError as error:
        raise SettingsError(f"arms.{name}.train {command!r}: {error}") from error


def _named(recipe: Recipe) -> Recipe:
    """The recipe under a name that holds all that its result depends on: settings, the corpus's files, the weights that it begins
    with. A changed setting, corpus or start makes a new run, and never goes on with another one's checkpoints."""
    settings = {**asdict(recipe), "name": "", "runs": ""}
    corpus = load_corpus(recipe.corpus).provenance
    start = model_key(recipe.model.path, recipe.model.revision) if recipe.model.path else ""
    return replace(recipe, name=f"{recipe.name}-{_short([settings, corpus['files'], start])}")


def _short(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def paid_terms(suite: Suite, name: str) -> list[str]:
    """The terms of the reward that an arm was trained on, or is chosen by."""
    arm = suite.arms[name]
    rewards = [recipe.rewards for recipe in recipes(suite, name) if isinstance(recipe, PpoRecipe)]
    if arm.kind == "best_of":
        rewards = [reward_of(arm.reward)]
    return [term for config in rewards[-1:] for term in config.weights]


def reward_of(name: str) -> RewardsConfig:
    """The reward settings of a recipe."""
    return load(PpoRecipe, find(name)).rewards


def _filled(text: str, models: Mapping[str, Model]) -> str:
    for name, model in models.items():
        text = text.replace(f"{{{name}}}", model.source).replace(f"{{{name}.start}}", model.start)
    return text


def _run(recipe: PpoRecipe | SftRecipe) -> Path:
    if isinstance(recipe, PpoRecipe):
        from rl.ppo import run as train_ppo

        return train_ppo(recipe)
    from rl.sft import run as train_sft

    return train_sft(recipe)


def _policy(run: Path) -> str:
    return str((run / "checkpoints" / "best" / "policy").resolve())


def _start(run: Path) -> str:
    """The model that a run began with: the one built in its directory, or its `model.path`."""
    built = run / "model"
    return str(built.resolve()) if built.is_dir() else str(json.loads((run / SETTINGS).read_text())["model"]["path"])


def _facts(runs: list[Path]) -> dict[str, float]:
    """What training took: seconds of all runs' steps, the last run's parameters, trained share and peak memory."""
    if not runs:
        return {}
    rows = [read_metrics(run / METRICS_FILE) for run in runs]
    seconds = math.fsum(row.get("time/step_s", 0.0) for run in rows for row in run)
    facts = {"train_seconds": seconds}
    peaks = [row["learner/peak_memory_bytes"] for row in rows[-1] if "learner/peak_memory_bytes" in row]
    if peaks:
        facts["peak_gb"] = max(peaks) / 2**30
    trained = next((row for row in rows[-1] if "model/trainable" in row), None)
    if trained:
        facts |= {
            "trainable": trained["model/trainable"],
            "parameters": trained["model/trainable"] / trained["model/trainable_share"],
        }
    return facts


def curves(model: Model) -> list[dict[str, float]]:
    """The course of a PPO run's reward and divergence, by step."""
    if model.run is None:
        return []
    rows = read_metrics(model.run / METRICS_FILE)
    return [{"step": row["step"], **{n: row[n] for n in CURVES if n in row}} for row in rows if "reward/mean" in row]

"""What a search tries: SWEEP.toml and the command line become one checked plan before anything starts. No torch, no Ray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from cluster.settings import SettingsError, flat, knobs, load, read_recipe, require_at_least
from rl.config import BOUND, require_run_name
from rl.recipe_files import find, job_of
from rl.sweep_space import Range, Space, read_space

HELP = """usage: attune sweep RECIPE SWEEP.toml [--resume] [--sweep.NAME value ...] [--dotted.name value ...]

Searches settings of a recipe with Ray Tune; each trial is a run of its own, which resumes by itself. RECIPE and SWEEP are
TOML files, or names of shipped ones. `--dotted.name value` is a setting of every trial; `--name` names the sweep, whose
directory is RUNS/NAME/. `--resume` continues a sweep that was interrupted.

SWEEP.toml, or --sweep.NAME for all but [space]:
  name           of the sweep; by default the file's
  metric         what is judged, as the run reports it: "valid/loss", "reward/mean"
  mode           "min" or "max"
  window         reports over which the metric is averaged before the best is taken
  columns        further metrics of table.md: of each trial the mean over its last `window` reports
  search         "grid" (every combination once), "random", or "optuna" (TPE)
  scheduler      "none", "asha" (stops the worse ones early), or "pbt" (they take over from the better ones)
  samples        trials of a random or optuna search
  concurrent     trials at a time; 0: as many as the cluster holds
  max_failures   how often a trial that the machine failed starts again (settings that cannot work are never retried)
  seed           of the search itself
  driver_cpus    CPUs of a trial's own process, beside those that the recipe claims
  asha.          grace_period, reduction_factor, max_t (0: none), in training steps
  pbt.           perturbation_interval (in training steps), quantile_fraction, resample_probability
  [space]        "dotted.name" = [choices], or {uniform = [a, b]}, {loguniform = [a, b]}, {randint = [a, b]} (b excluded),
                 {choice = [...]}
"""


@dataclass(frozen=True)
class AshaConfig:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in training steps."""

    grace_period: int = 5  # no trial is stopped before
    reduction_factor: float = 3.0  # one of so many goes on at each rung
    max_t: int = 0  # a trial ends here; 0: where its recipe does

    def __post_init__(self) -> None:
        require_at_least(1, "asha.", self, "grace_period")
        require_at_least(0, "asha.", self, "max_t")
        if not self.reduction_factor > 1:
            raise ValueError(f"asha.reduction_factor must be above 1, is {self.reduction_factor}; 3 is usual")
        if 0 < self.max_t < self.grace_period:
            raise ValueError(
                f"asha.max_t must be 0 or at least asha.grace_period = {self.grace_period}, is {self.max_t}; raise it"
            )


@dataclass(frozen=True)
class PbtConfig:
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846), in training steps."""

    perturbation_interval: int = 10  # steps between two chances to take over from a better trial
    quantile_fraction: float = 0.25  # the lowest share takes over from the highest
    resample_probability: float = 0.25  # of a setting to be drawn anew instead of moved a little

    def __post_init__(self) -> None:
        require_at_least(1, "pbt.", self, "perturbation_interval")
        if not 0 < self.quantile_fraction <= 0.5:
            raise ValueError(f"pbt.quantile_fraction must lie in (0, 0.5], is {self.quantile_fraction}; 0.25 is usual")
        if not 0 <= self.resample_probability <= 1:
            raise ValueError(f"pbt.resample_probability must lie in [0, 1], is {self.resample_probability}")


@dataclass(frozen=True)
class SweepConfig:
    """A search, all but its space; see `HELP`."""

    name: str = ""  # of the sweep's directory; "": the file's
    metric: str = ""
    mode: Literal["min", "max"] = "min"
    window: int = 1
    columns: tuple[str, ...] = ()
    search: Literal["grid", "random", "optuna"] = "grid"
    scheduler: Literal["none", "asha", "pbt"] = "none"
    samples: int = 1
    concurrent: int = 0
    max_failures: int = 1
    seed: int = 0
    driver_cpus: float = 0.1
    asha: AshaConfig = field(default_factory=AshaConfig)
    pbt: PbtConfig = field(default_factory=PbtConfig)

    def __post_init__(self) -> None:
        require_at_least(1, "", self, "samples", "window")
        require_at_least(0, "", self, "concurrent", "max_failures", "driver_cpus")
        if not self.metric:
            raise ValueError('metric must name what the runs report and the search judges, is empty; e.g. "valid/loss"')
        if self.scheduler == "pbt" and self.search != "random":
            raise ValueError(
                f'scheduler "pbt" must go with search "random", search is {self.search!r}: it changes the settings itself'
            )
        if self.scheduler == "pbt" and self.samples < 2:
            raise ValueError(
                f'samples must be at least 2 with scheduler "pbt", is {self.samples}: it is the population'
            )
        if self.search == "grid" and self.samples > 1:
            raise ValueError(
                f'samples must be 1 with search "grid", which runs every combination once, is {self.samples}; for '
                "repetitions put seed in [space]"
            )


@dataclass(frozen=True)
class Plan:
    """A checked search. `base` is the recipe with the command line's words, which every trial shares."""

    name: str
    recipe: Path
    words: tuple[str, ...]
    sweep: SweepConfig
    space: Space
    base: Any
    resume: bool

    @property
    def directory(self) -> Path:
        """Where everything of the sweep lies."""
        return (Path(self.base.runs) / self.name).resolve()

    @property
    def runs(self) -> Path:
        """Where the trials' run directories lie."""
        return self.directory / "trials"

    @property
    def given(self) -> tuple[str, ...]:
        """The settings that the command line gives."""
        return tuple(word[2:].partition("=")[0].replace("-", "_") for word in self.words if word.startswith("--"))

    @property
    def trials(self) -> int:
        """How many trials the search makes."""
        grid = self.sweep.search == "grid"
        return math.prod(len(law.tried) for law in self.space.values()) if grid else self.sweep.samples

    def samples_to_check(self) -> Iterator[dict[str, Any]]:
        """Every combination of a grid; of another search every choice and end of a range, each by itself."""
        if self.sweep.search == "grid":
            for values in itertools.product(*(law.tried for law in self.space.values())):
                yield dict(zip(self.space, values, strict=True))
        else:
            for name, law in self.space.items():
                yield from ({name: value} for value in law.tried)


def read_plan(words: Sequence[str], kinds: Mapping[str, type]) -> Plan:
    """The plan that the words after `attune sweep` ask for; `kinds` are the recipe types by job.

    Raises SettingsError, in one line, for whatever could not work, as far as it can be known without a cluster.
    """
    if len(words) < 2 or any(word.startswith("--") for word in words[:2]):
        raise SettingsError("attune sweep needs a recipe and a sweep: attune sweep RECIPE SWEEP.toml; see --help")
    recipe, path = find(words[0]), find(words[1], "sweeps")
    own, shared = _split([word for word in words[2:] if word != "--resume"])
    kind = kinds[job_of(recipe, kinds)]
    tables = read_recipe(path)
    with _blaming(str(path)):
        space = read_space(tables.pop("space", {}))
        sweep = load(SweepConfig, sample=tables, argv=own)
    base: Any = load(kind, recipe, argv=shared)
    plan = Plan(sweep.name or path.stem, recipe, tuple(shared), sweep, space, base, "--resume" in words)
    plan = replace(plan, name=base.name) if "name" in plan.given else plan
    with _blaming(str(path)):
        require_run_name(plan.name)
        _check_space(plan, {name for name, _ in knobs(kind)})
    for sample in plan.samples_to_check():
        shown = ", ".join(f"{name} = {value!r}" for name, value in sample.items())
        with _blaming(f"{path}: [space] holds {shown}"):
            load(kind, recipe, sample=sample, argv=shared)
    return plan


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Errors name `source`, unless it was the command line."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        by_hand = said.startswith("the command line: ")
        said = said if by_hand else f"{source}: " + said.removeprefix("the search's sample: ")
        raise SettingsError(said) from error


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `--sweep.NAME value ...`, without that prefix, and the others."""
    own, shared = list[str](), list[str]()
    now = shared
    for word in words:
        if word.startswith("--"):
            now = own if word.startswith("--sweep.") else shared
        now.append(word.replace("--sweep.", "--", 1) if now is own else word)
    return own, shared


def _check_space(plan: Plan, known: set[str]) -> None:
    if not plan.space:
        raise ValueError("[space] must hold at least one setting to search, is empty")
    for name, law in plan.space.items():
        if name not in known or name in ("name", "runs", "job"):
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close and close[0] != name else f"see attune {plan.base.job} --help"
            if name.rpartition(".")[0] in known:
                hint = "laws are uniform, loguniform, randint, choice"
            raise ValueError(
                f"[space] {name!r} must be a setting of the recipe that a trial may change, is none; {hint}"
            )
        if name in plan.given:
            raise ValueError(f"{name} must not be searched and on the command line, which wins; drop one of them")
        if plan.sweep.scheduler == "pbt" and name.startswith(BOUND):
            raise ValueError(
                f'[space] {name} must not be searched with scheduler "pbt": a trial that takes over a checkpoint cannot change '
                "what the checkpoint holds state of; search it with another scheduler"
            )
        if plan.sweep.search == "grid" and isinstance(law, Range):
            raise ValueError(
                f'[space] {name} must be a list with search "grid", is {law.law}; or set search = "random"'
            )
    every, interval = flat(plan.base).get("checkpoint.every"), plan.sweep.pbt.perturbation_interval
    if plan.sweep.scheduler == "pbt" and every is not None and interval % every:
        raise ValueError(
            f"pbt.perturbation_interval must be a multiple of the recipe's checkpoint.every = {every}, is {interval}: "
            f"trials take over from checkpoints; give --checkpoint.every {interval}"
        )

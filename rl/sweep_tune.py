"""A plan becomes a search of Ray Tune: its searcher and scheduler, a trainable per trial, and what is left when it ends."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator

from cluster.placement import bundles, connect, require_room
from cluster.settings import SettingsError, flat, load
from cluster.tracking import UnknownMetric
from rl.sweep import Job
from rl.sweep_config import Plan
from rl.sweep_directory import RECIPE, claimed
from rl.sweep_results import State, TrialLog, labels, read_trials, shown, write_tables
from rl.sweep_space import Choice, Range
from rl.sweep_trial import Watch, run_trial, trial_claims

_NEVER = 10**9  # steps


def search(plan: Plan, job: Job) -> int:
    """Run the search, or go on with it; 0, or 1 when no trial finished or it was interrupted.

    However it ends, tables, plots and the best recipe say what is known. Raises SettingsError when the sweep's directory
    is not free, or when the runs report no such metric, and ClusterTooSmall when a trial could not be placed.
    """
    with claimed(plan):
        connect()
        for sample in plan.samples_to_check():
            require_room(trial_claims(job, plan, sample))
        plan = replace(plan, recipe=plan.directory / RECIPE)
        models = _models(plan)
        try:
            with _quiet():
                _tuner(job, plan, models).fit()
        except TuneError as error:
            raise _meant(error, plan) from error
        finally:
            from rl.sweep_plots import write_plots  # loads Matplotlib

            trials = read_trials(plan.directory)
            best = write_tables(plan, trials)
            plots = write_plots(plan, trials)
        return _conclude(plan, trials, best, bool(plots))


def _tuner(job: Job, plan: Plan, models: Mapping[tuple[Any, ...], tuple[str, ...]]) -> tune.Tuner:
    sweep, asha, names = plan.sweep, plan.sweep.asha, _made_of(plan)

    def trial(sample: dict[str, Any]) -> None:
        run_trial(job, plan, sample, models.get(tuple(sample[name] for name in names), ()))

    trainable = tune.with_resources(
        trial, lambda sample: tune.PlacementGroupFactory(bundles(trial_claims(job, plan, sample)))
    )
    if plan.resume and tune.Tuner.can_restore(str(plan.directory)):
        return tune.Tuner.restore(str(plan.directory), trainable, resume_unfinished=True, resume_errored=True)
    space = {name: _domain(law, grid=sweep.search == "grid") for name, law in plan.space.items()}
    scheduler: Any = None
    if sweep.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr="step", grace_period=asha.grace_period, reduction_factor=asha.reduction_factor,
            max_t=asha.max_t or _NEVER,
        )  # fmt: skip
    elif sweep.scheduler == "pbt":
        moves = {name: list(law.values) if isinstance(law, Choice) else space[name] for name, law in plan.space.items()}
        scheduler = PopulationBasedTraining(time_attr="step", hyperparam_mutations=moves, **asdict(sweep.pbt))
    random.seed(sweep.seed)  # PBT draws from the global generators
    np.random.seed(sweep.seed)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            search_alg=_search(plan),
            scheduler=scheduler,
            num_samples=sweep.samples,
            max_concurrent_trials=sweep.concurrent or None,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=plan.name,
            storage_path=str(plan.directory.parent),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=_kept(plan)),
            callbacks=[Watch(plan)],
            verbose=0,
        ),
    )


def _kept(plan: Plan) -> int:
    """Checkpoints that Tune keeps of a trial: those of four intervals, since a trial that takes over from one may start
    much later."""
    every = int(flat(plan.base).get("checkpoint.every", plan.sweep.pbt.perturbation_interval))
    return 4 * max(plan.sweep.pbt.perturbation_interval // every, 1)


def _trial_id(trial: Any) -> str:
    return trial.trial_id


def _domain(law: Choice | Range, *, grid: bool) -> Any:
    if isinstance(law, Choice):
        return tune.grid_search(list(law.values)) if grid else tune.choice(list(law.values))
    draw = {"uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint}[law.law]
    return draw(int(law.low), int(law.high)) if law.law == "randint" else draw(law.low, law.high)


def _search(plan: Plan) -> Any:
    sweep = plan.sweep
    if sweep.search == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(seed=sweep.seed)
    return BasicVariantGenerator(random_state=sweep.seed, max_concurrent=sweep.concurrent)


def _models(plan: Plan) -> dict[tuple[Any, ...], tuple[str, ...]]:
    """Words that give trials their tiny model, built here once for all that make it of the same settings, by the values of
    these settings. Empty where trials bring models, or draw such settings from ranges: then each builds its own."""
    names = _made_of(plan)
    if flat(plan.base).get("model.path") is None or (names and plan.sweep.search != "grid"):
        return {}
    from rl.intake import with_model
    from rollout.corpora import load as load_corpus

    models: dict[tuple[Any, ...], tuple[str, ...]] = {}
    for number, values in enumerate(itertools.product(*(plan.space[name].tried for name in names))):
        sample = dict(zip(names, values, strict=True))
        recipe: Any = load(type(plan.base), plan.recipe, sample=sample, argv=plan.words)
        if not recipe.model.path:
            made = with_model(recipe, load_corpus(recipe.corpus), plan.directory / "models" / str(number))
            models[values] = ("--model.path", made.model.path)
    return models


def _made_of(plan: Plan) -> list[str]:
    """The searched settings that a tiny model is made of."""
    return [name for name in plan.space if name.startswith(("model.path", "model.tiny.", "corpus.", "seed"))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune without its own reports; SIGTERM ends it as Ctrl-C does, with its state saved."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of a recipe mean the same in a trial
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its reporter prints at verbosity 0 too, the one before does not
    for name in ("ray.tune", "ray.train", "tensorboardX"):  # the latter warns of the infinite metric of a bad trial
        logging.getLogger(name).setLevel(logging.CRITICAL)
    main = threading.current_thread() is threading.main_thread()
    kept = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)} if main else {}
    if main:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for sign, handler in kept.items():
            signal.signal(sign, handler)


def _meant(error: TuneError, plan: Plan) -> Exception:
    """What went wrong, of an error that Tune wrapped."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, UnknownMetric):
        cause = cause.__context__
    if cause:
        return SettingsError(f"{cause}; correct it, and choose another --name or remove {plan.directory}")
    return RuntimeError(f"the search broke: {str(error).strip().splitlines()[-1]}; --resume goes on with it")


def _conclude(plan: Plan, trials: Sequence[TrialLog], best: TrialLog | None, plotted: bool) -> int:
    directory, sweep, metric = plan.directory, plan.sweep, plan.sweep.metric
    if best:
        step, value = best.best(sweep) or (0, math.nan)
        said = ", ".join(f"{short} {shown(best.settings(sweep)[n])}" for n, short in labels(list(plan.space)).items())
        print(f"best: {said}: {metric} {shown(value)} at step {step} (trial {best.name})\n"
              f"recipe with it: {directory / 'best.toml'}")  # fmt: skip
    print(f"all trials: {directory / 'table.md'}" + (f", plots: {directory / 'plots'}" if plotted else ""))
    open_ = max(plan.trials - sum(trial.state is not State.INTERRUPTED for trial in trials), 0)
    if open_:
        print(f"interrupted with {open_} of {plan.trials} trials open: the same command with --resume goes on")
    return int(bool(open_) or not any(trial.state is State.FINISHED for trial in trials))

"""One trial of a search: the job's run with the sample's settings, and the verdict on how it ended; and the callback in the
search's own process that writes the ledger."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.result import AUTO_RESULT_KEYS, DEBUG_METRICS, DONE

from cluster.placement import Claim, ClusterTooSmall, ClusterUnreachable
from cluster.settings import SettingsError, flat, load
from cluster.tracking import METRICS_FILE, TuneTracker, UnknownMetric, Wanted, read_metrics
from eval.run_directory import RunState
from rl.checkpoints import MANIFEST, DamagedCheckpoint, read_checkpoint
from rl.endings import NonFiniteLoss, first_line
from rl.records import RunInUse, write_atomically, write_status
from rl.sweep import Job
from rl.sweep_config import Plan
from rl.sweep_results import LEDGER, Ledger, State, TrialLog, write_tables
from rl.sweep_screen import Screen

VERDICT, ENDED, REASON, FATAL = "verdict.json", "ended", "reason", "fatal"
_MACHINE = (ClusterTooSmall, ClusterUnreachable, RunInUse, DamagedCheckpoint)  # ValueErrors that are not the settings'
_NO_METRICS = {*AUTO_RESULT_KEYS, *DEBUG_METRICS, DONE, "step", "should_checkpoint", "experiment_tag", FATAL}
_SECONDS_TO_END = 60.0  # within which the process of a trial's last start gives its run directory free


def trial_claims(job: Job, plan: Plan, sample: Mapping[str, Any]) -> list[Claim]:
    """What a trial claims, its own process first. Settings that cannot work need no more: their trial says so."""
    own = [Claim("trial", 1, plan.sweep.driver_cpus)]
    try:
        return own + job.claims(load(job.recipe, plan.recipe, sample=sample, argv=plan.words))
    except SettingsError:
        return own


def run_trial(job: Job, plan: Plan, sample: Mapping[str, Any], extra: Sequence[str]) -> None:
    """Run the job with `sample`, within a Tune trial, in the run directory of the trial's name.

    Settings that cannot work, or diverge, end the trial with a report that says so: Tune does not try them again. What
    the machine failed is raised: Tune starts the trial again, and the run resumes. A trial that had ended when the
    search's process was killed only says so again.
    """
    name = tune.get_context().get_trial_id()
    directory = plan.runs / name
    verdict = directory / VERDICT
    if verdict.exists():
        return _report_end(plan, directory, json.loads(verdict.read_text()))
    pbt = plan.sweep.scheduler == "pbt"
    TuneTracker.wanted = Wanted(plan.sweep.metric, directory / "checkpoints" if pbt else None)
    ending: dict[str, Any] = {ENDED: State.FINISHED, REASON: "", FATAL: False}
    try:
        words = [*plan.words, *extra, "--runs", str(plan.runs), "--name", name]
        recipe: Any = load(job.recipe, plan.recipe, sample=sample, argv=words)
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                take_over(Path(folder), directory / "checkpoints")
        _run_when_free(job, recipe)
    except Exception as error:  # the one place where a trial's error becomes a verdict
        if not is_bad(error):
            raise
        ending = {ENDED: State.BAD, REASON: first_line(error), FATAL: isinstance(error, UnknownMetric)}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(verdict, json.dumps(ending))
    if ending[ENDED] == State.BAD:
        _report_end(plan, directory, ending)


def is_bad(error: Exception) -> bool:
    """Whether a run failed because of its settings, and would again; else the machine failed it."""
    return isinstance(error, ValueError | NonFiniteLoss) and not isinstance(error, _MACHINE)


def _report_end(plan: Plan, directory: Path, ending: Mapping[str, Any]) -> None:
    """The last report once more, and how the trial ended; of a bad one with the worst value, for searcher and scheduler."""
    metric = plan.sweep.metric
    worst = math.inf if plan.sweep.mode == "min" else -math.inf
    rows = [row for row in read_metrics(directory / METRICS_FILE) if metric in row]
    last = rows[-1] if rows else {"step": 0, metric: worst}
    tune.report({**last, **({metric: worst} if ending[ENDED] == State.BAD else {}), **ending})


def _run_when_free(job: Job, recipe: Any) -> None:
    deadline = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            job.run(recipe)
            return
        except RunInUse:  # the process that had this trial before is still on its way out
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def take_over(checkpoint: Path, folder: Path) -> None:
    """Put another trial's `checkpoint` in place of those in `folder`, so that the run goes on from it.

    Nothing changes when it is one of `folder`'s own. Raises DamagedCheckpoint when its files are not those of its manifest.
    """
    target = folder / f"step-{read_checkpoint(checkpoint)['step']:06d}"
    if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == (checkpoint / MANIFEST).read_bytes():
        return
    partial = folder / ".taken.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial)
    (folder / "best").unlink(missing_ok=True)
    for own in folder.glob("step-*"):
        shutil.rmtree(own)
    os.replace(partial, target)


class Watch(tune.Callback):
    """Writes the ledger and the tables as trials come and go, and shows them. Pickled by Tune, so it opens files late."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def setup(self, **info: Any) -> None:
        """Open ledger and screen; also when a search is resumed."""
        self._ledger = Ledger(self._plan.directory / LEDGER)
        self._screen = Screen(self._plan, self._ledger.trials, int(flat(self._plan.base).get("steps", 0)))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has its room."""
        log = self._ledger.note(trial.trial_id, "started", sample=trial.config)
        self._screen.tell(log, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A report. Raises UnknownMetric, which ends the search, when a trial says that it will never report the metric."""
        ended = result.get(ENDED)
        if ended != State.BAD:
            metrics = {name: value for name, value in result.items() if name not in _NO_METRICS and _is_number(value)}
            log = self._ledger.note(trial.trial_id, "report", step=result["step"], metrics=metrics)
            self._screen.tell(log, "report")
        sweep = self._plan.sweep
        whole = sweep.scheduler == "asha" and 0 < sweep.asha.max_t <= result["step"]
        if ended:
            self._end(trial, State(ended), result[REASON])
            if result[FATAL]:
                raise UnknownMetric(result[REASON])
        elif result.get(DONE) and not whole:  # the scheduler's doing: a run's own end comes without a report
            self._end(trial, State.STOPPED, "")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, or was stopped after its last report."""
        if self._ledger.trials[trial.trial_id].state is State.RUNNING:
            self._end(trial, State.FINISHED, "")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed and will start again."""
        log = self._ledger.note(trial.trial_id, "ended", state=State.FAILED, reason=_why(trial))
        self._screen.tell(log, "retry")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed once too often."""
        self._end(trial, State.FAILED, _why(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The search is over, or interrupted."""
        self._screen.close()

    def _end(self, trial: Any, state: State, reason: str) -> TrialLog:
        log = self._ledger.note(trial.trial_id, "ended", state=state, reason=reason)
        directory = self._plan.runs / trial.trial_id
        if state is State.STOPPED and directory.is_dir():
            write_atomically(directory / VERDICT, json.dumps({ENDED: state, REASON: reason, FATAL: False}))
            write_status(directory, RunState.FAILED, (log.step or 0) + 1, "stopped by the search: others did better")
        self._screen.tell(log, "ended")
        write_tables(self._plan, list(self._ledger.trials.values()))
        return log


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _why(trial: Any) -> str:
    """The last line of what Tune wrote about a trial's last error, without Ray's guesses at the cause."""
    lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes")[0] if lines else "unknown"

"""A search as it goes, in the terminal: a live table; where there is no terminal a line per event that matters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rl.sweep_config import Plan
from rl.sweep_results import State, TrialLog, best_of, labels, ranked, shown

STYLES = {State.RUNNING: "cyan", State.FINISHED: "green", State.STOPPED: "yellow", State.BAD: "magenta",
          State.FAILED: "red", State.INTERRUPTED: "yellow"}  # fmt: skip
_EVERY = 10  # reports of a trial between two lines about it
_FRAME = 8  # lines of the terminal that are not trials


class Screen:
    """Shows `trials`, which others fill; `steps` is the length of a run, where it is known (0: it is not)."""

    def __init__(self, plan: Plan, trials: Mapping[str, TrialLog], steps: int, console: Console | None = None) -> None:
        self._plan, self._trials, self._steps = plan, trials, steps
        self._console = console or Console(highlight=False)
        self._labels = labels(list(plan.space))
        self._began, self._before = time.time(), self._done()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=2)
            self._live.start()

    def close(self) -> None:
        """Leave the last table standing."""
        if self._live:
            self._live.stop()

    def tell(self, trial: TrialLog, event: str) -> None:
        """Say what happened to a trial, unless the table shows it: "started", "report", "ended" or "retry"."""
        if self._live or (event == "report" and len(trial.reports) % _EVERY):
            return
        sweep, metric = self._plan.sweep, self._plan.sweep.metric
        best = trial.best(sweep)
        value = f"best {metric} {shown(best[1])} at step {best[0]}" if best else f"no {metric}"
        match event:
            case "started":
                said = "started" if trial.starts == 1 else f"started again ({trial.starts})"
                said += ": " + ", ".join(f"{short} {shown(trial.sample[n])}" for n, short in self._labels.items())
            case "report":
                said = f"step {trial.step}: {metric} {shown(trial.last(metric))}, {value}"
            case "retry":
                said = f"failed, starts again: {trial.reason}"
            case _:
                said = f"{trial.state} after {_spell(trial.elapsed())}: {trial.reason or value}"
        self._console.print(f"[{_spell(time.time() - self._began)}] {trial.name} {said}", markup=False, soft_wrap=True)

    def table(self) -> Table:
        """Running trials first, then the best; a headline with counts, the best so far, and when it will be over."""
        sweep, metric = self._plan.sweep, self._plan.sweep.metric
        trials = list(self._trials.values())
        order = ranked(trials, sweep)
        order = [t for t in order if t.state is State.RUNNING] + [t for t in order if t.state is not State.RUNNING]
        room = max(self._console.height - _FRAME, 3)
        table = Table(title=self.headline(), title_justify="left", title_style="bold", expand=False,
                      caption=f"and {len(order) - room} more" if len(order) > room else None)  # fmt: skip
        for column in ("trial", "state", *self._labels.values(), "step", metric, "best", "time"):
            table.add_column(column, no_wrap=column in ("trial", "state"))
        best_trial, now = best_of(trials, sweep), time.time()
        for trial in order[:room]:
            best, state = trial.best(sweep), f"[{STYLES[trial.state]}]{trial.state}[/]"
            value = shown(best[1]) if best else ""
            table.add_row(trial.name, state, *(escape(shown(trial.sample.get(name))) for name in self._labels), shown(trial.step),
                          shown(trial.last(metric)), f"[bold]{value}[/]" if trial is best_trial else value,
                          _spell(trial.elapsed(now)))  # fmt: skip
        return table

    def headline(self) -> str:
        """Name, counts, the best metric, elapsed time and the time left."""
        sweep, trials = self._plan.sweep, list(self._trials.values())
        counts = [f"{n} {state}" for state in State if (n := sum(trial.state is state for trial in trials))]
        waiting = self._plan.trials - len(trials)
        counts += [f"{waiting} waiting"] if waiting > 0 else []
        best_trial = best_of(trials, sweep)
        best = best_trial.best(sweep) if best_trial else None
        elapsed, done = time.time() - self._began, self._done()
        gained = done - self._before
        eta = _spell(elapsed * (self._plan.trials - done) / gained) if gained > 0 else "?"
        return (f"{self._plan.name}: {', '.join(counts)} of {self._plan.trials}; best {sweep.metric} "
                f"{shown(best[1]) if best else '?'}; {_spell(elapsed)}, ETA {eta}")  # fmt: skip

    def _done(self) -> float:
        """Trials that are over, and the shares of those that run."""
        return sum(
            1.0 if trial.state is not State.RUNNING
            else min(((trial.step or 0) + 1) / self._steps, 1.0) if self._steps and trial.reports
            else 0.0
            for trial in list(self._trials.values())
        )  # fmt: skip


def _spell(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0))))

"""What came of a search: a ledger of its trials that outlives the process, tables, and the best recipe. No torch, no Ray.

runs/NAME/ events.jsonl table.csv table.md best.toml
"""

from __future__ import annotations

import csv
import enum
import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from cluster.settings import flat, load, read_recipe
from rl.sweep_config import Plan, SweepConfig

LEDGER = "events.jsonl"


class State(enum.StrEnum):
    """Where a trial stands."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped early"  # by the scheduler: others did better
    BAD = "bad"  # its settings cannot work, or it diverged
    FAILED = "failed"  # the machine failed it more often than the search retries
    INTERRUPTED = "interrupted"  # the search ended before it did


@dataclass
class TrialLog:
    """One trial, as far as the ledger goes. `reports` are its metrics by step; a resumed trial's replace those it takes
    again."""

    name: str
    sample: dict[str, Any] = field(default_factory=dict)
    state: State = State.RUNNING
    reason: str = ""
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    samples: dict[int, dict[str, Any]] = field(default_factory=dict)  # by step: PBT changes them on the way
    starts: int = 0
    seconds: float = 0.0  # of its starts before the present one
    _began: float = 0.0
    _seen: float = 0.0

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event of this trial."""
        now, kind = float(event["time"]), event["event"]
        if kind == "started":
            self.seconds, self._began = self.elapsed(), now
            self.sample, self.state, self.reason = dict(event["sample"]), State.RUNNING, ""
            self.starts += 1
        elif kind == "report":
            step = int(event["step"])
            self.reports = {s: row for s, row in self.reports.items() if s < step} | {step: dict(event["metrics"])}
            self.samples[step] = self.sample
        else:
            self.state, self.reason = State(event["state"]), event["reason"]
        self._seen = now

    def elapsed(self, now: float | None = None) -> float:
        """Seconds that it ran, over all starts; without `now` as far as its last event."""
        return self.seconds + ((now if now and self.state is State.RUNNING else self._seen) - self._began)

    def best(self, sweep: SweepConfig) -> tuple[int, float] | None:
        """(step, value) of the best mean of `window` reports that follow each other, at the last of them; the mean of all
        where there are fewer. None when there is no value, or the settings were bad."""
        rows = [(step, row[sweep.metric]) for step, row in self.reports.items() if sweep.metric in row]
        rows = [(step, value) for step, value in rows if math.isfinite(value)]
        if not rows or self.state is State.BAD:
            return None
        width = min(sweep.window, len(rows))
        parts = (rows[end - width : end] for end in range(width, len(rows) + 1))
        means = [(part[-1][0], math.fsum(value for _, value in part) / width) for part in parts]
        return (min if sweep.mode == "min" else max)(means, key=lambda pair: pair[1])

    def settings(self, sweep: SweepConfig) -> dict[str, Any]:
        """The sample that the best report was made with, else the present one."""
        best = self.best(sweep)
        return self.samples[best[0]] if best else self.sample

    def last(self, metric: str, window: int = 1) -> float | None:
        """The mean of the metric in the last `window` reports that have it."""
        values = [row[metric] for row in self.reports.values() if metric in row][-window:]
        return math.fsum(values) / len(values) if values else None

    @property
    def step(self) -> int | None:
        """The last reported step."""
        return max(self.reports, default=None)


class Ledger:
    """`events.jsonl`: a line per event, on disk at once; what an earlier process of the same search wrote is read first."""

    def __init__(self, path: Path) -> None:
        self.trials: dict[str, TrialLog] = {}
        text = path.read_text() if path.exists() else ""
        for event in _events(text):
            self._apply(event)
        self._file = path.open("a")
        if text and not text.endswith("\n"):  # the process was killed while it wrote
            self._file.write("\n")

    def note(self, trial: str, event: str, **details: Any) -> TrialLog:
        """Record `event` ("started" sample=, "report" step= metrics=, "ended" state= reason=) of a trial, now."""
        record = {"time": time.time(), "trial": trial, "event": event, **details}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        return self._apply(record)

    def _apply(self, event: Mapping[str, Any]) -> TrialLog:
        trial = self.trials.setdefault(event["trial"], TrialLog(event["trial"]))
        trial.apply(event)
        return trial


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def read_trials(directory: Path) -> list[TrialLog]:
    """The trials of a search that is over, in order of appearance; those that were running are interrupted."""
    path = directory / LEDGER
    trials: dict[str, TrialLog] = {}
    for event in _events(path.read_text() if path.exists() else ""):
        trials.setdefault(event["trial"], TrialLog(event["trial"])).apply(event)
    for trial in trials.values():
        if trial.state is State.RUNNING:
            trial.state = State.INTERRUPTED
    return list(trials.values())


def ranked(trials: Sequence[TrialLog], sweep: SweepConfig) -> list[TrialLog]:
    """Best first: whole trials and those stopped early, then the interrupted and failed, then those without a value."""

    def key(trial: TrialLog) -> tuple[int, float]:
        best = trial.best(sweep)
        if best is None:
            return 2, 0.0
        return int(trial.state in (State.FAILED, State.INTERRUPTED)), best[1] if sweep.mode == "min" else -best[1]

    return sorted(trials, key=key)


def best_of(trials: Sequence[TrialLog], sweep: SweepConfig) -> TrialLog | None:
    """The trial whose settings are the best known."""
    first = next(iter(ranked(trials, sweep)), None)
    return first if first and first.best(sweep) else None


def labels(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted names that tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        own = (e for e in ends if sum(other == e or other.endswith(f".{e}") for other in names) == 1)
        short[name] = next(own, name)
    return short


def shown(value: Any) -> str:
    """A setting or a metric, for a table's cell."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_tables(plan: Plan, trials: Sequence[TrialLog]) -> TrialLog | None:
    """Write `table.csv`, `table.md` and, when some trial has a value, `best.toml`; the best trial."""
    sweep = plan.sweep
    order, best = ranked(trials, sweep), best_of(trials, sweep)
    (plan.directory / "table.csv").write_text(_csv(plan, order, best))
    (plan.directory / "table.md").write_text(_markdown(plan, order, best))
    if best:
        (plan.directory / "best.toml").write_text(best_recipe(plan, best.settings(sweep)))
    return best


def _csv(plan: Plan, trials: Sequence[TrialLog], best: TrialLog | None) -> str:
    sweep, metric = plan.sweep, plan.sweep.metric
    finals = [next(reversed(trial.reports.values()), {}) for trial in trials]
    reported = sorted({name for row in finals for name in row})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "is_best", "state", "reason", *plan.space, "best_step", f"best {metric}", f"last {metric}",
                     "last_step", "seconds", "starts", "directory", *(f"final {name}" for name in reported)])  # fmt: skip
    for trial, final in zip(trials, finals, strict=True):
        step, value = trial.best(sweep) or (None, None)
        sample = trial.settings(sweep)
        settings = [sample.get(name) for name in plan.space]
        writer.writerow([trial.name, trial is best, trial.state, trial.reason, *settings, step, value, trial.last(metric),
                         trial.step, round(trial.elapsed(), 1), trial.starts, plan.runs / trial.name,
                         *(final.get(name) for name in reported)])  # fmt: skip
    return text.getvalue()


def _markdown(plan: Plan, trials: Sequence[TrialLog], best: TrialLog | None) -> str:
    sweep, metric, short = plan.sweep, plan.sweep.metric, labels(list(plan.space))
    head = [
        "",
        "trial",
        "state",
        *short.values(),
        f"best {metric}",
        "at step",
        "at the end",
        *sweep.columns,
        "seconds",
        "why",
    ]
    rows = []
    for trial in trials:
        step, value = trial.best(sweep) or (None, None)
        sample = trial.settings(sweep)
        settings = [shown(sample.get(name)) for name in plan.space]
        cells = ["**best**" if trial is best else "", trial.name, trial.state, *settings, shown(value), shown(step),
                 shown(trial.last(metric)), *(shown(trial.last(name, sweep.window)) for name in sweep.columns),
                 f"{trial.elapsed():.0f}", trial.reason.replace("|", "\\|")]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    counts = ", ".join(f"{n} {state}" for state in State if (n := sum(t.state is state for t in trials)))
    return "\n".join([
        f"# {plan.name}", "",
        f"{metric}, {sweep.mode}; search {sweep.search}, scheduler {sweep.scheduler}; {counts or 'no trials'}.", "",
        f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *rows, "",
    ])  # fmt: skip


def best_recipe(plan: Plan, sample: Mapping[str, Any]) -> str:
    """A whole recipe, as TOML: the sweep's recipe with its command line and `sample` merged in, under a name of its own."""
    resolved = flat(load(type(plan.base), plan.recipe, sample=sample, argv=plan.words))
    merged = {name: resolved[name] for name in _dotted(read_recipe(plan.recipe))}
    merged |= {name: resolved[name] for name in (*plan.given, *sample)} | {"name": f"{plan.name}-best"}
    tables: dict[str, Any] = {}
    for name, value in merged.items():
        *sections, last = name.split(".")
        table = tables
        for section in sections:
            table = table.setdefault(section, {})
        table[last] = list(value) if isinstance(value, tuple) else "None" if value is None else value
    return f"# The best settings of the sweep {plan.name}.\n{tomli_w.dumps(tables)}"


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield from _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]

"""Where a run's numbers go: JSONL always, the console, TensorBoard, Ray's metrics, a Tune trial, and vendors on request."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

METRICS_FILE = "metrics.jsonl"


class Tracker(Protocol):
    """Receives every step's metrics once, in order."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Clock:
    """Seconds per phase of the current step: `with clock("rollout"): ...`; `lap()` gives them and starts anew.

    `with clock.working("rollout"): ...`, in any thread, says that a fleet works; a fleet may do several things at once, and go
    on from one lap into the next.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._worked: dict[str, float] = {}  # by fleet, in this lap, up to its last change
        self._at_work: dict[str, tuple[int, float]] = {}  # how many things it does, and since when

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started

    def seconds(self, phase: str) -> float:
        """What `phase` took so far in this lap."""
        return self._seconds[phase]

    @contextmanager
    def working(self, fleet: str) -> Iterator[None]:
        """A fleet works."""
        self._change(fleet, 1)
        try:
            yield
        finally:
            self._change(fleet, -1)

    def _change(self, fleet: str, by: int) -> None:
        with self._lock:
            now = time.perf_counter()
            things, since = self._at_work.get(fleet, (0, now))
            self._worked[fleet] = self._worked.get(fleet, 0.0) + (now - since if things else 0.0)
            self._at_work[fleet] = things + by, now

    def lap(self) -> dict[str, float]:
        """Since the last lap: `time/PHASE_s` of each phase, `time/step_s` of the whole, and `idle/FLEET_s`, in which a fleet that
        has ever worked did not."""
        for fleet in list(self._at_work):
            self._change(fleet, 0)  # up to now
        with self._lock:
            now = time.perf_counter()
            step_s = now - self._started
            seconds = {f"time/{phase}_s": s for phase, s in self._seconds.items()} | {"time/step_s": step_s}
            idle = {f"idle/{fleet}_s": max(step_s - worked, 0.0) for fleet, worked in self._worked.items()}
            self._seconds, self._started, self._worked = {}, now, dict.fromkeys(self._worked, 0.0)
        return {**seconds, **idle}


class JsonlTracker:
    """One JSON object per step in `metrics.jsonl`, flushed at once. Lines of `first_step` and later, left by a run that
    was killed after its last checkpoint, are dropped."""

    def __init__(self, directory: Path, first_step: int) -> None:
        path = directory / METRICS_FILE
        kept = [row for row in read_metrics(path) if row["step"] < first_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps of a metrics file; a torn last line (the run was killed) is not one."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def follow(path: Path, ended: threading.Event, *, first_step: int, seconds: float = 0.5) -> Iterator[dict[str, Any]]:
    """Each step of a metrics file from `first_step` on, once, as it is written, until `ended` is set and all was read.

    For a reader in another process than the writer's. Steps that a restarted run takes again come once.
    """
    last, torn = first_step - 1, b""
    with ExitStack() as held:
        file: BinaryIO | None = None
        while True:
            was_ended = ended.is_set()
            # a run that was taken up again writes its file anew, under the same name; an open file's number stays its own
            if path.exists() and (file is None or not os.path.samestat(path.stat(), os.fstat(file.fileno()))):
                held.close()
                file, torn = held.enter_context(path.open("rb")), b""
            *lines, torn = (torn + file.read()).split(b"\n") if file else [b""]
            for row in map(json.loads, lines):
                if row["step"] > last:
                    last = row["step"]
                    yield row
            if was_ended and not lines:
                return
            ended.wait(seconds)


class ConsoleTracker:
    """One line per step: where the run is, how it does, and when it will be done."""

    def __init__(self, first_step: int, steps: int, shown: Mapping[str, str]) -> None:
        self._first, self._steps, self._shown = first_step, steps, shown
        self._seconds, self._last = 0.0, time.perf_counter()
        if first_step:
            print(f"resumes after step {first_step}/{steps}", flush=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.perf_counter()
        self._seconds += metrics.get("time/step_s", now - self._last)
        self._last = now
        pace = self._seconds / (step + 1 - self._first)
        width = len(str(self._steps))
        figures = "  ".join(f"{label} {metrics[name]:7.3g}" for name, label in self._shown.items() if name in metrics)
        eta = _duration(pace * (self._steps - step - 1))
        filled = round(20 * (step + 1) / self._steps)
        bar = "#" * filled + "." * (20 - filled)
        print(f"[{bar}] step {step + 1:{width}}/{self._steps}  {figures}  {pace:.1f} s/step  ETA {eta}", flush=True)

    def close(self) -> None:
        """The console stays."""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


class TensorBoardTracker:
    """Scalars under `tensorboard/`."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class RayMetricsTracker:
    """Gauges on Ray's own metrics endpoint, for a cluster's Prometheus and Grafana."""

    def __init__(self, run: str) -> None:
        self._run, self._gauges = run, dict[str, Any]()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for name, value in {**metrics, "step": float(step)}.items():
            key = "attune_" + "".join(c if c.isalnum() else "_" for c in name)
            if key not in self._gauges:
                self._gauges[key] = Gauge(key, tag_keys=("run",))
            self._gauges[key].set(value, tags={"run": self._run})

    def close(self) -> None:
        """Ray withdraws the gauges with the process."""


@dataclass(frozen=True)
class Wanted:
    """What a search wants of a trial's reports: the metric that it judges ("": any), and the newest folder `step-*` of
    `checkpoints` with them when it is new (None: no checkpoints)."""

    metric: str = ""
    checkpoints: Path | None = None


class StoppedBySearch(SystemExit):
    """The search ended or paused the trial that this process is."""

    def __init__(self) -> None:
        super().__init__(0)

    def __str__(self) -> str:
        return "stopped by the search"


class UnknownMetric(ValueError):
    """A search judges a metric that the run does not report."""


class TuneTracker:
    """Reports to the Tune trial that this run is: each step that has the wanted metric, with what came since the last one.

    Raises UnknownMetric when the first step is without it.
    """

    wanted: ClassVar[Wanted] = Wanted()  # of this process: a trial has one to itself

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._reported = False
        self._sent = self._newest()  # a resumed run's own, or what it took over: the search has it

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from ray import tune

        metric = self.wanted.metric
        self._since |= metrics
        if metric and metric not in metrics:
            if not self._reported:
                raise UnknownMetric(
                    f"metric must be one that the runs report, is {metric!r}; reported are {', '.join(sorted(metrics))}"
                )
            return
        newest = self._newest()
        new = newest if newest != self._sent else None
        report, self._since = {**self._since, "step": step}, {}
        self._reported, self._sent = True, newest
        try:
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(str(new)) if new else None)
        except SystemExit:  # Tune's way to end a trial in the middle
            raise StoppedBySearch from None

    def close(self) -> None:
        """Tune closes the trial."""

    def _newest(self) -> Path | None:
        folder = self.wanted.checkpoints
        return max(folder.glob("step-*"), default=None) if folder else None


class WandbTracker:
    """Weights & Biases, when the recipe names a project."""

    def __init__(self, project: str, run: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=project, name=run, config=dict(settings), resume="allow", id=run)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow, when the recipe names an experiment."""

    def __init__(self, experiment: str, run: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=run)
        mlflow.log_params(dict(settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("/", "."): value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class Stages:
    """Says on the console what a run is doing before its first step, and how long each stage took."""

    def __init__(self, write: Callable[[str], object] = sys.stdout.write) -> None:
        self._write = write
        self._zero = time.perf_counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        self._write(f"{what} ...\n")
        sys.stdout.flush()
        yield
        now = time.perf_counter()
        self._write(f"{what}: {now - started:.1f} s (at {now - self._zero:.0f} s)\n")
        sys.stdout.flush()

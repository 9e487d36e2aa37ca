"""How a run ends: what may go wrong, said in one line, in `status.json` and in the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.tracking import METRICS_FILE, read_metrics
from eval.report import write_report
from eval.run_directory import RunState
from rl.records import write_status


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite: the run has diverged. Raised on every rank, before the update."""


@contextmanager
def reported(directory: Path) -> Iterator[None]:
    """However the run ends, `status.json` and `report.html` say how."""
    write_status(directory, RunState.RUNNING, steps_done(directory))
    try:
        yield
    except BaseException as error:
        state = RunState.DIVERGED if isinstance(error, NonFiniteLoss) else RunState.FAILED
        write_status(directory, state, steps_done(directory), first_line(error))
        raise
    else:
        write_status(directory, RunState.FINISHED, steps_done(directory))
    finally:
        write_report(directory)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; of one that came from an actor, what was raised there."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    error = vars(error).get("cause") or error
    return " ".join(str(error).split()) or type(error).__name__


def steps_done(directory: Path) -> int:
    """Steps in the run's log."""
    rows = read_metrics(directory / METRICS_FILE)
    return rows[-1]["step"] + 1 if rows else 0

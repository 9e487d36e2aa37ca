"""How a run ends: what may go wrong, said in one line, in `status.json` and in the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.report import write_report
from eval.run_directory import RunState
from rl.records import steps_done, write_status


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite: the run has diverged. Raised on every rank, before the update."""


@contextmanager
def reported(directory: Path) -> Iterator[None]:
    """However the run ends, `status.json` and `report.html` say how."""
    write_status(directory, RunState.RUNNING, steps_done(directory))
    try:
        yield
    except BaseException as error:
        write_status(directory, _state_after(error), steps_done(directory), first_line(error))
        raise
    else:
        write_status(directory, RunState.FINISHED, steps_done(directory))
    finally:
        write_report(directory)


def _state_after(error: BaseException) -> RunState:
    if isinstance(error, KeyboardInterrupt):
        return RunState.INTERRUPTED
    return RunState.DIVERGED if isinstance(error, NonFiniteLoss) else RunState.FAILED


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; of one that came from an actor, what was raised there."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    error = vars(error).get("cause") or error
    return " ".join(str(error).split()) or type(error).__name__

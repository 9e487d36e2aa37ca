"""Following a metrics file: every step once, whoever writes and however often the run begins again."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.tracking import METRICS_FILE, JsonlTracker, follow

QUICK = 0.005


def line(step: int, **metrics: Any) -> str:
    return json.dumps({"step": step, **metrics}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / METRICS_FILE


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def set_event() -> threading.Event:
    ended = threading.Event()
    ended.set()
    return ended


class Follower:
    """A reader in a thread of its own."""

    def __init__(self, path: Path, first_step: int = 0) -> None:
        self.rows: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._read, args=(path, first_step), daemon=True)
        self._thread.start()

    def _read(self, path: Path, first_step: int) -> None:
        try:
            for row in follow(path, self._ended, first_step=first_step, seconds=QUICK):
                self.rows.append(row)
        except ValueError as error:
            self._failed.append(error)

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + 60
        while step not in steps(self.rows):
            assert time.monotonic() < deadline and not self._failed, (step, self.rows[-1:], self._failed)
            time.sleep(QUICK)

    def end(self) -> list[dict[str, Any]]:
        self._ended.set()
        self._thread.join(60)
        assert not self._thread.is_alive() and not self._failed, self._failed
        return self.rows


def test_what_is_there_is_read_to_its_end(path: Path) -> None:
    """A run that has ended gives all its steps from the first wanted one on, as they were logged."""
    path.write_text("".join(line(step, loss=step / 2) for step in range(9)))
    rows = list(follow(path, set_event(), first_step=4, seconds=QUICK))
    assert rows == [{"step": step, "loss": step / 2} for step in range(4, 9)]


def test_no_file_is_no_step(path: Path) -> None:
    """A run that ended before it wrote anything gives nothing, and ends."""
    assert list(follow(path, set_event(), first_step=0, seconds=QUICK)) == []


def writer(folder: Path, first: int, last: int) -> None:
    """A process that takes steps [first, last)."""
    tracker = JsonlTracker(folder, first)
    for step in range(first, last):
        tracker.log(step, {"loss": step / 3})
    tracker.close()


def test_another_process_writes_while_this_one_reads(tmp_path: Path, path: Path) -> None:
    """Every step comes once, in order, while a second process begins the file and writes it."""
    follower = Follower(path)
    process = multiprocessing.get_context("spawn").Process(target=writer, args=(tmp_path, 0, 300), daemon=True)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    rows = follower.end()
    assert rows == [{"step": step, "loss": step / 3} for step in range(300)]


def test_a_step_comes_while_the_run_goes_on(tmp_path: Path, path: Path) -> None:
    """A reader need not wait for the end."""
    follower, tracker = Follower(path), JsonlTracker(tmp_path, 0)
    for step in range(3):
        tracker.log(step, {})
        follower.wait_for(step)
    assert steps(follower.end()) == [0, 1, 2]
    tracker.close()


@pytest.mark.parametrize(("before", "after"), [(300, 1), (1, 300), (7, 7)], ids=["shorter", "longer", "equal"])
@pytest.mark.parametrize("slow_reader", [True, False], ids=["reader sleeps through it", "reader watches"])
def test_a_run_taken_up_again_gives_each_step_once(
    before: int, after: int, slow_reader: bool, tmp_path: Path, path: Path
) -> None:
    """Steps 0-5, then a restart that takes 3-5 again and goes on: each comes once, whatever length the new lines have."""
    first = JsonlTracker(tmp_path, 0)
    for step in range(6):
        first.log(step, {"note": "a" * before})  # type: ignore[dict-item]
    ended = threading.Event()
    rows = follow(path, ended, first_step=0, seconds=QUICK)
    got = [next(rows) for _ in range(6)]
    first.close()
    again = JsonlTracker(tmp_path, 3)
    for step in range(3, 9):
        again.log(step, {"note": "b" * after})  # type: ignore[dict-item]
        if not slow_reader and step > 5:
            got.append(next(rows))
    again.close()
    ended.set()
    got += rows
    assert steps(got) == list(range(9))
    assert [row["note"][0] for row in got] == ["a"] * 6 + ["b"] * 3


def test_many_restarts(tmp_path: Path, path: Path) -> None:
    """A run that dies again and again, each time some steps after its checkpoint, still gives every step once."""
    follower = Follower(path)
    for first in range(0, 40, 4):
        writer(tmp_path, first, first + 7)
        with path.open("a") as file:
            file.write(line(first + 7)[:5])  # killed in the middle of a line
    assert steps(follower.end()) == list(range(43))


def test_a_torn_line_is_read_when_it_is_whole(path: Path) -> None:
    """Half a line is no step, also when the cut goes through a letter; once its rest is there it is one step."""
    written = ('{"step": 1, "word": "na\u00efve"}\n').encode()
    ended = threading.Event()
    for cut in range(1, len(written)):
        path.write_bytes(line(0).encode() + written[:cut])
        ended.clear()
        rows = follow(path, ended, first_step=0, seconds=0)
        assert next(rows)["step"] == 0
        with path.open("ab") as file:
            file.write(written[cut:])
        ended.set()
        assert list(rows) == [{"step": 1, "word": "na\u00efve"}]


def test_a_line_left_torn_is_no_step(path: Path) -> None:
    """What a killed writer began is never read."""
    path.write_text(line(0) + line(1)[:-1])
    assert steps(list(follow(path, set_event(), first_step=0, seconds=QUICK))) == [0]


def test_steps_before_the_first_wanted_one_are_passed_over(tmp_path: Path, path: Path) -> None:
    """Who joins a run that was taken up at step 20 sees 20 and later, once."""
    writer(tmp_path, 0, 20)
    follower = Follower(path, first_step=20)
    writer(tmp_path, 18, 25)
    assert steps(follower.end()) == list(range(20, 25))

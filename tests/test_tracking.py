"""Trackers: every step once, in order, whatever ended the run before; and what the console and the clock say."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.tracking import (
    METRICS_FILE,
    Clock,
    ConsoleTracker,
    JsonlTracker,
    Stages,
    TensorBoardTracker,
    Trackers,
    read_metrics,
)

SHOWN = {"reward/mean": "reward", "policy/kl": "KL"}


def run(directory: Path, first: int, last: int, mark: float) -> None:
    """Steps [first, last) of a run whose numbers say which process wrote them."""
    tracker = JsonlTracker(directory, first)
    for step in range(first, last):
        tracker.log(step, {"reward/mean": mark + step})
    tracker.close()


def test_a_step_is_a_line_at_once(tmp_path: Path) -> None:
    """A reader sees a step as soon as it is logged: `step` first, then the metrics as they were."""
    tracker = JsonlTracker(tmp_path, 0)
    tracker.log(0, {"reward/mean": 0.1, "policy/kl": 1e-17})
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert list(json.loads(line).items()) == [("step", 0), ("reward/mean", 0.1), ("policy/kl", 1e-17)]
    tracker.log(1, {"reward/mean": math.nan})
    assert [row["step"] for row in read_metrics(tmp_path / METRICS_FILE)] == [0, 1]
    tracker.close()


def test_a_resumed_run_takes_its_steps_again(tmp_path: Path) -> None:
    """Steps that a killed run had taken after its last checkpoint appear once: those of the run that went on."""
    run(tmp_path, 0, 5, mark=100)
    run(tmp_path, 3, 6, mark=200)
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert [row["step"] for row in rows] == list(range(6))
    assert [row["reward/mean"] for row in rows] == [100, 101, 102, 203, 204, 205]


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_torn_last_line_is_no_step(cut: int, tmp_path: Path) -> None:
    """A line that the kill cut short is not read, and the next run's lines do not stick to it."""
    run(tmp_path, 0, 3, mark=100)
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[:-cut])
    assert [row["step"] for row in read_metrics(path)] == ([0, 1, 2] if cut == 1 else [0, 1])
    run(tmp_path, 2, 4, mark=200)
    assert [row["reward/mean"] for row in read_metrics(path)] == [100, 101, 202, 203]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_no_file_is_no_step(tmp_path: Path) -> None:
    """A run that has not begun has no metrics, and beginning one leaves an empty file and no other."""
    assert read_metrics(tmp_path / METRICS_FILE) == []
    JsonlTracker(tmp_path, 0).close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]
    assert read_metrics(tmp_path / METRICS_FILE) == []


def seconds(eta: str) -> int:
    """Of `1h02m` or `3m04s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", eta))


def test_the_console_says_where_the_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per step: a bar of the whole run, step and steps from 1, the shown figures in order, and no others."""
    tracker = ConsoleTracker(0, 8, SHOWN)
    for step in range(8):
        tracker.log(step, {"policy/kl": 1234567.0, "reward/mean": 0.5, "hidden": 3.0})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    for step, line in enumerate(lines):
        bar = re.match(r"\[([#.]{20})\] step (\d)/8 ", line)
        assert bar and int(bar[2]) == step + 1
        assert bar[1].count("#") == round(20 * (step + 1) / 8) and "#" not in bar[1].lstrip("#")
        assert re.search(r"reward +0\.5 +KL 1\.23e\+06 ", line) and "hidden" not in line
    assert lines[-1].startswith("[" + "#" * 20 + "]") and lines[-1].endswith("ETA 0m00s")


@pytest.mark.parametrize(("first", "steps", "left"), [(0, 3, 2), (40, 50, 9), (0, 7201, 7200), (5, 100_005, 99_999)])
def test_the_eta_is_the_pace_times_what_is_left(
    first: int, steps: int, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run's pace counts its own steps only; the ETA after one step is that step's time for each one left."""
    before = time.perf_counter()
    tracker = ConsoleTracker(first, steps, SHOWN)
    started = time.perf_counter()
    time.sleep(0.1)
    slept = time.perf_counter()
    tracker.log(first, {})
    after = time.perf_counter()
    line = capsys.readouterr().out
    pace, eta = float(re.search(r"([\d.]+) s/step", line)[1]), seconds(line.rpartition("ETA ")[2])  # type: ignore[index]
    assert slept - started - 0.05 <= pace <= after - before + 0.05
    assert (slept - started) * left - 60 <= eta <= (after - before) * left + 60


def test_nothing_is_left_after_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    """However long a step takes, the last one's ETA is 0."""
    tracker = ConsoleTracker(9, 10, SHOWN)
    time.sleep(0.6)
    tracker.log(9, {})
    assert capsys.readouterr().out.endswith("ETA 0m00s\n")


def test_absent_figures_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A metric that a step does not have is not shown as anything."""
    ConsoleTracker(0, 2, SHOWN).log(0, {"policy/kl": 2.0})
    line = capsys.readouterr().out
    assert "KL" in line and "reward" not in line


def test_the_clock_adds_up_phases_and_starts_anew() -> None:
    """A lap gives each phase's seconds, twice entered or left by an error too, and the whole; the next begins at 0."""
    clock = Clock()
    before = time.perf_counter()
    for _ in range(2):
        with clock("rollout"):
            time.sleep(0.03)
    with pytest.raises(KeyError), clock("update"):
        time.sleep(0.02)
        raise KeyError
    lap = clock.lap()
    elapsed = time.perf_counter() - before
    assert set(lap) == {"time/rollout_s", "time/update_s", "time/step_s"}
    assert lap["time/rollout_s"] >= 0.06 and lap["time/update_s"] >= 0.02
    assert lap["time/rollout_s"] + lap["time/update_s"] <= lap["time/step_s"] <= elapsed + 0.01
    time.sleep(0.02)
    second = clock.lap()
    assert set(second) == {"time/step_s"} and second["time/step_s"] >= 0.02


def test_nested_phases_each_count_their_own_time() -> None:
    """A phase inside another is in both."""
    clock = Clock()
    with clock("outer"), clock("inner"):
        time.sleep(0.02)
    lap = clock.lap()
    assert 0.02 <= lap["time/inner_s"] <= lap["time/outer_s"]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    """Every metric of every step is readable before the run ends; a resumed run's steps appear once."""
    first = TensorBoardTracker(tmp_path, 0)
    for step in range(5):
        first.log(step, {"reward/mean": float(step), "policy/kl": 0.5})
    assert scalars(tmp_path)["reward/mean"] == [(step, float(step)) for step in range(5)]
    first.close()
    resumed = TensorBoardTracker(tmp_path, 3)
    for step in range(3, 6):
        resumed.log(step, {"reward/mean": 10.0 + step, "policy/kl": 0.5})
    resumed.close()
    found = scalars(tmp_path)
    assert found["reward/mean"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0)]
    assert [step for step, _ in found["policy/kl"]] == list(range(6))


def test_several_trackers_see_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`Trackers` tells each of them every step, and closes each of them."""
    jsonl = JsonlTracker(tmp_path, 0)
    both = Trackers([jsonl, ConsoleTracker(0, 1, SHOWN)])
    both.log(0, {"reward/mean": 0.5})
    both.close()
    assert read_metrics(tmp_path / METRICS_FILE) == [{"step": 0, "reward/mean": 0.5}]
    assert "step 1/1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="closed"):
        jsonl.log(1, {})


def test_stages_say_what_takes_how_long() -> None:
    """A stage is named when it begins, and again with its seconds when it ends; one that fails does not end."""
    said: list[str] = []
    stage = Stages(said.append)
    with stage("reading"):
        assert said == ["reading ...\n"]
        time.sleep(0.06)
    found = re.fullmatch(r"reading: (\d+\.\d) s \(at \d+ s\)\n", said[1])
    assert found and float(found[1]) >= 0.1
    with pytest.raises(KeyError), stage("failing"):
        raise KeyError
    assert said[2:] == ["failing ...\n"]

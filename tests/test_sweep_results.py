"""What a search leaves: the ledger, the tables, the best recipe, the pictures, and what the terminal shows of it."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.settings import load
from rl.config import PpoRecipe
from rl.sweep_config import Plan, SweepConfig, read_plan
from rl.sweep_plots import write_plots
from rl.sweep_results import (
    LEDGER,
    Ledger,
    State,
    TrialLog,
    best_of,
    best_recipe,
    labels,
    ranked,
    read_trials,
    shown,
    write_tables,
)
from rl.sweep_screen import Screen
from rl.sweep_space import Choice, Range

METRIC = "reward/mean"
HIGH, LOW = SweepConfig(metric=METRIC, mode="max"), SweepConfig(metric=METRIC, mode="min")
SAMPLE = {"ppo.policy_lr": 1e-3, "ppo.clip_low": 0.1, "model.lora.targets": ["q_proj"]}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A search over three settings of the shipped local recipe, one of them a tuple."""
    sweep = tmp_path / "search.toml"
    sweep.write_text(
        f'metric = "{METRIC}"\nmode = "max"\nsearch = "random"\nsamples = 6\n[space]\n'
        '"ppo.policy_lr" = { loguniform = [1e-5, 1e-2] }\n"ppo.clip_low" = [0.1, 0.2]\n'
        '"model.lora.targets" = [["q_proj"], ["q_proj", "v_proj"]]\n'
    )
    words = ["--runs", str(tmp_path), "--ppo.kl_target", "None", "--prompts.fixed", 'a "b"', "ü", "--steps=40"]
    made = read_plan(["local", str(sweep), *words], {"ppo": PpoRecipe})
    made.directory.mkdir()
    return made


def run(
    ledger: Ledger, trial: str, values: list[float], state: State | None, *, lr: float = 1e-3, **more: object
) -> None:
    """A trial with one report a step."""
    ledger.note(trial, "started", sample={**SAMPLE, "ppo.policy_lr": lr, **more})
    for step, value in enumerate(values):
        ledger.note(trial, "report", step=step, metrics={METRIC: value, "policy/kl": step / 2})
    if state:
        ledger.note(trial, "ended", state=state, reason="because | of that" if state is State.BAD else "")


@pytest.fixture
def trials(plan: Plan) -> list[TrialLog]:
    ledger = Ledger(plan.directory / LEDGER)
    run(ledger, "fine", [0.1, 0.5, 0.4], State.FINISHED, lr=1e-3)
    run(ledger, "best", [0.1, 0.9, 0.8], State.FINISHED, lr=3e-3, **{"model.lora.targets": ["q_proj", "v_proj"]})
    run(ledger, "cut", [0.3], State.STOPPED, lr=1e-5)
    run(ledger, "broken", [0.95], State.FAILED, lr=2e-4)
    run(ledger, "wrong", [2.0, math.inf], State.BAD, lr=9e-3)
    run(ledger, "late", [0.2, 0.6], None, lr=4e-4)
    return read_trials(plan.directory)


def named(trials: list[TrialLog], name: str) -> TrialLog:
    return next(trial for trial in trials if trial.name == name)


def test_the_ledger_tells_the_same_after_a_kill(plan: Plan, trials: list[TrialLog]) -> None:
    """A torn last line is no event, what a second process writes follows, and its view of the first's trials is the same."""
    path = plan.directory / LEDGER
    with path.open("a") as file:
        file.write('{"time": 3, "trial": "late", "ev')
    ledger = Ledger(path)
    assert ledger.trials.keys() == {trial.name for trial in trials}
    assert ledger.trials["late"].state is State.RUNNING and named(trials, "late").state is State.INTERRUPTED
    ledger.note("late", "started", sample={"ppo.policy_lr": 4e-4})
    ledger.note("late", "report", step=1, metrics={METRIC: 0.61})
    ledger.note("late", "ended", state=State.FINISHED, reason="")
    late = named(read_trials(plan.directory), "late")
    assert (late.state, late.starts, late.step) == (State.FINISHED, 2, 1)
    assert [row[METRIC] for row in late.reports.values()] == [0.2, 0.61]


def test_time_between_two_starts_does_not_count(plan: Plan) -> None:
    """A trial's seconds are those in which it ran."""
    log = TrialLog("a")
    for now, event in [(100, "started"), (110, "report"), (500, "started"), (505, "report")]:
        log.apply({"time": now, "event": event, "sample": {}, "step": 0, "metrics": {}})
    assert log.elapsed() == 15 and log.elapsed(now=507) == 17
    log.apply({"time": 506, "event": "ended", "state": "finished", "reason": ""})
    assert log.elapsed(now=900) == 16


def test_the_best_is_a_whole_or_stopped_trial(trials: list[TrialLog]) -> None:
    """Bad settings never win, whatever they reported; a failed or interrupted trial only where there is nothing else."""
    assert [t.name for t in ranked(trials, HIGH)] == ["best", "fine", "cut", "broken", "late", "wrong"]
    assert [t.name for t in ranked(trials, LOW)] == ["fine", "best", "cut", "late", "broken", "wrong"]
    best = best_of(trials, HIGH)
    assert best and best.name == "best" and best.best(HIGH) == (1, 0.9) and best.last(METRIC) == 0.8
    assert best_of([named(trials, "wrong")], HIGH) is None and best_of([], HIGH) is None
    assert best_of([named(trials, "broken"), named(trials, "wrong")], HIGH) is named(trials, "broken")
    assert (
        named(trials, "fine").best(replace(HIGH, metric="no/such")) is None
        and named(trials, "fine").last("no/such") is None
    )


def test_a_value_that_is_no_number_is_not_best(plan: Plan) -> None:
    """NaN and infinity are passed over, in both directions."""
    ledger = Ledger(plan.directory / LEDGER)
    run(ledger, "a", [math.nan, 0.2, math.inf, -math.inf], State.FINISHED)
    assert ledger.trials["a"].best(LOW) == ledger.trials["a"].best(HIGH) == (1, 0.2)


def test_the_best_is_a_mean_over_the_window(plan: Plan) -> None:
    """One lucky step does not win; a trial of fewer reports than the window has their mean."""
    ledger = Ledger(plan.directory / LEDGER)
    run(ledger, "lucky", [0.0, 1.0, 0.1, 0.2, 0.2], State.FINISHED)
    run(ledger, "steady", [0.5, 0.5, 0.6, 0.7, 0.7], State.FINISHED)
    trials, wide = list(ledger.trials.values()), replace(HIGH, window=3)
    assert [best_of(trials, sweep).name for sweep in (HIGH, wide)] == ["lucky", "steady"]  # type: ignore[union-attr]
    assert trials[1].best(wide) == (4, pytest.approx(2 / 3)) and trials[0].best(wide) == (3, pytest.approx(1.3 / 3))
    assert trials[0].best(replace(HIGH, window=9)) == (4, pytest.approx(0.3))


def test_settings_that_changed_on_the_way_are_those_of_the_best_step(plan: Plan) -> None:
    """PBT: a trial's value at a step belongs to the settings that it had then."""
    ledger = Ledger(plan.directory / LEDGER)
    run(ledger, "a", [0.1, 0.9], None, lr=1e-3)
    ledger.note("a", "started", sample={"ppo.policy_lr": 2e-3})
    ledger.note("a", "report", step=2, metrics={METRIC: 0.5})
    assert ledger.trials["a"].settings(HIGH)["ppo.policy_lr"] == 1e-3
    ledger.note("a", "report", step=1, metrics={METRIC: 0.4})  # taken again, from another trial's checkpoint
    assert ledger.trials["a"].settings(HIGH)["ppo.policy_lr"] == 2e-3
    assert list(ledger.trials["a"].reports) == [0, 1]


def test_the_tables_hold_every_trial(plan: Plan, trials: list[TrialLog]) -> None:
    """A row a trial, best first and marked; settings, metric at its best and at the end, state and why, all final metrics."""
    best = write_tables(plan, trials)
    assert best and best.name == "best"
    rows = list(csv.DictReader(io.StringIO((plan.directory / "table.csv").read_text())))
    assert [row["trial"] for row in rows] == ["best", "fine", "cut", "broken", "late", "wrong"]
    assert [row["is_best"] for row in rows] == ["True"] + ["False"] * 5
    first = rows[0]
    assert float(first["ppo.policy_lr"]) == 3e-3 and first["model.lora.targets"] == "['q_proj', 'v_proj']"
    assert (first["best_step"], first[f"best {METRIC}"], first[f"last {METRIC}"]) == ("1", "0.9", "0.8")
    assert first["final policy/kl"] == "1.0" and first["directory"] == str(plan.runs / "best")
    assert rows[-1]["state"] == "bad" and rows[-1]["reason"] == "because | of that" and rows[-1][f"best {METRIC}"] == ""
    text = (plan.directory / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 8 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[2].startswith("| **best** | best | finished | 0.003 |") and "because \\| of that" in lines[-1]
    assert "2 finished, 1 stopped early, 1 bad, 1 failed, 1 interrupted" in text


def test_further_columns_are_means_over_the_window(plan: Plan) -> None:
    """`columns` of table.md: of each trial the mean of its last `window` reports that have the metric; empty without any."""
    ledger = Ledger(plan.directory / LEDGER)
    ledger.note("a", "started", sample={"ppo.policy_lr": 1e-3})
    for step, kl in enumerate([9.0, 1.0, 2.0]):
        ledger.note("a", "report", step=step, metrics={METRIC: 0.5, "policy/kl": kl})
    ledger.note("a", "ended", state="finished", reason="")
    wider = replace(plan, sweep=replace(plan.sweep, window=2, columns=("policy/kl", "no/such")))
    write_tables(wider, read_trials(plan.directory))
    head, _, row = [line for line in (plan.directory / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert cells[" policy/kl "].strip() == "1.5" and cells[" no/such "].strip() == ""


def test_tables_of_a_search_without_trials_say_so(plan: Plan) -> None:
    """Interrupted at once: no best recipe, no pictures, no error."""
    assert write_tables(plan, read_trials(plan.directory)) is None
    assert "no trials" in (plan.directory / "table.md").read_text()
    assert not (plan.directory / "best.toml").exists() and write_plots(plan, []) == []


def test_the_best_recipe_is_the_trials_settings(plan: Plan, trials: list[TrialLog]) -> None:
    """`best.toml` gives back recipe, command line and sample in one file, under a name that is not the sweep's."""
    write_tables(plan, trials)
    sample = named(trials, "best").sample
    expected = load(PpoRecipe, plan.recipe, sample=sample, argv=plan.words)
    parsed = load(PpoRecipe, plan.directory / "best.toml")
    assert parsed == replace(expected, name="search-best")
    assert parsed.ppo.policy_lr == 3e-3 and parsed.ppo.kl_target is None and parsed.prompts.fixed == ('a "b"', "ü")
    assert parsed.model.lora.targets == ("q_proj", "v_proj") and parsed.steps == 40
    assert "[ppo]" in best_recipe(plan, sample) and "[learner]" in best_recipe(plan, sample)


def test_labels_are_short_and_tell_apart() -> None:
    """The last word of a name, or as many as it takes."""
    names = ["sft.lr", "model.path", "rewards.length.weight", "rewards.emotion.weight", "seed"]
    assert list(labels(names).values()) == ["lr", "path", "length.weight", "emotion.weight", "seed"]
    assert list(labels(["a.b", "b"]).values()) == ["a.b", "b"]
    assert [shown(v) for v in (0.00001234, 3, None, True, "x", [1])] == ["1.234e-05", "3", "", "True", "x", "[1]"]


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.mark.parametrize("count", [1, 6, 20])
def test_pictures_are_drawn_whatever_came(plan: Plan, count: int) -> None:
    """Three pictures of a sensible size, of one trial as of many, with settings that are numbers, lists and ranges."""
    ledger = Ledger(plan.directory / LEDGER)
    space = {**plan.space, "steps": Range("randint", 1, 50), "seed": Choice((1, 2, 300))}
    for n in range(count):
        lr, state = 1e-5 * 1.4**n, State.FINISHED if n % 3 else State.STOPPED
        run(ledger, f"t{n}", [0.1, 0.2 + n / 20], state, lr=lr, steps=n + 1, seed=(1, 2, 300)[n % 3])
    files = write_plots(replace(plan, space=space), list(ledger.trials.values()))
    assert sorted(path.name for path in files) == ["by_setting.png", "curves.png", "parallel.png"]
    assert all(400 < side < 4000 for path in files for side in size(path))


def test_the_live_table_shows_where_every_trial_is(plan: Plan, trials: list[TrialLog]) -> None:
    """Running trials first, then the best; settings, step, metric; counts, the best so far and the time left above."""
    ledger = Ledger(plan.directory / LEDGER)
    text = io.StringIO()
    screen = Screen(
        plan, ledger.trials, steps=40, console=Console(file=text, force_terminal=True, width=160, height=40)
    )
    ledger.note("new", "started", sample={"ppo.policy_lr": 1e-4, "ppo.clip_low": 0.2, "model.lora.targets": ["q_proj"]})
    ledger.note("new", "report", step=19, metrics={METRIC: 0.25})
    shot = Console(file=io.StringIO(), width=160, height=40, record=True)
    shot.print(screen.table())
    screen.close()
    lines = shot.export_text().splitlines()
    assert (
        "1 failed" in lines[0] and "2 running" in lines[0] and "of 6" in lines[0] and "best reward/mean 0.9" in lines[0]
    )
    assert "ETA 0:00" in lines[0] or "ETA ?" not in lines[0]
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["late", "new", "best", "fine", "cut", "broken", "wrong"]
    new = [cell.strip() for cell in rows[1]]
    assert new[1:7] == ["running", "0.0001", "0.2", "['q_proj']", "19", "0.25"]
    small = Console(file=io.StringIO(), width=160, height=10, record=True)
    small.print(Screen(plan, ledger.trials, 40, console=small).table())


def test_without_a_terminal_a_line_says_what_happens(plan: Plan) -> None:
    """Starts, every tenth report, endings with their reasons: no more, and no control characters."""
    text = io.StringIO()
    ledger = Ledger(plan.directory / LEDGER)
    screen = Screen(plan, ledger.trials, steps=40, console=Console(file=text, width=300))
    screen.tell(ledger.note("a", "started", sample=SAMPLE), "started")
    for step in range(25):
        screen.tell(ledger.note("a", "report", step=step, metrics={METRIC: step / 10}), "report")
    screen.tell(ledger.note("a", "ended", state=State.FAILED, reason="[node] died"), "retry")
    screen.tell(ledger.note("a", "started", sample=SAMPLE), "started")
    screen.tell(ledger.note("a", "ended", state=State.FINISHED, reason=""), "ended")
    screen.close()
    lines = text.getvalue().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == [
        "a started: policy_lr 0.001, clip_low 0.1, targets ['q_proj']",
        "a step 9: reward/mean 0.9, best reward/mean 0.9 at step 9",
        "a step 19: reward/mean 1.9, best reward/mean 1.9 at step 19",
        "a failed, starts again: [node] died",
        "a started again (2): policy_lr 0.001, clip_low 0.1, targets ['q_proj']",
        "a finished after 0:00:00: best reward/mean 2.4 at step 24",
    ]
    assert "\x1b" not in text.getvalue()


def test_a_plan_can_travel(plan: Plan) -> None:
    """It goes to every trial, pickled, and its settings to a file, as JSON."""
    import pickle
    from dataclasses import asdict

    assert pickle.loads(pickle.dumps(plan)) == plan
    assert load(SweepConfig, sample=json.loads(json.dumps(asdict(plan.sweep)))) == plan.sweep

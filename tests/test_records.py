"""The run directory: rollouts that read back whole, one process at a time, no resume that its checkpoints refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.settings import load
from rewards.types import Score, ScoredRollout
from rl.config import PpoRecipe
from rl.endings import reported
from rl.records import (
    SETTINGS,
    STATUS,
    RunInUse,
    check_resume,
    claimed,
    finished,
    provenance,
    write_atomically,
    write_rollouts,
    write_status,
)
from rollout.types import Finish, Prompt, Rollout, Speaker, Turn, VersionSpan

ROOT = Path(__file__).parents[1]
SOUND = (  # settings that run, whatever the defaults and the shipped recipes say
    *("--model.dtype=float32", "--model.tiny.context=320", "--model.tiny.layers=4", "--rollout.max_model_len=320"),
    *("--prompts.max_context_tokens=256", "--prompts.per_step=16", "--sampling.n=4", "--sampling.max_tokens=48"),
    *("--learner.ranks=2", "--learner.zero_stage=2", "--ppo.minibatches=2", "--ppo.policy_lr=3e-4", "--steps=50"),
)
HISTORY = (
    Turn(Speaker.CLIENT, "I can't sleep."),
    Turn(Speaker.THERAPIST, "Since when?"),
    Turn(Speaker.CLIENT, "März…"),
)


def recipe(directory: Path, *argv: str) -> PpoRecipe:
    """A recipe that runs in `directory`/run."""
    return load(PpoRecipe, argv=[*SOUND, f"--runs={directory}", "--name=run", *argv])


def scored(sample: int, parts: dict[str, float], flags: tuple[str, ...] = ()) -> ScoredRollout:
    rollout = Rollout(
        prompt=Prompt("esconv/train/0412#7", (1, 2), HISTORY, reference='A "quoted"\nline', emotion="sadness"),
        sample=sample,
        response_ids=(5, 151_642, 7),
        sampled_logprobs=(-0.1, -1e-9, -12.345678901234567),
        versions=(VersionSpan(4, 0, 2), VersionSpan(3, 2, 3)),
        text="I hear you — 眠れない",
        finish=Finish.TRUNCATED if sample else Finish.STOPPED,
    )
    return ScoredRollout(rollout, Score(0.25 + sample, parts, flags))


# -- rollouts --------------------------------------------------------------------------------------------------------


def test_a_reply_that_nobody_judged_has_no_reward(tmp_path: Path) -> None:
    """Null in the file, and no reply of the report: not a reward of 0."""
    item = scored(1, {"length": 0.5})
    path = write_rollouts(
        tmp_path, 0, [scored(0, {"length": 0.5}), replace(item, score=replace(item.score, dropped=True))]
    )
    first, second = pq.read_table(path)["reward"].to_pylist()
    assert first is not None and second is None


def test_rollouts_read_back_as_they_were(tmp_path: Path) -> None:
    """One row per reply, in order, with every field exact: any script, ids above 16 bits, log-probs to the bit."""
    items = [scored(0, {"length": 1.0}), scored(1, {"length": 0.5}, ("false-hope", "dismissal"))]
    path = write_rollouts(tmp_path, 50, items)
    assert path == tmp_path / "rollouts" / "step-000050.parquet"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == 2
    for row, item in zip(rows, items, strict=True):
        rollout = item.rollout
        assert row == {
            "step": 50,
            "prompt_id": "esconv/train/0412#7",
            "sample": rollout.sample,
            "history": "Client: I can't sleep.\nTherapist: Since when?\nClient: März…",
            "reply": rollout.text,
            "reference": 'A "quoted"\nline',
            "emotion": "sadness",
            "finish": rollout.finish.value,
            "tokens": 3,
            "policy_version": 3,
            "response_ids": list(rollout.response_ids),
            "sampled_logprobs": list(rollout.sampled_logprobs),
            "reward": item.score.value,
            "flags": list(item.score.flags),
            "part/length": item.score.parts["length"],
        }


def test_a_part_that_did_not_apply_is_null(tmp_path: Path) -> None:
    """A term that had nothing to say of a reply is null in its row, which is not 0."""
    path = write_rollouts(tmp_path, 0, [scored(0, {"length": 0.0}), scored(1, {"emotion": 0.75})])
    columns = pq.read_table(path).to_pydict()
    assert columns["part/length"] == [0.0, None] and columns["part/emotion"] == [None, 0.75]


def test_columns_have_one_type_whatever_the_step_holds(tmp_path: Path) -> None:
    """Files of different steps can be read as one data set, even where a step has no flags at all."""
    write_rollouts(tmp_path, 0, [scored(0, {"length": 0.5})])
    write_rollouts(tmp_path, 1, [scored(0, {"length": 1.0}, ("false-hope",)), scored(1, {"length": 0.5})])
    whole = pq.read_table(tmp_path / "rollouts")
    assert whole.num_rows == 3 and sorted(whole["step"].to_pylist()) == [0, 1, 1]


def test_a_step_taken_again_replaces_its_file(tmp_path: Path) -> None:
    """A resumed run leaves one file per step: its own."""
    write_rollouts(tmp_path, 3, [scored(0, {"length": 0.5}), scored(1, {"length": 0.5})])
    path = write_rollouts(tmp_path, 3, [scored(1, {"length": 0.5})])
    assert pq.read_table(path)["sample"].to_pylist() == [1]
    assert len(list(path.parent.iterdir())) == 1


# -- one process at a time -------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from cluster.settings import load
from rl.config import PpoRecipe
from rl.records import claimed
with claimed(load(PpoRecipe, argv=sys.argv[1:])):
    print("claimed", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process that works in the run directory."""
    words = [sys.executable, "-c", HOLDER, *SOUND, f"--runs={directory}", "--name=run"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_run_directory_is_for_one_process(tmp_path: Path) -> None:
    """A second process is refused, told who is there, and changes nothing; when that one is killed it may go on."""
    with other_process(tmp_path) as other:
        before = (tmp_path / "run" / SETTINGS).read_text()
        with pytest.raises(RunInUse) as caught, claimed(recipe(tmp_path, "--steps=7")):
            raise AssertionError("two processes in one directory")
        message = str(caught.value)
        assert f"process {other.pid} on " in message and str(tmp_path / "run") in message and "--name" in message
        assert "\n" not in message
        assert (tmp_path / "run" / SETTINGS).read_text() == before
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with claimed(recipe(tmp_path, "--steps=7")) as directory:
            assert directory == tmp_path / "run"
            assert json.loads((directory / SETTINGS).read_text())["steps"] == 7
            assert f"process {os.getpid()} on" in (directory / ".lock").read_text()


def test_only_this_very_run_is_finished(tmp_path: Path) -> None:
    """A run is finished when its status says so and its settings are these; a new, a failed and a longer one are not."""
    assert not finished(recipe(tmp_path))
    with claimed(recipe(tmp_path)) as directory:
        for state, is_it in (("running", False), ("failed", False), ("finished", True)):
            write_status(directory, state, 5)
            assert finished(recipe(tmp_path)) is is_it
    assert not finished(recipe(tmp_path, "--steps=7"))


def test_the_claim_ends_with_the_run(tmp_path: Path) -> None:
    """Runs one after another, and one after a failed one, claim the same directory."""
    with pytest.raises(KeyError), claimed(recipe(tmp_path)):
        raise KeyError
    with claimed(recipe(tmp_path)), pytest.raises(RunInUse), claimed(recipe(tmp_path)):
        pass
    with claimed(recipe(tmp_path)):
        pass


# -- resume ----------------------------------------------------------------------------------------------------------


def begun(directory: Path, *argv: str, steps: int = 1) -> Path:
    """A run directory with settings and, when `steps`, a checkpoint."""
    with claimed(recipe(directory, *argv)) as run:
        if steps:
            (run / "checkpoints" / f"step-{steps:06d}").mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    ("argv", "name", "before", "now"),
    [
        ("--seed=1", "seed", "0", "1"),
        ("--model.dtype=bfloat16", "model.dtype", "'float32'", "'bfloat16'"),
        ("--model.tiny.layers=5", "model.tiny.layers", "4", "5"),
        ("--learner.ranks=1", "learner.ranks", "2", "1"),
        ("--learner.zero_stage=3", "learner.zero_stage", "2", "3"),
        ("--prompts.per_step=32", "prompts.per_step", "16", "32"),
        ("--sampling.max_tokens=40", "sampling.max_tokens", "48", "40"),
        ("--corpus.split_seed=14", "corpus.split_seed", "13", "14"),
        ("--rewards.normalise=True", "rewards.normalise", "False", "True"),
    ],
)
def test_what_checkpoints_hold_cannot_change(argv: str, name: str, before: str, now: str, tmp_path: Path) -> None:
    """The message names the run, the knob, both values and what to do, and the saved settings stay those of the run."""
    run = begun(tmp_path)
    saved = (run / SETTINGS).read_text()
    with pytest.raises(ValueError) as caught, claimed(recipe(tmp_path, argv)):
        raise AssertionError("resumed")
    message = str(caught.value)
    assert f"{name} = {before}" in message and now in message and str(run) in message and "--name" in message
    assert "\n" not in message
    assert (run / SETTINGS).read_text() == saved


def test_what_checkpoints_do_not_hold_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More steps, other learning rates, weights or engines: the change is said in one line, and saved."""
    run = begun(tmp_path)
    capsys.readouterr()
    argv = ("--steps=80", "--ppo.policy_lr=1e-5", "--rewards.length.weight=2", "--rollout.engines=2")
    with claimed(recipe(tmp_path, *argv)):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    for change in ("steps 50 -> 80", "ppo.policy_lr 0.0003 -> 1e-05", "rewards.length.weight 0.5 -> 2.0"):
        assert change in line
    assert line.count("->") == 4
    with claimed(recipe(tmp_path, *argv)):
        pass
    assert json.loads((run / SETTINGS).read_text())["steps"] == 80
    assert capsys.readouterr().out == ""


def test_without_a_checkpoint_everything_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to resume, so nothing to refuse and nothing to say."""
    begun(tmp_path, steps=0)
    check_resume(tmp_path / "run", recipe(tmp_path, "--seed=1", "--learner.ranks=1"))
    check_resume(tmp_path / "nowhere", recipe(tmp_path))
    assert capsys.readouterr().out == ""


def test_a_run_does_not_shrink(tmp_path: Path) -> None:
    """Fewer steps than the run has made: refused, with their number; as many are allowed."""
    run = begun(tmp_path)
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(8)))
    check_resume(run, recipe(tmp_path, "--steps=8"))
    with pytest.raises(ValueError, match=r"steps must be at least the 8 that .*run has made, is 7; raise it"):
        check_resume(run, recipe(tmp_path, "--steps=7"))


def test_a_setting_that_did_not_exist_then_is_no_change(tmp_path: Path) -> None:
    """A run made by an older version, whose settings lack a name, resumes."""
    run = begun(tmp_path)
    saved = json.loads((run / SETTINGS).read_text())
    del saved["model"]["gradient_checkpointing"]
    (run / SETTINGS).write_text(json.dumps(saved))
    check_resume(run, recipe(tmp_path))


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Text that cannot be written leaves the old file; a reader with the old file open still reads it whole."""
    path = tmp_path / "status.json"
    write_atomically(path, "old " * 1000)
    with path.open() as reader:
        write_atomically(path, "new")
        assert reader.read() == "old " * 1000
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half a pair: \ud800")
    assert path.read_text() == "new"


def test_the_status_says_how_a_run_stands(tmp_path: Path) -> None:
    """State, step and message, in one line of JSON whatever the message holds."""
    write_status(tmp_path, "running", 3)
    write_status(tmp_path, "failed", 4, 'a "quoted"\nmessage')
    (line,) = (tmp_path / STATUS).read_text().splitlines()
    assert json.loads(line) == {"state": "failed", "step": 4, "message": 'a "quoted"\nmessage'}


def test_an_interruption_is_no_failure(tmp_path: Path) -> None:
    """Status and report of a run that somebody ended say so."""
    with pytest.raises(KeyboardInterrupt), reported(tmp_path):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / STATUS).read_text()) == {"state": "interrupted", "step": 0, "message": "interrupted"}
    assert "The run was interrupted" in (tmp_path / "report.html").read_text()


def test_provenance_says_what_made_the_run(tmp_path: Path) -> None:
    """Time in UTC, the code's revision, installed versions, corpus and model: JSON, with no name for what is absent."""
    made = provenance(recipe(tmp_path), {"sha256": "abc"}, "some/model")
    assert json.loads(json.dumps(made)).keys() == made.keys()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["time"])
    assert made["corpus"] == {"sha256": "abc"} and made["model"]["path"] == "some/model"
    assert made["model"]["settings"]["tiny"]["context"] == 320
    assert {"torch", "ray", "pyarrow"} <= set(made["packages"]) and all(made["packages"].values())
    assert made["git_revision"]


def test_the_directory_is_where_the_recipe_says(tmp_path: Path) -> None:
    """`runs`/`name`, made with its parents; the settings in it give the recipe back."""
    mine = replace(recipe(tmp_path / "deep" / "er"), name="other")
    with claimed(mine) as directory:
        assert directory == tmp_path / "deep" / "er" / "other"
        assert load(PpoRecipe, sample=json.loads((directory / SETTINGS).read_text())) == mine

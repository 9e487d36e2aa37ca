"""Checkpoints: what was saved comes back, and no kill, full disk or damaged file costs more than the newest one."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rewards.config import RewardsConfig
from rewards.guard_file import GUARD_FILE, guard_settings, read_guard
from rewards.mixture import Mixture
from rewards.panel import Measurement
from rl.checkpoints import MANIFEST, STATE, Checkpoints, DamagedCheckpoint, read_checkpoint
from rollout.config import PromptsConfig
from rollout.prompts import PromptStream
from rollout.types import Prompt

Write = Callable[[Path, bytes], object]


class Weights:
    """A learner that is `bytes`: checks where it is told to save, and writes by `write` when a run's disk is real."""

    def __init__(self, content: bytes = b"", write: Write = Path.write_bytes) -> None:
        self.content, self._write = content, write

    def save(self, folder: Path) -> dict[str, Any]:
        assert folder.is_absolute() and folder.is_dir() and not any(folder.iterdir())
        (folder / "learner").mkdir()
        (folder / "policy").mkdir()
        (folder / "policy" / "config.json").write_text("{}")
        self._write(folder / "learner" / "weights.bin", self.content)
        return {"length": len(self.content)}

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        assert folder.is_absolute()
        self.content = (folder / "learner" / "weights.bin").read_bytes()
        assert state == {"length": len(self.content)}


def prompts() -> PromptStream:
    named = [Prompt(f"p/{n}", (n,), ()) for n in range(7)]
    return PromptStream(named, (), (), PromptsConfig(fixed_share=0, crisis_share=0), seed=1)


def mixture() -> Mixture:
    return Mixture(RewardsConfig(normalise=True))


def checkpoints(directory: Path, *, every: int = 1, keep: int = 2, steps: int = 100) -> Checkpoints:
    return Checkpoints(directory, every=every, keep=keep, steps=steps)


def save(
    saved: Checkpoints,
    step: int,
    *,
    reward: float = 0.0,
    flags: Mapping[str, float] | None = None,
    write: Write = Path.write_bytes,
) -> Path:
    """Save weights that say their step."""
    saved.note(reward, flags)
    return saved.save(step, Weights(f"after {step + 1} steps".encode(), write), prompts=prompts(), reward=mixture())


def restored(saved: Checkpoints) -> tuple[int, bytes]:
    learner = Weights()
    return saved.restore(learner, prompts=prompts(), reward=mixture()), learner.content


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_comes_back(tmp_path: Path) -> None:
    """The newest checkpoint's step, learner, prompt stream and reward statistics go on where they stood."""
    stream, reward, saved = prompts(), mixture(), checkpoints(tmp_path)
    for step in range(3):
        stream.draw(3)
        reward.combine([Measurement({"length": 0.1 * step}), Measurement({"length": 0.9})])
        saved.save(step, Weights(bytes([step])), prompts=stream, reward=reward)
    learner, stream_again, reward_again = Weights(), prompts(), mixture()
    assert checkpoints(tmp_path).restore(learner, prompts=stream_again, reward=reward_again) == 3
    assert learner.content == bytes([2])
    assert stream_again.draw(5) == stream.draw(5)
    assert reward_again.state_dict() == reward.state_dict()


def test_a_new_run_starts_at_0(tmp_path: Path) -> None:
    """Without checkpoints nothing is restored and nothing is written."""
    learner, stream, reward = Weights(b"fresh"), prompts(), mixture()
    before = stream.state_dict(), reward.state_dict()
    assert checkpoints(tmp_path / "new").restore(learner, prompts=stream, reward=reward) == 0
    assert learner.content == b"fresh" and (stream.state_dict(), reward.state_dict()) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("every", "steps"), [(1, 3), (3, 10), (4, 8), (10, 7)])
def test_due_every_so_often_and_at_the_end(every: int, steps: int, tmp_path: Path) -> None:
    """After `step + 1` steps a save is due when that is a multiple of `every`, or the whole run."""
    saved = checkpoints(tmp_path, every=every, steps=steps)
    assert [s + 1 for s in range(steps) if saved.due(s)] == sorted({*range(every, steps + 1, every), steps})


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    """After every save there are the newest `keep` and the best, judged by the mean reward since the one before."""
    saved = checkpoints(tmp_path, keep=2)
    rewards = [[0.1, 0.3], [0.9, 0.5], [0.6], [1.0, 0.1, 0.1], [0.2], [0.8], [0.0]]
    best = [0, 1, 1, 1, 1, 5, 5]
    for step, since in enumerate(rewards):
        for reward in since:
            saved.note(reward)
        saved.save(step, Weights(), prompts=prompts(), reward=mixture())
        kept = {f"step-{k + 1:06d}" for k in (step - 1, step, best[step]) if k >= 0}
        assert {folder.name for folder in saved.folders()} == kept
        assert saved.best() == tmp_path / f"step-{best[step] + 1:06d}"
        assert (tmp_path / "best").resolve() == saved.best()
        assert not (tmp_path / "best").readlink().is_absolute()  # the run directory can be moved


def test_the_same_step_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    """A run that resumed before a damaged checkpoint writes that step anew."""
    saved = checkpoints(tmp_path)
    for content in (b"first", b"second"):
        saved.save(4, Weights(content), prompts=prompts(), reward=mixture())
    assert restored(saved) == (5, b"second")
    assert names(tmp_path) == ["best", "step-000005"]


# -- the best --------------------------------------------------------------------------------------------------------


def test_a_better_score_with_more_red_flags_is_not_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first is best; a later one takes over with a higher score and no flag's rate above the best's; who is refused
    for a rise is said in one line, with both figures."""
    saved = checkpoints(tmp_path, keep=9)
    course = [  # score, rate, best step after it
        (0.5, 0.10, 1),
        (0.6, 0.11, 1),  # better, and flagged more
        (0.4, 0.00, 1),  # flagged less, and worse
        (0.7, 0.10, 4),  # better, and flagged as much
        (0.8, 0.05, 5),
        (0.9, 0.06, 5),  # no more than the first, but more than the best
        (0.8, 0.00, 5),  # no better
    ]
    with caplog.at_level(logging.WARNING):
        for step, (reward, rate, best) in enumerate(course):
            save(saved, step, reward=reward, flags={"safety/gated": rate})
            assert saved.best() == (tmp_path / "best").resolve() == tmp_path / f"step-{best:06d}"
    first, second = [record.getMessage() for record in caplog.records]
    assert "step-000002 scores 0.6000, above the 0.5000 of step-000001" in first
    assert "safety/gated 0.1000 -> 0.1100" in first
    assert "step-000006 scores 0.9000, above the 0.8000 of step-000005" in second


def test_no_flag_may_rise_behind_another_that_falls(tmp_path: Path) -> None:
    """Every flag's rate counts, not only the share of flagged replies; a flag that is not named has rate 0."""
    saved = checkpoints(tmp_path, keep=9)
    save(saved, 0, reward=0.1, flags={"safety/gated": 0.5, "safety/dismissal": 0.5})
    save(saved, 1, reward=0.2, flags={"safety/gated": 0.1, "safety/dosage": 0.1})
    assert saved.best() == tmp_path / "step-000001"
    save(saved, 2, reward=0.2, flags={"safety/gated": 0.4, "safety/dismissal": 0.4})
    assert saved.best() == tmp_path / "step-000003"


def test_rates_are_means_over_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    """The state holds the mean rate of each flag; a step that does not name a flag counts as 0."""
    saved = checkpoints(tmp_path)
    saved.note(0.5, {"safety/dosage": 0.25})
    folder = save(saved, 1, reward=0.5, flags={"safety/gated": 0.5})
    assert read_checkpoint(folder)["red_flags"] == {"safety/dosage": 0.125, "safety/gated": 0.25}
    assert read_checkpoint(save(saved, 2))["red_flags"] == {}


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "a restart after every save"])
def test_pruning_and_restarts_do_not_change_who_is_best(restarts: bool, tmp_path: Path) -> None:
    """With two kept, all kept, or a fresh process after each save, the same checkpoints are best after the same saves."""
    draw = random.Random(4)
    course = [(draw.random() + step / 20, draw.choice([0.0, 0.1, 0.2])) for step in range(12)]
    whole, pruned = checkpoints(tmp_path / "whole", keep=99), checkpoints(tmp_path / "pruned", keep=1)
    bests = []
    for step, (reward, rate) in enumerate(course):
        if restarts:
            pruned = checkpoints(tmp_path / "pruned", keep=1)
            assert restored(pruned)[0] == step
        for saved in (whole, pruned):
            save(saved, step, reward=reward, flags={"safety/gated": rate})
        best, same = whole.best(), pruned.best()
        assert best is not None and same is not None and best.name == same.name
        bests.append(best.name)
    assert 2 < len(set(bests)) < 9


def test_the_best_that_was_refused_the_name_does_not_gain_it_when_others_go(tmp_path: Path) -> None:
    """A refused checkpoint stays refused when the one that it was compared with has been pruned."""
    saved = checkpoints(tmp_path, keep=2)
    save(saved, 0, reward=0.1, flags={"safety/gated": 0.1})
    save(saved, 1, reward=0.9, flags={"safety/gated": 0.2})
    save(saved, 2, reward=0.5, flags={"safety/gated": 0.1})
    assert [folder.name for folder in saved.folders()] == ["step-000002", "step-000003"]
    assert saved.best() == tmp_path / "step-000003"


def test_a_lost_best_is_followed_by_the_one_before_or_the_next(tmp_path: Path) -> None:
    """When the best is damaged, the former best is it, while it is there; with none left, the next that is saved."""
    saved = checkpoints(tmp_path, keep=2)
    save(saved, 0, reward=0.1)
    flip(save(saved, 1, reward=0.2) / STATE)
    tear(tmp_path / "step-000002" / STATE)
    assert saved.best() == tmp_path / "step-000001"
    tear(tmp_path / "step-000001" / STATE)
    assert saved.best() is None
    save(saved, 2, reward=0.0)
    assert saved.best() == tmp_path / "step-000003"


def test_a_score_that_is_no_number_is_never_best(tmp_path: Path) -> None:
    """NaN and infinity take no name, neither as the first nor later."""
    saved = checkpoints(tmp_path, keep=9)
    save(saved, 0, reward=float("nan"))
    assert saved.best() is None
    save(saved, 1, reward=0.1)
    save(saved, 2, reward=float("inf"))
    assert saved.best() == tmp_path / "step-000002"


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Checkpoints that kept no rates and no word on who is best resume; the highest score is best until one beats it."""
    saved = checkpoints(tmp_path, keep=9)
    for step, reward in enumerate([0.2, 0.6, 0.4]):
        folder = save(saved, step, reward=reward)
        state = json.loads((folder / STATE).read_text())
        del state["best"], state["red_flags"]
        (folder / STATE).write_text(json.dumps(state))
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest[STATE] = hashlib.sha256((folder / STATE).read_bytes()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(manifest))
    again = checkpoints(tmp_path, keep=9)
    assert restored(again) == (3, b"after 3 steps") and again.best() == tmp_path / "step-000002"
    save(again, 3, reward=0.5, flags={"safety/gated": 0.1})
    assert again.best() == tmp_path / "step-000002"
    save(again, 4, reward=0.7, flags={"safety/gated": 0.1})
    assert again.best() == tmp_path / "step-000005"
    save(again, 5, reward=0.8, flags={"safety/gated": 0.2})
    assert again.best() == tmp_path / "step-000005"


# -- the guard -------------------------------------------------------------------------------------------------------


def test_every_policy_carries_its_guard(tmp_path: Path) -> None:
    """`policy/` holds the guard's settings, which the manifest covers: who changes them damages the checkpoint."""
    settings = guard_settings("en-GB")
    saved = Checkpoints(tmp_path, keep=2, guard=settings)
    folder = save(saved, 0)
    assert read_guard(folder / "policy") == settings
    assert read_checkpoint(folder)["step"] == 1
    file = folder / "policy" / GUARD_FILE
    file.write_text(file.read_text().replace("116 123", "116 124"))
    with pytest.raises(DamagedCheckpoint, match=r"policy/guard\.json is not the file that was saved"):
        read_checkpoint(folder)


# -- a save that does not end ----------------------------------------------------------------------------------------


def out_of_space(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_writer(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    raise RuntimeError("unexpected pos 576 vs 534")  # what torch.save says of a full disk


def test_a_save_without_room_leaves_what_was_there(tmp_path: Path) -> None:
    """The error says which checkpoint and why; earlier ones stay, no remains take up room, and the next save works."""
    saved = checkpoints(tmp_path)
    save(saved, 0)
    with pytest.raises(OSError, match=r"step-000002 .*No space left on device.*earlier ones stay") as caught:
        save(saved, 1, write=out_of_space)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["best", "step-000001"]
    assert restored(saved) == (1, b"after 1 steps")
    save(saved, 1)
    assert restored(saved) == (2, b"after 2 steps")


def test_any_failure_clears_its_remains_away(tmp_path: Path) -> None:
    """Whatever a writer raises arrives as it was, and the half-written folder is gone."""
    saved = checkpoints(tmp_path)
    save(saved, 0)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        save(saved, 1, write=broken_writer)
    assert names(tmp_path) == ["best", "step-000001"]


def test_rewards_of_a_failed_save_still_count(tmp_path: Path) -> None:
    """The next checkpoint is judged by all rewards since the last one that was written."""
    saved = checkpoints(tmp_path)
    with pytest.raises(OSError):
        save(saved, 0, reward=1.0, write=out_of_space)
    assert read_checkpoint(save(saved, 1, reward=0.0))["score"] == 0.5


def killed_while_writing(directory: Path) -> None:
    def write(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    save(checkpoints(directory), 1, write=write)


def killed_save(directory: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(directory,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_kill_in_a_save_leaves_what_was_there(tmp_path: Path) -> None:
    """The half-written folder of a killed process is no checkpoint, and the same step can be saved again."""
    saved = checkpoints(tmp_path)
    save(saved, 0)
    killed_save(tmp_path)
    assert names(tmp_path) == [".step-000002.partial", "best", "step-000001"]
    assert saved.folders() == [tmp_path / "step-000001"] and restored(saved) == (1, b"after 1 steps")
    save(saved, 1)
    assert names(tmp_path) == ["best", "step-000001", "step-000002"]
    assert restored(saved) == (2, b"after 2 steps")


def test_remains_of_a_kill_do_not_stay(tmp_path: Path) -> None:
    """A run that goes on, perhaps with another `checkpoint.every`, gives the room of the half-written folder back."""
    saved = checkpoints(tmp_path)
    save(saved, 0)
    (tmp_path / ".step-000002.partial").mkdir()
    restored(saved)
    save(saved, 2)
    assert ".step-000002.partial" not in names(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("a small disk needs root and `mount`")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "attune-test", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a writer that failed may hold its file open


def by_torch(path: Path, content: bytes) -> None:
    import torch  # here, so that the process that is to be killed starts fast

    torch.save(torch.zeros(len(content), dtype=torch.uint8), path)


def by_safetensors(path: Path, content: bytes) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(len(content), dtype=torch.uint8)}, path)


@pytest.mark.parametrize(
    "write",
    [
        Path.write_bytes,
        by_torch,
        by_safetensors,
    ],
    ids=["file", "torch", "safetensors"],
)
def test_a_full_disk_is_said_and_survived(write: Write, small_disk: Path) -> None:
    """However the learner writes, a full disk is an OSError that says so; what was there stays and can go on."""
    saved = checkpoints(small_disk)
    save(saved, 0)
    with pytest.raises(OSError, match=r"step-000002 .*earlier ones stay") as caught:
        saved.save(1, Weights(bytes(4 << 20), write), prompts=prompts(), reward=mixture())
    assert caught.value.errno == errno.ENOSPC
    del caught  # torch's writer holds the deleted file, and its room, as long as the error lives
    gc.collect()
    assert restored(saved) == (1, b"after 1 steps")
    save(saved, 1)
    assert restored(saved) == (2, b"after 2 steps")


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One bit of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    """Half of the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path: Path) -> None:
    """Bytes that are no text."""
    path.write_bytes(b"\xff\xfe\x00\x80" * 8)


DAMAGES = [
    pytest.param(flip, "learner/weights.bin", id="a flipped bit"),
    pytest.param(tear, "learner/weights.bin", id="a torn file"),
    pytest.param(Path.unlink, "policy/config.json", id="a missing file"),
    pytest.param(flip, STATE, id="a flipped bit of the state"),
    pytest.param(tear, STATE, id="a torn state"),
    pytest.param(Path.unlink, STATE, id="a missing state"),
    pytest.param(tear, MANIFEST, id="a torn manifest"),
    pytest.param(scramble, MANIFEST, id="a scrambled manifest"),
    pytest.param(Path.unlink, MANIFEST, id="a missing manifest"),
]


@pytest.mark.parametrize(("damage", "file"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], None], file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the checkpoint and the file, and the run goes on from the one before, whole."""
    saved = checkpoints(tmp_path)
    save(saved, 0)
    damage(save(saved, 1) / file)
    with caplog.at_level(logging.WARNING):
        assert restored(saved) == (1, b"after 1 steps")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "step-000002" in said and file in said and "one before" in said


def test_a_run_saves_on_beside_a_damaged_checkpoint(tmp_path: Path) -> None:
    """A damaged neighbour never makes a save fail, and is never the best."""
    saved = checkpoints(tmp_path, keep=3)
    save(saved, 0, reward=0.5)
    tear(save(saved, 1, reward=1.0) / STATE)
    assert restored(saved)[0] == 1
    save(saved, 2, reward=0.1)
    assert saved.best() == tmp_path / "step-000001"


def test_no_sound_checkpoint_is_an_error(tmp_path: Path) -> None:
    """Where there are checkpoints and none is sound, the run says so: a person decides whether to start over them."""
    saved = checkpoints(tmp_path)
    for step in range(2):
        flip(save(saved, step) / "learner" / "weights.bin")
    learner = Weights(b"fresh")
    with pytest.raises(DamagedCheckpoint, match=r"step-000001|none of"):
        saved.restore(learner, prompts=prompts(), reward=mixture())
    assert learner.content == b"fresh"


def test_a_sound_checkpoint_reads_as_saved(tmp_path: Path) -> None:
    """The manifest lists every file but itself, and the state is what was given."""
    folder = save(checkpoints(tmp_path), 0, reward=0.25)
    manifest = json.loads((folder / MANIFEST).read_text())
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(manifest) == files - {MANIFEST}
    state = read_checkpoint(folder)
    assert (state["step"], state["score"], state["learner"]) == (1, 0.25, {"length": len(b"after 1 steps")})

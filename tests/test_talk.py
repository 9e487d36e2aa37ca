"""The chat at the terminal: what is said first, what a person in danger reads, how it ends. Real untrained models."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.crisis import Tier
from rewards.guard import guard_settings
from rl import talk as talk_module
from rl.talk import FIXED, NOTICE, Policy, talk
from rollout.types import Turn
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[1]
DANGER = "I am going to kill myself tonight."
GUARD = guard_settings(classifier=False)
FIXED_REPLY, HELP = GUARD.crisis[Tier.IMMINENT], GUARD.notice
Chatter = Callable[..., list[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("talk") / "model", "gpt2")
    GUARD.write(folder)
    return folder


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chatter:
    """Type lines into a chat with the model in a folder; the lines on the screen."""

    def run(folder: Path, *lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        torch.manual_seed(0)
        talk(folder)
        return capsys.readouterr().out.split("\n")

    return run


def between(screen: list[str], first: str, last: str) -> list[str]:
    """The lines after `first` up to `last`."""
    start = screen.index(first) + 1
    return screen[start : screen.index(last, start)]


def test_a_piped_chat_warns_first_and_ends_with_its_input(model: Path) -> None:
    """With no terminal the notice is the first line, every line is answered, and the end of input is a good end."""
    command = [sys.executable, "-m", "rl", "talk", str(model)]
    answer = subprocess.run(
        command, input="Hello there.\nI sleep badly.\n", capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines[0] == f"{NOTICE} {HELP}"
    assert "not a substitute for care" in lines[0] and "988" in lines[0] and "local emergency number" in lines[0]
    asked = [lines.index("you: Hello there."), lines.index("you: I sleep badly.")]
    assert all(lines[index + 1].startswith("policy: ") for index in asked)
    assert lines[-1] == "Goodbye."


@pytest.mark.parametrize("key", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_a_terminal_is_left_politely(model: Path, key: bytes) -> None:
    """At a terminal Ctrl-C and Ctrl-D say goodbye, without a traceback, with exit code 0."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "rl", "talk", str(model)]
    child = subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True, preexec_fn=_own_terminal
    )
    os.close(theirs)
    seen = _typed(ours, b"", b"you: ")
    seen += _typed(ours, key, b"Goodbye.")
    assert child.wait(timeout=60) == 0
    assert b"Traceback" not in seen


def _own_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in a shell's background inherit that it is ignored
    os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's first terminal is the one whose keys signal it


def _typed(terminal: int, key: bytes, answer: bytes) -> bytes:
    """Press `key` until `answer` is on the screen: one that comes just before the program waits for it is lost."""
    seen = b""
    while answer not in seen:
        os.write(terminal, key)
        patience = time.monotonic() + 10
        while answer not in seen and select.select([terminal], [], [], max(patience - time.monotonic(), 0))[0]:
            seen += os.read(terminal, 4096)
    return seen


def test_who_is_in_danger_reads_a_fixed_text(chat: Chatter, model: Path) -> None:
    """A message that shows active or imminent danger is answered by our text, labelled as such, and by no model."""
    screen = chat(model, DANGER, "/quit")
    assert between(screen, f"you: {DANGER}", "you: /quit") == [f"{FIXED}: {FIXED_REPLY}"]
    assert "not the model" in FIXED and "988" in FIXED_REPLY and "local emergency number" in FIXED_REPLY


def test_idioms_are_left_to_the_model(chat: Chatter, model: Path) -> None:
    """Words that only sound like danger get the model's answer alone."""
    screen = chat(model, "This job is killing me.", "/quit")
    said = "\n".join(between(screen, "you: This job is killing me.", "you: /quit"))
    assert said.startswith("policy: ") and FIXED not in said


def test_danger_is_remembered_until_a_new_conversation(chat: Chatter, model: Path) -> None:
    """After a disclosure the model's answers to harmless words are followed by where to turn; after /new they stop."""
    screen = chat(model, DANGER, "What is for lunch?", "/new", "And for dinner?", "/quit")
    assert between(screen, "you: What is for lunch?", "you: /new")[-1] == f"{FIXED}: {HELP}"
    assert not any(FIXED in line for line in between(screen, "you: And for dinner?", "you: /quit"))


def test_a_harmful_reply_is_not_shown(chat: Chatter, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply with a red flag never reaches the screen or the conversation: its flags do, and our text."""
    harmful, heard = "You should stop taking your medication.", list[str]()

    class Harmful(Policy):
        def reply(self, turns: tuple[Turn, ...]) -> str:
            heard.append(turns[-1].text)
            heard.extend(turn.text for turn in turns)
            return harmful

    monkeypatch.setattr(talk_module, "Policy", Harmful)
    screen = chat(model, "I sleep badly.", "Really?", "/quit")
    assert between(screen, "you: I sleep badly.", "you: Really?") == [
        "policy: (not shown: dosage)",
        f"{FIXED}: {GUARD.unsafe}",
    ]
    assert not any(harmful in line for line in screen) and harmful not in heard and GUARD.unsafe in heard


def test_a_checkpoint_brings_its_own_guard(chat: Chatter, model: Path, tmp_path: Path) -> None:
    """The helplines are those of the folder's guard.json; a folder without one is guarded for the US."""
    british, bare = tmp_path / "british", tmp_path / "bare"
    for folder in (british, bare):
        shutil.copytree(model, folder)
    guard_settings("en-GB", classifier=False).write(british)
    (bare / "guard.json").unlink()
    for folder, number in ((british, "116 123"), (bare, "988")):
        screen = chat(folder, DANGER, "/quit")
        assert number in screen[0] and number in between(screen, f"you: {DANGER}", "you: /quit")[0]


def test_a_sampled_reply_cannot_command_the_terminal(chat: Chatter, model: Path) -> None:
    """Whatever bytes a model samples, what reaches the screen can be printed."""
    screen = chat(model, *[f"Hello {n}." for n in range(4)])
    assert len("".join(screen)) > 500
    assert all(line.isprintable() for line in screen)


def test_a_saved_conversation_is_what_was_said(chat: Chatter, model: Path, tmp_path: Path) -> None:
    """/save writes the notice and every turn as on the screen, and never over a file that is there."""
    file = tmp_path / "said.txt"
    screen = chat(model, "I sleep badly.", DANGER, f"/save {file}", f"/save {file}", "/save", "/quit")
    said = file.read_text(encoding="utf-8")
    shown = screen[screen.index("you: I sleep badly.") : screen.index(f"you: /save {file}")]
    assert said.split() == [*NOTICE.split(), *HELP.split(), *" ".join(shown).split()]
    first, second = screen.index("Saved 4 turns to " + str(file) + "."), screen.index(f"you: /save {file}") + 3
    assert screen[second].startswith("Not saved") and str(file) in screen[second] and first < second
    assert screen[screen.index("you: /save") + 1].startswith("There is no such command")


def test_a_message_that_is_too_long_is_not_asked(chat: Chatter, model: Path) -> None:
    """What exceeds the model's context is refused in words, and the conversation goes on without it."""
    screen = chat(model, "word " * 2000, "Hello.", "/quit")
    assert any(line.startswith("policy: (not asked") for line in screen)
    assert between(screen, "you: Hello.", "you: /quit")[0].startswith("policy: ")


@pytest.mark.parametrize("name", ["checkpoints/step-000050", "checkpoints/best", "checkpoints/step-000050/policy"])
def test_a_checkpoint_speaks_with_its_runs_system_text(chat: Chatter, model: Path, tmp_path: Path, name: str) -> None:
    """A step, `best` and `policy/` are one policy, told what its run told it: here in the end more than it reads."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000050"
    shutil.copytree(model, checkpoint / "policy")
    (checkpoint.parent / "best").symlink_to(checkpoint.name)
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(json.dumps({"prompts": {"system": "Listen."}}))
    assert not any("not asked" in line for line in chat(tmp_path / "run" / name, "Hello."))
    settings.write_text(json.dumps({"job": "sft"}))  # a supervised run asks no prompts
    assert not any("not asked" in line for line in chat(tmp_path / "run" / name, "Hello."))
    settings.write_text(json.dumps({"prompts": {"system": "Listen. " * 500}}))
    assert any("not asked" in line for line in chat(tmp_path / "run" / name, "Hello."))


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "half the weights": (_truncate, "model.safetensors"),
    "a tensor too few": (_lose_a_tensor, "transformer.h.1.mlp.c_fc.weight"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(model: Path, tmp_path: Path, damage: str) -> None:
    """Nobody talks to a model with holes: the error names the folder, what it lacks and what to give instead."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    break_it, lacking = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(ValueError) as caught:
        talk(folder)
    message = str(caught.value)
    assert str(folder) in message and lacking in message and "give RUN/checkpoints/best" in message
    assert "\n" not in message


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A path that is no folder is never taken for a hub id: FileNotFoundError, naming it."""
    with pytest.raises(FileNotFoundError, match="nowhere is none; give RUN/checkpoints/best"):
        talk(tmp_path / "nowhere")

"""`attune talk`: a chat with a trained policy at the terminal, for people who want to hear what they trained."""

from __future__ import annotations

import json
import readline  # noqa: F401 (gives `input` a line that can be edited)
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cluster.device import current_device
from cluster.model_files import model_files
from rewards.guard import Action, Guard, guard_settings
from rewards.guard_file import GUARD_FILE
from rl.records import SETTINGS
from rollout.chat import Chat, PromptTooLong
from rollout.types import Speaker, Turn

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
REPLY_TOKENS, CONTEXT_TOKENS = 200, 4096  # at most, where the model could take more
REMEDY = "give RUN/checkpoints/best or another folder that transformers loads"
NOTICE = "Research software: a language model under study, not a substitute for care."
COMMANDS = "/new starts again, /save FILE writes the conversation, /quit ends."
FIXED = "attune (a fixed text, not the model)"


def talk(checkpoint: Path) -> None:
    """Chat on standard input and output until the input ends, /quit or Ctrl-C.

    `checkpoint` is a run's (`RUN/checkpoints/step-000050`, `.../best`) or a folder that transformers loads. Raises
    FileNotFoundError and ValueError, naming the folder, when it is neither, or damaged.
    """
    folder = policy_folder(checkpoint)
    guard = Guard.load(folder) if (folder / GUARD_FILE).is_file() else Guard(guard_settings())
    policy = Policy(folder)
    notice = f"{NOTICE} {guard.settings.notice}"
    print(f"{notice}\n{COMMANDS}\n")
    turns: tuple[Turn, ...] = ()
    try:
        for line in filter(str.strip, _lines()):
            match line.split(maxsplit=1):
                case ["/quit"]:
                    break
                case ["/new"]:
                    turns = ()
                    print("A new conversation.")
                case ["/save", name]:
                    print(_save(turns, Path(name.strip()).expanduser(), notice))
                case [word, *_] if word.startswith("/"):
                    print(f"There is no such command. {COMMANDS}")
                case _:
                    turns = _answered(policy, guard, (*turns, Turn(Speaker.CLIENT, line.strip())))
    except (EOFError, KeyboardInterrupt):
        print()
    print("Goodbye.")


def policy_folder(checkpoint: Path) -> Path:
    """`policy/` of a checkpoint, or the folder itself."""
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"checkpoint must be a folder, {checkpoint} is none; {REMEDY}")
    folder = checkpoint / "policy" if (checkpoint / "policy").is_dir() else checkpoint
    if problems := model_files(folder).problems:
        raise ValueError(f"checkpoint must hold a whole model, {folder} {problems[0]}; {REMEDY}")
    return folder


class Policy:
    """A model and its renderer, with the system text of the run that it comes from."""

    def __init__(self, folder: Path) -> None:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        settings = folder.resolve() / "../../.." / SETTINGS  # of RUN/checkpoints/step-000050/policy
        from_run = folder.name == "policy" and settings.is_file()
        saved = json.loads(settings.read_text()) if from_run else {}
        system = saved.get("prompts", {}).get("system", "")  # a supervised run asks no prompts
        self._chat = Chat(AutoTokenizer.from_pretrained(folder), system=system)
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        if absent := sorted(info["missing_keys"]):
            raise ValueError(f"checkpoint must hold a whole model, {folder} lacks {absent[0]}; {REMEDY}")
        self._model = model.to(current_device().torch).eval()

    def reply(self, turns: tuple[Turn, ...]) -> str:
        """Sample a reply to `turns` (the oldest are left out when they do not fit), printable on any terminal.

        Raises PromptTooLong when the last turn does not fit alone.
        """
        tokenizer, end_ids = self._chat.tokenizer, list(self._chat.end_ids)
        context = min(self._model.config.max_position_embeddings, CONTEXT_TOKENS)
        longest = min(REPLY_TOKENS, context // 3)
        ids_1S = torch.tensor([self._chat.prompt_ids(turns, context - longest)], device=self._model.device)
        whole_1S = self._model.generate(
            ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            max_new_tokens=longest,
            **SAMPLING,
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
        )
        return _printable(tokenizer.decode(whole_1S[0, ids_1S.shape[1] :], skip_special_tokens=True)).strip()


def _printable(text: str) -> str:  # a small model may sample any byte, among them those that command a terminal
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _answered(policy: Policy, guard: Guard, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    before = guard.before(turns)
    if before.action is Action.REPLACE:
        return _by_us(turns, before.text)
    print("policy: ", end="", flush=True)
    try:
        reply = policy.reply(turns)
    except PromptTooLong:
        print("(not asked: that is more than this model reads at once; say it in fewer words)")
        return turns[:-1]
    after = guard.after(turns, reply)
    if after.action is Action.REPLACE:
        print(f"(not shown: {', '.join(after.flags).replace('_', ' ')})")
        turns = _by_us(turns, after.text)
    else:
        print(reply)
        turns = (*turns, Turn(Speaker.THERAPIST, reply, {"from": "policy"}))
    if before.action is Action.APPEND:
        print(f"{FIXED}: {before.text}")
    return turns


def _by_us(turns: tuple[Turn, ...], text: str) -> tuple[Turn, ...]:
    print(f"{FIXED}: {text}")
    return (*turns, Turn(Speaker.THERAPIST, text, {"from": FIXED}))


def _lines() -> Iterator[str]:
    while True:
        line = input("you: ")
        if not sys.stdin.isatty():
            print(line)  # nobody sees what a pipe types
        yield line


def _save(turns: tuple[Turn, ...], path: Path, notice: str) -> str:
    said = [f"{turn.labels.get('from', 'you')}: {turn.text}\n" for turn in turns]
    try:
        with path.open("x", encoding="utf-8") as file:
            file.writelines([f"{notice}\n\n", *said])
    except OSError as error:
        return f"Not saved ({error}); give another file."
    return f"Saved {len(turns)} turns to {path}."

"""Any corpus of your own, one dialogue a line:

    {"id": "17", "emotion": "grief", "turns": [{"speaker": "client", "text": "..."}, {"speaker": "therapist", ...}]}

`id` is unique in the corpus; `speaker` is client or therapist. Every further key of the dialogue (`emotion`, `problem`,
...) and of a turn (`strategy`, `stars`, ...) is a label: a text or a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, assemble, cut, fingerprints, hashed, place, read_text
from rollout.types import Dialogue, Speaker, Turn

SPLIT_FILES = ("train", "valid", "test")


def load_jsonl(path: Path, config: CorpusConfig) -> Corpus:
    """Read one file, or a folder with `train.jsonl`, `valid.jsonl` and `test.jsonl`, which then are the splits.

    Ids are `NAME/train/ID`, NAME being the file's or the folder's name. One file is ordered by a hash of
    (`config.split_seed`, id) and cut by the shares. Raises `FileNotFoundError`, and `CorpusError` naming the line.
    """
    files = [path / f"{split}.jsonl" for split in SPLIT_FILES] if path.is_dir() else [path]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"corpus.path must be a .jsonl file, or a folder with train.jsonl, valid.jsonl and test.jsonl: there is no "
            f"{missing[0]}; correct it"
        )
    seen: dict[str, str] = {}
    read = [_dialogues(file, seen) for file in files]
    if path.is_dir():
        splits, rule = dict(zip(SPLIT_FILES, read, strict=True)), "files train, valid, test"
    else:
        splits = cut(hashed(read[0], config.split_seed), config)
        rule = f"by sha256(seed {config.split_seed}/id); valid {config.valid_share}, test {config.test_share}"
    return assemble(
        path.stem,
        splits,
        source="jsonl",
        files=fingerprints(files, files[0].parent),
        rule=rule,
        licence="the user's own corpus: licence not stated",
    )


def _dialogues(file: Path, seen: dict[str, str]) -> list[Dialogue]:
    """The dialogues of one file; `seen` (id -> where) grows by theirs, so that ids stay unique over files."""
    dialogues = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{place(file)} line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: must be JSON, is not ({error.msg}); fix the line or remove it") from error
        dialogue = _dialogue(row, where)
        if (first := seen.setdefault(dialogue.id, where)) != where:
            raise CorpusError(f"{where}: 'id' must be unique, {dialogue.id!r} is also {first}; rename one of them")
        dialogues.append(dialogue)
    if not dialogues:
        raise CorpusError(f"{place(file)} must hold a dialogue, holds none; add one or remove the file")
    return dialogues


def _dialogue(row: Any, where: str) -> Dialogue:
    if not isinstance(row, dict) or not str(row.get("id", "")).strip():
        raise CorpusError(f"{where}: must be an object with an 'id'; fix the line or remove it")
    if not isinstance(row.get("turns"), list) or not row["turns"]:
        raise CorpusError(f"{where}: 'turns' must be a list of turns, is missing or empty; fix the line or remove it")
    turns = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(row["turns"], start=1))
    return Dialogue(str(row["id"]).strip(), turns, _labels(row, {"id", "turns"}, where))


def _turn(row: Any, where: str) -> Turn:
    if not isinstance(row, dict) or row.get("speaker") not in list(Speaker):
        speaker = row.get("speaker") if isinstance(row, dict) else row
        raise CorpusError(f"{where}: 'speaker' must be client or therapist, is {speaker!r}; fix the turn or remove it")
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{where}: 'text' must be a text, is {text!r}; fix the turn or remove it")
    return Turn(Speaker(row["speaker"]), text.strip(), _labels(row, {"speaker", "text"}, where))


def _labels(row: Mapping[str, Any], own: set[str], where: str) -> dict[str, str]:
    for key, entry in row.items():
        if key not in own and (isinstance(entry, bool) or not isinstance(entry, str | int | float)):
            raise CorpusError(f"{where}: label {key!r} must be a text or a number, is {entry!r}; fix it or remove it")
    return {key: str(entry).strip() for key, entry in row.items() if key not in own}

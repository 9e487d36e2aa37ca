"""The row schema of a corpus of your own, whatever file it comes in:

    {"id": "17", "emotion": "grief", "turns": [{"speaker": "client", "text": "..."}, {"speaker": "therapist", ...}]}

`id` is unique in the corpus; `speaker` is client or therapist. Every further key of the dialogue (`emotion`, `problem`,
...) and of a turn (`strategy`, `stars`, ...) is a label: a text or a number. A null label is an absent label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, assemble, cut, fingerprints, hashed
from rollout.types import Dialogue, Speaker, Turn

SPLITS = ("train", "valid", "test")
OWN = "the user's own corpus: licence not stated"

Rows = Iterable[tuple[str, Any]]  # where a row stands, for people, and the row


def load_files(path: Path, config: CorpusConfig, form: str, read: Callable[[Path], Rows]) -> Corpus:
    """Read one file, or a folder with `train.FORM`, `valid.FORM` and `test.FORM`, which then are the splits.

    Ids are `NAME/train/ID`, NAME being the file's or the folder's name. Raises `FileNotFoundError`, and `CorpusError`
    naming file and row.
    """
    files = [path / f"{split}.{form}" for split in SPLITS] if path.is_dir() else [path]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"corpus.path must be a .{form} file, or a folder with train.{form}, valid.{form} and test.{form}: there is "
            f"no {missing[0]}; correct it"
        )
    seen: dict[str, str] = {}
    parts = [dialogues(read(file), f"{file.parent.name}/{file.name}", seen) for file in files]
    if path.is_dir():
        splits, rule = dict(zip(SPLITS, parts, strict=True)), "files train, valid, test"
    else:
        splits, rule = by_hash(parts[0], config)
    shas = fingerprints(files, files[0].parent)
    return assemble(path.stem, splits, source=form, files=shas, rule=rule, licence=OWN)


def by_hash(unsplit: Iterable[Dialogue], config: CorpusConfig) -> tuple[dict[str, list[Dialogue]], str]:
    """Order by a hash of (`config.split_seed`, id) and cut by the shares; the splits, and the rule in words."""
    rule = f"by sha256(seed {config.split_seed}/id); valid {config.valid_share}, test {config.test_share}"
    return cut(hashed(unsplit, config.split_seed), config), rule


def dialogues(rows: Rows, source: str, seen: dict[str, str]) -> list[Dialogue]:
    """The dialogues of one file or split; `seen` (id -> where) grows by theirs, so that ids stay unique over all.

    Raises `CorpusError` naming the row, or `source` when it holds none.
    """
    read = []
    for where, row in rows:
        dialogue = _dialogue(row, where)
        if (first := seen.setdefault(dialogue.id, where)) != where:
            raise CorpusError(f"{where}: 'id' must be unique, {dialogue.id!r} is also {first}; rename one of them")
        read.append(dialogue)
    if not read:
        raise CorpusError(f"{source} must hold a dialogue, holds none; add one or remove it")
    return read


def _dialogue(row: Any, where: str) -> Dialogue:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or not str(row["id"]).strip():
        raise CorpusError(f"{where}: must be an object with an 'id', a text or whole number; fix the row or remove it")
    if not isinstance(row.get("turns"), list) or not row["turns"]:
        raise CorpusError(f"{where}: 'turns' must be a list of turns, is missing or empty; fix the row or remove it")
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
    # Columns have every key in every row, so null must mean absent; pandas writes NaN for it in nested columns.
    labels = {key: entry for key, entry in row.items() if key not in own and entry is not None and entry == entry}
    for key, entry in labels.items():
        if isinstance(entry, bool) or not isinstance(entry, str | int | float):
            raise CorpusError(f"{where}: label {key!r} must be a text or a number, is {entry!r}; fix it or remove it")
    return {key: _written(entry) for key, entry in labels.items()}


def _written(entry: str | int | float) -> str:
    """A label as text; 3.0 becomes "3", since a column of whole numbers with nulls is often stored as floats."""
    return str(int(entry) if isinstance(entry, float) and entry.is_integer() else entry).strip()

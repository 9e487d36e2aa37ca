"""HOPE (Malhotra et al. 2022, arXiv:2111.06647): counselling sessions, each utterance with a dialogue act.

One CSV per session, columns `ID,Type,Utterance,Dialog_Act` (or `Dialogue_Act`), `Type` T (therapist) or P (patient);
all in one folder, or in folders Train, Validation and Test, which then are the splits. Labels of a turn:
`dialogue_act`, one of the twelve canonical acts, and `dialogue_act_raw`, the cell as published. Where a cell names
several acts the first counts. A code that is none of ours is kept as it is and reported in the log.

`yna` (answer to a yes/no question) becomes PA or NA by the answer's polarity: the first word of its first sentence that
affirms (yes, yeah, ...) or negates (no, not, never, anything in n't) decides; an answer with neither states a fact, and
counts as PA.
"""

from __future__ import annotations

import collections
import csv
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from rollout.config import CorpusConfig
from rollout.corpora.corpus import Corpus, CorpusError, assemble, cut, fingerprints, hashed, place, read_text
from rollout.types import Dialogue, Speaker, Turn

log = logging.getLogger(__name__)

SPEAKERS = {"P": Speaker.CLIENT, "T": Speaker.THERAPIST}
SPLIT_FOLDERS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
SPELLINGS = {
    "ID": ("id",),
    "IRQ": ("irq",),
    "YNQ": ("ynq", "yq"),
    "CRQ": ("crq",),
    "ORQ": ("orq",),
    "CD": ("cd", "comp", "com"),
    "PA": ("pa", "op", "ap"),
    "NA": ("na", "on"),
    "OD": ("od",),
    "GT": ("gt",),
    "ACK": ("ack", "acak", "ay"),
    "GC": ("gc",),
}
CANONICAL = {spelling: act for act, spellings in SPELLINGS.items() for spelling in spellings}
AFFIRMS = {"yes", "yeah", "yea", "yep", "yup", "yah", "sure", "definitely", "absolutely", "certainly", "ok", "okay"}
NEGATES = {"no", "nope", "nah", "not", "never", "nothing", "none", "neither", "cannot"}


def load_hope(path: Path, config: CorpusConfig) -> Corpus:
    """Read a folder of session files; ids are `hope/train/163` after the file's name without "Copy of".

    Without split folders sessions are ordered by a hash of (`config.split_seed`, session) and cut by the shares. Raises
    `FileNotFoundError` when the folder or its files are missing, `CorpusError` naming the row otherwise.
    """
    files = sorted(file for file in path.rglob("*.csv") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(
            f"corpus.path must be HOPE's folder of sessions, there is no .csv under {path}; correct it"
        )
    homes = {file: SPLIT_FOLDERS.get(file.relative_to(path).parts[0].lower(), "") for file in files}
    sessions: dict[str, Path] = {}
    unknown: collections.Counter[str] = collections.Counter()
    splits: dict[str, list[Dialogue]] = {"train": [], "valid": [], "test": []}
    unsplit: list[Dialogue] = []
    for file, split in homes.items():
        session = re.sub(r"^(copy of\s+)+", "", file.stem, flags=re.IGNORECASE).strip()
        twin = sessions.setdefault(session, file)
        if twin != file:
            raise CorpusError(
                f"a session may come once, {place(twin)} and {place(file)} are both {session}; remove one of them"
            )
        turns = _turns(file, unknown)
        (splits[split] if split else unsplit).append(Dialogue(session, turns))
    if unsplit and len(unsplit) < len(files):
        raise CorpusError(
            f"HOPE's files must all lie in Train, Validation and Test or none, {len(unsplit)} of {len(files)} lie "
            "outside; move them"
        )
    if unknown:
        log.warning("hope: dialogue acts outside the twelve, kept as published: %s", dict(unknown.most_common()))
    rule = "folders Train, Validation, Test"
    if unsplit:
        splits = cut(hashed(unsplit, config.split_seed), config)
        rule = f"by sha256(seed {config.split_seed}/session); valid {config.valid_share}, test {config.test_share}"
    licence = "HOPE: on request from its authors, not for redistribution"
    return assemble("hope", splits, source="hope", files=fingerprints(files, path), rule=rule, licence=licence)


def dialogue_act(cell: str, answer: str) -> str:
    """The canonical act of a label cell, the raw code where it is unknown, "" where the cell is empty."""
    code = re.split(r"[,;/\s]+", cell.strip().lower())[0]
    if code == "yna":
        return "PA" if affirms(answer) else "NA"
    return CANONICAL.get(code, code)


def affirms(answer: str) -> bool:
    """Whether the answer to a yes/no question says yes (the rule is in the module's text)."""
    first_sentence = re.split(r"[.?!]", answer.lower().replace("\u2019", "'"), maxsplit=1)[0]
    for word in re.findall(r"[a-z']+", first_sentence):
        if word in AFFIRMS:
            return True
        if word in NEGATES or word.endswith("n't"):
            return False
    return True


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row's last line, counted from 1, and its cells."""
    reader = csv.reader(io.StringIO(read_text(file)))
    try:
        yield from ((reader.line_num, cells) for cells in reader)
    except csv.Error as error:
        where = f"{place(file)} line {reader.line_num}"
        raise CorpusError(f"{where}: must be CSV, is not ({error}); look for a quotation mark left open") from error


def _turns(file: Path, unknown: collections.Counter[str]) -> tuple[Turn, ...]:
    """The turns of one session; counts codes outside the twelve into `unknown`."""
    rows = _rows(file)
    header = [name.strip().lower() for name in next(rows, (1, []))[1]]
    act = next((name for name in ("dialog_act", "dialogue_act") if name in header), "")
    if not act or not {"type", "utterance"} <= set(header):
        raise CorpusError(
            f"{place(file)} line 1: the columns must be ID, Type, Utterance and Dialog_Act or Dialogue_Act, are "
            f"{header}; name them in the first line"
        )
    turns = []
    for number, cells in rows:
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        repeated_header = row.get("type", "").lower() == "type"
        if repeated_header or not any(row.values()):
            continue
        where = f"{place(file)} line {number}"
        if len(row) < len(header):
            raise CorpusError(f"{where}: must have {len(header)} cells, has {len(row)}; fix the row or remove it")
        if row["type"].upper() not in SPEAKERS:
            raise CorpusError(f"{where}: 'Type' must be T or P, is {row['type']!r}; fix the row or remove it")
        if not row["utterance"]:
            raise CorpusError(f"{where}: 'Utterance' must be a text, is empty; fix the row or remove it")
        label = dialogue_act(row[act], row["utterance"])
        if label not in SPELLINGS:
            unknown[label or "(empty)"] += 1
        labels = {"dialogue_act": label, "dialogue_act_raw": row[act]} if label else {}
        turns.append(Turn(SPEAKERS[row["type"].upper()], row["utterance"], labels))
    if not turns:
        raise CorpusError(f"{place(file)} must hold an utterance, holds none; remove the file")
    return tuple(turns)

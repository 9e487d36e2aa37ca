"""Labelled texts for `attune fit`: readers of published files and of your own; errors name the file and the row."""

from __future__ import annotations

import collections
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rollout.config import CorpusConfig
from rollout.corpora.corpus import CorpusError, fingerprints, place, read_text
from rollout.corpora.hope import load_hope
from rollout.types import Dialogue, Speaker

OWN = "the user's own examples: licence not stated"
LEAST_ROWS = 5
EMPATHY_FILES = {
    "emotional_reactions": "emotional-reactions-reddit.csv",
    "interpretations": "interpretations-reddit.csv",
    "explorations": "explorations-reddit.csv",
}
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Example:
    """A text and its label; `client` is what the text answers, where that counts."""

    text: str
    label: str
    client: str = ""


@dataclass(frozen=True)
class LabelledSplits:
    """Examples in the splits train, valid and test, the labels in their order, and where all comes from."""

    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    source: Mapping[str, Any]
    left_out: Mapping[str, int] = field(default_factory=dict)


def goemotions(folder: Path) -> LabelledSplits:
    """GoEmotions (Demszky et al. 2020, arXiv:2005.00547) in Ekman's six emotions and neutral.

    `folder` holds train.tsv, dev.tsv and test.tsv (text, label ids, id), emotions.txt and ekman_mapping.json. Rows whose
    labels fall under several of the seven are left out, and counted.
    """
    names = [line.strip() for line in _text(folder / "emotions.txt").split("\n") if line.strip()]
    mapping = _ekman(folder / "ekman_mapping.json")
    if missing := [name for name in names if name not in mapping]:
        raise CorpusError(
            f"{place(folder / 'ekman_mapping.json')} must map every emotion, lacks {missing}; fetch it again"
        )
    files = {split: folder / name for split, name in zip(_SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True)}
    several, parts = 0, dict[str, tuple[Example, ...]]()
    for split, file in files.items():
        examples = []
        for where, (text, ids, _) in _rows(file, columns=3):
            known = [names[int(i)] if i.isdecimal() and int(i) < len(names) else "" for i in ids.split(",")]
            if not all(known):
                raise CorpusError(f"{where}: label ids must be numbers below {len(names)}, are {ids!r}; fix the row")
            emotions = {mapping[name] for name in known}
            if len(emotions) > 1:
                several += 1
            else:
                examples.append(Example(text, emotions.pop()))
        parts[split] = tuple(examples)
    read = [*files.values(), folder / "emotions.txt", folder / "ekman_mapping.json"]
    source = {
        "files": fingerprints(read, folder),
        "licence": "Apache-2.0 (GoEmotions, its authors)",
        "split": "files train, dev, test",
    }
    labels = tuple(sorted(set(mapping.values())))
    return _checked(LabelledSplits(labels, parts, source, {"several emotions": several}))


def goemotions_comments(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The comments of GoEmotions' train split that `goemotions` keeps, and the sha256 of each file that decides which."""
    read = goemotions(folder)
    decide = ("train.tsv", "emotions.txt", "ekman_mapping.json")
    return [example.text for example in read.splits["train"]], {name: read.source["files"][name] for name in decide}


def hope_acts(folder: Path) -> LabelledSplits:
    """The therapists' turns of HOPE with their dialogue acts, split by session; see `rollout.corpora.hope`."""
    corpus = load_hope(folder, CorpusConfig(format="hope", path=str(folder)))
    parts = {split: tuple(_acts(dialogues)) for split, dialogues in corpus.splits.items()}
    labels = tuple(sorted({example.label for part in parts.values() for example in part}))
    source = {key: corpus.provenance[key] for key in ("files", "licence", "split")}
    return _checked(LabelledSplits(labels, parts, source))


def _acts(dialogues: Iterable[Dialogue]) -> Iterator[Example]:
    for turn in (turn for dialogue in dialogues for turn in dialogue.turns):
        if turn.speaker is Speaker.THERAPIST and (act := turn.labels.get("dialogue_act")):
            yield Example(turn.text, act)


def own_examples(file: Path, seed: int) -> LabelledSplits:
    """A TSV of your own, with the header `text<TAB>label`; split by a hash of (seed, text) 80/10/10."""
    examples = [Example(text, label) for _, (text, label) in _rows(file, columns=2, header=("text", "label"))]
    parts = _by_hash(examples, [example.text for example in examples], seed)
    labels = tuple(sorted({example.label for example in examples}))
    source = {"files": fingerprints([file], file.parent), "licence": OWN, "split": _rule(seed, "text")}
    return _checked(LabelledSplits(labels, parts, source))


def epitome(folder: Path, mechanism: str, seed: int) -> LabelledSplits:
    """One mechanism of EPITOME (Sharma et al. 2020, arXiv:2009.08441): levels 0, 1, 2 of replies to seekers' posts.

    CSV with sp_id, rp_id, seeker_post, response_post, level, rationales; split by a hash of (seed, sp_id) 80/10/10, so that
    the replies to a post share a split.
    """
    file = folder / EMPATHY_FILES[mechanism]
    reader = csv.DictReader(io.StringIO(_text(file)))
    wanted = {"sp_id", "seeker_post", "response_post", "level"}
    if not wanted <= set(reader.fieldnames or ()):
        raise CorpusError(f"{place(file)} line 1: the columns must include {sorted(wanted)}, are {reader.fieldnames}")
    examples, posts = [], []
    try:
        for row in reader:
            where = f"{place(file)} line {reader.line_num}"
            if (row["level"] or "").strip() not in {"0", "1", "2"}:
                raise CorpusError(f"{where}: 'level' must be 0, 1 or 2, is {row['level']!r}; fix the row or remove it")
            for column in sorted(wanted):
                if not (row[column] or "").strip():
                    raise CorpusError(f"{where}: {column!r} must be a text, is empty; fix the row or remove it")
            examples.append(Example(row["response_post"].strip(), row["level"].strip(), row["seeker_post"].strip()))
            posts.append(row["sp_id"].strip())
    except csv.Error as error:
        raise CorpusError(
            f"{place(file)} line {reader.line_num}: must be CSV, is not ({error}); fix the row"
        ) from error
    if not examples:
        raise CorpusError(f"{place(file)} must hold a row, holds none; fetch it again")
    source = {
        "files": fingerprints([file], folder),
        "licence": "EPITOME: see its authors' terms",
        "split": _rule(seed, "sp_id"),
    }
    labels = tuple(sorted({example.label for example in examples}))
    return _checked(LabelledSplits(labels, _by_hash(examples, posts, seed), source))


def crisis_rows(file: Path, tiers: Sequence[str]) -> list[tuple[str, str, str]]:
    """(text, tier, kind) of a TSV with that header; every tier must be among `tiers`, and no text come twice."""
    rows, seen = [], dict[str, str]()
    for where, (text, tier, kind) in _rows(file, columns=3, header=("text", "tier", "kind")):
        if tier not in tiers:
            raise CorpusError(f"{where}: the tier must be one of {', '.join(tiers)}, is {tier!r}; fix the row")
        if (first := seen.setdefault(text, where)) != where:
            raise CorpusError(f"{where}: a text may come once, this one is also {first}; remove one of them")
        rows.append((text, tier, kind))
    return rows


def _checked(read: LabelledSplits) -> LabelledSplits:
    """Leave out labels with too few training rows; refuse what cannot be fitted or measured then."""
    count = collections.Counter(example.label for example in read.splits["train"])
    labels = tuple(label for label in read.labels if count[label] >= LEAST_ROWS)
    parts = {name: tuple(e for e in split if e.label in labels) for name, split in read.splits.items()}
    files = ", ".join(read.source["files"])
    if len(labels) < 2:
        raise CorpusError(
            f"{files}: two labels at least need {LEAST_ROWS} training rows each, the rows are {dict(count)}; add examples"
        )
    if empty := [name for name, split in parts.items() if not split]:
        raise CorpusError(f"{files}: every split must hold an example, {empty[0]} holds none; add examples")
    few = {
        f"label {label!r}, {count[label]} training rows": sum(e.label == label for s in read.splits.values() for e in s)
        for label in read.labels
        if label not in labels
    }
    return replace(read, labels=labels, splits=parts, left_out={**read.left_out, **few})


def _by_hash(examples: Sequence[Example], keys: Sequence[str], seed: int) -> dict[str, tuple[Example, ...]]:
    parts: dict[str, list[Example]] = {name: [] for name in _SPLITS}
    for example, key in zip(examples, keys, strict=True):
        draw = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8]) % 10
        parts["train" if draw < 8 else "valid" if draw < 9 else "test"].append(example)
    return {name: tuple(part) for name, part in parts.items()}


def _rule(seed: int, key: str) -> str:
    return f"by sha256(seed {seed}/{key}): train 0.8, valid 0.1, test 0.1"


def _ekman(file: Path) -> dict[str, str]:
    try:
        table = json.loads(_text(file))
        return {name: ekman for ekman, names in table.items() for name in names} | {"neutral": "neutral"}
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise CorpusError(f"{place(file)} must be JSON, an emotion to a list of names, is not ({error})") from error


def _rows(file: Path, columns: int, header: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Where each row stands, for people, and its cells, none of them empty."""
    found = 0
    for number, line in enumerate(_text(file).split("\n"), start=1):  # comments may hold other line separators
        cells = [cell.strip() for cell in line.split("\t")]
        where = f"{place(file)} line {number}"
        if number == 1 and header:
            if tuple(cells) != header:
                raise CorpusError(f"{where}: the header must be {'<TAB>'.join(header)}, is {line!r}; write it there")
        elif line.strip():
            if len(cells) != columns or not all(cells):
                raise CorpusError(f"{where}: must have {columns} cells with a tab between, none empty, is {line!r}")
            found += 1
            yield where, cells
    if not found:
        raise CorpusError(f"{place(file)} must hold a row, holds none; fetch it again")


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"data must hold {file.name}, there is no file {file}; correct it")
    return read_text(file)

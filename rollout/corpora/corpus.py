"""What every loader returns, and the rules they share: splits, provenance, errors that name the row."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rollout.config import CorpusConfig
from rollout.types import Dialogue


class CorpusError(ValueError):
    """A corpus cannot be read as what it is said to be; the message names the file and the row."""


@dataclass(frozen=True)
class Corpus:
    """Dialogues in three splits that share no dialogue, and where they come from.

    `provenance` is saved with every run: `format`, `files` (name -> sha256), `dialogues` (split -> count), `split` (the
    rule) and `licence`. Raises `CorpusError` on an empty split and on a dialogue that is in two splits.
    """

    train: tuple[Dialogue, ...]
    valid: tuple[Dialogue, ...]
    test: tuple[Dialogue, ...]
    provenance: Mapping[str, str | Mapping[str, str | int]]

    def __post_init__(self) -> None:
        counts = {split: len(dialogues) for split, dialogues in self.splits.items()}
        home: dict[tuple[str, ...], tuple[str, str]] = {}
        for split, dialogues in self.splits.items():
            if not dialogues:
                raise CorpusError(
                    f"the {split} split must hold a dialogue, the splits hold {counts}; add dialogues, or change "
                    "corpus.valid_share and corpus.test_share"
                )
            for dialogue in dialogues:
                other_split, other_id = home.setdefault(tuple(t.text for t in dialogue.turns), (split, dialogue.id))
                if other_split != split:
                    raise CorpusError(
                        f"no dialogue may be in two splits, {other_id} and {dialogue.id} are word for word the same; "
                        "remove one of them"
                    )

    @property
    def splits(self) -> dict[str, tuple[Dialogue, ...]]:
        """The splits by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


def shuffled(dialogues: Iterable[Dialogue], seed: int) -> list[Dialogue]:
    """The order that `random.seed(seed); random.shuffle(dialogues)` gives, without touching the global generator."""
    order = list(dialogues)
    random.Random(seed).shuffle(order)
    return order


def hashed(dialogues: Iterable[Dialogue], seed: int) -> list[Dialogue]:
    """Order by a hash of (seed, id): the order of the files does not matter, and a new dialogue moves few others."""
    return sorted(dialogues, key=lambda dialogue: hashlib.sha256(f"{seed}/{dialogue.id}".encode()).digest())


def cut(ordered: Sequence[Dialogue], config: CorpusConfig) -> dict[str, list[Dialogue]]:
    """Cut an ordered corpus as ESConv's authors do: first the valid share, then the test share, the rest to train."""
    valid, test = int(config.valid_share * len(ordered)), int(config.test_share * len(ordered))
    return {
        "train": list(ordered[valid + test :]),
        "valid": list(ordered[:valid]),
        "test": list(ordered[valid : valid + test]),
    }


def assemble(
    name: str,
    splits: Mapping[str, Sequence[Dialogue]],
    *,
    source: str,
    files: Mapping[str, str],
    rule: str,
    licence: str,
) -> Corpus:
    """Name each dialogue `NAME/SPLIT/ID`, write the provenance, and check the whole."""
    named = {
        split: tuple(replace(dialogue, id=f"{name}/{split}/{dialogue.id}") for dialogue in dialogues)
        for split, dialogues in splits.items()
    }
    return Corpus(
        train=named["train"],
        valid=named["valid"],
        test=named["test"],
        provenance={
            "format": source,
            "files": files,
            "dialogues": {split: len(dialogues) for split, dialogues in named.items()},
            "split": rule,
            "licence": licence,
        },
    )


def fingerprints(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """sha256 of each file, by its name relative to `folder`."""
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without byte-order mark; `CorpusError` when it is in another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place(path)} must be UTF-8, byte {error.start} is not; save it as UTF-8") from error


def place(path: Path) -> str:
    """A file's name for people: its folder and its name."""
    return f"{path.parent.name}/{path.name}"

"""What a judge is asked: criteria and their frame, read from files; the material behind a fence; the answer, read strictly.

A criterion is a few yes/no questions with an anchor for either answer, all so put that yes is good. The questions of a
criterion are one call, and the criterion's value is the share of yes. Clinicians and judges agree better on anchored
binary questions than on scales, and a share of several is graded enough to learn from.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rollout.types import Rollout, Turn

SHIPPED = Path(__file__).parent / "judge_prompts"
_FRAME = "frame"
_FILLED_IN = ("fence", "material", "name", "version", "question", "items")
_FENCED = re.compile(r"\$\{?fence\b.*\$\{?material\b.*\$\{?fence\b", re.DOTALL)
_LINE = re.compile(r"\s*(\d+)\s*[:.)]\s*(yes|no)\s*\.?\s*", re.IGNORECASE)
_MARKUP = set("<>|[]")  # what role markers of chat templates are made of: <|im_start|>, </s>, [INST]
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # controls, invisible marks, line separators


class Unreadable(ValueError):
    """An answer that is no score."""


@dataclass(frozen=True)
class Item:
    """A yes/no question, and what earns either answer."""

    ask: str
    yes: str
    no: str


@dataclass(frozen=True)
class Criterion:
    """A criterion of a rubric: at least one item. `version` changes whenever a word of it does."""

    name: str
    version: int
    question: str
    items: tuple[Item, ...]

    @property
    def max_tokens(self) -> int:
        """Room for the answer, and for little else: a line per item."""
        return 8 + 8 * len(self.items)

    def read(self, answer: str) -> float:
        """The share of yes in an answer of one line `NUMBER: yes|no` per item, in order.

        Blank lines, case and a full stop do not matter. Anything else raises `Unreadable`: a wrong count or number, a
        word more, a mark beyond the scale.
        """
        lines = [_LINE.fullmatch(line) for line in answer.splitlines() if line.strip()]
        given = [(int(line[1]), line[2].lower()) for line in lines if line]
        if len(given) < len(lines) or [number for number, _ in given] != list(range(1, len(self.items) + 1)):
            raise Unreadable(f"the answer must be {len(self.items)} lines such as `1: yes`, got {answer[:80]!r}")
        return sum(word == "yes" for _, word in given) / len(given)


@dataclass(frozen=True)
class Frame:
    """The words round a criterion: templates of the system's and of the user's message."""

    version: int
    system: Template
    user: Template

    def messages(self, criterion: Criterion, material: str) -> list[dict[str, str]]:
        """The messages of one call.

        The fence is a hash of the material: no text can contain the hash of a text that contains it. The material is
        one line, so it cannot hold a line of its own.
        """
        items = [f"{i}. {item.ask}\n   yes: {item.yes}\n   no: {item.no}" for i, item in enumerate(criterion.items, 1)]
        filling = {
            "fence": hashlib.sha256(material.encode()).hexdigest()[:16],
            "material": material,
            "name": criterion.name,
            "version": f"{criterion.version}.{self.version}",
            "question": criterion.question,
            "items": "\n".join(items),
        }
        return [
            {"role": "system", "content": self.system.substitute(filling).strip()},
            {"role": "user", "content": self.user.substitute(filling).strip()},
        ]


def material(rollout: Rollout) -> str:
    """The dialogue and the reply as one line of JSON, without any id, reference or label.

    Strings are escaped beyond what JSON asks for: brackets and bars, so that a server's chat template sees no role marker,
    and invisible characters, so that the judge reads what a person would. `json.loads` gives the texts back unchanged.
    """
    return f'{{"dialogue": {dialogue(rollout.prompt.history)}, "reply": {_quote(rollout.text)}}}'


def dialogue(turns: Sequence[Turn]) -> str:
    """Turns as one line of JSON, a list of speaker and text, escaped as in `material`."""
    said = (f'{{"speaker": {_quote(turn.speaker)}, "text": {_quote(turn.text)}}}' for turn in turns)
    return f"[{', '.join(said)}]"


def _quote(text: str) -> str:
    return "".join(map(_escape, json.dumps(text, ensure_ascii=False)))


def _escape(char: str) -> str:
    if char not in _MARKUP and unicodedata.category(char) not in _UNSEEN:
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def load_rubric(names: Sequence[str], folder: str) -> tuple[Frame, tuple[Criterion, ...]]:
    """The frame and the criteria `names`, from the files NAME.toml of `folder`, or of the shipped one where it is "".

    A folder without a frame.toml takes the shipped frame. Raises ValueError for a file that is missing or broken.
    """
    place = Path(folder) if folder else SHIPPED
    framed = place if (place / f"{_FRAME}.toml").is_file() else SHIPPED
    return _frame(framed / f"{_FRAME}.toml"), tuple(_criterion(place / f"{name}.toml") for name in names)


def _criterion(path: Path) -> Criterion:
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.toml") if file.stem != _FRAME)
        raise ValueError(
            f"rewards.judge.criteria must name prompt files of {path.parent}, got {path.stem!r}: "
            f"there are {', '.join(there) or 'none'}"
        )
    table = _table(path)
    _check(path, table, {"name": str, "version": int, "question": str, "items": list})
    if table["name"] != path.stem:
        raise ValueError(f"{path}: name must be the file's, {path.stem!r}, got {table['name']!r}: rename one of them")
    if not table["items"]:
        raise ValueError(f"{path}: items must hold one question at least, got none: add an [[items]] table")
    for item in table["items"]:
        _check(path, item, {"ask": str, "yes": str, "no": str})
    return Criterion(path.stem, table["version"], table["question"], tuple(Item(**item) for item in table["items"]))


def _frame(path: Path) -> Frame:
    table = _table(path)
    _check(path, table, {"version": int, "system": str, "user": str})
    frame = Frame(table["version"], Template(table["system"]), Template(table["user"]))
    used = {*frame.system.get_identifiers(), *frame.user.get_identifiers()}
    sound = frame.system.is_valid() and frame.user.is_valid() and _FENCED.search(frame.user.template)
    if used != set(_FILLED_IN) or not sound:
        raise ValueError(
            f"{path}: system and user must use {', '.join(f'${name}' for name in _FILLED_IN)}, user with $material between "
            f"two $fence, got {', '.join(sorted(used))} (a plain $ is $$): start from the shipped frame.toml"
        )
    return frame


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be TOML, got {error}: compare with a shipped prompt") from error


def _check(path: Path, table: object, wanted: Mapping[str, type]) -> None:
    if not isinstance(table, dict) or table.keys() != wanted.keys():
        got = sorted(table) if isinstance(table, dict) else table
        raise ValueError(f"{path}: must have {', '.join(wanted)}, got {got}: compare with a shipped prompt")
    for name, kind in wanted.items():
        if type(table[name]) is not kind or table[name] == "":
            raise ValueError(f"{path}: {name} must be a {kind.__name__}, got {table[name]!r}: correct it")

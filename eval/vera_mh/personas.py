"""VERA-MH's personas: a table, one persona a row, read strictly."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).with_name("personas.tsv")
COLUMNS = {
    "Name": "name",
    "Age": "age",
    "Race/Ethnicity": "ethnicity",
    "Pronouns": "pronouns",
    "Background": "background",
    "Mental Health Context": "context",
    "Communication Style": "style",
    "Recent Stressors/Risk Factors": "stressors",
    "Disclosure of Suicide Risk": "disclosure",
    "Current Suicidal Thoughts and Behaviors, Reasons for Living": "thoughts",
    "Current Risk Level": "risk",
    "Reaction to Chatbot Responses": "reaction",
    "Sample Prompts": "samples",
}
"""The columns of the file, in order, and the fields of `Persona`."""


class Risk(enum.StrEnum):
    """How much danger the persona is in."""

    NONE = "None"
    LOW = "Low"  # passive thoughts at most
    HIGH = "High"  # active thoughts
    IMMINENT = "Imminent"  # plan, access and intent


class Openness(enum.StrEnum):
    """How directly the persona says so: the first word of its field `disclosure`."""

    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"


@dataclass(frozen=True)
class Persona:
    """One row of the file; see `COLUMNS`. `context`, `stressors` and other fields are clauses between semicolons."""

    name: str
    age: int
    ethnicity: str
    pronouns: str
    background: str
    context: str
    style: str
    stressors: str
    disclosure: str
    thoughts: str
    risk: Risk
    reaction: str
    samples: str

    @property
    def openness(self) -> Openness:
        """How directly the persona speaks; one that has nothing to disclose ("N/A") is open."""
        word = _first_word(self.disclosure)
        return Openness(word) if word in set(Openness) else Openness.HIGH


def load_personas(path: Path | None = None) -> tuple[Persona, ...]:
    """The personas of a file, in its order; of the shipped one by default.

    Raises ValueError, with the row (the heading is row 1), for other columns, an empty or unknown field, a name twice.
    """
    path = path or SHIPPED
    rows = read_table(path, tuple(COLUMNS))
    personas = tuple(_persona(path, row, cells) for row, cells in rows)
    if not personas:
        raise ValueError(f"{path} must hold one persona at least, got none: add a row")
    for name, times in Counter(persona.name for persona in personas).items():
        if times > 1:
            rows_of = [row for row, cells in rows if cells["Name"] == name]
            raise ValueError(f"{path}, rows {rows_of}: Name must be different in each, got {name!r}: rename one")
    return personas


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a tab-separated file with exactly `columns`, each with its line number; cells are stripped.

    There is no quoting: a cell holds neither a tab nor a line break. Raises ValueError, with the row, for anything else.
    """
    try:
        lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise ValueError(f"{path} must be a file, {error.strerror}: leave it out for the shipped one") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, got {error}: save it as UTF-8") from error
    if lines[-1] == "":
        del lines[-1]
    heading = [name.strip() for name in lines[0].split("\t")] if lines else []
    if heading != list(columns):
        odd = [name for name in columns if name not in heading] or [name for name in heading if name not in columns]
        named = (
            f"without {odd[0]!r}" if odd and odd[0] in columns else f"with {odd[0]!r}" if odd else "in another order"
        )
        raise ValueError(
            f"{path}, row 1: the columns must be {', '.join(columns)}, got them {named}: start from the shipped file"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, row {number}: must have {len(columns)} cells between tabs, got {len(cells)}: "
                "look for a tab or a line break inside a cell"
            )
        rows.append((number, {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}))
    return rows


def _persona(path: Path, row: int, cells: dict[str, str]) -> Persona:
    place = f"{path}, row {row} ({cells['Name'] or 'no name'})"
    for name, cell in cells.items():
        if not cell:
            raise ValueError(f"{place}: {name} must be filled, got an empty cell: write it, or N/A")
    if not cells["Age"].isdecimal():
        raise ValueError(f"{place}: Age must be a whole number of years, got {cells['Age']!r}: correct it")
    if cells["Current Risk Level"] not in set(Risk):
        levels = ", ".join(Risk)
        raise ValueError(
            f"{place}: Current Risk Level must be one of {levels}, got {cells['Current Risk Level']!r}: correct it"
        )
    word = _first_word(cells["Disclosure of Suicide Risk"])
    if word not in {*Openness, "n/a"}:
        raise ValueError(
            f"{place}: Disclosure of Suicide Risk must begin with High, Moderate, Low or N/A, got {word!r}: put one first"
        )
    fields = {field: cells[name] for name, field in COLUMNS.items() if field not in ("age", "risk")}
    return Persona(**fields, age=int(cells["Age"]), risk=Risk(cells["Current Risk Level"]))


def _first_word(text: str) -> str:
    return text.split()[0].lower().rstrip(";:,.(")

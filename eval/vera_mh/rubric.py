"""VERA-MH's rubric: questions in an order that depends on the answers, read strictly.

Every question is put so that Yes is a finding against the assistant, of its severity. A question without answers of its own
takes Yes and No. Where the file names no next question (its column GOTO is empty), after

    Yes            to a question without answers of its own: the first question of the next dimension
    anything else  the next question, over those of another risk type where the question has one

so a dimension ends with its first Yes. `END` ends the rubric, and no dimension is relevant. The risk types are those of
question 13's branches; the file's last question of the one is followed by the first of the other, which is meant for other
users and is passed over here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.vera_mh.personas import read_table

SHIPPED = Path(__file__).with_name("rubric.tsv")
COLUMNS = ("Question ID", "Dimension", "Severity", "Risk Type", "Question", "Examples", "Answer", "GOTO")
YES, NO, NOT_RELEVANT, END = "Yes", "No", "Not Relevant", "END"
_RISK_TYPES = ("", "Not Imminent", "Imminent")


class Severity(enum.StrEnum):
    """What a Yes means: high potential for harm, or suboptimal."""

    RED = "Red"
    YELLOW = "Yellow"


_SEVERITIES = {"": None, "Red": Severity.RED, "Yellow": Severity.YELLOW, "Yelow": Severity.YELLOW}  # the file's typo


@dataclass(frozen=True)
class Question:
    """One question. `examples` is its guidance; `goto` the next question by answer, "" for the next in order; `severity` is
    None where no answer is a finding (what the user said, rather than the assistant)."""

    id: str
    dimension: str
    severity: Severity | None
    risk_type: str
    text: str
    examples: str
    row: int
    goto: Mapping[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> tuple[str, ...]:
        """What may be answered, in the file's order; Not Relevant too where only the guidance allows it."""
        listed = tuple(self.goto) or (YES, NO)
        allowed = NOT_RELEVANT in self.examples and not any(answer.startswith(NOT_RELEVANT) for answer in listed)
        return (*listed, NOT_RELEVANT) if allowed else listed


@dataclass(frozen=True)
class Rubric:
    """The questions by id, in the file's order."""

    questions: Mapping[str, Question]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """In the file's order."""
        return tuple(dict.fromkeys(question.dimension for question in self.questions.values()))

    @property
    def first(self) -> str:
        """The question to begin with."""
        return next(iter(self.questions))

    def following(self, id: str, answer: str) -> str:  # noqa: A002
        """The next question's id, `END`, or "" when the rubric is through.

        Not Relevant may be answered to every question: some say so in their guidance only. ValueError for other answers.
        """
        question = self.questions[id]
        if answer not in {*question.answers, NOT_RELEVANT}:
            raise ValueError(f"question {id} must be answered by {', '.join(question.answers)}, got {answer!r}")
        if to := question.goto.get(answer):
            return to
        later = list(self.questions.values())[list(self.questions).index(id) + 1 :]
        if answer == YES and not question.goto:
            return next((q.id for q in later if q.dimension != question.dimension), "")
        fits = ("", question.risk_type) if question.risk_type else _RISK_TYPES
        return next((q.id for q in later if q.risk_type in fits), "")


def load_rubric(path: Path | None = None) -> Rubric:
    """The rubric of a file, of the shipped one by default.

    Raises ValueError, with the row (the heading is row 1), for other columns, a question without an id or dimension, an id
    twice, an unknown severity or risk type, and an answer that leads nowhere or back.
    """
    path = path or SHIPPED
    questions: dict[str, Question] = {}
    for row, cells in read_table(path, COLUMNS):
        place = f"{path}, row {row}"
        id_ = cells["Question ID"]
        if id_ in questions:
            raise ValueError(
                f"{place}: Question ID must be new, got {id_!r} as in row {questions[id_].row}: renumber it"
            )
        if id_:
            questions[id_] = _question(place, row, cells)
        elif not questions or not cells["Answer"] or any(cells[name] for name in COLUMNS[1:6]):
            raise ValueError(f"{place}: a row without Question ID must hold a further Answer alone: fill in the id")
        if cells["Answer"]:
            last = list(questions)[-1]
            known = questions[last]
            if cells["Answer"] in known.goto:
                raise ValueError(f"{place}: Answer must be given once, got {cells['Answer']!r} again: remove one")
            questions[last] = replace(known, goto={**known.goto, cells["Answer"]: cells["GOTO"]})
        elif cells["GOTO"]:
            raise ValueError(
                f"{place}: GOTO must stand beside an Answer, got {cells['GOTO']!r} without: fill in Answer"
            )
    if not questions:
        raise ValueError(f"{path} must hold one question at least, got none: start from the shipped file")
    _check_ways(path, questions)
    return Rubric(questions)


def _question(place: str, row: int, cells: Mapping[str, str]) -> Question:
    for name in ("Dimension", "Question"):
        if not cells[name]:
            raise ValueError(f"{place}: {name} must be filled, got an empty cell: write it")
    if cells["Severity"] not in _SEVERITIES:
        raise ValueError(f"{place}: Severity must be Red, Yellow or empty, got {cells['Severity']!r}: correct it")
    if cells["Risk Type"] not in _RISK_TYPES:
        raise ValueError(
            f"{place}: Risk Type must be Imminent, Not Imminent or empty, got {cells['Risk Type']!r}: correct it"
        )
    return Question(
        cells["Question ID"],
        cells["Dimension"],
        _SEVERITIES[cells["Severity"]],
        cells["Risk Type"],
        cells["Question"],
        cells["Examples"],
        row,
    )


def _check_ways(path: Path, questions: Mapping[str, Question]) -> None:
    order = {id_: i for i, id_ in enumerate(questions)}
    for id_, question in questions.items():
        for answer, to in question.goto.items():
            if to not in ("", END) and order.get(to, -1) <= order[id_]:
                raise ValueError(
                    f"{path}, row {question.row}: GOTO of {answer!r} must be {END} or a later question, got {to!r}: correct it"
                )

"""What a rule answers, and how it gets there from lines of the transcript."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from eval.vera_mh.hearing import Hearing, Reply
from eval.vera_mh.rubric import NO, NOT_RELEVANT, YES


@dataclass(frozen=True)
class Finding:
    """An answer, the line of the transcript that it is about (0 for none), and why, in words."""

    answer: str
    line: int
    why: str


Rule = Callable[[Hearing], Finding]


def done(why: str, lines: Iterable[int]) -> Finding:
    """Yes at the first of `lines`, where the assistant did what it must not do."""
    line = min(lines, default=0)
    return Finding(YES, line, why) if line else Finding(NO, 0, "no such wording found")


def left_out(why: str, hearing: Hearing, lines: Iterable[int]) -> Finding:
    """Yes when `lines`, where the assistant did what it has to do, are none."""
    line = min(lines, default=0)
    return Finding(NO, line, "found") if line else Finding(YES, hearing.risk_line or 1, why)


def not_relevant(why: str) -> Finding:
    return Finding(NOT_RELEVANT, 0, why)


def lines(replies: Iterable[Reply], holds: Callable[[str], object]) -> list[int]:
    return [reply.line for reply in replies if any(holds(sentence) for sentence in reply.sentences)]

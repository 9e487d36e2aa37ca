"""What a preflight says: one finding a line, and whether a run can go on. Imports nothing that may be missing."""

from __future__ import annotations

import enum
import importlib.metadata
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """Whether a job can rely on what was looked at."""

    OK = "ok"
    WARN = "warn"
    MISSING = "MISSING"


@dataclass(frozen=True)
class Finding:
    """What was looked at (`subject`), what is there (`value`), what to do about it (`remedy`, "" when all is well)."""

    verdict: Verdict
    subject: str
    value: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.value}; {self.remedy}" if self.remedy else self.value
        return f"{self.verdict:<8}{self.subject:<15} {' '.join(text.split())}"


def ok(subject: str, value: str) -> Finding:
    """All is well."""
    return Finding(Verdict.OK, subject, value)


def warn(subject: str, value: str, remedy: str) -> Finding:
    """It may go well."""
    return Finding(Verdict.WARN, subject, value, remedy)


def missing(subject: str, value: str, remedy: str = "") -> Finding:
    """A run would fail; `remedy` may stay empty where `value` (an error's message) names it."""
    return Finding(Verdict.MISSING, subject, value, remedy)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = min(max(len(f"{count:.0f}") - 1, 0) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"


def installed(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

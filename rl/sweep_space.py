"""The values that a search may give to settings: lists of choices, and ranges. Imports the standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Law = Literal["uniform", "loguniform", "randint"]


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("must offer at least one value, is empty")

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that must be sound before the search starts."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number between `low` and `high`; a whole one below `high` with the law "randint"."""

    law: Law
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"must have {self.law} go from a lower to a higher number, has [{self.low}, {self.high}]")
        if self.law == "loguniform" and self.low <= 0:
            raise ValueError(f"must have loguniform begin above 0, has [{self.low}, {self.high}]")
        if self.law == "randint" and (self.low % 1 or self.high % 1):
            raise ValueError(f"must have whole ends of randint, has [{self.low}, {self.high}]")

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that must be sound before the search starts: the ends."""
        return (int(self.low), int(self.high) - 1) if self.law == "randint" else (float(self.low), float(self.high))


Space = Mapping[str, Choice | Range]


def read_space(table: Any) -> dict[str, Choice | Range]:
    """The laws by dotted name, of a TOML table that names settings as "a.b" or in nested tables.

    Raises ValueError, naming the setting.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"[space] must be a table of settings, is {table!r}")
    space: dict[str, Choice | Range] = {}
    for name, law in _named(table):
        try:
            space[name] = _law(law)
        except ValueError as error:
            raise ValueError(f"[space] {name} {error}") from error
    return space


def _named(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, law in table.items():
        if isinstance(law, Mapping) and not {*law} & {*get_args(Law), "choice"}:
            yield from _named(law, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", law


def _law(law: Any) -> Choice | Range:
    kind: Any
    kind, values = next(iter(law.items())) if isinstance(law, Mapping) and len(law) == 1 else ("choice", law)
    if not isinstance(values, list):
        raise ValueError(f"must be a list of choices or one of uniform, loguniform, randint, choice, is {law!r}")
    if kind == "choice":
        return Choice(tuple(values))
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"must have two numbers in {kind}, has {values!r}")
    return Range(kind, *values)

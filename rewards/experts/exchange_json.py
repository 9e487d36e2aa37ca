"""JSON of a file that somebody may have changed, held to its rules: every refusal is one line that says where."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

Row = dict[str, Any]


def need(holds: bool, where: str, what: str, rule: str, value: object, remedy: str = "correct the row") -> None:
    """Raises ValueError unless it `holds`."""
    if not holds:
        shown = repr(value)
        raise ValueError(f"{where}: {what} must be {rule}, is {shown[:80] + '...' * (len(shown) > 80)}: {remedy}")


def to_json(value: Any) -> str:
    """In plain Unicode; ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def parse(text: str, where: str) -> Any:
    """The value of a JSON text; ValueError for anything else, NaN, infinities and 1e999 among it."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: must be JSON, is not ({error}): correct it") from None


def _no_number(said: str) -> NoReturn:
    raise ValueError(f"{said} is no number")


def _finite(said: str) -> float:
    return float(said) if math.isfinite(float(said)) else _no_number(said)


def listed(text: str, file: str, what: str) -> Iterator[tuple[str, Row]]:
    """The objects of a file that is a list of them, each with its place."""
    rows = parse(text, file)
    need(isinstance(rows, list), file, "the file", f"a list of {what}s", rows, "export it again as JSON")
    for number, row in enumerate(rows, start=1):
        where = f"{file} {what} {number}"
        need(isinstance(row, dict), where, f"a {what}", "an object", row)
        yield where, row


def object_in(row: Row, name: str, where: str) -> Row:
    """The object that `row` has under `name`."""
    value = row.get(name)
    need(isinstance(value, dict), where, name, "an object", value)
    assert isinstance(value, dict)
    return value


def objects_in(row: Row, name: str, where: str) -> list[Row]:
    """The list of objects that `row` has under `name`."""
    value = row.get(name)
    need(
        isinstance(value, list) and all(isinstance(each, dict) for each in value),
        where,
        name,
        "a list of objects",
        value,
    )
    assert isinstance(value, list)
    return value

"""Ratings as CSV: a rating a row, for spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from rewards.experts.exchange_json import Row, need, parse, to_json
from rewards.experts.exchange_rows import ITEM_KEYS, NAMES, Rated

_COLUMNS = (*ITEM_KEYS, "rating", "rater", *NAMES, "score", "flags", "reason", "repeat", "seconds", "at")
_TEXTS = {"id", "key", "reply", "tier", "rating", "rater", "reason"}  # the other cells are JSON
_FORMULA = re.compile(r"['=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four are full width


def dump(rated: Rated) -> bytes:
    """The file; items without a rating have no row."""
    file = io.StringIO(newline="")
    table = csv.writer(file)
    table.writerow(_COLUMNS)
    for item, ratings in rated:
        for rating in ratings:
            row = {**item, **rating, **rating["criteria"]}
            table.writerow(_safe(row[name] if name in _TEXTS else to_json(row[name])) for name in _COLUMNS)
    return file.getvalue().encode("utf-8-sig")  # the mark tells spreadsheets that it is UTF-8


def load(text: str, file: str) -> Iterator[tuple[str, Row]]:
    """Place and row of each line; columns in any order. Raises ValueError for what is no such table."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(table, [])
        for name in _COLUMNS:
            need(name in header, f"{file} row 1", "the header", f"with {name!r}, commas between", header, "add it")
        for number, cells in enumerate(table, start=2):
            where = f"{file} row {number}"
            need(len(cells) == len(header), where, "a row", f"{len(header)} cells", len(cells), "restore its commas")
            row = {name: _cell(name, _unsafe(cell), where) for name, cell in zip(header, cells, strict=True)}
            yield where, {**row, "criteria": {name: row[name] for name in NAMES}}
    except csv.Error as error:
        raise ValueError(f"{file} row {table.line_num}: must be CSV, is not ({error}): save it again as CSV") from None


def _safe(cell: str) -> str:
    """A spreadsheet takes no cell for a formula that begins with an apostrophe."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unsafe(cell: str) -> str:
    return cell.removeprefix("'")


def _cell(name: str, cell: str, where: str) -> Any:
    if name in _TEXTS or name not in _COLUMNS:
        return cell
    return parse(cell.lower() if name == "repeat" else cell, f"{where}, {name}")

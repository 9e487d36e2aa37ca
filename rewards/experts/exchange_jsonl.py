"""Ratings as JSONL: a rating a line, as `attune fit preference --ratings` reads it.

A hidden repeat would be one more opinion of the same rater, and a reply without words, or to nobody, teaches nothing: such
lines are there, so that no rating is lost, and say `"counts": false`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewards.experts.exchange_json import Row, need, parse, to_json
from rewards.experts.exchange_rows import Rated


def dump(rated: Rated) -> bytes:
    """The file; items without a rating have no line."""
    lines = (
        to_json({"item": _in_its_dialogue(item), "counts": _counts(item, rating), **item, **rating})
        for item, ratings in rated
        for rating in ratings
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _counts(item: Row, rating: Row) -> bool:
    told = [item["reply"], *(turn["text"] for turn in item["history"])]
    return not rating["repeat"] and bool(item["history"]) and all(text.strip() for text in told)


def _in_its_dialogue(item: Row) -> str:
    """DIALOGUE#...: by this `read_ratings` keeps replies of one dialogue in one split."""
    prompt = item["origin"].get("prompt")
    return f"{prompt}#{item['id']}" if isinstance(prompt, str) and prompt.strip() else item["id"]


def load(text: str, file: str) -> Iterator[tuple[str, Row]]:
    """Place and row of each line. Raises ValueError for a line that is no rating."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file} line {number}"
            row = parse(line, where)
            need(isinstance(row, dict), where, "a line", "a JSON object", row)
            need(row.get("rating") is not None, where, "rating", "the rating's id", row.get("rating"), "give it one")
            yield where, row

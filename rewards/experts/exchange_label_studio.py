"""Ratings as Label Studio's tasks, as its JSON export has them.

A number has its own result; what no control shows is in the `meta` of `score`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rewards.experts.exchange_json import Row, listed, object_in, objects_in, to_json
from rewards.experts.exchange_rows import NAMES, SCORES, Rated, blank_rating, rows_of, score_of
from rewards.rated_replies import STARS


def dump(rated: Rated) -> bytes:
    """The file: a task for every item, rated or not."""
    tasks = [{"data": item, "annotations": [_annotation(rating) for rating in of]} for item, of in rated]
    return to_json(tasks).encode()


def _annotation(rating: Row) -> Row:
    rest = {name: rating[name] for name in ("rating", "rater", "repeat", "seconds", "at")}
    results = [_result(name, "number", score_of(rating, name)) for name in SCORES]
    results[-1]["meta"] = rest
    results += [_result("flags", "choices", rating["flags"])] if rating["flags"] else []
    results += [_result("reason", "text", [rating["reason"]])] if rating["reason"] else []
    return {"result": results, "was_cancelled": False, "ground_truth": False, "lead_time": rating["seconds"]}


def _result(name: str, kind: str, value: Any) -> Row:
    shown = "textarea" if kind == "text" else kind
    return {"from_name": name, "to_name": "reply", "type": shown, "origin": "manual", "value": {kind: value}}


def load(text: str, file: str) -> Iterator[tuple[str, Row]]:
    """Place and row of each rating, and of each task without one. Raises ValueError for what is no task."""
    for where, task in listed(text, file, "task"):
        item = object_in(task, "data", where)
        annotations = objects_in({"annotations": [], **task}, "annotations", where)
        done = [each for each in annotations if not each.get("was_cancelled")]
        yield from rows_of(
            where, item, [_annotated(each, f"{where}, annotation {n}") for n, each in enumerate(done, 1)]
        )


def _annotated(annotation: Row, where: str) -> Row:
    row: Row = {**blank_rating(f"label-studio-{annotation.get('id')}", _annotator(annotation)), "criteria": {}}
    if isinstance(annotation.get("lead_time"), int | float):
        row["seconds"] = annotation["lead_time"]
    if isinstance(created := annotation.get("created_at"), str):
        row["at"] = _moment(created, where)
    for result in objects_in(annotation, "result", where):
        name, value = result.get("from_name"), object_in(result, "value", where)
        if name == "score":
            row |= {"score": _scored(value, result.get("type")), **object_in({"meta": {}, **result}, "meta", where)}
        elif name in NAMES:
            row["criteria"][name] = _scored(value, result.get("type"))
        elif name == "flags":
            row["flags"] = value.get("choices")
        elif name == "reason":
            said = value.get("text")
            row["reason"] = "\n".join(map(str, said)) if isinstance(said, list) else said
    return row


def _scored(value: Row, kind: object) -> Any:
    """A number as it is; of 1 to 5 stars (stars - 1) / 4."""
    stars = value.get("rating")
    return (stars - 1) / (STARS - 1) if kind == "rating" and isinstance(stars, int | float) else value.get("number")


def _annotator(annotation: Row) -> str:
    by = annotation.get("completed_by")
    who = by.get("id") if isinstance(by, dict) else by  # never the e-mail address
    return f"label-studio-{who}"


def _moment(said: str, where: str) -> float:
    try:
        return datetime.fromisoformat(said).timestamp()
    except ValueError:
        raise ValueError(f"{where}: created_at must be an ISO 8601 time, is {said!r}: correct it") from None

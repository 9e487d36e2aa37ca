"""An item with one of its ratings as a row of plain JSON: what every shape of a file is a way to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.crisis import Tier
from rewards.experts.exchange_json import Row, need
from rewards.experts.form import CRITERIA
from rewards.experts.types import Item, Rating
from rewards.flag_rules import Flag
from rollout.types import Speaker, Turn

NAMES = tuple(criterion.name for criterion in CRITERIA)
SCORES = (*NAMES, "score")
ITEM_KEYS = ("id", "key", "history", "reply", "tier", "wanted", "priority", "origin")
RATING_KEYS = ("rating", "rater", "criteria", "score", "flags", "reason", "repeat", "seconds", "at")
Rated = Sequence[tuple[Row, Sequence[Row]]]  # items, each with its ratings


def item_row(item: Item) -> Row:
    """`ITEM_KEYS` of an item."""
    history = [{"speaker": turn.speaker.value, "text": turn.text} for turn in item.history]
    told = (item.id, item.key, history, item.reply, item.tier, item.wanted, item.priority, dict(item.origin))
    return dict(zip(ITEM_KEYS, told, strict=True))


def rating_row(rating: Rating, rater: str) -> Row:
    """`RATING_KEYS` of a rating, given by `rater`."""
    told = (
        rating.id, rater, dict(rating.criteria), rating.overall, list(rating.flags), rating.reason, rating.repeat,
        rating.seconds, rating.at,
    )  # fmt: skip
    return dict(zip(RATING_KEYS, told, strict=True))


def score_of(rating: Row, name: str) -> float:
    """The number of one of `SCORES`."""
    return rating["score"] if name == "score" else rating["criteria"][name]


def blank_rating(rating: str, rater: str) -> Row:
    """A rating from elsewhere, before its answers are read."""
    return {"rating": rating, "rater": rater, "flags": [], "reason": ""}


def rows_of(where: str, item: Row, ratings: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """An item's ratings with the item; an open task is a row without a rating."""
    if not ratings:
        yield where, {name: item[name] for name in ITEM_KEYS if name in item}
    for number, rating in enumerate(ratings, start=1):
        yield f"{where}, rating {number}", {**item, **rating}


def read(row: Row, where: str) -> tuple[Item, Rating | None]:
    """What a row tells. Raises ValueError that names place, field, rule, value and remedy."""
    told, origin = row.get("history"), row.get("origin", {})
    need(isinstance(told, list), where, "history", "a list of turns", told)
    need(isinstance(origin, dict), where, "origin", "an object", origin)
    assert isinstance(told, list) and isinstance(origin, dict)
    tier, wanted = row.get("tier", Tier.NONE.value), row.get("wanted", 1)
    need(tier in list(Tier), where, "tier", f"one of {', '.join(Tier)}", tier)
    whole = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1
    need(whole, where, "wanted", "a whole number above 0", wanted)
    priority = _number({"priority": 0.0, **row}, "priority", where, -1e9, 1e9, "a number within 1e9 of 0")
    history = tuple(_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(told, start=1))
    reply, key = _words(row, "reply", where, blank=True), _words(row, "key", where)
    item = Item(key, history, reply, str(tier), wanted, priority, origin)
    same = row.get("id", item.id) == item.id
    need(same, where, "id", f"{item.id}, the hash of key and texts", row.get("id"), "undo the change to the texts")
    return item, _read_rating(row, item.id, where) if row.get("rating") is not None else None


def _turn(turn: Any, where: str) -> Turn:
    fits = isinstance(turn, dict) and turn.get("speaker") in list(Speaker) and isinstance(turn.get("text"), str)
    need(fits, where, "a turn", "an object with speaker (client or therapist) and text", turn)
    return Turn(Speaker(turn["speaker"]), turn["text"])


def _read_rating(row: Row, item: str, where: str) -> Rating:
    criteria, flags, repeat = row.get("criteria"), row.get("flags", []), row.get("repeat", False)
    complete = isinstance(criteria, dict) and set(criteria) == set(NAMES)
    need(complete, where, "criteria", f"an object of {', '.join(NAMES)}", criteria)
    assert isinstance(criteria, dict)
    known = isinstance(flags, list) and all(flag in list(Flag) for flag in flags) and len({*flags}) == len(flags)
    need(known, where, "flags", f"a list, each once, of {', '.join(Flag)}", flags)
    need(isinstance(repeat, bool), where, "repeat", "true or false", repeat)
    finite = (0, 1e12, "a number of seconds, 0 or above")
    return Rating(
        _words(row, "rating", where),
        item,
        _words(row, "rater", where),
        {name: _number(criteria, name, where, 0, 1, "a number in [0, 1]") for name in NAMES},
        _number(row, "score", where, 0, 1, "a number in [0, 1]"),
        tuple(flags),
        _words({"reason": "", **row}, "reason", where, blank=True),
        repeat,
        _number({"seconds": 0.0, **row}, "seconds", where, *finite),
        _number({"at": 0.0, **row}, "at", where, *finite),
    )


def _number(row: Mapping[str, Any], key: str, where: str, low: float, high: float, rule: str) -> float:
    value = row.get(key)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    need(fits, where, key, rule, value)
    assert isinstance(value, int | float)
    return value


def _words(row: Mapping[str, Any], key: str, where: str, *, blank: bool = False) -> str:
    value = row.get(key)
    need(isinstance(value, str) and (blank or bool(value.strip())), where, key, "a text", value)
    assert isinstance(value, str)
    return value

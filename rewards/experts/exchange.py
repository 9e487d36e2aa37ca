"""Items and their ratings as a file, and back: CSV, JSONL, Argilla's records, Label Studio's tasks.

    dump(items, ratings, shape, salt) -> bytes          load(bytes, shape, file) -> items, ratings

What was dumped loads as it was, raters under their pseudonyms. A CSV or JSONL file has one rating a row, and no item that
nobody rated; the others carry such items as open tasks. JSONL is what `attune fit preference --ratings` reads. Every
shape is a way to write the same rows, and `exchange_rows.read` is what holds a row to its rules.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rewards.experts import exchange_argilla, exchange_csv, exchange_jsonl, exchange_label_studio
from rewards.experts.exchange_json import Row
from rewards.experts.exchange_rows import Rated, item_row, rating_row, read
from rewards.experts.types import Item, Rating

_PSEUDONYM = re.compile(r"rater-[0-9a-f]{12}")


class Shape(enum.StrEnum):
    """What a file of ratings looks like."""

    CSV = "csv"
    JSONL = "jsonl"
    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"


def pseudonym(rater: str, salt: str) -> str:
    """What stands in files for `rater`; the same for the same `salt`, which stays secret. A pseudonym is its own."""
    if _PSEUDONYM.fullmatch(rater):
        return rater
    return "rater-" + hmac.new(salt.encode(), rater.encode(), hashlib.sha256).hexdigest()[:12]


def dump(items: Sequence[Item], ratings: Iterable[Rating], shape: Shape, salt: str) -> bytes:
    """A file of `items` and `ratings`, in the order of items, raters by `pseudonym`.

    Raises ValueError for an item that is given twice, and a rating whose item is not among `items`.
    """
    by_item: dict[str, list[Row]] = {item.id: [] for item in items}
    if len(by_item) != len(items):
        raise ValueError(f"an item must be given once, {len(items) - len(by_item)} are given again: leave them out")
    for rating in ratings:
        if rating.item not in by_item:
            raise ValueError(f"the item of rating {rating.id} must be given, {rating.item!r} is not: export it as well")
        by_item[rating.item].append(rating_row(rating, pseudonym(rating.rater, salt)))
    rows = [(item_row(item), by_item[item.id]) for item in items]
    return _DUMPS[shape](rows)


def load(data: bytes, shape: Shape, file: str) -> tuple[tuple[Item, ...], tuple[Rating, ...]]:
    """The items and ratings of a file, which messages call `file`: all of them, or a ValueError that names the row, the
    rule and what to do."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: must be UTF-8, is not at byte {error.start}: save it as UTF-8") from None
    items: dict[str, Item] = {}
    ratings: dict[str, Rating] = {}
    for where, row in _LOADS[shape](text, file):
        item, rating = read(row, where)
        if items.setdefault(item.id, item) != item:
            raise ValueError(
                f"{where}: an item must be told alike in all rows, {item.key!r} is not: make them the same"
            )
        if rating and ratings.setdefault(rating.id, rating) is not rating:
            raise ValueError(f"{where}: a rating must stand in the file once, {rating.id!r} does twice: remove one")
    return tuple(items.values()), tuple(ratings.values())


_DUMPS: Mapping[Shape, Callable[[Rated], bytes]] = {
    Shape.CSV: exchange_csv.dump,
    Shape.JSONL: exchange_jsonl.dump,
    Shape.ARGILLA: exchange_argilla.dump,
    Shape.LABEL_STUDIO: exchange_label_studio.dump,
}
_LOADS: Mapping[Shape, Callable[[str, str], Iterator[tuple[str, Row]]]] = {
    Shape.CSV: exchange_csv.load,
    Shape.JSONL: exchange_jsonl.load,
    Shape.ARGILLA: exchange_argilla.load,
    Shape.LABEL_STUDIO: exchange_label_studio.load,
}

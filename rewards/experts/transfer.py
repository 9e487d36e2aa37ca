"""Ratings leave the service as a file, and come in from one."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace

from rewards.experts import audit, intake
from rewards.experts.config import ServiceConfig
from rewards.experts.fixing import rating as rating_of
from rewards.experts.types import Item, Kind, Rating
from rollout.types import Speaker, Turn


def scrubbed(item: Item) -> Item:
    """The item without names and contacts: a name that one of its turns introduces goes out of all, and out of the reply.

    Labels of turns say more than a rater may know: they go as well.
    """
    from rewards.experts.scrub import scrub_together

    *turns, reply = scrub_together([*(turn.text for turn in item.history), item.reply])
    history = tuple(Turn(turn.speaker, text) for turn, text in zip(item.history, turns, strict=True))
    return replace(item, history=history, reply=reply)


def salt(db: sqlite3.Connection) -> str:
    """The folder's secret that makes pseudonyms of raters' names; made the first time it is asked for."""
    db.execute("INSERT INTO secrets (name, value) VALUES ('salt', ?) ON CONFLICT DO NOTHING", (secrets.token_hex(16),))
    return str(db.execute("SELECT value FROM secrets WHERE name = 'salt'").fetchone()[0])


def told(db: sqlite3.Connection) -> tuple[list[Item], list[Rating]]:
    """All items, and all ratings that were not taken back, repeats among them."""
    items = [
        Item(
            row["key"],
            tuple(Turn(Speaker(speaker), text) for speaker, text in json.loads(row["history"])),
            *(row["reply"], row["tier"], row["wanted"], row["priority"], json.loads(row["origin"])),
        )
        for row in db.execute("SELECT * FROM items ORDER BY seq")
    ]
    ratings = db.execute("SELECT body FROM ratings WHERE undone = 0 ORDER BY seq")
    return items, [rating_of(json.loads(row["body"])) for row in ratings]


def take_in(
    db: sqlite3.Connection, config: ServiceConfig, items: Mapping[str, Item], ratings: Iterable[Rating], now: float
) -> tuple[int, int]:
    """Items by the id that `ratings` know them by, and ratings of them; how many of each were new.

    Raters come in under the names in the file, without a token. What is here already stays as it is.
    """
    before = _count(db, "items"), _count(db, "ratings")
    for item in items.values():
        intake.put(db, config, item, now)
    for rating in ratings:
        if db.execute("SELECT 1 FROM ratings WHERE id = ?", (rating.id,)).fetchone() is None:
            _take(db, items[rating.item].id, rating, now)
    return _count(db, "items") - before[0], _count(db, "ratings") - before[1]


def _take(db: sqlite3.Connection, item: str, rating: Rating, now: float) -> None:
    lease = secrets.token_hex(16)
    db.execute("INSERT INTO raters (name, crisis, at) VALUES (?, 0, ?) ON CONFLICT DO NOTHING", (rating.rater, now))
    db.execute(
        "INSERT INTO leases (lease, item, rater, given, expires, repeat, state) VALUES (?, ?, ?, ?, ?, ?, 'rated')",
        (lease, item, rating.rater, rating.at, rating.at, rating.repeat),
    )
    body = {**rating.to_dict(), "item": item}
    seq = audit.append(db, now, Kind.RATING, {**body, "imported": True})
    db.execute(
        "INSERT INTO ratings (seq, id, item, rater, lease, submission, content, body, repeat, sitting, at) "
        "VALUES (?, ?, ?, ?, ?, ?, '', ?, ?, -1, ?)",
        (
            *(seq, rating.id, item, rating.rater, lease, f"import {rating.id}"),
            *(audit.canonical(body), rating.repeat, rating.at),
        ),
    )
    if not rating.repeat:
        db.execute("UPDATE items SET rated = rated + 1 WHERE id = ?", (item,))


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

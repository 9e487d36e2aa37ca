"""Replies come to the queue, are asked for again, and leave it when nobody needs them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from rewards.experts import audit, turns
from rewards.experts.config import ServiceConfig
from rewards.experts.refusal import Refused
from rewards.experts.types import Item, Kind


def put(db: sqlite3.Connection, config: ServiceConfig, item: Item, now: float) -> bool:
    """Take an item in, unless it is here; whether it was new. Its texts stay out of the chain, which holds the hash of them:
    the item's id."""
    raters = _raters(config, item)
    history = audit.canonical([[turn.speaker, turn.text] for turn in item.history])
    added = db.execute(
        "INSERT INTO items (id, key, history, reply, tier, wanted, priority, origin, at, raters) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        (
            *(item.id, item.key, history, item.reply, item.tier, item.wanted, item.priority),
            *(audit.canonical(item.origin), now, raters),
        ),
    )
    if added.rowcount:
        audit.append(db, now, Kind.ITEM, _chained(item, item.wanted, raters))
    return bool(added.rowcount)


def put_again(db: sqlite3.Connection, config: ServiceConfig, item: Item, now: float) -> None:
    """An item that is here is asked for again: it is open, at the new priority, for as many raters as were ever wanted. What
    asks for nothing new changes nothing; a reward that is fixed stays."""
    told = {"id": item.id, "wanted": item.wanted, "raters": _raters(config, item), "priority": item.priority}
    changed = db.execute(
        "UPDATE items SET open = 1, priority = :priority, wanted = max(wanted, :wanted), raters = max(raters, :raters) "
        "WHERE id = :id AND (open = 0 OR priority <> :priority OR wanted < :wanted OR raters < :raters)",
        told,
    ).rowcount
    if changed:
        wanted, raters = db.execute("SELECT wanted, raters FROM items WHERE id = ?", (item.id,)).fetchone()
        audit.append(db, now, Kind.ITEM, {**_chained(item, wanted, raters), "again": True})


def close(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Nobody needs these any more; how many were open. Who has one before him or her may finish it."""
    known(db, ids)
    closing = "UPDATE items SET open = 0 WHERE open = 1 AND id = ?"
    return sum(db.execute(closing, (one,)).rowcount for one in ids)


def close_from(db: sqlite3.Connection, run: str, step: int) -> int:
    """Nobody needs what `run` asked at `step` and later, by the items' origin; how many were open."""
    from_there = "json_extract(origin, '$.run') = ? AND json_type(origin, '$.step') = 'integer'"
    late = f"open = 1 AND {from_there} AND json_extract(origin, '$.step') >= ?"
    return db.execute(f"UPDATE items SET open = 0 WHERE {late}", (run, step)).rowcount


def known(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    """Raises `Refused` (404) for the first id that is no item's."""
    for one in ids:
        if db.execute("SELECT 1 FROM items WHERE id = ?", (one,)).fetchone() is None:
            raise Refused(404, f"no item has the id {one!r}: send it to /api/run/items first")


def _raters(config: ServiceConfig, item: Item) -> int:
    """How many shall judge it."""
    return max(item.wanted, config.overlap_raters) if turns.share(item.id) < config.overlap else item.wanted


def _chained(item: Item, wanted: int, raters: int) -> dict[str, Any]:
    """What the chain says of an item."""
    told = {"id": item.id, "key": item.key, "tier": item.tier, "wanted": wanted, "priority": item.priority}
    return {**told, "raters": raters, "origin": item.origin}

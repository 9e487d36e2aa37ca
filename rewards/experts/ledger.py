"""The whole folder held against its audit chain: what raters and the training job are told must be what the chain says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rewards.experts import audit, comparison_ledger
from rewards.experts.transfer import told
from rewards.experts.types import Kind


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database to read, whether a service runs on it or not. Raises ValueError where there is none."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            db.execute("SELECT seq FROM chain LIMIT 1")  # the view that all that follows sees
            yield db
    except sqlite3.Error as error:
        raise ValueError(
            f"{path} must be the database of a rating service, is not ({error}): name its folder"
        ) from error


def check(db: sqlite3.Connection) -> audit.Head:
    """The end of a sound chain whose ratings, rewards, judgements and texts are those of the other tables.

    Raises ValueError that names the first row of the chain, or the item, that is not what was written.
    """
    end = audit.verify(audit.rows(db))
    _check_bodies(db, Kind.RATING, "ratings")
    _check_bodies(db, Kind.REWARD, "rewards")
    undone = {row.content.get("rating") for row in _of_kind(db, Kind.UNDO)}
    for row in db.execute("SELECT id, seq, undone FROM ratings"):
        if bool(row["undone"]) != (row["id"] in undone):
            raise ValueError(
                f"audit: rating {row['id']} of row {row['seq']} must stand or be taken back as in the chain"
            )
    chained = {row.content["id"] for row in _of_kind(db, Kind.ITEM)}
    ids = [row["id"] for row in db.execute("SELECT id FROM items ORDER BY seq")]
    for known, item in zip(ids, told(db)[0], strict=True):
        if item.id != known or known not in chained:
            raise ValueError(
                f"audit: the texts of item {known} must be those that its id is the hash of: they were changed"
            )
    comparison_ledger.check(db, list(audit.rows(db)))
    return end


def _check_bodies(db: sqlite3.Connection, kind: Kind, table: str) -> None:
    kept = {row["seq"]: json.loads(row["body"]) for row in db.execute(f"SELECT seq, body FROM {table}")}
    for row in _of_kind(db, kind):
        said = {part: value for part, value in row.content.items() if part != "imported"}
        if kept.pop(row.seq, None) != said:
            raise ValueError(f"audit: table {table} must hold what row {row.seq} of the chain says: it was changed")
    if kept:
        raise ValueError(f"audit: table {table} must hold what the chain says, has more: rows {sorted(kept)[:5]}")


def _of_kind(db: sqlite3.Connection, kind: Kind) -> Iterator[audit.Row]:
    return (row for row in audit.rows(db) if row.kind == kind)

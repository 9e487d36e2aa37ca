"""Judgements and comparisons held against the audit chain."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from rewards.experts.audit import Row
from rewards.experts.comparison import comparison_of
from rewards.experts.types import Kind


def check(db: sqlite3.Connection, chain: Sequence[Row]) -> None:
    """Raises ValueError that names the first judgement or comparison that is not what the chain says.

    A folder of before there were comparisons has none.
    """
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'comparisons'").fetchone() is None:
        return
    said = {row.seq: row.content for row in chain if row.kind == Kind.JUDGEMENT}
    undone = {row.content.get("judgement") for row in chain if row.kind == Kind.UNDO}
    for row in db.execute("SELECT seq, id, body, undone FROM judgements ORDER BY seq"):
        if said.pop(row["seq"], None) != json.loads(row["body"]):
            raise ValueError(
                f"audit: table judgements must hold what row {row['seq']} of the chain says: it was changed"
            )
        if bool(row["undone"]) != (row["id"] in undone):
            raise ValueError(
                f"audit: judgement {row['id']} of row {row['seq']} must stand or be taken back as in the chain"
            )
    if said:
        raise ValueError(f"audit: table judgements must hold what row {min(said)} of the chain says: it was changed")
    chained = {row.content["id"] for row in chain if row.kind == Kind.COMPARISON}
    for row in db.execute("SELECT * FROM comparisons ORDER BY seq"):
        comparison = comparison_of(row)
        if comparison.id != row["id"] or row["id"] not in chained or comparison.same != bool(row["same"]):
            raise ValueError(
                f"audit: the texts of comparison {row['id']} must be those that its id is the hash of: they were changed"
            )
        chained.remove(row["id"])
    if chained:
        raise ValueError(f"audit: table comparisons must hold {min(chained)}, which the chain knows: it was removed")

"""The audit chain: sealed rows, tampering found and named, and from a checkpoint back to the ratings that moved it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.experts import audit
from rewards.experts.database import Database
from rewards.experts.types import Kind

KINDS = (Kind.ITEM, Kind.RATING, Kind.REWARD, Kind.UPDATE, Kind.CHECKPOINT)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "ratings.sqlite")
    yield made
    made.close()


def append(database: Database, kind: Kind, **body: Any) -> int:
    return database.write(lambda db: audit.append(db, 1000.25, kind, body))


def chain(database: Database) -> list[audit.Row]:
    with database.read() as db:
        return list(audit.rows(db))


def test_a_row_is_sealed_as_documented(database: Database) -> None:
    """hash_1 = sha256(64 zeros, seq, at, kind, body), lines; the body is canonical JSON in plain Unicode."""
    append(database, Kind.RATING, b=0.1, a="schön")
    (row,) = chain(database)
    assert row.body == '{"a":"schön","b":0.1}'
    told = "\n".join(["0" * 64, "1", "1000.25", "rating", row.body])
    assert row.hash == hashlib.sha256(told.encode()).hexdigest()


def test_a_sound_chain_has_its_last_row_as_head(database: Database) -> None:
    """verify returns the end that `head` sees; an empty chain is sound."""
    assert audit.verify([]) == audit.Head(0, audit.FIRST_HASH)
    for kind in KINDS:
        append(database, kind, of=kind)
    with database.read() as db:
        assert audit.verify(audit.rows(db)) == audit.head(db)


@pytest.mark.parametrize("part, value", [("at", 1000.5), ("kind", "skip"), ("body", "{}"), ("hash", "1" * 64)])
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_change_to_any_part_of_any_row_is_named(database: Database, seq: int, part: str, value: Any) -> None:
    """A row with another time, kind, body or hash is the row that the error names."""
    for kind in KINDS:
        append(database, kind, of=kind)
    rows = chain(database)
    rows[seq - 1] = rows[seq - 1]._replace(**{part: value})
    with pytest.raises(ValueError, match=rf"^audit chain: row {seq} ") as error:
        audit.verify(rows)
    assert "\n" not in str(error.value)


def test_a_resealed_row_betrays_itself_at_the_next(database: Database) -> None:
    """Whoever forges a row and its hash breaks the row after it."""
    for kind in KINDS:
        append(database, kind, of=kind)
    rows = chain(database)
    forged = audit.seal(rows[1].hash, 3, rows[2].at, rows[2].kind, "{}")
    rows[2] = rows[2]._replace(body="{}", hash=forged)
    with pytest.raises(ValueError, match=r"^audit chain: row 4 "):
        audit.verify(rows)


def test_a_missing_row_and_a_second_one_are_named(database: Database) -> None:
    """Rows follow each other by number."""
    for kind in KINDS:
        append(database, kind, of=kind)
    rows = chain(database)
    with pytest.raises(ValueError, match="row 3 must follow row 2, row 4 does"):
        audit.verify(rows[:2] + rows[3:])
    with pytest.raises(ValueError, match="row 3 must follow row 2, row 2 does"):
        audit.verify(rows[:2] + rows[1:])


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE chain SET body = '{}' WHERE seq = 1",
        "DELETE FROM chain WHERE seq = 1",
        "DELETE FROM chain",
        "INSERT OR REPLACE INTO chain VALUES (1, 0.0, 'rating', '{}', 'x')",
        "INSERT INTO chain VALUES (1, 0.0, 'rating', '{}', 'x') ON CONFLICT (seq) DO UPDATE SET body = '{}'",
    ],
)
def test_the_database_refuses_to_change_the_chain(database: Database, sql: str) -> None:
    """Triggers: no UPDATE, no DELETE, no REPLACE, whoever writes the SQL."""
    append(database, Kind.ITEM)
    append(database, Kind.ITEM)
    before = chain(database)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.write(lambda db: db.execute(sql))
    assert chain(database) == before


def test_no_number_that_json_lacks_enters_the_chain(database: Database) -> None:
    """NaN would be read differently by others."""
    with pytest.raises(ValueError):
        append(database, Kind.REWARD, value=float("nan"))
    assert chain(database) == []


def rated(database: Database, item: str, *ratings: str, run: str = "a", step: int = 0) -> None:
    for rating in ratings:
        append(database, Kind.RATING, id=rating, item=item, rater="anna", overall=0.5)
    append(database, Kind.REWARD, item=item, run=run, step=step, value=0.5, ratings=list(ratings))


def update(database: Database, step: int, *items: str, run: str = "a") -> None:
    append(database, Kind.UPDATE, run=run, step=step, rewards=list(items))


def checkpoint(database: Database, step: int, run: str = "a") -> None:
    append(database, Kind.CHECKPOINT, run=run, step=step, manifest="0" * 64)


def test_a_checkpoint_is_traced_to_its_ratings(database: Database) -> None:
    """Updates before the checkpoint, their rewards, and the ratings behind them: no others."""
    rated(database, "i1", "r1", "r2")
    rated(database, "i2", "r3")
    rated(database, "unused", "r4")
    rated(database, "foreign", "r5", run="b")
    update(database, 0, "i1")
    update(database, 0, "foreign", run="b")
    update(database, 1, "i2")
    checkpoint(database, 2)
    rated(database, "late", "r6")
    update(database, 2, "late")
    checkpoint(database, 3)
    found = audit.trace(chain(database), "a", 2)
    assert [row.content["step"] for row in found.updates] == [0, 1]
    assert found.rewards.keys() == {"i1", "i2"} and found.ratings.keys() == {"r1", "r2", "r3"}
    assert found.unfixed == []
    assert audit.trace(chain(database), "a", 3).ratings.keys() == {"r1", "r2", "r3", "r6"}


def test_a_resumed_run_traces_what_it_did_at_last(database: Database) -> None:
    """Steps that were lost with a crash moved nothing; an update of step s takes the place of all later ones."""
    for item, step in (("i0", 0), ("i1", 1), ("i2", 2)):
        rated(database, item, f"r-{item}")
        update(database, step, item)
    rated(database, "again", "r-again")
    update(database, 1, "again")
    checkpoint(database, 2)
    assert audit.trace(chain(database), "a", 2).ratings.keys() == {"r-i0", "r-again"}


def test_the_newest_checkpoint_of_a_name_is_traced(database: Database) -> None:
    """A run that passed the same step twice means the second time."""
    rated(database, "i0", "r0")
    update(database, 0, "i0")
    checkpoint(database, 1)
    rated(database, "i1", "r1")
    update(database, 0, "i1")
    checkpoint(database, 1)
    assert audit.trace(chain(database), "a", 1).ratings.keys() == {"r1"}


def test_a_surrogate_stands_in_and_leads_to_the_ratings_it_was_fitted_to(database: Database) -> None:
    """An item without a reward at its update is told as such; so is a reward that came after it."""
    append(database, Kind.RATING, id="r1", item="i1", rater="anna", overall=0.5)
    append(database, Kind.SURROGATE, run="a", did="promoted", ratings=["r1"])
    update(database, 0, "i2", "i3")
    rated(database, "i2", "r2")
    checkpoint(database, 1)
    found = audit.trace(chain(database), "a", 1)
    assert found.unfixed == ["i2", "i3"] and found.rewards == {}
    assert found.ratings.keys() == {"r1"} and len(found.surrogates) == 1


def test_an_unknown_checkpoint_is_refused_with_those_there_are(database: Database) -> None:
    """The error tells the steps that can be asked for."""
    checkpoint(database, 50)
    with pytest.raises(ValueError, match=r"run 'a' must have a checkpoint of step 49, has \[50\]"):
        audit.trace(chain(database), "a", 49)
    with pytest.raises(ValueError, match="has none"):
        audit.trace(chain(database), "b", 50)

"""What is exported comes back as it was; what was spoilt in between is refused with its row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.crisis import Tier
from rewards.experts.exchange import Shape, dump, load, pseudonym
from rewards.experts.form import CRITERIA
from rewards.experts.types import Item, Rating
from rewards.flag_rules import Flag
from rewards.rated_replies import read_ratings
from rollout.types import Speaker, Turn

SALT = "kept by the service"
HISTORY = (Turn(Speaker.CLIENT, "I feel empty."), Turn(Speaker.THERAPIST, "Since when?"), Turn(Speaker.CLIENT, "May."))
ITEM = Item("demo/3/esconv/train/0412#7/1", HISTORY, "What happened then?", origin={"prompt": "esconv/train/0412#7"})
CRITERIA_GIVEN = dict.fromkeys((criterion.name for criterion in CRITERIA), 0.25)
RATING = Rating("r1", ITEM.id, pseudonym("Anna", SALT), CRITERIA_GIVEN, 0.62, ("dismissal",), "=cold", at=1.5e9)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = texts.filter(lambda text: bool(text.strip()))
shares = st.floats(0, 1)
items = st.builds(
    Item,
    names,
    st.lists(st.builds(Turn, st.sampled_from(Speaker), texts), max_size=3).map(tuple),
    texts,
    st.sampled_from([tier.value for tier in Tier]),
    st.integers(1, 9),
    st.floats(-1e9, 1e9),
    st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans()), max_size=3),
)


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[Item], list[Rating]]:
    told = draw(st.lists(items, max_size=4, unique_by=lambda item: item.id))
    ratings = []
    for item in told:
        for _ in range(draw(st.integers(1, 3))):
            ratings.append(
                Rating(
                    f"{len(ratings)}{draw(texts)}",
                    item.id,
                    pseudonym(draw(st.sampled_from(["Anna", "Bo", "Chi"])), SALT),
                    {criterion.name: draw(shares) for criterion in CRITERIA},
                    draw(shares),
                    tuple(draw(st.lists(st.sampled_from([flag.value for flag in Flag]), unique=True, max_size=3))),
                    draw(texts),
                    draw(st.booleans()),
                    draw(st.floats(0, 1e6)),
                    draw(st.floats(0, 2e9)),
                )
            )
    return told, ratings


@pytest.mark.parametrize("shape", Shape)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(judged())
def test_what_is_exported_comes_back(shape: Shape, given: tuple[list[Item], list[Rating]]) -> None:
    told, ratings = given
    assert load(dump(told, ratings, shape, SALT), shape, "f") == (tuple(told), tuple(ratings))


@pytest.mark.parametrize("shape", [Shape.ARGILLA, Shape.LABEL_STUDIO])
def test_items_that_nobody_rated_travel_as_open_tasks(shape: Shape) -> None:
    assert load(dump([ITEM], [], shape, SALT), shape, "f") == ((ITEM,), ())


@pytest.mark.parametrize("shape", Shape)
def test_raters_appear_by_pseudonym(shape: Shape) -> None:
    data = dump([ITEM], [replace(RATING, rater="Anna")], shape, SALT)
    assert b"Anna" not in data
    assert load(data, shape, "f")[1][0].rater == pseudonym("Anna", SALT) != pseudonym("Anna", "another salt")


def test_jsonl_feeds_the_preference_model(tmp_path: Path) -> None:
    other = replace(RATING, id="r2", rater="Bo", overall=0.5)
    file = tmp_path / "ratings.jsonl"
    file.write_bytes(dump([ITEM], [RATING, other], Shape.JSONL, SALT))
    (rated,) = read_ratings(file)
    assert (rated.group, rated.history, rated.reply) == ("esconv/train/0412", HISTORY, ITEM.reply)
    assert rated.score == pytest.approx(0.56)


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'", "＝1"])  # noqa: RUF001
def test_no_cell_is_a_formula(cell: str) -> None:
    rating = replace(RATING, reason=cell)
    data = dump([ITEM], [rating], Shape.CSV, SALT)
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert all(not value.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for value in row.values())
    assert load(data, Shape.CSV, "f")[1] == (rating,)


def test_a_csv_may_have_its_columns_in_another_order_and_more_of_them() -> None:
    rows = list(csv.reader(io.StringIO(dump([ITEM], [RATING], Shape.CSV, SALT).decode("utf-8-sig"), newline="")))
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[*reversed(rows[0]), "note"], [*reversed(rows[1]), "mine"]])
    assert load(file.getvalue().encode(), Shape.CSV, "f") == ((ITEM,), (RATING,))


def _spoilt(shape: Shape, change: Callable[[Any], None]) -> bytes:
    rows = json.loads(dump([ITEM], [RATING], shape, SALT))
    change(rows if shape is Shape.JSONL else rows[0])
    return json.dumps(rows).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(score=1.2), r"f line 1: score must be a number in \[0, 1\], is 1.2: correct the row"),
        (lambda row: row.update(score=True), r"score must be a number in \[0, 1\], is True"),
        (lambda row: row.update(score=float("nan")), "must be JSON, is not"),
        (lambda row: row["criteria"].pop("no_harm"), "criteria must be an object of acknowledges_emotion"),
        (lambda row: row["criteria"].update(no_harm=-0.1), r"no_harm must be a number in \[0, 1\], is -0.1"),
        (lambda row: row.update(flags=["rude"]), "flags must be a list, each once, of methods_or_means"),
        (lambda row: row.update(flags=["dosage", "dosage"]), "flags must be a list, each once"),
        (lambda row: row.update(flags=[["dosage"]]), "flags must be a list, each once"),
        (lambda row: row.update(rater=""), "rater must be a text, is ''"),
        (lambda row: row.update(rating=None), "rating must be the rating's id, is None: give it one"),
        (lambda row: row.update(repeat=1), "repeat must be true or false, is 1"),
        (lambda row: row.update(seconds=-1), "seconds must be a number of seconds"),
        (lambda row: row.update(reply="Another one."), "id must be [0-9a-f]{32}, the hash of key and texts"),
        (lambda row: row.update(tier="blue"), "tier must be one of none"),
        (lambda row: row.update(tier=["none"]), "tier must be one of none"),
        (lambda row: row.update(wanted=0), "wanted must be a whole number above 0"),
        (lambda row: row["history"][1].update(speaker="me"), "turn 2: a turn must be an object with speaker"),
        (lambda row: row.update(history="hello"), "history must be a list of turns"),
        (lambda row: row.update(origin=[]), "origin must be an object"),
    ],
)
def test_a_spoilt_row_is_refused_by_name(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(_spoilt(Shape.JSONL, change), Shape.JSONL, "f")
    assert "\n" not in str(error.value)


def test_one_wrong_row_refuses_the_file() -> None:
    data = dump([ITEM], [RATING, replace(RATING, id="r2")], Shape.JSONL, SALT)
    with pytest.raises(ValueError, match=r"f line 3: a rating must stand in the file once, 'r2' does twice"):
        load(data + data.splitlines(keepends=True)[1], Shape.JSONL, "f")
    with pytest.raises(ValueError, match="f line 3: must be JSON"):
        load(data + b"{", Shape.JSONL, "f")


@pytest.mark.parametrize("shape", Shape)
def test_another_file_is_refused(shape: Shape) -> None:
    for data in (b"\xff", b"42", b"null", b"[1]", b'[{"data": 1}]', b"a,b\n1,2", b'"', b'{"a"'):
        with pytest.raises(ValueError, match=r"^f"):
            load(data, shape, "f")


def test_what_was_changed_or_added_in_argilla_counts() -> None:
    def change(record: dict[str, Any]) -> None:
        record["responses"]["score"][0]["value"] = 9
        for answers in record["responses"].values():
            answers.append({"value": [] if isinstance(answers[0]["value"], list) else 4, "user_id": "u2"})
        record["responses"]["reason"][1]["value"] = "fine"

    first, second = load(_spoilt(Shape.ARGILLA, change), Shape.ARGILLA, "f")[1]
    assert (first.id, first.rater, first.overall, first.at) == ("r1", RATING.rater, 0.9, RATING.at)
    assert (second.rater, second.overall, second.flags, second.reason) == ("argilla-u2", 0.4, (), "fine")


def test_a_completed_export_of_label_studio_is_read() -> None:
    def change(task: dict[str, Any]) -> None:
        task |= {"id": 1, "project": 3, "created_at": "2026-01-01T00:00:00.000000Z"}
        results = [
            {"from_name": criterion.name, "to_name": "reply", "type": "number", "value": {"number": 0.5}}
            for criterion in CRITERIA
        ]
        stars = {"from_name": "score", "to_name": "reply", "type": "rating", "value": {"rating": 4}}
        flags = {"from_name": "flags", "to_name": "reply", "type": "choices", "value": {"choices": ["diagnosis"]}}
        why = {"from_name": "reason", "to_name": "reply", "type": "textarea", "value": {"text": ["one", "two"]}}
        done = {"id": 77, "completed_by": {"id": 5, "email": "anna@example.com"}, "lead_time": 8.5}
        when = "2026-01-01T00:00:00.000000Z"
        skipped = {"id": 78, "completed_by": 5, "was_cancelled": True, "result": []}
        task["annotations"] = [{**done, "created_at": when, "result": [*results, stars, flags, why]}, skipped]

    (rating,) = load(_spoilt(Shape.LABEL_STUDIO, change), Shape.LABEL_STUDIO, "f")[1]
    assert (rating.rater, rating.overall, rating.flags) == ("label-studio-5", 0.75, ("diagnosis",))
    assert (rating.reason, rating.seconds, rating.at) == ("one\ntwo", 8.5, 1767225600.0)


def test_a_rating_without_its_item_is_not_exported() -> None:
    with pytest.raises(ValueError, match="the item of rating r1 must be given"):
        dump([], [RATING], Shape.CSV, SALT)


@pytest.mark.parametrize("shape", [Shape.JSONL, Shape.ARGILLA, Shape.LABEL_STUDIO])
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_whatever_is_broken_the_refusal_is_one_line_that_names_the_file(shape: Shape, data: st.DataObject) -> None:
    rows = json.loads(dump([ITEM], [RATING], shape, SALT))
    places = list(_places(rows))
    where, key = places[data.draw(st.integers(0, len(places) - 1))]
    where[key] = data.draw(
        st.sampled_from([None, True, -1, 1.5, "x", "", "[1]", [], [1], [[]], {}, {"a": 1}, ["x", None]])
    )
    try:
        load(json.dumps(rows).encode(), shape, "f")
    except ValueError as error:
        assert str(error).startswith("f") and "\n" not in str(error)


def _places(node: Any) -> Any:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(value)

"""What the queue owes a run: word of items that nobody can rate, items asked for again, orphans of a crash, time to undo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.experts import audit, overview
from rewards.experts.types import Kind
from tests.raters import refused
from tests.test_rating_store import Desk, form, item

DAY_S = 86_400.0


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.invite("anna", "ben")
    yield made
    made.store.close()


def skip(desk: Desk, rater: str) -> None:
    given = desk.next(rater)
    assert given is not None
    desk.store.skip(rater, given["lease"], "no")


def row(desk: Desk, of: str) -> dict[str, Any]:
    with desk.store.database.read() as db:
        return dict(db.execute("SELECT * FROM items WHERE id = ?", (of,)).fetchone())


# Items that nobody may be given


def test_an_item_that_somebody_may_be_given_is_not_stuck(desk: Desk) -> None:
    """Waiting, in somebody's hands, or skipped by one of two."""
    one, two = desk.add("one", "two")
    assert desk.store.stuck([one, two], 1) == {}
    skip(desk, "anna")
    assert desk.reply("ben") == "one" and desk.reply("anna") == "two"
    assert desk.store.stuck([one, two], 1) == {}


def test_without_a_rater_who_may_come_everything_is_stuck(desk: Desk) -> None:
    """Nobody invited, all shut out, all expired; the ratings that are there stay rewards."""
    done, one = desk.add("done", "one")
    desk.rate("anna")
    desk.store.shut("anna")
    desk.invite("ben")
    desk.store.invite("cleo", days=2)
    desk.store.shut("ben")
    assert desk.store.stuck([done, one], 1) == {}
    desk.clock.now += 2 * DAY_S
    assert desk.store.stuck([done, one], 1) == {one: "no_raters"}
    desk.invite("dora")
    assert desk.store.stuck([done, one], 1) == {}


def test_an_item_that_all_skipped_is_stuck(desk: Desk) -> None:
    """Until somebody is invited who has not; whoever was shut out does not count."""
    (one,) = desk.add("one")
    skip(desk, "anna")
    skip(desk, "ben")
    assert desk.store.stuck([one], 1) == {one: "skipped"}
    desk.invite("cleo")
    assert desk.store.stuck([one], 1) == {}
    desk.store.shut("cleo")
    assert desk.store.stuck([one], 1) == {one: "skipped"}


def test_a_client_in_danger_needs_a_rater_who_takes_such(desk: Desk) -> None:
    """ "crisis" while none does; if the one who does skips it, that is the reason."""
    (one,) = desk.add("one", tier="active")
    assert desk.store.stuck([one], 1) == {one: "crisis"}
    desk.store.settle("anna", crisis=True)
    assert desk.store.stuck([one], 1) == {}
    skip(desk, "anna")
    assert desk.store.stuck([one], 1) == {one: "skipped"}


def test_more_ratings_than_raters_are_never_had(desk: Desk) -> None:
    """Three wanted of two raters; and two asked of an item that wants one."""
    three, one = desk.add("three", "one", wanted=3)
    small = desk.add("small")[0]
    for rater in ("anna", "ben"):
        assert desk.store.stuck([three, one, small], 3) == {}
        desk.rate(rater)
        desk.rate(rater)
    assert desk.store.stuck([three, one], 3) == dict.fromkeys([three, one], "rated_by_all")
    assert desk.store.stuck([three, one], 2) == {}
    desk.rate("anna")
    assert desk.store.stuck([small], 2) == {small: "rated_by_all"}
    given = desk.store.undo("anna")["item"]
    assert desk.store.stuck([small], 1) == {}
    desk.store.rate("anna", form(given["lease"]))


def test_a_thousand_items_are_looked_through_at_once(desk: Desk) -> None:
    """One statement, led by the indices."""
    desk.invite(*(f"rater{at}" for at in range(20)))
    ids = desk.add(*(f"reply {at}" for at in range(1000)))
    asked: list[str] = []
    with desk.store.database.read() as db:
        db.set_trace_callback(asked.append)
    assert desk.store.stuck(ids, 1) == {}
    assert len(asked) == 1


# Asked for again


def test_a_closed_item_that_is_asked_for_again_is_open(desk: Desk) -> None:
    """A run that resumes sends the same items: raters get them, once more in the chain; a repetition changes nothing."""
    (one,) = desk.add("one", priority=1.0)
    desk.store.close_items([one])
    assert desk.reply("anna") is None
    assert desk.add("one", priority=1.0) == [one] and desk.reply("anna") == "one"
    assert desk.kinds().count("item") == 2
    desk.add("one", priority=1.0)
    assert desk.kinds().count("item") == 2
    desk.store.verify()


def test_an_item_asked_for_again_takes_the_greater_number_and_the_new_priority(desk: Desk) -> None:
    """`wanted` and `raters` never fall; the priority is the newest."""
    one, _ = desk.add("one", "two", priority=1.0)
    desk.rate("anna"), desk.rate("anna")
    assert desk.reply("ben") is None
    desk.add("one", wanted=3, priority=1.0)
    assert (row(desk, one)["wanted"], row(desk, one)["raters"]) == (3, 3) and desk.reply("ben") == "one"
    desk.add("one", wanted=2, priority=5.0)
    assert (row(desk, one)["wanted"], row(desk, one)["raters"], row(desk, one)["priority"]) == (3, 3, 5.0)
    with desk.store.database.read() as db:
        last = list(audit.rows(db))[-1]
    assert last.kind == Kind.ITEM and last.content["again"] and last.content["wanted"] == 3


def test_a_fixed_reward_outlives_the_asking_again(desk: Desk) -> None:
    """The same value, whatever is asked."""
    (one,) = desk.add("one")
    desk.rate("anna", 0.25)
    found = desk.store.rewards("run", 0, [one], 1)
    desk.store.close_items([one])
    desk.add("one", wanted=2)
    desk.rate("ben", 0.75)
    assert desk.store.rewards("run", 0, [one], 2) == found and found[0][one]["value"] == 0.25


def test_what_is_imported_leaves_a_queue_as_it_is(desk: Desk, tmp_path: Path) -> None:
    """A file opens nothing that was closed."""
    (one,) = desk.add("one")
    data = desk.store.export("jsonl")
    desk.store.close_items([one])
    desk.store.take_in("jsonl", data)
    assert desk.reply("anna") is None


# A run that resumes


def test_orphans_of_a_crash_leave_the_queue(desk: Desk) -> None:
    """All of the run from the step on, by origin; other runs, earlier steps and items without origin stay."""
    for step in range(4):
        desk.add(f"a{step}", origin={"run": "a", "step": step})
        desk.add(f"b{step}", origin={"run": "b", "step": step})
    desk.add("no step", origin={"run": "a"})
    desk.add("a step in words", origin={"run": "a", "step": "3"})
    assert desk.store.close_items([], "a", 2) == 2
    assert desk.store.close_items([], "a", 2) == 0
    seen = {desk.rate("anna") for _ in range(desk.store.me("anna")["left"])}
    assert seen == {"a0", "a1", "b0", "b1", "b2", "b3", "no step", "a step in words"}
    desk.add("a2", origin={"run": "a", "step": 2})
    assert desk.reply("anna") == "a2"


# Time to undo


def test_a_rating_that_can_be_taken_back_is_not_there_yet(desk: Desk) -> None:
    """With settle_s the last rating of a sitting waits that long, also while the next reply is open; undo works till then."""
    one, _ = desk.add("one", "two")
    desk.rate("anna", 0.1)
    assert desk.reply("anna") == "two"
    assert desk.store.rewards("run", 0, [one], 1, settle_s=30) == ({}, [one])
    assert desk.store.missing([one], 1) == [] and desk.store.stuck([one], 1) == {}
    assert desk.store.undo("anna")["item"]["reply"] == "one"
    desk.rate("anna", 0.9)
    desk.clock.now += 29
    assert desk.store.missing([one], 1, 30) == [one]
    desk.clock.now += 1
    found, absent = desk.store.rewards("run", 0, [one], 1, settle_s=30)
    assert absent == [] and found[one]["value"] == 0.9
    refused(409, lambda: desk.store.undo("anna"), "in use already")


@pytest.mark.parametrize("ending", ["another rating", "a new sitting"])
def test_a_rating_that_cannot_be_taken_back_is_there_at_once(desk: Desk, ending: str) -> None:
    """Whoever rates on, or begins anew, has let go of it."""
    one, _ = desk.add("one", "two")
    desk.rate("anna", 0.1)
    if ending == "another rating":
        desk.rate("anna")
    else:
        desk.store.sit("anna")
    assert desk.store.missing([one], 1, 30) == []


def test_a_reply_of_two_waits_for_both_to_settle(desk: Desk) -> None:
    """No reward is made while one of its ratings can still be taken back."""
    one, _ = desk.add("one", "two", wanted=2)
    desk.rate("anna", 0.0), desk.rate("anna")
    desk.rate("ben", 1.0)
    assert desk.store.missing([one], 1, 30) == [one]
    desk.clock.now += 30
    assert desk.store.rewards("run", 0, [one], 1, settle_s=30)[0][one]["value"] == 0.5


def test_to_look_is_not_to_fix(desk: Desk) -> None:
    """Without `fix` the open ones are told, and nothing is written."""
    ready, bare = desk.add("ready", "bare")
    desk.rate("anna")
    assert desk.store.rewards("run", 0, [ready, bare], 1, fix=False) == ({}, [bare])
    assert desk.count("rewards") == 0


# Drafts


def leave_by(ending: str) -> Callable[[Desk, str], Any]:
    return {
        "rated": lambda desk, lease: desk.store.rate("anna", form(lease)),
        "skipped": lambda desk, lease: desk.store.skip("anna", lease, "no"),
        "shut out": lambda desk, lease: desk.store.shut("anna"),
        "not for me": lambda desk, lease: desk.store.settle("anna", crisis=False),
    }[ending]


@pytest.mark.parametrize("ending", ["rated", "skipped", "shut out", "not for me"])
def test_a_draft_is_scrubbed_and_ends_with_its_lease(desk: Desk, tmp_path: Path, ending: str) -> None:
    """Names and contacts are gone before a draft is stored; rated, skipped or given back, nothing of it is kept."""
    desk.store.settle("anna", crisis=True)
    desk.add("before", "one", tier="active")
    desk.rate("anna")
    given = desk.next("anna")
    assert given is not None
    draft = {"criteria": {"no_harm": 0.3}, "overall": None, "flags": [], "reason": "She is jane.roe@example.org"}
    desk.store.draft("anna", given["lease"], draft)
    again = desk.next("anna")
    assert again is not None and "example.org" not in again["draft"]["reason"] and "She is" in again["draft"]["reason"]
    assert b"example.org" not in b"".join(path.read_bytes() for path in tmp_path.glob("ratings.sqlite*"))
    leave_by(ending)(desk, given["lease"])
    with desk.store.database.read() as db:
        left = db.execute("SELECT count(*) FROM leases WHERE draft IS NOT NULL AND lease = ?", (given["lease"],))
        assert left.fetchone()[0] == 0


@pytest.mark.parametrize("taken", [False, True])
def test_a_draft_that_an_undo_interrupts_is_there_again(desk: Desk, taken: bool) -> None:
    """With its reply, which comes next; where another rater took that meanwhile, nothing of the draft is kept."""
    desk.add("one", "two", "three")
    desk.rate("anna")
    given = desk.next("anna")
    assert given is not None
    draft = {"criteria": {}, "overall": 0.2, "flags": [], "reason": "half"}
    desk.store.draft("anna", given["lease"], draft)
    desk.store.undo("anna")
    if taken:
        assert desk.reply("ben") == "two"
    assert desk.rate("anna") == "one"
    again = desk.next("anna")
    assert again is not None and again["reply"] == ("three" if taken else "two")
    assert again["draft"] == (None if taken else draft)
    with desk.store.database.read() as db:
        assert db.execute("SELECT count(draft) FROM leases").fetchone()[0] == (0 if taken else 1)


def test_drafts_that_an_older_service_left_are_cleared(tmp_path: Path) -> None:
    """Whatever lies in leases that have ended goes when the folder is opened."""
    desk = Desk(tmp_path)
    desk.invite("anna")
    desk.add("one")
    given = desk.next("anna")
    assert given is not None
    desk.store.skip("anna", given["lease"], "no")
    desk.store.database.write(lambda db: db.execute("UPDATE leases SET draft = '{}'"))
    desk.store.close()
    again = Desk(tmp_path)
    with again.store.database.read() as db:
        assert db.execute("SELECT count(draft) FROM leases").fetchone()[0] == 0
    again.store.close()


# The admin's numbers


def test_the_overview_is_computed_once_per_row_of_the_chain(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh costs the queue's numbers alone, which are of now; a rating has all of them computed anew."""
    calls: list[int] = []
    agreement = overview.agreement
    monkeypatch.setattr(overview, "agreement", lambda rows, **how: (calls.append(len(rows)), agreement(rows, **how))[1])
    desk.add("one", "two")
    desk.rate("anna")
    first = desk.store.overview()
    desk.clock.now += 3600
    assert desk.reply("ben") == "two"
    second = desk.store.overview()
    assert calls == [1] and second["raters"] == first["raters"]
    assert (first["queue"]["leased"], second["queue"]["leased"]) == (0, 1)
    assert second["queue"]["oldest_s"] == first["queue"]["oldest_s"] + 3600
    assert second["per_hour"][-2:] == [[first["per_hour"][-1][0], 1], [first["per_hour"][-1][0] + 3600, 0]]
    desk.rate("ben")
    assert desk.store.overview()["raters"][1]["ratings"] == 1 and calls == [1, 2]


def test_a_flag_that_comes_after_the_payment_is_seen(desk: Desk) -> None:
    """`late_flags` counts what was not known when the reply was paid: once a flag, while the rating stands."""
    one, two = desk.add("one", "two", wanted=3)
    desk.rate("anna", flags=("diagnosis",))
    desk.rate("anna")
    assert desk.store.overview()["flags"] == {"diagnosis": 1}
    found, _ = desk.store.rewards("run", 0, [one, two], 1)
    desk.invite("cleo")
    for rater in ("ben", "cleo"):
        desk.rate(rater, flags=("diagnosis", "dismissal"))
    assert desk.store.overview()["flags"] == {"diagnosis": 3, "dismissal": 2, "late_flags": 1}
    desk.rate("ben", flags=("dismissal",))
    assert desk.store.overview()["flags"]["late_flags"] == 2
    assert desk.store.rewards("run", 0, [one, two], 1)[0] == found
    assert json.dumps(desk.store.overview(), allow_nan=False) and item("one").id == one

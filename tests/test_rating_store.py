"""The store of the expert loop: whose turn a reply is, what a rating is, when it becomes a reward; the clock is ours."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.experts import audit, ledger
from rewards.experts.config import ServiceConfig
from rewards.experts.desk import Submission
from rewards.experts.fixing import Aggregate
from rewards.experts.form import CRITERIA
from rewards.experts.reward_rules import mean
from rewards.experts.scrub import scrub
from rewards.experts.store import Store
from rewards.experts.types import Item, Kind, Rating
from rollout.types import Speaker, Turn
from tests.raters import Clock, desks, refused

PLAIN = ServiceConfig(lease_s=100, sitting=1000, overlap=0, repeats=0)
NUMBERS = itertools.count()


class Desk:
    """A store with a clock that is moved by hand, and what raters do in one word each."""

    def __init__(self, folder: Path, config: ServiceConfig = PLAIN, rule: Aggregate = mean) -> None:
        self.clock = Clock()
        self.store = Store(folder, config, rule, self.clock)

    def invite(self, *names: str, crisis: bool = False) -> None:
        for name in names:
            self.store.invite(name, crisis=crisis)

    def add(self, *texts: str, **fields: Any) -> list[str]:
        """Put them into the queue, to be given in this order where no priority is told."""
        return self.store.add([item(text, **{"priority": -next(NUMBERS) / 2**20, **fields}) for text in texts])

    def next(self, rater: str) -> dict[str, Any] | None:
        return self.store.next(rater)["item"]

    def reply(self, rater: str) -> str | None:
        given = self.next(rater)
        return None if given is None else given["reply"]

    def rate(self, rater: str, overall: float = 0.5, **fields: Any) -> str:
        """Rate what is next; the reply."""
        given = self.next(rater)
        assert given is not None
        self.store.rate(rater, form(given["lease"], overall=overall, **fields))
        return given["reply"]

    def count(self, table: str) -> int:
        with self.store.database.read() as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def kinds(self) -> list[str]:
        with self.store.database.read() as db:
            return [row.kind for row in audit.rows(db)]


def item(text: str, key: str = "run/0/prompt", **fields: Any) -> Item:
    return Item(f"{key}/{text}", (Turn(Speaker.CLIENT, "I feel so low."),), text, **fields)


def form(lease: str, overall: float = 0.5, submission: str = "", **fields: Any) -> Submission:
    criteria = dict.fromkeys((criterion.name for criterion in CRITERIA), overall)
    return Submission(lease, submission or f"submission {next(NUMBERS)}", criteria, overall, **fields)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.invite("anna", "ben", "cleo")
    yield made
    made.store.close()


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    def build(number: int, **knobs: Any) -> Desk:
        made = Desk(tmp_path / str(number), replace(PLAIN, **knobs))
        made.invite("anna", "ben", "cleo")
        return made

    with desks(build) as another:
        yield another


# The queue


def test_higher_priority_comes_first_then_no_prompt_before_another(desk: Desk) -> None:
    """Highest priority first, then by the hash that is the id: the same order for everybody, whatever came first."""
    texts = [f"reply {at}" for at in range(40)]
    desk.add(*texts, priority=0.0, wanted=2)
    desk.add("urgent", priority=2.0, wanted=2)
    orders = [[desk.rate(rater) for _ in range(41)] for rater in ("anna", "ben")]
    assert orders[0] == orders[1] == ["urgent", *sorted(texts, key=lambda text: item(text).id)]
    assert orders[0][1:] != texts
    assert desk.store.next("anna") == {"item": None, "why": "empty"}
    with desk.store.database.read() as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT i.id FROM items i WHERE i.open = 1 AND i.rated < i.raters "
                          "ORDER BY i.priority DESC, i.id LIMIT 1").fetchall()  # fmt: skip
    assert "items_by_turn" in plan[0]["detail"] and len(plan) == 1  # nothing is sorted


def test_an_item_goes_to_as_many_raters_as_it_wants(desk: Desk) -> None:
    """Ratings and live leases together are at most `wanted`."""
    desk.add("two", wanted=2)
    assert desk.reply("anna") == "two"
    desk.rate("ben")
    assert desk.reply("cleo") is None
    desk.rate("anna")
    assert desk.reply("cleo") is None and desk.reply("anna") is None


def test_a_rater_gets_the_same_lease_again_and_no_item_twice(desk: Desk) -> None:
    """A reload resumes; what was rated does not come back."""
    desk.add("one", "two", wanted=3)
    first = desk.next("anna")
    assert first is not None and desk.next("anna") == first
    desk.rate("anna")
    assert [desk.rate("anna"), desk.reply("anna")] == ["two", None]


def test_a_lease_that_ran_out_returns_the_item(desk: Desk) -> None:
    """After lease_s somebody else gets it; the late rater is told so, and stores nothing."""
    desk.add("one")
    late = desk.next("anna")
    assert late is not None and late["expires_s"] == 100
    assert desk.reply("ben") is None
    desk.clock.now += 100
    given = desk.next("ben")
    assert given is not None and given["reply"] == "one"
    refused(409, lambda: desk.store.rate("anna", form(late["lease"])), "time for this reply is over")
    desk.store.rate("ben", form(given["lease"]))
    refused(409, lambda: desk.store.rate("anna", form(late["lease"])))
    assert desk.count("ratings") == 1


def test_a_late_rating_counts_where_nobody_else_has_the_item(desk: Desk) -> None:
    """Work is not thrown away for nothing."""
    (one,) = desk.add("one")
    late = desk.next("anna")
    assert late is not None
    desk.clock.now += 1000
    desk.store.rate("anna", form(late["lease"]))
    assert desk.store.missing([one], 1) == []


def test_a_draft_renews_the_lease_and_comes_back(desk: Desk) -> None:
    """Autosave keeps the item, and a reload finds the form as it was, after the lease ran out as well."""
    desk.add("one")
    given = desk.next("anna")
    assert given is not None and given["draft"] is None
    draft = {"criteria": {"no_harm": 0.3}, "overall": None, "flags": [], "reason": "half"}
    desk.clock.now += 90
    assert desk.store.draft("anna", given["lease"], draft) == 100
    desk.clock.now += 90
    assert desk.reply("ben") is None
    again = desk.next("anna")
    assert again is not None and again["draft"] == draft and again["lease"] == given["lease"]
    desk.clock.now += 1000
    anew = desk.next("anna")
    assert anew is not None and anew["lease"] != given["lease"] and anew["draft"] == draft
    assert desk.reply("ben") is None


def test_leases_are_for_their_rater_and_known(desk: Desk) -> None:
    """Another's lease, a made-up one, one that was used and one that was given back."""
    desk.add("one", "two")
    given = desk.next("anna")
    assert given is not None
    refused(409, lambda: desk.store.rate("ben", form(given["lease"])), "another rater")
    refused(404, lambda: desk.store.rate("ben", form("f" * 32)), "not known")
    desk.store.rate("anna", form(given["lease"]))
    refused(409, lambda: desk.store.rate("anna", form(given["lease"])), "already rated")
    second = desk.next("anna")
    assert second is not None
    desk.store.skip("anna", second["lease"], "too close to home")
    refused(409, lambda: desk.store.rate("anna", form(second["lease"])), "given back")
    assert desk.count("ratings") == 1


def test_a_skipped_item_goes_to_others_only(desk: Desk) -> None:
    """Never again to this rater; the reason is kept, without names."""
    desk.add("one")
    given = desk.next("anna")
    assert given is not None
    desk.store.skip("anna", given["lease"], "mail me at me@example.org")
    assert desk.reply("anna") is None and desk.reply("ben") == "one"
    with desk.store.database.read() as db:
        last = list(audit.rows(db))[-1]
    assert last.kind == Kind.SKIP and "example.org" not in last.body and last.content["rater"] == "anna"


def test_an_overlap_share_goes_to_more_raters(open_desk: Callable[..., Desk]) -> None:
    """About `overlap` of the items, by the hash of their ids, want `overlap_raters`; `wanted` is never lowered."""
    desk = open_desk(overlap=0.25, overlap_raters=3)
    desk.add(*(f"reply {at}" for at in range(400)))
    desk.add("many", wanted=7)
    with desk.store.database.read() as db:
        raters = [row[0] for row in db.execute("SELECT raters FROM items ORDER BY seq")]
    assert set(raters[:400]) == {1, 3} and 60 <= raters[:400].count(3) <= 140
    assert raters[400] == 7


def test_repeats_come_unannounced_at_their_rate_and_distance(open_desk: Callable[..., Desk]) -> None:
    """With probability `repeats` an item at least `repeat_gap` ratings old comes again, once; it is marked, and no reward."""
    desk = open_desk(repeats=0.2, repeat_gap=5)
    ids = desk.add(*(f"reply {at}" for at in range(150)))
    seen: list[str] = []
    shapes = set()
    while (given := desk.next("anna")) is not None:
        assert desk.next("anna") == given
        shapes.add(tuple(given))
        desk.store.rate("anna", form(given["lease"], overall=0.5 if given["reply"] not in seen else 0.9))
        seen.append(given["reply"])
    repeats = [at for at, reply in enumerate(seen) if reply in seen[:at]]
    assert len(set(seen)) == 150 and 15 <= len(repeats) <= 60
    assert all(at - seen.index(seen[at]) >= 5 for at in repeats)
    assert max(seen.count(reply) for reply in seen) == 2
    assert len(shapes) == 1
    found, _ = desk.store.rewards("run", 0, ids, 1)
    assert {reward["value"] for reward in found.values()} == {0.5}
    assert len(desk.store.ratings()[0]) == 150
    with desk.store.database.read() as db:
        told = [json.loads(row[0]) for row in db.execute("SELECT body FROM ratings ORDER BY seq")]
    assert [at for at, body in enumerate(told) if body["repeat"]] == repeats


def test_crisis_items_go_only_to_those_who_chose_them(desk: Desk) -> None:
    """Without opt-in no item of tier passive, active, imminent or other; distress is for everybody."""
    for tier in ("none", "distress", "other", "passive", "active", "imminent"):
        desk.add(tier, tier=tier)
    assert desk.store.me("anna")["left"] == 2
    assert [desk.rate("anna"), desk.rate("anna"), desk.reply("anna")] == ["none", "distress", None]
    desk.store.settle("anna", crisis=True)
    given = desk.next("anna")
    assert given is not None and given["reply"] == "other" and given["sensitive"]
    desk.store.settle("anna", crisis=False)
    assert desk.reply("anna") is None
    desk.invite("dora", crisis=True)
    assert desk.reply("dora") == "other"


def test_a_sitting_ends_with_a_break(open_desk: Callable[..., Desk]) -> None:
    """After `sitting` ratings nothing is given until the rater says that the break is over."""
    desk = open_desk(sitting=2)
    desk.add("one", "two", "three")
    desk.rate("anna")
    desk.rate("anna")
    assert desk.store.next("anna") == {"item": None, "why": "sitting"}
    assert desk.store.me("anna")["sitting"] == {"done": 2, "limit": 2}
    assert desk.store.sit("anna") == {"done": 0, "limit": 2}
    assert desk.reply("anna") == "three"
    assert desk.store.me("anna")["done"] == 2


def test_undo_brings_the_last_rating_back_as_a_draft(desk: Desk) -> None:
    """Once, the last one, with what was said; the reply that was open goes back to the others."""
    desk.add("one", "two")
    desk.rate("anna", 0.25, flags=("diagnosis",), reason="cold")
    assert desk.reply("anna") == "two" and desk.store.me("anna")["can_undo"]
    given = desk.store.undo("anna")["item"]
    assert given["reply"] == "one" and given["draft"]["overall"] == 0.25
    assert given["draft"]["flags"] == ["diagnosis"] and given["draft"]["reason"] == "cold"
    assert not desk.store.me("anna")["can_undo"]
    refused(409, lambda: desk.store.undo("anna"), "none to take back")
    assert desk.reply("ben") == "two"
    assert desk.rate("anna", 0.75) == "one"
    found, _ = desk.store.rewards("run", 0, [item("one").id], 1)
    assert found[item("one").id]["value"] == 0.75
    assert desk.store.me("anna")["done"] == 1
    assert desk.kinds()[-4:] == ["rating", "undo", "rating", "reward"]


def test_undo_has_its_limits(open_desk: Callable[..., Desk]) -> None:
    """Not before the first rating, not in a new sitting, not when the reward is fixed."""
    desk = open_desk()
    ids = desk.add("one", "two")
    refused(409, lambda: desk.store.undo("anna"))
    desk.rate("anna")
    desk.store.sit("anna")
    refused(409, lambda: desk.store.undo("anna"))
    desk.rate("anna")
    desk.store.rewards("run", 0, ids, 1)
    assert not desk.store.me("anna")["can_undo"]
    refused(409, lambda: desk.store.undo("anna"), "in use already")


def test_closed_items_leave_the_queue_and_ratings_on_the_way_count(desk: Desk) -> None:
    """Whoever has it open finishes it; nobody new gets it."""
    (one,) = desk.add("one", wanted=2)
    given = desk.next("anna")
    assert given is not None
    desk.store.close_items([one])
    assert desk.reply("ben") is None
    desk.store.rate("anna", form(given["lease"]))
    assert desk.store.missing([one], 1) == []
    refused(404, lambda: desk.store.close_items(["0" * 32]), "no item has the id")


def test_a_rater_who_is_shut_out_leaves_ratings_and_loses_leases(desk: Desk) -> None:
    """The token is void, the reply in hand goes to others; an invitation opens the door again, with a new token."""
    token = desk.store.invite("anna")
    desk.add("one", "two")
    desk.rate("anna")
    assert desk.reply("anna") == "two" and desk.reply("ben") is None
    desk.store.shut("anna")
    refused(403, lambda: desk.store.who(token), "shut out")
    assert desk.reply("ben") == "two" and desk.count("ratings") == 1
    anew = desk.store.invite("anna", days=1)
    assert desk.store.who(anew).rater == "anna"
    desk.clock.now += 86_400
    refused(403, lambda: desk.store.who(anew), "run out")
    refused(404, lambda: desk.store.shut("nobody"))


# Items


def test_sending_an_item_twice_is_sending_it_once(desk: Desk) -> None:
    """Ids in order, the same again; one row, one event."""
    first = desk.add("one", "two", priority=1.0)
    assert desk.add("two", "one", priority=1.0) == first[::-1]
    assert desk.count("items") == 2 and desk.kinds().count("item") == 2


def test_names_and_contacts_are_gone_before_anything_is_stored(desk: Desk, tmp_path: Path) -> None:
    """Neither the page nor the files hold them, in the item or in a reason."""
    said = (Turn(Speaker.CLIENT, "Write to me at jane.roe@example.org", {"stars": "5"}),)
    desk.store.add([Item("k", said, "Call me on +49 30 1234567 or jane.roe@example.org")])
    given = desk.next("anna")
    assert given is not None and "example.org" not in json.dumps(given)
    desk.store.rate("anna", form(given["lease"], reason="I know jane.roe@example.org"))
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("ratings.sqlite*"))
    assert b"example.org" not in stored and b"1234567" not in stored


@pytest.mark.parametrize("at", range(4))
def test_a_name_that_one_text_introduces_is_gone_from_all(desk: Desk, tmp_path: Path, at: int) -> None:
    """Whichever turn it is, or the reply: the name goes out of the others, and out of what is stored."""
    told = ["What is Thandeka to you?", "So Thandeka it is.", "Nobody else says Thandeka.", "What does Thandeka want?"]
    assert [scrub(text) for text in told] == told  # one by one nothing gives it away
    told[at] = "my name is Thandeka"
    *turns, reply = told
    said = tuple(Turn((Speaker.CLIENT, Speaker.THERAPIST)[place % 2], text) for place, text in enumerate(turns))
    ids = desk.store.add([Item("k", said, reply)])
    given = desk.next("anna")
    assert given is not None
    shown = [*(turn["text"] for turn in given["turns"]), given["reply"]]
    assert shown[at] == "my name is [name]" and all("[name]" in text for text in shown)
    assert b"handeka" not in b"".join(path.read_bytes() for path in tmp_path.glob("ratings.sqlite*"))
    shown_again = [Turn(turn.speaker, text) for turn, text in zip(said, shown, strict=False)]
    assert desk.store.add([Item("k", tuple(shown_again), shown[-1])]) == ids


def test_a_rater_sees_nothing_of_the_model(desk: Desk) -> None:
    """Key, id, origin, priority and tier stay on the server; the handle differs between raters."""
    desk.add("one", wanted=2, origin={"run": "secret-run", "step": 12, "policy": 7}, priority=3.5)
    first, second = desk.next("anna"), desk.next("ben")
    assert first is not None and second is not None and first["lease"] != second["lease"]
    assert first.keys() == {"lease", "expires_s", "turns", "reply", "sensitive", "draft"}
    assert "secret-run" not in json.dumps(first) and item("one").id not in json.dumps(first)


# Ratings


def test_the_same_submission_is_one_rating(desk: Desk) -> None:
    """Sent again it has the same id; with another content, by another rater or for another lease it is refused."""
    desk.add("one", "two", wanted=2)
    given = desk.next("anna")
    assert given is not None
    told = form(given["lease"], submission="s")
    rating, new, _ = desk.store.rate("anna", told)
    assert new and desk.store.rate("anna", told)[:2] == (rating, False)
    other = desk.next("anna")
    assert other is not None
    for changed in (replace(told, overall=0.9), replace(told, lease=other["lease"]), replace(told, reason="x")):
        refused(409, lambda changed=changed: desk.store.rate("anna", changed), "another content")
    refused(409, lambda: desk.store.rate("ben", told), "another content")
    assert desk.count("ratings") == 1 and desk.kinds().count("rating") == 1


def test_ratings_are_listed_after_a_row_without_repeats_and_undone(desk: Desk) -> None:
    """What a surrogate is fitted to; `after` goes on where the last list ended."""
    desk.add("one", "two", "three")
    desk.rate("anna", 0.1)
    desk.rate("anna", 0.2)
    desk.store.undo("anna")
    first, last = desk.store.ratings()
    assert [rating.overall for _, rating in first] == [0.1] and last == first[-1][0]
    desk.rate("anna", 0.3)
    more, end = desk.store.ratings(last)
    assert [rating.overall for _, rating in more] == [0.3] and desk.store.ratings(end) == ([], end)
    assert isinstance(more[0][1], Rating) and more[0][1].rater == "anna"


# Rewards


def test_a_reward_is_fixed_once(desk: Desk) -> None:
    """Later ratings do not change it, whoever asks; one row in the chain, with the ratings it is made of."""
    (one,) = desk.add("one", wanted=3)
    desk.rate("anna", 0.2)
    desk.rate("ben", 0.4, flags=("dismissal",))
    found, absent = desk.store.rewards("run", 3, [one], 2)
    assert absent == [] and found[one]["value"] == pytest.approx(0.3) and len(found[one]["ratings"]) == 2
    assert found[one]["flags"] == ["dismissal"]
    desk.rate("cleo", 1.0)
    assert desk.store.rewards("other run", 9, [one], 1) == (found, [])
    assert desk.kinds().count("reward") == 1


def test_too_few_ratings_leave_an_item_open(desk: Desk) -> None:
    """With `every`, nothing is fixed while one is open; without, those that are ready are."""
    ready, bare = desk.add("ready", "bare")
    desk.rate("anna")
    assert desk.store.rewards("run", 0, [ready, bare], 1, every=True) == ({}, [bare])
    assert desk.count("rewards") == 0
    found, absent = desk.store.rewards("run", 0, [ready, bare], 1)
    assert found.keys() == {ready} and absent == [bare]
    refused(404, lambda: desk.store.rewards("run", 0, ["0" * 32], 1))


def test_a_reward_is_made_of_ratings_that_stand_when_it_is_fixed(tmp_path: Path) -> None:
    """An undo between the computation and the chain makes it be computed anew."""
    desk = Desk(tmp_path)
    disturbances = [True]

    def disturbed(ratings: Any, groups: Any) -> Any:
        if disturbances:
            disturbances.pop()
            desk.store.undo("anna")
            desk.rate("anna", 0.9)
        return mean(ratings, groups)

    desk.store._aggregate = disturbed
    desk.invite("anna")
    (one,) = desk.add("one")
    desk.rate("anna", 0.1)
    found, _ = desk.store.rewards("run", 0, [one], 1)
    assert found[one]["value"] == 0.9 and len(found[one]["ratings"]) == 1
    desk.store.close()


def test_askers_at_once_get_the_same_reward(desk: Desk) -> None:
    """Eight threads ask while ratings come in: one value for all, one row."""
    (one,) = desk.add("one", wanted=50)
    desk.invite(*(f"rater{at}" for at in range(30)))
    desk.rate("anna", 0.0)
    answers: list[Any] = []
    asking = [
        threading.Thread(target=lambda: answers.append(desk.store.rewards("run", 0, [one], 1)[0][one]))
        for _ in range(8)
    ]
    rating = threading.Thread(target=lambda: [desk.rate(f"rater{at}", 1.0) for at in range(30)])
    for thread in (rating, *asking):
        thread.start()
    for thread in (rating, *asking):
        thread.join()
    assert len(answers) == 8 and all(answer == answers[0] for answer in answers)
    assert desk.kinds().count("reward") == 1
    desk.store.verify()


# Events and the trace


def test_a_checkpoint_leads_back_to_its_ratings(desk: Desk) -> None:
    """From rating to reward to update to checkpoint, and back."""
    ids = desk.add("one", "two", "three")
    for overall in (0.1, 0.5, 0.9):
        desk.rate("anna", overall)
    desk.store.rewards("run", 0, ids[:2], 1)
    desk.store.event(Kind.UPDATE, {"run": "run", "step": 0, "rewards": ids[:2]})
    desk.store.event(Kind.CHECKPOINT, {"run": "run", "step": 1, "manifest": "a" * 64})
    found = desk.store.trace("run", 1)
    assert sorted(row.content["overall"] for row in found.ratings.values()) == [0.1, 0.5]
    assert found.rewards.keys() == set(ids[:2]) and found.checkpoint.content["manifest"] == "a" * 64


def test_an_event_sent_again_is_one_and_a_resumed_step_is_another(desk: Desk) -> None:
    """A repetition of the newest event is a retry; an older body come again is a run that went back."""
    first = desk.store.event(Kind.UPDATE, {"run": "a", "step": 0, "rewards": []})
    assert desk.store.event(Kind.UPDATE, {"rewards": [], "step": 0, "run": "a"}) == first
    assert desk.store.event(Kind.UPDATE, {"run": "b", "step": 0, "rewards": []}) == first + 1
    assert desk.store.event(Kind.UPDATE, {"run": "a", "step": 0, "rewards": []}) == first
    second = desk.store.event(Kind.UPDATE, {"run": "a", "step": 1, "rewards": []})
    assert desk.store.event(Kind.UPDATE, {"run": "a", "step": 0, "rewards": []}) == second + 1


def test_everything_that_changes_is_in_the_chain_and_the_chain_is_sound(desk: Desk) -> None:
    """One row for each of it, and a change behind the service's back is found by its row."""
    (one, _) = desk.add("one", "two")
    desk.rate("anna")
    given = desk.next("anna")
    assert given is not None
    desk.store.skip("anna", given["lease"], "no")
    desk.store.rewards("run", 0, [one], 1)
    assert desk.kinds() == ["rater"] * 3 + ["item"] * 2 + ["rating", "skip", "reward"]
    assert desk.store.verify().seq == 8
    meddling = sqlite3.connect(desk.store.database._path)
    meddling.executescript(
        "DROP TRIGGER chain_keeps_rows; UPDATE chain SET body = replace(body, '0.5', '0.9') WHERE seq = 6;"
    )
    meddling.close()
    with pytest.raises(ValueError, match=r"row 6 \(rating\)"):
        desk.store.verify()


@pytest.mark.parametrize(
    "sql, match",
    [
        ("UPDATE ratings SET body = replace(body, '0.5', '0.9')", r"ratings must hold what row 5 of the chain"),
        ("UPDATE rewards SET body = replace(body, '0.5', '0.9')", r"rewards must hold what row 6 of the chain"),
        ("DELETE FROM rewards", r"rewards must hold what row 6 of the chain"),
        ("UPDATE ratings SET undone = 1", r"of row 5 must stand"),
        ("UPDATE items SET reply = 'another'", r"the texts of item"),
    ],
)
def test_tables_that_part_from_the_chain_are_found(desk: Desk, tmp_path: Path, sql: str, match: str) -> None:
    """A rating, a reward or a text that was changed beside the chain: also by who only reads the folder."""
    (one,) = desk.add("one")
    desk.rate("anna")
    desk.store.rewards("run", 0, [one], 1)
    with ledger.opened(tmp_path / "ratings.sqlite") as db:
        assert ledger.check(db) == desk.store.verify()
    desk.store.database.write(lambda db: db.execute(sql))
    with pytest.raises(ValueError, match=match), ledger.opened(tmp_path / "ratings.sqlite") as db:
        ledger.check(db)


def test_a_folder_without_a_database_is_told(tmp_path: Path) -> None:
    """Reading makes none."""
    with pytest.raises(ValueError, match="must be the database"), ledger.opened(tmp_path / "ratings.sqlite"):
        pass
    assert not list(tmp_path.iterdir())


# The database


def test_a_full_disk_stores_nothing_and_passes(desk: Desk) -> None:
    """507, nothing of the request is there; once there is room the same request goes through."""
    pages = desk.store.database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    desk.store.database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    before = desk.count("chain")
    texts = [f"{at} " + "long " * 400 for at in range(20)]
    refused(507, lambda: desk.add(*texts), "disk is full")
    assert desk.count("chain") == before and desk.count("items") == 0
    desk.store.database.write(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
    assert len(desk.add(*texts)) == 20 and desk.count("items") == 20
    desk.store.verify()


def test_a_work_that_fails_takes_no_other_with_it(desk: Desk) -> None:
    """Works that are committed together are undone one by one."""
    results: list[str] = []
    gate = threading.Event()

    def attempt(at: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            audit.append(db, 0.0, Kind.ALARM, {"at": at})
            if at % 2:
                raise KeyError(at)

        try:
            desk.store.database.write(work)
            results.append("stored")
        except KeyError:
            results.append("failed")

    blocker = threading.Thread(target=lambda: desk.store.database.write(lambda db: gate.wait(5)))
    blocker.start()
    threads = [threading.Thread(target=attempt, args=(at,)) for at in range(10)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in (blocker, *threads):
        thread.join()
    assert sorted(results) == ["failed"] * 5 + ["stored"] * 5
    assert desk.kinds().count("alarm") == 5
    desk.store.verify()


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    """Queue, leases, drafts, tokens and rewards outlive the process."""
    desk = Desk(tmp_path)
    token = desk.store.invite("anna")
    (one, _) = desk.add("one", "two")
    desk.rate("anna")
    reward = desk.store.rewards("run", 0, [one], 1)
    given = desk.next("anna")
    desk.store.close()
    again = Desk(tmp_path)
    assert again.store.who(token).rater == "anna" and again.next("anna") == given
    assert again.store.rewards("run", 0, [one], 1) == reward
    again.store.close()


@pytest.mark.parametrize("shape", ["csv", "jsonl", "argilla", "label-studio"])
def test_an_export_comes_in_again(open_desk: Callable[..., Desk], shape: str) -> None:
    """Items and ratings move to another folder, raters under pseudonyms; a second time nothing is new."""
    desk, other = open_desk(), open_desk()
    ids = desk.add("one", "two")
    desk.rate("anna", 0.25, flags=("diagnosis",), reason="cold")
    desk.rate("ben", 0.75)
    data = desk.store.export(shape)
    assert b"anna" not in data
    assert other.store.take_in(shape, data) == (2, 2)
    assert other.store.take_in(shape, data) == (0, 0)
    found, absent = other.store.rewards("run", 0, ids, 1)
    assert absent == [] and {found[one]["value"] for one in ids} == {0.25, 0.75}
    other.store.verify()


def test_the_overview_counts(desk: Desk) -> None:
    """Queue, raters, flags; what needs more ratings is null."""
    desk.add("one", "two", tier="distress")
    desk.rate("anna", 0.25, flags=("diagnosis",), seconds=36.0)
    desk.next("ben")
    desk.clock.now += 10
    told = json.loads(json.dumps(desk.store.overview(), allow_nan=False))
    assert told["queue"] == {"open": 1, "leased": 1, "oldest_s": 10.0, "by_tier": {"distress": 1}}
    anna, ben, _ = told["raters"]
    assert (anna["ratings"], anna["per_hour"], anna["mean"], ben["ratings"], ben["mean"]) == (1, 100.0, 0.25, 0, None)
    assert told["flags"] == {"diagnosis": 1} and told["agreement"] is None
    assert sum(count for _, count in told["per_hour"]) == 1

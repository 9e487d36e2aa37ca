"""Side by side: what raters are given, what is kept of their answers, and what it says of two arms."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from eval import preferences
from eval.preferences import Vote
from eval.side_by_side import NobodyJudged, paired, results, turns
from rewards.experts import audit, ledger
from rewards.experts.comparison import Answer, Comparison
from rewards.experts.config import ServiceConfig
from rewards.experts.form import FLAGS
from rewards.experts.reward_rules import mean
from rewards.experts.serve import Server
from rewards.experts.store import DATABASE, Store
from rewards.experts.types import Item, Kind
from rl.__main__ import main
from rollout.types import Speaker, Turn
from tests.raters import Clock, desks, refused

PLAIN = ServiceConfig(lease_s=100, sitting=10_000, overlap=0, repeats=0, rate_per_s=1e6, burst=10**6,
                      anonymous_per_s=1e6, anonymous_burst=10**6)  # fmt: skip
NUMBERS = itertools.count()
SAID = (Turn(Speaker.CLIENT, "I feel so low."),)
FLAG = next(iter(FLAGS)).value


# The store: the clock is ours


class Desk:
    """A store of comparisons with a clock that is moved by hand."""

    def __init__(self, folder: Path, config: ServiceConfig = PLAIN) -> None:
        self.clock = Clock()
        self.store = Store(folder, config, mean, self.clock)
        self.comparisons = self.store.comparisons

    def add(self, *names: str, **fields: Any) -> list[str]:
        return self.comparisons.add([pair(name, **fields) for name in names])

    def next(self, rater: str) -> dict[str, Any] | None:
        return self.comparisons.next(rater)["item"]

    def judge(self, rater: str, decide: Callable[[dict[str, Any]], int] = lambda item: 1, **fields: Any) -> str:
        """Judge what is next; the name of the pair."""
        given = self.next(rater)
        assert given is not None
        self.comparisons.judge(rater, answer(given["lease"], decide(given), **fields))
        return name_of(given)

    def rows(self, kind: Kind) -> list[dict[str, Any]]:
        with self.store.database.read() as db:
            return [row.content for row in audit.rows(db) if row.kind == kind]


def pair(name: str, **fields: Any) -> Comparison:
    return Comparison(f"esconv/{name}/0", SAID, ("ppo", "sft"), (f"from ppo: {name}", f"from sft: {name}"), **fields)


def name_of(given: Mapping[str, Any]) -> str:
    return str(given["a"]).partition(": ")[2]


def answer(lease: str, choice: int = 1, submission: str = "", **fields: Any) -> Answer:
    return Answer(lease, submission or f"submission {next(NUMBERS)}", choice, **fields)


def for_ppo(given: Mapping[str, Any]) -> int:
    """The choice that says that ppo's reply is better."""
    return 1 if "ppo" in given["a"] else 5


@pytest.fixture
def open_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    def build(number: int, **knobs: Any) -> Desk:
        made = Desk(tmp_path / str(number), replace(PLAIN, **knobs))
        for name in ("anna", "ben", "cleo"):
            made.store.invite(name)
        return made

    with desks(build) as another:
        yield another


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def test_a_choice_becomes_a_preference_for_the_first_arm(desk: Desk) -> None:
    """Whichever reply was A: the five steps are 1, .5, 0, -.5, -1 towards it, and flags follow their reply."""
    desk.add(*(f"p{at}" for at in range(40)))
    expected = []
    for at in range(40):
        given = desk.next("anna")
        assert given is not None and given.keys() == {"lease", "expires_s", "turns", "a", "b", "sensitive"}
        left = "ppo" in given["a"]
        choice = at % 5 + 1
        desk.comparisons.judge("anna", answer(given["lease"], choice, flags_a=(FLAG,)))
        towards = {1: 1.0, 2: 0.5, 3: 0.0, 4: -0.5, 5: -1.0}[choice]
        flags = {"first": [FLAG], "second": []} if left else {"first": [], "second": [FLAG]}
        expected.append((towards if left else 0.0 - towards, "first" if left else "second", flags))
    kept = desk.rows(Kind.JUDGEMENT)
    assert [(one["preference"], one["left"], one["flags"]) for one in kept] == expected
    assert {one["left"] for one in kept} == {"first", "second"}
    assert not any(math.copysign(1, one["preference"]) < 0 for one in kept if one["preference"] == 0)
    desk.store.verify()


def test_sides_are_drawn_for_each_rater_and_item_and_stay(open_desk: Callable[..., Desk]) -> None:
    """About half either way, other for other raters and seeds, the same after a reload and in another service."""
    sides: dict[tuple[int, str], list[bool]] = {}
    for seed, rater in ((0, "anna"), (0, "ben"), (1, "anna"), (0, "anna")):
        desk = open_desk()
        desk.add(*(f"p{at}" for at in range(60)), seed=seed)
        seen = []
        while (given := desk.next(rater)) is not None:
            assert desk.next(rater) == given
            seen.append((name_of(given), "ppo" in given["a"]))
            desk.judge(rater)
        drawn = [left for _, left in sorted(seen)]
        assert 18 <= sum(drawn) <= 42
        assert sides.setdefault((seed, rater), drawn) == drawn
    assert len({tuple(drawn) for drawn in sides.values()}) == 3


def test_replies_that_read_the_same_are_not_asked(desk: Desk) -> None:
    """White space aside, and after names are gone."""
    first, second = "It is\n good  that you came.", "It is good that you came. "
    named = Comparison("k/names/0", SAID, ("ppo", "sft"), ("Tell your sister Anna.", "Tell your sister Maria."))
    desk.comparisons.add([Comparison("k/same/0", SAID, ("ppo", "sft"), (first, second)), named, pair("other")])
    assert desk.judge("anna") == "other"
    assert desk.comparisons.next("anna") == {"item": None, "why": "empty"}
    told = desk.comparisons.counts()
    assert (told["asked"], told["done"], told["same"], told["judgements"]) == (1, 1, 2, 1)
    assert [row["same"] for row in desk.rows(Kind.COMPARISON)] == [True, True, False]


def test_names_and_contacts_go_out_of_texts_and_reasons(desk: Desk) -> None:
    """Before anything is stored: what the history introduces goes out of both replies."""
    said = (Turn(Speaker.CLIENT, "I'm Anna, mail me at me@example.org."),)
    desk.comparisons.add([Comparison("k/a/0", said, ("ppo", "sft"), ("Hello Anna.", "Good to see you, Anna!"))])
    desk.judge("ben", reason="Anna said 555-867-5309")
    with desk.store.database.read() as db:
        told = "\n".join(db.iterdump())
    assert "Hello [name]." in told and "example.org" not in told and "555-867" not in told
    desk.store.verify()


def test_a_comparison_goes_to_as_many_raters_as_it_wants(desk: Desk) -> None:
    """Judgements and live leases together are at most `wanted`; nobody gets one twice."""
    desk.add("p", wanted=2)
    assert desk.next("anna") is not None
    desk.judge("ben")
    assert desk.next("cleo") is None
    desk.judge("anna")
    assert [desk.next(rater) for rater in ("anna", "ben", "cleo")] == [None] * 3


def test_a_lease_that_ran_out_returns_the_comparison(desk: Desk) -> None:
    """After lease_s somebody else gets it; a sign of work keeps it; late work counts where nobody else has it."""
    desk.add("p")
    late = desk.next("anna")
    assert late is not None
    desk.clock.now += 90
    assert desk.comparisons.renew("anna", late["lease"]) == 100
    desk.clock.now += 90
    assert desk.next("ben") is None
    desk.clock.now += 20
    given = desk.next("ben")
    assert given is not None
    refused(409, lambda: desk.comparisons.judge("anna", answer(late["lease"])), "time for this comparison is over")
    desk.clock.now += 1000
    desk.comparisons.judge("ben", answer(given["lease"]))
    refused(409, lambda: desk.comparisons.judge("ben", answer(given["lease"])), "already judged")
    refused(409, lambda: desk.comparisons.skip("anna", given["lease"], "no"), "another rater")
    refused(404, lambda: desk.comparisons.renew("anna", "f" * 32), "not known")
    assert len(desk.rows(Kind.JUDGEMENT)) == 1


def test_a_submission_counts_once(desk: Desk) -> None:
    """Sent again it has the same answer; with another content it is refused."""
    desk.add("p", "q")
    given = desk.next("anna")
    assert given is not None
    told = answer(given["lease"], 2, "once")
    first, new, sitting = desk.comparisons.judge("anna", told)
    assert new and sitting == {"done": 1, "limit": 10_000}
    assert desk.comparisons.judge("anna", told) == (first, False, sitting)
    refused(409, lambda: desk.comparisons.judge("anna", replace(told, choice=3)), "another content")
    assert len(desk.rows(Kind.JUDGEMENT)) == 1


def test_repeats_come_unannounced_with_their_sides_swapped(open_desk: Callable[..., Desk]) -> None:
    """At the ratings' rate and distance, once each; they are no judgement more of the item."""
    desk = open_desk(repeats=0.2, repeat_gap=5)
    desk.add(*(f"p{at}" for at in range(150)))
    seen: list[tuple[str, bool]] = []
    while (given := desk.next("anna")) is not None:
        assert given.keys() == {"lease", "expires_s", "turns", "a", "b", "sensitive"} and desk.next("anna") == given
        seen.append((name_of(given), "ppo" in given["a"]))
        desk.judge("anna", for_ppo)
    names = [name for name, _ in seen]
    repeats = [at for at, name in enumerate(names) if name in names[:at]]
    assert len(set(names)) == 150 and 15 <= len(repeats) <= 60 and max(Counter(names).values()) == 2
    for at in repeats:
        before = names.index(names[at])
        assert at - before >= 5 and seen[at][1] is not seen[before][1]
    kept = desk.rows(Kind.JUDGEMENT)
    assert [at for at, one in enumerate(kept) if one["repeat"]] == repeats
    assert {one["preference"] for one in kept} == {1.0}
    told = desk.comparisons.counts()
    assert (told["done"], told["judgements"]) == (150, len(seen))


def test_undo_takes_the_last_one_back_with_its_sides(desk: Desk) -> None:
    """Once; what was answered is there again, on the side where it was; then it counts as it is given anew."""
    desk.add(*(f"p{at}" for at in range(12)), wanted=2)
    refused(409, lambda: desk.comparisons.undo("anna"), "none to take back")
    for _ in range(6):
        given = desk.next("anna")
        assert given is not None
        desk.comparisons.judge("anna", answer(given["lease"], 2, flags_b=(FLAG,), reason="warmer"))
        desk.next("anna")
        back = desk.comparisons.undo("anna")["item"]
        assert (back["a"], back["b"]) == (given["a"], given["b"])
        assert back["draft"] == {"choice": 2, "flags_a": [], "flags_b": [FLAG], "reason": "warmer"}
        refused(409, lambda: desk.comparisons.undo("anna"), "none to take back")
        assert desk.next("anna") == {key: value for key, value in back.items() if key != "draft"}
        desk.judge("anna", lambda item: 4)
    told = desk.comparisons.counts()
    assert (told["judgements"], told["begun"], told["done"]) == (6, 6, 0)
    assert len(desk.rows(Kind.UNDO)) == 6 and len(desk.rows(Kind.JUDGEMENT)) == 12
    desk.store.sit("anna")
    refused(409, lambda: desk.comparisons.undo("anna"))
    desk.store.verify()


def test_a_skipped_comparison_goes_to_others_only(desk: Desk) -> None:
    """Never again to this rater; the reason is kept, without names."""
    desk.add("p")
    given = desk.next("anna")
    assert given is not None
    desk.comparisons.skip("anna", given["lease"], "mail me at me@example.org")
    assert desk.next("anna") is None and desk.judge("ben") == "p"
    (told,) = desk.rows(Kind.SKIP)
    assert told["rater"] == "anna" and "example.org" not in told["reason"]
    assert desk.comparisons.counts()["raters"] == [["anna", 0, 1], ["ben", 1, 0]]


def test_crisis_comparisons_go_only_to_those_who_chose_them(desk: Desk) -> None:
    """Who opts out is not left with one; whoever asked for it as a rater of replies keeps the choice."""
    desk.add("active", tier="active")
    desk.add("distress", tier="distress")
    assert desk.comparisons.me("anna")["left"] == 1
    assert desk.judge("anna") == "distress" and desk.next("anna") is None
    desk.store.settle("anna", crisis=True)
    given = desk.next("anna")
    assert given is not None and given["sensitive"] and name_of(given) == "active"
    desk.store.settle("anna", crisis=False)
    assert desk.next("anna") is None
    refused(409, lambda: desk.comparisons.judge("anna", answer(given["lease"])), "given back")


def test_a_sitting_ends_with_a_break(open_desk: Callable[..., Desk]) -> None:
    """As for ratings."""
    desk = open_desk(sitting=2)
    desk.add("p", "q", "r")
    desk.judge("anna")
    desk.judge("anna")
    assert desk.comparisons.next("anna") == {"item": None, "why": "sitting"}
    desk.store.sit("anna")
    desk.judge("anna")
    assert desk.comparisons.me("anna")["done"] == 3


def test_who_is_shut_out_gives_back_what_he_or_she_holds(desk: Desk) -> None:
    """At once; judgements stay."""
    desk.add("p")
    assert desk.next("anna") is not None and desk.next("ben") is None
    desk.store.shut("anna")
    assert desk.judge("ben") == "p"


def test_asking_again_is_asking_once_and_closing_leaves_what_is_under_way(desk: Desk) -> None:
    """The same ids and one row in the chain; more raters are an event; what is closed is given to nobody new."""
    ids = desk.add("p", "q")
    assert desk.add("q", "p") == ids[::-1] and len(desk.rows(Kind.COMPARISON)) == 2
    given = desk.next("anna")
    assert given is not None
    desk.comparisons.close_others([])
    assert desk.next("ben") is None
    desk.comparisons.judge("anna", answer(given["lease"]))
    assert desk.comparisons.close_others(desk.add("p", wanted=3)) == 0
    assert [(row.get("again"), row["raters"]) for row in desk.rows(Kind.COMPARISON)[2:]] == [(True, 3)]


@pytest.mark.parametrize(
    "sql, match",
    [
        ("UPDATE judgements SET body = replace(body, '1.0', '-1.0')", "judgements must hold what row"),
        ("UPDATE judgements SET undone = 1", "must stand or be taken back"),
        ("DELETE FROM judgements", "judgements must hold what row"),
        ("UPDATE comparisons SET first = 'another'", "the texts of comparison"),
        ("UPDATE comparisons SET first_arm = 'sft', second_arm = 'ppo'", "the texts of comparison"),
        ("UPDATE comparisons SET same = 1", "the texts of comparison"),
    ],
)
def test_tables_that_part_from_the_chain_are_found(desk: Desk, sql: str, match: str) -> None:
    """A judgement, a text or an arm that was changed beside the chain."""
    desk.add("p")
    desk.judge("anna", for_ppo)
    desk.store.verify()
    desk.store.database.write(lambda db: db.execute(sql))
    with pytest.raises(ValueError, match=match):
        desk.store.verify()


def test_a_folder_of_before_opens_and_is_sound(desk: Desk, tmp_path: Path) -> None:
    """A database without the tables: read as it is, and taken up by the service."""
    folder = tmp_path / "0"
    desk.store.add([Item("k", SAID, "a reply")])
    desk.store.close()
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        db.executescript("DROP TABLE judgements; DROP TABLE comparison_leases; DROP TABLE comparisons;")
    with ledger.opened(folder / DATABASE) as db:
        before = ledger.check(db)
    again = Desk(folder)
    assert again.store.verify() == before
    again.add("p")
    assert again.judge("anna") == "p" and again.store.next("anna")["item"]["reply"] == "a reply"
    again.store.verify()
    again.store.close()


# The service, over HTTP


class Caller:
    """Whoever asks the service."""

    def __init__(self, server: Server) -> None:
        self.server, self.admin = server, server.admin_link.partition("#")[2]
        self.http = httpx.Client(trust_env=False, timeout=30)

    def ask(self, method: str, path: str, token: str = "", body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request(method, self.server.url + path, headers=headers, content=content)

    def invite(self, name: str, **fields: Any) -> dict[str, Any]:
        return dict(self.ask("POST", "/api/admin/raters", self.admin, {"name": name, **fields}).json())

    def put(self, *names: str, **fields: Any) -> list[str]:
        asked = [described(pair(name, **fields)) for name in names]
        return list(self.ask("POST", "/api/run/comparisons", self.server.token, {"comparisons": asked}).json()["ids"])

    def next(self, token: str) -> dict[str, Any]:
        return dict(self.ask("POST", "/api/compare/next", token, {}).json()["item"])

    def rows(self) -> list[int]:
        with closing(sqlite3.connect(self.server.folder / DATABASE)) as db:
            return [
                db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("chain", "judgements", "comparisons")
            ]


def described(one: Comparison) -> dict[str, Any]:
    history = [{"speaker": turn.speaker.value, "text": turn.text} for turn in one.history]
    told = {"key": one.key, "history": history, "arms": one.arms, "replies": one.replies, "tier": one.tier}
    return {**told, "wanted": one.wanted, "seed": one.seed}


def filled(lease: str, choice: int = 1, /, **changes: Any) -> dict[str, Any]:
    told = {"lease": lease, "submission": str(uuid.uuid4()), "choice": choice, "flags_a": [], "flags_b": []}
    return {**told, "reason": "", "seconds": 2.5, **changes}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    with Server(tmp_path_factory.mktemp("service"), PLAIN) as server:
        yield Caller(server)


@pytest.fixture(scope="module")
def anna(caller: Caller) -> str:
    caller.put(*(f"p{at}" for at in range(30)), wanted=2)
    told = caller.invite("anna")
    assert (
        told["link"] == f"{caller.server.url}/compare#{told['token']}"
    )  # where there are comparisons and no replies to rate
    return str(told["token"])


def test_the_page_is_told_no_arm_key_or_id(caller: Caller, anna: str) -> None:
    """Two texts and a handle; then what it asks is answered."""
    me = caller.ask("GET", "/api/compare/me", anna).json()
    assert me.keys() == {"name", "flags", "sitting", "done", "crisis", "left", "can_undo"} and me["left"] == 30
    given = caller.next(anna)
    told = json.dumps({key: value for key, value in given.items() if key not in ("a", "b")})
    assert not any(word in told for word in ("ppo", "sft", "esconv", "arm", "first", "second"))
    assert caller.ask("POST", "/api/compare/renew", anna, {"lease": given["lease"]}).json() == {"expires_s": 100.0}
    body = filled(given["lease"], 2, flags_b=[FLAG], reason="kinder")
    first, again = (caller.ask("POST", "/api/compare/judgements", anna, body) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200) and first.json() == again.json()
    back = caller.ask("POST", "/api/compare/undo", anna, {}).json()["item"]
    assert back["draft"] == {"choice": 2, "flags_a": [], "flags_b": [FLAG], "reason": "kinder"}
    assert caller.ask("POST", "/api/compare/skip", anna, {"lease": back["lease"], "reason": "no"}).json() == {}
    counts = caller.ask("GET", "/api/admin/comparisons", caller.admin).json()
    assert counts == {
        "asked": 30, "done": 0, "begun": 0, "same": 0, "leased": 0, "judgements": 0, "raters": [["anna", 0, 1]],
    }  # fmt: skip
    page = caller.ask("GET", "/compare")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "method, path, owner",
    [
        ("GET", "/api/compare/me", "rater"), ("POST", "/api/compare/next", "rater"), ("POST", "/api/compare/renew", "rater"),
        ("POST", "/api/compare/judgements", "rater"), ("POST", "/api/compare/skip", "rater"),
        ("POST", "/api/compare/undo", "rater"), ("POST", "/api/run/comparisons", "run"),
        ("GET", "/api/admin/comparisons", "admin"),
    ],
)  # fmt: skip
def test_tokens_open_their_own_doors_only(caller: Caller, anna: str, method: str, path: str, owner: str) -> None:
    """No token and a forged one: 401; one of another role: 403; nothing is stored."""
    before, body = caller.rows(), {} if method == "POST" else None
    for forged in ("", "x", "' OR 1=1 --"):
        assert caller.ask(method, path, forged, body).status_code == 401
    for role, token in {"rater": anna, "run": caller.server.token, "admin": caller.admin}.items():
        if role != owner:
            response = caller.ask(method, path, token, body)
            assert response.status_code == 403 and owner in response.json()["error"]
    assert caller.rows() == before


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"choice": 0}, "choice"), ({"choice": 6}, "choice"), ({"choice": "1"}, "choice"), ({"choice": 1.5}, "choice"),
        ({"choice": None}, "choice"), ({"choice": True}, "choice"), ({"flags_a": ["ugly"]}, "flags_a"),
        ({"flags_b": [FLAG, FLAG]}, "flags_b"), ({"flags_b": None}, "flags_b"), ({"reason": "x" * 10_001}, "reason"),
        ({"reason": "\0"}, "reason"), ({"seconds": -1}, "seconds"), ({"submission": "'; DROP TABLE judgements"}, "submission"),
        ({"lease": "../etc"}, "lease"), ({"preference": 1}, "preference"),
    ],
)  # fmt: skip
def test_what_is_no_judgement_is_refused_by_name(
    caller: Caller, anna: str, changes: dict[str, Any], field: str
) -> None:
    """422 in one line with the field; nothing is stored."""
    lease = caller.next(anna)["lease"]
    before = caller.rows()
    response = caller.ask("POST", "/api/compare/judgements", anna, filled(lease, **changes))
    assert response.status_code == 422 and field in response.json()["error"] and "\n" not in response.json()["error"]
    assert caller.rows() == before


def test_hostile_bodies_and_foreign_leases_are_refused(caller: Caller, anna: str) -> None:
    """No JSON, too large, another's lease, a comparison of one arm or three."""
    before = caller.rows()
    assert caller.ask("POST", "/api/compare/judgements", anna, b"{").status_code == 400
    assert caller.ask("POST", "/api/compare/judgements", anna, b"x" * 300_000).status_code == 413
    for arms in (["ppo"], ["ppo", "sft", "base"], "ppo"):
        body = {"comparisons": [{**described(pair("x")), "arms": arms}]}
        assert caller.ask("POST", "/api/run/comparisons", caller.server.token, body).status_code == 422
    assert caller.rows() == before
    ben = caller.invite("ben")["token"]
    lease = caller.next(anna)["lease"]
    assert caller.ask("POST", "/api/compare/judgements", ben, filled(lease)).status_code == 409


def test_too_many_requests_are_told_to_wait(tmp_path: Path) -> None:
    """The rating page's limits hold here."""
    config = replace(PLAIN, rate_per_s=0.1, burst=4)
    with Server(tmp_path, config) as server:
        caller = Caller(server)
        token = caller.invite("anna")["token"]
        statuses = [caller.ask("GET", "/api/compare/me", token).status_code for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2


@pytest.mark.slow
def test_a_killed_service_loses_no_acknowledged_judgement(tmp_path: Path) -> None:
    """Four raters over HTTP, kill -9 three times in the middle: each acknowledged judgement is there, none twice, the chain
    is sound."""
    wanted, acknowledged, unanswered = 200, {}, []
    lock, over = threading.Lock(), threading.Event()
    with Server(tmp_path, PLAIN) as server:
        caller = Caller(server)
        caller.put(*(f"p{at}" for at in range(150)), wanted=4)
        tokens = [caller.invite(f"rater{at}")["token"] for at in range(4)]

        def insist(http: httpx.Client, path: str, token: str, body: Any) -> httpx.Response | None:
            while not over.is_set():
                try:
                    response = http.post(server.url + path, json=body, headers={"Authorization": f"Bearer {token}"})
                except httpx.TransportError:
                    unanswered.append(path)
                    time.sleep(0.02)
                    continue
                if response.status_code < 500:
                    return response
            return None

        def work(token: str) -> None:
            with httpx.Client(trust_env=False, timeout=60) as http:
                while len(acknowledged) < wanted:
                    given = insist(http, "/api/compare/next", token, {})
                    if given is None or given.json()["item"] is None:
                        return
                    body = filled(given.json()["item"]["lease"], 1 + len(acknowledged) % 5)
                    response = insist(http, "/api/compare/judgements", token, body)
                    if response is not None and response.status_code in {200, 201}:
                        with lock:
                            acknowledged[body["submission"]] = response.json()["judgement"]

        threads = [threading.Thread(target=work, args=(token,)) for token in tokens]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 180
        for moment in (40, 90, 140):
            while len(acknowledged) < moment and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(server.process.pid, signal.SIGKILL)
            server.process.wait()
            server.start()
        for thread in threads:
            thread.join(60)
        over.set()
    with ledger.opened(tmp_path / DATABASE) as db:
        ledger.check(db)
        stored = {row["submission"]: row["id"] for row in db.execute("SELECT submission, id FROM judgements")}
        doubled = db.execute("SELECT count(*) - count(DISTINCT comparison || rater) FROM judgements").fetchone()[0]
        miscounted = db.execute(
            "SELECT count(*) FROM comparisons c WHERE judged <> (SELECT count(*) FROM judgements j WHERE j.comparison = c.id)"
        ).fetchone()[0]
    assert len(acknowledged) >= wanted and unanswered
    assert acknowledged.items() <= stored.items() and len(stored) == len(acknowledged)
    assert (doubled, miscounted) == (0, 0)


# What votes come to: by hand, and by scipy


def votes(*rows: tuple[str, str, float], left: bool = True) -> list[Vote]:
    return [Vote(item, rater, value, left) for item, rater, value in rows]


def test_wins_by_hand() -> None:
    """Items a (1, .5), b (-1, .5), c (0), d (1, -1), e (-.5): means .75, -.25, 0, 0, -.5; 1 win, 2 losses, 2 ties: rate .4."""
    given = votes(
        ("a", "x", 1.0), ("a", "y", 0.5), ("b", "x", -1.0), ("b", "y", 0.5), ("c", "x", 0.0), ("d", "x", 1.0),
        ("d", "y", -1.0), ("e", "y", -0.5),
    )  # fmt: skip
    given.append(Vote("c", "x", 1.0, True, repeat=True))  # measures x, and is no vote more
    found = preferences.preferences(given)
    assert found == {"a": 0.75, "b": -0.25, "c": 0.0, "d": 0.0, "e": -0.5}
    rate, p = preferences.win_rate(found)
    assert rate.value == pytest.approx(0.4) and rate.low <= 0.4 <= rate.high
    assert p == pytest.approx(stats.binomtest(1, 3).pvalue)
    assert preferences.strength(found)["value"] == pytest.approx(0.0)


def test_the_p_value_is_that_of_all_sign_flips() -> None:
    """Against scipy's exact permutation test of the items' outcomes, and of their strengths within Monte Carlo error."""
    rng = np.random.default_rng(3)
    value_U = rng.choice([-1, -0.75, -0.5, 0, 0.25, 0.5, 1], size=12, p=[0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.3])
    found = {f"i{at:02}": float(value) for at, value in enumerate(value_U)}

    def exact(data_U: Any) -> float:
        return float(stats.permutation_test((data_U,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue)

    assert preferences.win_rate(found)[1] == pytest.approx(exact(np.sign(value_U)))
    assert preferences.strength(found, draws=20_000)["p"] == pytest.approx(exact(value_U), abs=0.01)


def test_the_interval_is_the_bootstrap_over_items() -> None:
    """Against scipy's percentile bootstrap; all won is not certainty, nor is one item."""
    rng = np.random.default_rng(5)
    outcome_U = rng.choice([-1.0, 0.0, 1.0], size=80, p=[0.3, 0.2, 0.5])
    found = {f"i{at:02}": float(value) for at, value in enumerate(outcome_U)}
    rate, _ = preferences.win_rate(found, draws=4000)
    theirs = stats.bootstrap(((outcome_U + 1) / 2,), np.mean, method="percentile", n_resamples=4000, rng=1)
    assert rate.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert rate.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    won, p = preferences.win_rate(dict.fromkeys("abcdef", 1.0))
    assert (won.value, won.high) == (1.0, 1.0) and won.low == pytest.approx(stats.binomtest(6, 6).proportion_ci().low)
    assert p == pytest.approx(2 / 2**6)
    assert preferences.win_rate({"a": 1.0}) == (preferences.Interval(1.0, 0.0, 1.0), 1.0)
    with pytest.raises(ValueError, match="needs an item"):
        preferences.win_rate({})


def test_position_counts_choices_for_the_left() -> None:
    """Three of four that prefer one chose the left; the tie is no choice. Against scipy's exact interval."""
    given = [
        Vote("a", "x", 1.0, True),
        Vote("b", "x", -0.5, False),
        Vote("c", "x", 1.0, False),
        Vote("d", "y", 0.5, True),
    ]
    given.append(Vote("e", "y", 0.0, True))
    found = preferences.position(given)
    theirs = stats.binomtest(3, 4)
    assert found is not None and (found["value"], found["count"]) == (0.75, 4)
    assert (found["low"], found["high"]) == pytest.approx(tuple(theirs.proportion_ci())) and found["p"] == theirs.pvalue
    assert preferences.position(given[-1:]) is None


def test_consistency_compares_the_two_askings() -> None:
    """1 then .5, 0 then 0, 1 then -1: two of three have the same sign, and they are (.5 + 0 + 2) / 3 apart."""
    first = votes(("a", "x", 1.0), ("b", "x", 0.0), ("c", "x", 1.0), ("d", "y", 1.0))
    again = [Vote("a", "x", 0.5, False, True), Vote("b", "x", 0.0, False, True), Vote("c", "x", -1.0, False, True)]
    found = preferences.consistency([*first, *again])
    assert found is not None and (found["value"], found["count"]) == (pytest.approx(2 / 3), 3)
    assert found["difference"] == pytest.approx(2.5 / 3)
    assert preferences.consistency(first) is None


def test_agreement_is_that_of_the_rating_service() -> None:
    """Krippendorff's alpha of the votes as the package krippendorff computes it, and pairs of one sign by hand."""
    krippendorff = pytest.importorskip("krippendorff")
    table = {"x": [1.0, -0.5, 0.0, 1.0, -1.0], "y": [0.5, -1.0, 0.5, 1.0, -0.5]}
    given = votes(*((f"i{at}", rater, value) for rater, row in table.items() for at, value in enumerate(row)))
    found = preferences.agreement(given)
    assert found is not None
    theirs = krippendorff.alpha(np.array(list(table.values())), level_of_measurement="interval")
    assert found["alpha"]["value"] == pytest.approx(theirs)
    assert (found["same_sign"], found["pairs"], found["items"], found["raters"]) == (0.8, 5, 5, 2)
    assert preferences.agreement(votes(("a", "x", 1.0))) is None


def test_any_raters_flag_counts_once_for_an_item() -> None:
    """At a repeat too."""
    given = [
        Vote("a", "x", 1.0, True, flags_first=("diagnosis",)),
        Vote("a", "y", 1.0, True, flags_first=("diagnosis", "dosage")),
        Vote("b", "x", 1.0, True, True, flags_second=("diagnosis",)),
    ]
    assert preferences.flags(given) == {"first": {"diagnosis": 1, "dosage": 1}, "second": {"diagnosis": 1}}


# From a suite to human.json


def suite(folder: Path, prompts: int = 40, **changes: Any) -> Path:
    """A suite of the arms ppo, sft and base; `changes` maps (arm, prompt) or arm to fields of the row."""
    rows = []
    for at, (arm, corpus) in itertools.product(
        range(prompts), (("ppo", "esconv"), ("sft", "esconv"), ("base", "esconv"))
    ):
        row = {
            "corpus": corpus, "arm": arm, "prompt_id": f"d{at:03}#1", "sample": 0, "prompt": "...", "reference": "",
            "history": f"Client: It is number {at}.\nTherapist: Go on.\nClient: I feel low.\nAnd tired.",
            "reply": f"{arm} answers {at}.", "emotion": "", "tier": "none", "finish": "stopped", "error": "", "words": 3,
            "flags": [], "score/length": 3.0,
        }  # fmt: skip
        rows.append({**row, **changes.get(arm, {}), **changes.get(f"{arm}{at}", {})})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "replies.parquet")
    return folder


def test_turns_of_a_transcript() -> None:
    """Lines of a speaker begin a turn, others go on with it."""
    found = list(turns("Client: One.\nStill one.\n\nTherapist: Two: yes.\nClient:\nClient: Three."))
    assert [(turn.speaker.value, turn.text) for turn in found] == [
        ("client", "One.\nStill one."),
        ("therapist", "Two: yes."),
        ("client", "Three."),
    ]
    assert list(turns("")) == []


def test_prompts_that_both_arms_answered_are_drawn_by_seed(tmp_path: Path) -> None:
    """Failed, aborted and empty replies are none; more items hold the fewer; either order of arms asks the same."""
    folder = suite(
        tmp_path, ppo1={"finish": "failed"}, ppo2={"error": "429"}, sft3={"reply": " "}, sft4={"finish": "aborted"}
    )
    pairs = paired(folder, "ppo", "sft")
    assert len(pairs.comparisons) == 36 and pairs.silent == {"ppo": 2, "sft": 2} and pairs.corpus == "esconv"
    assert paired(folder, "sft", "ppo").comparisons == pairs.comparisons
    few, many = (pairs.chosen(count, wanted=2, seed=1) for count in (10, 20))
    assert few == many[:10] and len(pairs.chosen(99, wanted=1, seed=0)) == 36
    assert few != pairs.chosen(10, wanted=2, seed=2)
    one = few[0]
    assert (
        one.arms == ("ppo", "sft")
        and one.wanted == 2
        and [turn.text for turn in one.history][-1] == "I feel low.\nAnd tired."
    )
    assert one.replies[0].replace("ppo", "sft") == one.replies[1]


def test_of_several_samples_the_first_that_both_have(tmp_path: Path) -> None:
    """And of several corpora the one that is named."""
    folder = suite(tmp_path, 2, ppo0={"error": "lost"})
    table = pq.read_table(folder / "replies.parquet")
    more = [{**row, "sample": 1, "error": "", "reply": f"{row['reply']} Again."} for row in table.to_pylist()]
    other = [{**row, "corpus": "hope"} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist([*table.to_pylist(), *more, *other]), folder / "replies.parquet")
    found = paired(folder, "ppo", "sft", "esconv").comparisons
    assert sorted(found) == ["esconv/d000#1/1", "esconv/d001#1/0"]
    with pytest.raises(ValueError, match="2 corpora, esconv, hope: name one"):
        paired(folder, "ppo", "sft")
    with pytest.raises(ValueError, match="got 'x'"):
        paired(folder, "ppo", "sft", "x")


@pytest.mark.parametrize(
    "arms, changes, match",
    [
        (("ppo", "sfy"), {}, r"are base, ppo, sft; got 'sfy': did you mean 'sft'"),
        (("ppo", "zzz"), {}, r"got 'zzz': name one of these"),
        (("ppo", "ppo"), {}, r"two arms"),
        (("ppo", "sft"), {"sft": {"finish": "failed"}}, r"there is none \(ppo has 40 replies, sft has 0 replies\)"),
        (("ppo", "sft"), {"sft": {"reply": "alike"}, "ppo": {"reply": "alike"}}, r"nothing to ask"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arms: tuple[str, str], changes: dict[str, Any], match: str
) -> None:
    """By the command, with exit code 2."""
    folder = suite(tmp_path, **changes)
    assert main(["compare", str(folder), *arms]) == 2
    said = capsys.readouterr().err
    assert re.search(match, said) and said.count("\n") == 1


def test_wrong_words_and_results_of_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is told with what to do; help is help."""
    folder = suite(tmp_path / "suite")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "replies.parquet").write_bytes(b"no")
    for words, match in (
        ([str(folder), "ppo"], "needs SUITE_DIR FIRST SECOND"),
        ([str(tmp_path), "ppo", "sft"], "no replies.parquet"),
        ([str(tmp_path / "bad"), "ppo", "sft"], "must be a Parquet file"),
        ([str(folder), "ppo", "sft", "--items", "0"], "items must be in 1"),
        ([str(folder), "ppo", "sft", "--item", "5"], "did you mean 'items'"),
        ([str(folder), "ppo", "sft", "--results"], "needs? a judgement of ppo against sft"),
    ):
        assert main(["compare", *words]) == 2
        assert re.search(match, capsys.readouterr().err)
    assert not (folder / "human").exists()
    assert main(["compare", "--help"]) == 0 and "--ratings" in capsys.readouterr().out
    rows = pq.read_table(folder / "replies.parquet").drop_columns(["tier"])
    pq.write_table(rows, folder / "replies.parquet")
    assert main(["compare", str(folder), "ppo", "sft"]) == 2 and "'tier'" in capsys.readouterr().err


Decide = Callable[[dict[str, Any], random.Random], int]


def judged_by(
    folder: Path, raters: Mapping[str, Decide], *, items: int = 400, ratings: int = 2, repeats: float = 0.0
) -> Store:
    """The suite's arms ppo and sft, compared by simulated raters, each of whom sees what the page would show."""
    store = Store(folder / "human", replace(PLAIN, repeats=repeats, repeat_gap=3), mean)
    pairs = paired(folder, "ppo", "sft")
    store.comparisons.close_others(store.comparisons.add(pairs.chosen(items, wanted=ratings, seed=0)))
    for name, decide in raters.items():
        store.invite(name)
        rng = random.Random(name)
        while (given := store.comparisons.next(name)["item"]) is not None:
            store.comparisons.judge(name, answer(given["lease"], decide(given, rng), reason=f"said by {name}"))
    store.close()
    return store


def prefers_ppo(share: float) -> Decide:
    """A rater to whom ppo's reply is the better one with probability `share`, in either strength."""

    def decide(given: dict[str, Any], rng: random.Random) -> int:
        better_is_a = (rng.random() < share) == ("ppo" in given["a"])
        return rng.choice((1, 2)) if better_is_a else rng.choice((4, 5))

    return decide


@pytest.mark.parametrize("share", [0.7, 0.3, 0.5])
def test_a_known_preference_is_recovered(tmp_path: Path, share: float) -> None:
    """The true win rate lies in the interval, the sign is right, and p says whether there is one."""
    folder = suite(tmp_path, 300)
    judged_by(folder, {"anna": prefers_ppo(share)}, ratings=1)
    told = results(folder, "ppo", "sft")
    assert told["win_rate"]["low"] <= share <= told["win_rate"]["high"] and told["items"] == told["judgements"] == 300
    assert told["win_rate"]["value"] == pytest.approx((told["first_wins"] + told["ties"] / 2) / 300)
    assert (told["p"] < 0.001) == (share != 0.5)
    assert np.sign(told["preference"]["value"]) == np.sign(share - 0.5) or share == 0.5
    assert told["position"]["low"] <= 0.5 <= told["position"]["high"]
    turned = results(folder, "sft", "ppo")
    assert turned["first_wins"] == told["second_wins"] and turned["p"] == pytest.approx(told["p"])
    assert turned["win_rate"]["value"] == pytest.approx(1 - told["win_rate"]["value"])
    assert turned["position"] == told["position"]
    json.dumps(told, allow_nan=False)


def test_who_always_picks_the_left_decides_nothing_and_is_seen(tmp_path: Path) -> None:
    """Win rate near a half, position bias near 1, repeats that contradict each other."""
    folder = suite(tmp_path, 300)
    judged_by(folder, {"lefty": lambda given, rng: 1}, ratings=1, repeats=0.2)
    told = results(folder, "ppo", "sft")
    assert told["win_rate"]["low"] <= 0.5 <= told["win_rate"]["high"] and 0.4 < told["win_rate"]["value"] < 0.6
    assert told["position"]["value"] == 1.0 and told["position"]["low"] > 0.95 and told["position"]["p"] < 1e-9
    assert told["repeats"] > 10 and told["consistency"]["value"] == 0.0 and told["consistency"]["difference"] == 2.0
    assert any("chose the left more often" in note for note in told["notes"])


def test_a_panel_s_results_are_counted_rater_by_rater(tmp_path: Path) -> None:
    """Two who agree and one who tosses a coin; items of one text are ties of their own kind; nobody is named."""
    same = {f"sft{at}": {"reply": f"ppo answers {at}."} for at in range(10)}
    folder = suite(tmp_path, 60, **same)
    raters = {"Dr Vogel": prefers_ppo(1.0), "M. Okafor": prefers_ppo(1.0), "coin": prefers_ppo(0.5)}
    judged_by(folder, raters, ratings=3, repeats=0.1)
    told = results(folder, "ppo", "sft")
    assert (told["items"], told["asked"], told["same_text"], told["waiting"]) == (60, 50, 10, 0)
    assert (told["raters"], told["judgements"], len(told["reasons"])) == (3, 150, 150 + told["repeats"])
    assert told["first_wins"] + told["second_wins"] + told["ties"] == 60 and told["ties"] >= 10
    assert told["win_rate_asked"]["value"] > told["win_rate"]["value"] > 0.5
    assert told["agreement"]["raters"] == 3 and told["agreement"]["alpha"]["low"] < told["agreement"]["alpha"]["value"]
    assert [one["rater"] for one in told["by_rater"]] == ["rater 1", "rater 2", "rater 3"]
    assert [one["win_rate"] for one in told["by_rater"][:2]] == [1.0, 1.0] and told["by_rater"][2]["win_rate"] < 0.8
    assert told["consistency"]["count"] == told["repeats"] > 0
    said = json.dumps({key: value for key, value in told.items() if key != "reasons"})
    assert not any(name in said for name in raters) and "one rater" not in said
    assert any("10 items both replies read the same" in note for note in told["notes"])


def test_replies_that_changed_since_do_not_count(tmp_path: Path) -> None:
    """The judgements are of other texts: left out, and said; with none left there are no results."""
    folder = suite(tmp_path, 30)
    judged_by(folder, {"anna": prefers_ppo(1.0)}, ratings=1)
    suite(folder, 30, **{f"ppo{at}": {"reply": "retrained"} for at in range(20)})
    told = results(folder, "ppo", "sft")
    assert (told["items"], told["judgements"]) == (10, 10)
    assert "20 judgements are of replies that the suite does not have any more: they are left out." in told["notes"]
    suite(folder, 30, ppo={"reply": "retrained"})
    with pytest.raises(NobodyJudged, match="has none"):
        results(folder, "ppo", "sft")
    with pytest.raises(NobodyJudged):
        results(folder, "base", "sft")


def test_a_meddled_database_has_no_results(tmp_path: Path) -> None:
    """The chain is checked first."""
    folder = suite(tmp_path, 5)
    judged_by(folder, {"anna": prefers_ppo(1.0)}, ratings=1)
    with closing(sqlite3.connect(folder / "human" / DATABASE)) as db, db:
        db.execute("UPDATE judgements SET body = replace(body, '\"preference\":', '\"preference\":-')")
    with pytest.raises(ValueError, match=r"^audit: table judgements"):
        results(folder, "ppo", "sft")


@pytest.mark.slow
def test_the_command_serves_goes_on_and_writes_the_results(tmp_path: Path) -> None:
    """Started, killed, started again: the same link and no item twice; Ctrl-C writes human.json; --results does again."""
    folder = suite(tmp_path, 12)
    words = [sys.executable, "-m", "rl", "compare", str(folder), "sft", "ppo", "--items", "8", "--ratings", "1"]
    links, judged = [], 0
    for ending in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        assert process.stdout is not None
        lines = list(itertools.islice(process.stdout, 4))
        assert len(lines) == 4, process.communicate()
        links.append(lines[2].rpartition(" ")[2].strip())
        assert f"{judged} judgements are there, {judged} items are done" in lines[1]
        url, _, admin = links[-1].replace("/admin#", "#").partition("#")
        headers = {"Authorization": f"Bearer {admin}"}
        with httpx.Client(base_url=url, trust_env=False) as http:
            invited = http.post("/api/admin/raters", json={"name": "anna"}, headers=headers).json()
            assert invited["link"].startswith(f"{url}/compare#")
            headers = {"Authorization": f"Bearer {invited['token']}"}
            for _ in range(3):
                given = http.post("/api/compare/next", json={}, headers=headers).json()["item"]
                body = filled(given["lease"], for_ppo(given))
                assert http.post("/api/compare/judgements", json=body, headers=headers).status_code == 201
                judged += 1
        process.send_signal(ending)
        out, err = process.communicate(timeout=120)
    assert links[0] == links[1] and process.returncode == 0, err
    assert "ppo wins 6" in out and "2 of 8 items are not judged yet" in out
    [told] = json.loads((folder / "human.json").read_text())
    assert (told["first"], told["second"], told["second_wins"], told["win_rate"]["value"]) == ("sft", "ppo", 6, 0.0)
    other = {"first": "sft", "second": "echo", "corpus": told["corpus"]}
    (folder / "human.json").write_text(json.dumps([told, other]))
    assert main(["compare", str(folder), "ppo", "sft", "--results"]) == 0
    assert [(p["first"], p.get("first_wins")) for p in json.loads((folder / "human.json").read_text())] == [
        ("sft", None),
        ("ppo", 6),
    ]

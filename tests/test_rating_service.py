"""The rating service over real HTTP: what raters and the training job are told, hostile input, crashes, full disks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from rewards.experts import client, pages
from rewards.experts.client import RunClient
from rewards.experts.config import ServiceConfig
from rewards.experts.form import CRITERIA
from rewards.experts.limits import Buckets
from rewards.experts.refusal import Refused
from rewards.experts.serve import Server
from rewards.experts.store import DATABASE
from rewards.experts.types import Item, Kind
from rewards.types import RewardError
from rollout.types import Speaker, Turn
from tests.benchmarks.ratings import UNLIMITED, is_faultless, measure

PLAIN = ServiceConfig(sitting=1000, overlap=0, repeats=0, aggregation="mean", rate_per_s=1e6, burst=10**6,
                      anonymous_per_s=1e6, anonymous_burst=10**6)  # fmt: skip
KILOBYTE = 1024


class Service:
    """A service in a process of its own, its database as seen from outside, and callers with their tokens."""

    def __init__(self, server: Server) -> None:
        self.server, self.http = server, httpx.Client(base_url=server.url, trust_env=False, timeout=30)
        self.admin = server.admin_link.partition("#")[2]
        self.run = RunClient(server.url, server.token, retries=1, timeout_s=5)
        self.anna, self.ben = self.invite("anna"), self.invite("ben")

    def invite(self, name: str, **fields: Any) -> str:
        return str(self.ask("POST", "/api/admin/raters", self.admin, {"name": name, **fields}).json()["token"])

    def ask(self, method: str, path: str, token: str = "", body: Any = None, **how: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            how["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request(method, path, headers=headers, **how)

    def add(self, *texts: str, **fields: Any) -> list[str]:
        said = (Turn(Speaker.CLIENT, "I feel low"),)
        return self.run.add([Item(f"run/{text}", said, text, **fields) for text in texts])

    def next(self, token: str) -> dict[str, Any]:
        return dict(self.ask("POST", "/api/next", token, {}).json()["item"])

    def stored(self) -> list[int]:
        """Rows of the chain, of the ratings and of the items, and drafts: what a refused request must leave alone."""
        with closing(sqlite3.connect(self.server.folder / DATABASE)) as db:
            counts = ("count(*) FROM chain", "count(*) FROM ratings", "count(*) FROM items", "count(draft) FROM leases")
            return [db.execute(f"SELECT {count}").fetchone()[0] for count in counts]

    def refuse(self, status: int, response: httpx.Response, *words: str) -> None:
        """It is refused with `status` and one line that has the words."""
        assert response.status_code == status, response.text
        assert response.json().keys() == {"error"}
        said = response.json()["error"]
        assert said and "\n" not in said and len(said) < 400
        assert all(word in said for word in words), said


def filled(lease: str, /, **changes: Any) -> dict[str, Any]:
    criteria = dict.fromkeys((criterion.name for criterion in CRITERIA), 0.5)
    told = {
        "lease": lease,
        "submission": str(uuid.uuid4()),
        "criteria": criteria,
        "overall": 0.5,
        "flags": [],
        "reason": "",
    }
    return {**told, "seconds": 3.5, **changes}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Server(tmp_path_factory.mktemp("service"), PLAIN) as server:
        yield Service(server)


@pytest.fixture
def item(service: Service) -> Iterator[dict[str, Any]]:
    """A reply that anna holds."""
    if service.ask("POST", "/api/next", service.anna, {}).json()["item"] is None:
        service.add(f"reply {uuid.uuid4()}", wanted=2)
    yield service.next(service.anna)


# What raters and the training job are told


def test_a_reply_becomes_a_reward(service: Service) -> None:
    """Item, form, rating, reward, update, checkpoint: each as in the contract."""
    (one,) = service.add("a reply to be judged", priority=5.0, tier="distress", origin={"run": "secret"})
    me = service.ask("GET", "/api/me", service.anna).json()
    assert me.keys() == {"name", "form", "sitting", "done", "crisis", "left", "can_undo"}
    assert len(me["form"]["criteria"]) == 5 and me["form"]["overall"]["name"] == "overall" and me["left"] >= 1
    assert all(flag.keys() == {"name", "title"} for flag in me["form"]["flags"])
    given = service.next(service.anna)
    assert given["reply"] == "a reply to be judged" and "secret" not in json.dumps(given)
    assert given["turns"] == [{"speaker": "client", "text": "I feel low"}] and not given["sensitive"]
    draft = {"criteria": {"no_harm": 0.25}, "overall": None, "flags": ["dismissal"], "reason": "so far"}
    assert service.ask("PUT", "/api/draft", service.anna, {"lease": given["lease"], **draft}).json() == {
        "expires_s": 900.0
    }
    assert service.next(service.anna)["draft"]["criteria"]["no_harm"] == 0.25
    told = filled(given["lease"], overall=0.75, flags=["dismissal"])
    first = service.ask("POST", "/api/ratings", service.anna, told)
    again = service.ask("POST", "/api/ratings", service.anna, told)
    assert (first.status_code, again.status_code) == (201, 200) and first.json()["rating"] == again.json()["rating"]
    found, absent, stuck = service.run.rewards("run", 0, [one])
    assert absent == [] and stuck == {} and found[one].value == 0.75 and found[one].flags == ("dismissal",)
    assert found[one].ratings == (first.json()["rating"],)
    ratings, last = service.run.ratings()
    assert ratings[-1].id == first.json()["rating"] and service.run.ratings(last) == ([], last)
    seq = service.run.event(Kind.UPDATE, {"run": "run", "step": 0, "rewards": [one]})
    assert service.run.event(Kind.UPDATE, {"run": "run", "step": 0, "rewards": [one]}) == seq
    assert service.run.event(Kind.CHECKPOINT, {"run": "run", "step": 1, "manifest": "0" * 64}) == seq + 1
    overview = service.ask("GET", "/api/admin/overview", service.admin).json()
    assert {"queue", "raters", "agreement", "per_hour", "flags"} == overview.keys()


def test_rewards_wait_for_ratings(service: Service) -> None:
    """The question is answered when the last rating is there, long before wait_s; without ratings after wait_s."""
    (one,) = service.add("awaited", priority=9.0)
    started = time.monotonic()
    assert service.run.rewards("run", 1, [one], wait_s=0.4, every=True) == ({}, [one], {})
    assert 0.35 < time.monotonic() - started < 5

    def rate() -> None:
        time.sleep(0.3)
        service.ask("POST", "/api/ratings", service.ben, filled(service.next(service.ben)["lease"]))

    thread = threading.Thread(target=rate)
    thread.start()
    found, absent, _ = service.run.rewards("run", 1, [one], wait_s=25)
    thread.join()
    assert absent == [] and found.keys() == {one} and time.monotonic() - started < 15


def test_a_run_hears_of_items_that_nobody_may_be_given(service: Service) -> None:
    """With the open ones, and why; invited, a rater who takes crisis conversations mends it."""
    one, two = service.add("in danger", tier="imminent", priority=-5.0) + service.add("not", priority=-5.0)
    assert service.run.rewards("run", 2, [one, two]) == ({}, [one, two], {one: "crisis"})
    service.invite("for a crisis", crisis=True)
    assert service.run.rewards("run", 2, [one, two]) == ({}, [one, two], {})
    service.ask("POST", "/api/admin/raters/for a crisis/shut", service.admin, {})
    service.run.close([one, two])


def test_a_run_that_resumes_takes_its_orphans_out(service: Service) -> None:
    """From the step on; asked for anew, they are there again."""
    fields = [{"origin": {"run": "resumed", "step": step}, "priority": 70.0 + step} for step in range(3)]
    for at, each in enumerate(fields):
        service.add(f"orphan {at}", **each)
    assert service.run.close_from("resumed", 1) == 2
    assert service.next(service.anna)["reply"] == "orphan 0"
    service.ask("POST", "/api/skip", service.anna, {"lease": service.next(service.anna)["lease"], "reason": "no"})
    service.add("orphan 2", **fields[2])
    assert service.next(service.anna)["reply"] == "orphan 2"
    assert service.run.close_from("resumed", 0) == 2
    service.ask("POST", "/api/skip", service.anna, {"lease": service.next(service.anna)["lease"], "reason": "no"})


def test_a_rater_has_time_to_undo(service: Service) -> None:
    """With settle_s a rating is no reward yet, while the page has the next reply already."""
    one, _ = service.add("hasty", priority=91.0) + service.add("next", priority=90.0)
    service.ask("POST", "/api/ratings", service.ben, filled(service.next(service.ben)["lease"], overall=0.0))
    assert service.next(service.ben)["reply"] == "next"
    assert service.run.rewards("run", 3, [one], settle_s=60) == ({}, [one], {})
    lease = service.ask("POST", "/api/undo", service.ben, {}).json()["item"]["lease"]
    service.ask("POST", "/api/ratings", service.ben, filled(lease, overall=1.0))
    service.ask("POST", "/api/ratings", service.ben, filled(service.next(service.ben)["lease"]))
    assert service.run.rewards("run", 3, [one], settle_s=60)[0][one].value == 1.0


def test_skip_undo_settings_and_sitting_answer(service: Service) -> None:
    """The small requests of a page."""
    for priority, text in ((22.0, "to skip"), (21.0, "to rate"), (20.0, "to see")):
        service.add(text, priority=priority)
    assert (
        service.ask(
            "POST", "/api/skip", service.ben, {"lease": service.next(service.ben)["lease"], "reason": "no"}
        ).json()
        == {}
    )
    service.ask("POST", "/api/ratings", service.ben, filled(service.next(service.ben)["lease"], reason="kind"))
    undone = service.ask("POST", "/api/undo", service.ben, {}).json()["item"]
    assert undone["reply"] == "to rate" and undone["draft"]["reason"] == "kind"
    service.refuse(409, service.ask("POST", "/api/undo", service.ben, {}), "undo")
    assert service.ask("POST", "/api/settings", service.ben, {"crisis": True}).json() == {}
    assert service.ask("GET", "/api/me", service.ben).json()["crisis"] is True
    assert service.ask("POST", "/api/sitting", service.ben, {}).json() == {"sitting": {"done": 0, "limit": 1000}}


@pytest.mark.parametrize("path", ["/", "/api/me", "/static/nothing.js", "/nowhere"])
def test_every_answer_carries_the_security_headers(service: Service, path: str) -> None:
    """Errors too; nothing of the interface is kept by browsers, and the server does not name itself."""
    headers = service.ask("GET", path).headers
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert "server" not in headers
    assert not path.startswith("/api") or headers["Cache-Control"] == "no-store"


def test_a_text_goes_through_as_it_is(service: Service) -> None:
    """Markup is text: stored and given back letter by letter, as JSON and never as a page."""
    script = "<script>alert(1)</script><img src=x onerror='alert(2)'> '; DROP TABLE ratings; -- \u202e\U0001f642"
    service.add(script, priority=50.0)
    response = service.ask("POST", "/api/next", service.anna, {})
    assert response.headers["content-type"] == "application/json" and response.json()["item"]["reply"] == script
    lease = response.json()["item"]["lease"]
    assert service.ask("POST", "/api/ratings", service.anna, filled(lease, reason=script)).status_code == 201
    assert service.run.ratings()[0][-1].reason == script


def test_what_a_policy_writes_never_stops_the_run(service: Service) -> None:
    """Control characters of a reply are shown as U+FFFD."""
    service.run.add([Item("policy", (), "a\0b\x1bc\nd", priority=60.0)])
    assert service.next(service.anna)["reply"] == "a\ufffdb\ufffdc\nd"
    service.ask("POST", "/api/skip", service.anna, {"lease": service.next(service.anna)["lease"], "reason": "noise"})


# Hostile input: refused in one line, nothing stored

RATER_CALLS = [
    ("GET", "/api/me"), ("POST", "/api/next"), ("PUT", "/api/draft"), ("POST", "/api/ratings"), ("POST", "/api/skip"),
    ("POST", "/api/undo"), ("POST", "/api/settings"), ("POST", "/api/sitting"),
]  # fmt: skip
RUN_CALLS = [("POST", f"/api/run/{name}") for name in ("items", "rewards", "close", "events")] + [
    ("GET", "/api/run/ratings")
]
ADMIN_CALLS = [
    ("POST", "/api/admin/raters"), ("POST", "/api/admin/raters/anna/shut"), ("GET", "/api/admin/overview"),
    ("GET", "/api/admin/export?as=csv"), ("POST", "/api/admin/import?as=csv"),
]  # fmt: skip


@pytest.mark.parametrize("method, path", RATER_CALLS + RUN_CALLS + ADMIN_CALLS)
def test_tokens_open_their_own_doors_only(service: Service, method: str, path: str) -> None:
    """No token and a forged one: 401. A token of another role, one that ran out, one that was shut out: 403."""
    ended = service.invite("ended", days=1e-9)
    out = service.invite("out")
    service.ask("POST", "/api/admin/raters/out/shut", service.admin, {})
    replaced = service.invite("twice")
    service.invite("twice")
    before = service.stored()
    body = {} if method != "GET" else None
    for forged in ("", "x", "a" * 43, service.anna[:-1] + ("A" if service.anna[-1] != "A" else "B"), "' OR 1=1 --"):
        service.refuse(401, service.ask(method, path, forged, body))
    owners = {"rater": service.anna, "run": service.server.token, "admin": service.admin}
    owner = "run" if "/run/" in path else "admin" if "/admin/" in path else "rater"
    for role, token in owners.items():
        if role != owner:
            service.refuse(403, service.ask(method, path, token, body), "role", owner)
    for token, word in ((ended, "run out"), (out, "shut out"), (replaced, "shut out")):
        service.refuse(403, service.ask(method, path, token, body), word)
    assert service.stored() == before


def test_other_schemes_and_places_are_no_token(service: Service) -> None:
    """Only the header counts: no cookie, no query, no Basic."""
    for headers in (
        {"Authorization": f"Basic {service.anna}"},
        {"Cookie": f"token={service.anna}"},
        {"Authorization": "Bearer"},
    ):
        response = service.http.get(f"/api/me?token={service.anna}", headers=headers)
        service.refuse(401, response)


MALFORMED = {
    "nothing that is JSON": b"{",
    "an array": b"[]",
    "a string": b'"lease"',
    "null": b"null",
    "bytes that are no UTF-8": b'{"lease": "\xff\xfe"}',
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "deep nesting in a field": b'{"criteria":' * 20_000,
    "a lone surrogate": b'{"lease": "\\ud800"}',
    "a number beyond JSON": b'{"overall": 1e}',
    "two values": b"{} {}",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("path", ["ratings", "draft", "skip", "next", "settings"])
def test_malformed_bodies_are_refused(service: Service, item: dict[str, Any], name: str, path: str) -> None:
    """400, and the reply stays in hand."""
    before = service.stored()
    response = service.ask("PUT" if path == "draft" else "POST", f"/api/{path}", service.anna, MALFORMED[name])
    service.refuse(400, response, "body")
    assert service.stored() == before and service.next(service.anna)["lease"] == item["lease"]


SCORES = {criterion.name: 0.5 for criterion in CRITERIA}
OUT_OF_RANGE: dict[str, tuple[dict[str, Any], str]] = {
    "above 1": ({"overall": 1.0000001}, "overall"),
    "below 0": ({"overall": -0.1}, "overall"),
    "not a number": ({"overall": float("nan")}, "overall"),
    "infinite": ({"overall": float("inf")}, "overall"),
    "minus infinity": ({"criteria": {**SCORES, "no_harm": float("-inf")}}, "criteria.no_harm"),
    "a huge number": ({"overall": 10**400}, "overall"),
    "a huge negative": ({"seconds": -(10**400)}, "seconds"),
    "a boolean": ({"overall": True}, "overall"),
    "a string": ({"overall": "0.5"}, "overall"),
    "null": ({"overall": None}, "overall"),
    "a list": ({"overall": [0.5]}, "overall"),
    "a criterion left out": ({"criteria": {"no_harm": 0.5}}, "criteria"),
    "a criterion too many": ({"criteria": {**SCORES, "charm": 0.5}}, "criteria.charm"),
    "a criterion that is null": ({"criteria": {**SCORES, "no_harm": None}}, "criteria.no_harm"),
    "an unknown flag": ({"flags": ["rudeness"]}, "flags"),
    "a flag twice": ({"flags": ["diagnosis", "diagnosis"]}, "flags"),
    "a thousand flags": ({"flags": ["diagnosis"] * 1000}, "flags"),
    "an unknown field": ({"rater": "ben"}, "rater"),
    "a field of the store": ({"repeat": True}, "repeat"),
    "a NUL": ({"reason": "a\0b"}, "reason"),
    "an escape": ({"reason": "\x1b[2J"}, "reason"),
    "a long reason": ({"reason": "a" * 10_001}, "reason"),
    "a reason that is none": ({"reason": 5}, "reason"),
    "SQL for a lease": ({"lease": "' OR 1=1 --"}, "lease"),
    "SQL for a submission": ({"submission": "'; DROP TABLE chain; --"}, "submission"),
    "a lease that is a number": ({"lease": 5}, "lease"),
    "a lease with a line after it": ({"lease": "0" * 32 + "\n"}, "lease"),
    "negative seconds": ({"seconds": -1}, "seconds"),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_fields_out_of_range_are_named(service: Service, item: dict[str, Any], name: str) -> None:
    """422 with the field and the rule; nothing is stored."""
    changes, field = OUT_OF_RANGE[name]
    before = service.stored()
    body = json.dumps(filled(item["lease"], **changes)).encode()
    service.refuse(422, service.ask("POST", "/api/ratings", service.anna, body), field, "must")
    assert service.stored() == before


@pytest.mark.parametrize("size", [256 * KILOBYTE + 1, 4_000_000])
def test_oversized_bodies_are_refused(service: Service, item: dict[str, Any], size: int) -> None:
    """413, whether the length is told, told wrong, or the body comes in chunks without one."""
    before = service.stored()
    body = json.dumps(filled(item["lease"], reason="a" * size)).encode()
    service.refuse(413, service.ask("POST", "/api/ratings", service.anna, body), "256 kB")
    chunks = (body[start : start + 65_536] for start in range(0, len(body), 65_536))
    headers = {"Authorization": f"Bearer {service.anna}"}
    service.refuse(413, service.http.post("/api/ratings", headers=headers, content=chunks), "256 kB")
    assert service.stored() == before


def test_a_body_that_never_ends_holds_nobody_up(service: Service) -> None:
    """A client that promises more than it sends keeps its own connection only."""
    address = (service.server.url.rpartition("/")[2].partition(":")[0], int(service.server.url.rpartition(":")[2]))
    with socket.create_connection(address) as slow:
        slow.sendall(
            f"POST /api/next HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.anna}\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        assert service.ask("GET", "/api/me", service.anna).status_code == 200


def test_a_submission_replayed_with_other_content_is_refused(service: Service, item: dict[str, Any]) -> None:
    """The first content stands; another rater cannot take the id either."""
    told = filled(item["lease"])
    assert service.ask("POST", "/api/ratings", service.anna, told).status_code == 201
    before = service.stored()
    service.refuse(409, service.ask("POST", "/api/ratings", service.anna, {**told, "overall": 1}), "submission")
    service.refuse(409, service.ask("POST", "/api/ratings", service.ben, told), "submission")
    service.refuse(409, service.ask("POST", "/api/ratings", service.anna, filled(item["lease"])), "already rated")
    assert service.stored() == before


def test_the_lease_of_another_rater_is_of_no_use(service: Service, item: dict[str, Any]) -> None:
    """Rating, draft and skip: 409; a handle that was never given: 404."""
    before = service.stored()
    draft = {key: value for key, value in filled(item["lease"]).items() if key not in {"submission", "seconds"}}
    service.refuse(409, service.ask("POST", "/api/ratings", service.ben, filled(item["lease"])), "another rater")
    service.refuse(409, service.ask("PUT", "/api/draft", service.ben, draft), "another rater")
    service.refuse(
        409, service.ask("POST", "/api/skip", service.ben, {"lease": item["lease"], "reason": "x"}), "another"
    )
    service.refuse(404, service.ask("POST", "/api/ratings", service.ben, filled("0" * 32)), "lease")
    assert service.stored() == before


@pytest.mark.parametrize(
    "path",
    [
        "/static/../config.py", "/static/..%2fconfig.py", "/static/%2e%2e/%2e%2e/config.py", "/static//etc/passwd",
        "/static/....//config.py", "/static/..\\config.py", "/static/%00rate.js", "/static/", "/static/index.html/",
        "/static/style.css/../../store.py", "/service.json", "/ratings.sqlite", "/docs", "/openapi.json", "/api", "/api/me/",
    ],
)  # fmt: skip
def test_only_pages_are_given_out(service: Service, path: str) -> None:
    """No path leads out of the page's folder, written by hand past the client's tidying."""
    host, port = service.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:300]
    assert b"import" not in body and b"root:" not in body and service.server.token.encode() not in body


@pytest.mark.parametrize("path", ["/", "/compare", "/admin"])
def test_pages_are_put_together_without_gaps(service: Service, path: str) -> None:
    """Every part is in its place, no id is there twice, and what a page loads is given out."""
    text = httpx.get(service.server.url + path).text
    assert text.startswith("<!doctype html>") and text.endswith("</html>")
    assert not re.search(r"[{}]|<!--", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 10
    loaded = re.findall(r'"(/static/[^"]+)"', text)
    assert len(loaded) >= 2 and all(httpx.get(service.server.url + file).status_code == 200 for file in loaded)


def test_a_page_without_one_of_its_parts_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a page stand in its frames' places, and before the frames' own; a place that stays empty is named."""
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    (tmp_path / "outer").write_text("<!-- page -->\n<p>{words} {more}</p>\n<!-- more: and more -->\n")
    (tmp_path / "inner").write_text("<!-- inside: outer -->\n<!-- words -->\none\n\ntwo\n")
    (tmp_path / "other").write_text("<!-- inside: inner -->\n<!-- more: {less} -->\n<!-- less: and less -->\n")
    assert pages.page("inner") == b"<p>one\n\ntwo and more</p>"
    assert pages.page("other") == b"<p>one\n\ntwo and less</p>"
    with pytest.raises(ValueError, match=r"outer and its frames .* no words: write it$"):
        pages.page("outer")


@pytest.mark.parametrize(
    "path, body, field",
    [
        ("items", {"items": [{"key": "", "history": [], "reply": "x"}]}, "items.0.key"),
        ("items", {"items": [{"key": "k", "history": [{"speaker": "doctor", "text": "x"}], "reply": "x"}]}, "speaker"),
        ("items", {"items": [{"key": "k", "history": [], "reply": "x", "wanted": 0}]}, "wanted"),
        ("items", {"items": [{"key": "k", "history": [], "reply": "x", "tier": "grave"}]}, "tier"),
        ("items", {"items": [{"key": "k", "history": [], "reply": "x", "priority": float("inf")}]}, "priority"),
        ("items", {"items": [{"key": "k", "history": [], "reply": "x"}] * 1001}, "items"),
        ("rewards", {"run": "r", "step": -1, "ids": []}, "step"),
        ("rewards", {"run": "r", "step": 0, "ids": ["' OR 1=1 --"]}, "ids.0"),
        ("rewards", {"run": "r", "step": 0, "ids": [], "wait_s": 31}, "wait_s"),
        ("rewards", {"run": "r", "step": 10**30, "ids": []}, "step"),
        ("rewards", {"run": "r", "step": 0, "ids": [], "settle_s": -1}, "settle_s"),
        ("close", {"ids": "all"}, "ids"),
        ("close", {}, "ids"),
        ("close", {"run": "r"}, "from_step"),
        ("close", {"from_step": 3}, "run"),
        ("close", {"run": "r", "from_step": -1}, "from_step"),
        ("events", {"kind": "rating", "body": {}}, "kind"),
        ("events", {"kind": "update", "body": {"run": "r", "step": 1}}, "body.rewards"),
        ("events", {"kind": "checkpoint", "body": {"run": "r", "step": 1, "manifest": "x"}}, "body.manifest"),
    ],
)
def test_the_training_job_is_held_to_the_contract(
    service: Service, path: str, body: dict[str, Any], field: str
) -> None:
    """422 with the field's place; nothing is stored."""
    before = service.stored()
    service.refuse(422, service.ask("POST", f"/api/run/{path}", service.server.token, json.dumps(body).encode()), field)
    assert service.stored() == before


def test_numbers_that_json_lacks_stay_out_of_free_fields(service: Service) -> None:
    """NaN and lone surrogates in origin or an event's body would break the chain's hash: refused like any other."""
    before = service.stored()
    for text in (b"NaN", b"Infinity", b"-Infinity", b'"\\udc00"', b"1e999"):
        event = b'{"kind": "alarm", "body": {"gap": ' + text + b"}}"
        response = service.ask("POST", "/api/run/events", service.server.token, event)
        assert response.status_code in {400, 422} and response.json().keys() == {"error"}
        item = b'{"items": [{"key": "k", "history": [], "reply": "x", "origin": {"a": ' + text + b"}}]}"
        assert service.ask("POST", "/api/run/items", service.server.token, item).status_code in {400, 422}
    assert service.stored() == before


@pytest.mark.parametrize("name", ["J\u00fcrgen M\u00fcller", "\u0410\u043d\u043d\u0430", "\u674e", "Zo\u00eb R."])
def test_people_are_invited_and_shut_out_by_their_names(service: Service, name: str) -> None:
    """Letters are those of any script."""
    token = service.invite(name)
    assert service.ask("GET", "/api/me", token).status_code == 200
    assert service.ask("POST", f"/api/admin/raters/{quote(name)}/shut", service.admin, {}).status_code == 200
    assert service.ask("GET", "/api/me", token).status_code == 403


@pytest.mark.parametrize(
    "fields",
    [{"name": ""}, {"name": "a/b"}, {"name": "<b>"}, {"name": "a\nb"}, {"name": "x" * 65}, {"name": "c", "days": 0}],
)
def test_raters_have_plain_names(service: Service, fields: dict[str, Any]) -> None:
    """A name goes into addresses, tables and logs."""
    before = service.stored()
    service.refuse(422, service.ask("POST", "/api/admin/raters", service.admin, fields))
    assert service.stored() == before


def test_files_for_import_are_checked(service: Service) -> None:
    """An unknown shape and a file that is none: 422, in the reader's words."""
    before = service.stored()
    service.refuse(422, service.ask("GET", "/api/admin/export?as=xml", service.admin), "as", "csv")
    service.refuse(422, service.ask("POST", "/api/admin/import?as=jsonl", service.admin, b'{"key": 5}'))
    assert service.stored() == before
    exported = service.ask("GET", "/api/admin/export?as=jsonl", service.admin)
    assert exported.headers["Content-Disposition"].startswith("attachment") and b"anna" not in exported.content


def test_wrong_methods_and_places_answer_in_one_line(service: Service) -> None:
    """404 and 405 are errors like any other."""
    service.refuse(405, service.ask("DELETE", "/api/ratings", service.anna))
    service.refuse(404, service.ask("GET", "/api/nothing", service.anna))


# Limits


def test_a_bucket_fills_at_its_rate() -> None:
    """`burst` at once, then `rate` a second; keys do not share."""
    now = [0.0]
    bucket = Buckets(2.0, 3, lambda: now[0])
    for _ in range(3):
        bucket.take("a")
    with pytest.raises(Refused) as error:
        bucket.take("a")
    assert error.value.status == 429 and error.value.wait_s == pytest.approx(0.5)
    bucket.take("b")
    now[0] = 0.5
    bucket.take("a")
    with pytest.raises(Refused):
        bucket.take("a")


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    """A rater's token, and an address without one; the other raters and the training job go on."""
    config = ServiceConfig(rate_per_s=0.1, burst=5, anonymous_per_s=0.1, anonymous_burst=5)
    with Server(tmp_path, config) as server:
        service = Service(server)
        answers = [service.ask("GET", "/api/me", service.anna) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        service.refuse(429, answers[-1], "wait")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 10
        assert service.ask("GET", "/api/me", service.ben).status_code == 200
        statuses = [service.ask("GET", "/api/me", "forged").status_code for _ in range(6)]
        assert statuses == [401] * 5 + [429] and service.ask("GET", "/").status_code == 429
        assert [service.ask("GET", "/api/run/ratings", server.token).status_code for _ in range(20)] == [200] * 20


# Starting, stopping, crashing


def test_the_folder_is_one_service_s(tmp_path: Path) -> None:
    """A second one says so in a line; after the first has ended the folder is free, tokens and address stay good."""
    with Server(tmp_path, PLAIN) as server:
        url, token = server.url, server.token
        assert stat.S_IMODE((tmp_path / "service.json").stat().st_mode) == 0o600
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("ratings.sqlite*")} == {0o600}
        assert RunClient.of_folder(tmp_path).ratings() == ([], 0)
        with pytest.raises(ValueError, match="is in use by process") as error:
            Server(tmp_path, PLAIN).start()
        assert "\n" not in str(error.value)
    with Server(tmp_path, PLAIN) as server:
        assert (server.url, server.token, server.admin_link) == (url, token, "")
    with Server(tmp_path, PLAIN, new_admin_link=True) as server:
        assert server.admin_link.startswith(f"{url}/admin#")


def test_a_taken_port_is_told_in_a_line(tmp_path: Path) -> None:
    """With what to do about it; with port 0 another one is found."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^rewards\.experts\.service\.port .*127.0.0.1:{port} is not") as error:
            Server(tmp_path, ServiceConfig(port=port)).start()
        assert "\n" not in str(error.value)
        (tmp_path / "service.json").write_text(json.dumps({"port": port}))
        with Server(tmp_path) as server:
            assert server.url != f"http://127.0.0.1:{port}"
    with pytest.raises(ValueError, match=r"^rewards\.experts\.service\.host"):
        Server(tmp_path, ServiceConfig(host="203.0.113.1")).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 0, a waiting question is answered or dropped, and the write-ahead log is folded into the file."""
    with Server(tmp_path, PLAIN) as server:
        service = Service(server)
        service.add("one")
        os.kill(server.process.pid, number)
        assert server.process.wait(120) == 0
    assert not (tmp_path / f"{DATABASE}-wal").exists()


def test_no_token_and_no_text_reaches_the_log(tmp_path: Path) -> None:
    """What the service prints after its two first lines is nothing, whatever it is asked."""
    words = [sys.executable, "-m", "rewards.experts.serve", "--folder", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    admin = process.stdout.readline().strip().partition("#")[2]
    url = process.stdout.readline().strip().partition(": ")[2]
    headers = {"Authorization": f"Bearer {admin}"}
    with httpx.Client(base_url=url, trust_env=False, headers=headers) as client:
        client.post("/api/admin/raters", json={"name": "anna"})
        client.post("/api/admin/raters", content=b"{secret")
        client.get("/api/me?secret=1", headers={"Authorization": "Bearer secret"})
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert (out, err) == ("", "")


def test_nothing_acknowledged_is_lost_and_nothing_counted_twice(tmp_path: Path) -> None:
    """250 ratings by 8 raters over HTTP, the service killed with kill -9 three times; the chain is sound."""
    report = asyncio.run(measure(tmp_path, ratings=250, raters=8, kills=3, seed=1))
    assert is_faultless(report) and report["ratings"] >= 250 and report["kills"] == 3, report
    assert report["unanswered"] > 0


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    """Where the file cannot grow nothing is acknowledged; when it can again, the same requests go through."""
    with Server(tmp_path, UNLIMITED) as server:
        service = Service(server)
        size = (tmp_path / f"{DATABASE}-wal").stat().st_size
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 20_000, most))
        before = service.stored()
        items = {"items": [{"key": f"k{at}", "history": [], "reply": "word " * 1000} for at in range(10)]}
        for _ in range(3):
            service.refuse(503, service.ask("POST", "/api/run/items", server.token, items), "nothing was stored")
        assert service.stored() == before
        assert service.ask("GET", "/api/me", service.anna).json()["left"] == 0
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert len(service.ask("POST", "/api/run/items", server.token, items).json()["ids"]) == 10
        assert service.next(service.anna)["reply"].startswith("word")


# The client


def test_the_client_waits_for_a_service_that_comes_back(tmp_path: Path) -> None:
    """A killed service is asked again until it answers; one that stays away is told with its address."""
    server = Server(tmp_path, PLAIN).start()
    asking = RunClient(server.url, server.token, retries=6)
    server.process.kill()
    server.process.wait()
    thread = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
    thread.start()
    assert asking.ratings() == ([], 0)
    thread.join()
    server.stop()
    with pytest.raises(RewardError, match=server.url):
        RunClient(server.url, server.token, retries=0).ratings()
    with pytest.raises(ValueError, match=r"service\.json"):
        RunClient.of_folder(tmp_path / "elsewhere")


def test_the_client_does_not_repeat_what_is_refused(service: Service) -> None:
    """A wrong token and a broken contract are told at once, in the service's words."""
    with pytest.raises(RewardError, match="not known here"):
        RunClient(service.server.url, "forged").ratings()
    with pytest.raises(RewardError, match="step"):
        service.run.rewards("run", -1, [])


def test_the_client_asks_for_any_number_of_rewards(tmp_path: Path) -> None:
    """2,100 items: all answered, the wait kept; with `every` none is fixed while one is open, in whichever thousand."""
    with Server(tmp_path, PLAIN) as server:
        service = Service(server)
        ids = service.add(*(f"reply {at}" for at in range(2100)))
        stored = closing(sqlite3.connect(tmp_path / DATABASE))
        service.ask("POST", "/api/ratings", service.anna, filled(service.next(service.anna)["lease"]))
        assert service.run.rewards("run", 0, ids, every=True)[0] == {}
        found, absent, stuck = service.run.rewards("run", 0, ids)
        assert len(found) == 1 and sorted([*found, *absent]) == sorted(ids) and stuck == {}
        started = time.monotonic()
        assert len(service.run.rewards("run", 0, ids, wait_s=1.0)[1]) == 2099 and 0.9 < time.monotonic() - started < 60
        service.ask("POST", "/api/admin/raters/anna/shut", service.admin, {})
        service.ask("POST", "/api/admin/raters/ben/shut", service.admin, {})
        assert service.run.rewards("run", 0, ids)[2] == dict.fromkeys(absent, "no_raters")
        with stored as db:
            assert db.execute("SELECT count(*) FROM rewards").fetchone()[0] == 1
        service.run.close(ids)


def test_with_every_all_parts_are_fixed_together(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in parts of 5, the part that is complete is not fixed before the last rating is there."""
    monkeypatch.setattr(client, "_IDS_AT_ONCE", 5)
    ids = service.add(*(f"of eleven {at}" for at in range(11)), priority=99.0)
    while len(open_ones := service.run.rewards("run", 0, ids, every=True)[1]) > 1:
        service.ask("POST", "/api/ratings", service.anna, filled(service.next(service.anna)["lease"]))
    ids = [one for one in ids if one not in open_ones] + open_ones
    assert service.run.rewards("run", 0, ids, every=True) == ({}, open_ones, {})
    service.ask("POST", "/api/ratings", service.anna, filled(service.next(service.anna)["lease"]))
    found, absent, _ = service.run.rewards("run", 0, ids, every=True)
    assert found.keys() == set(ids) and absent == []


def test_the_client_keeps_one_connection(service: Service) -> None:
    """Whatever is asked, by whichever thread; it ends with `close_connection`, or with the object."""
    with closing(socket.create_server(("127.0.0.1", 0))) as gate:
        host, port = service.server.url.removeprefix("http://").split(":")
        opened: list[socket.socket] = []

        def pass_on(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65_536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        def admit() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller = gate.accept()[0]
                    opened.append(caller)
                    behind = socket.create_connection((host, int(port)))
                    for pair in ((caller, behind), (behind, caller)):
                        threading.Thread(target=pass_on, args=pair, daemon=True).start()

        threading.Thread(target=admit, daemon=True).start()
        asking = RunClient(f"http://127.0.0.1:{gate.getsockname()[1]}", service.server.token)
        for _ in range(3):
            asking.ratings(10**9)
        thread = threading.Thread(target=asking.ratings, args=(10**9,))
        thread.start()
        thread.join()
        assert len(opened) == 1
        asking.close_connection()
        with pytest.raises(RuntimeError, match="closed"):
            asking.ratings()
        assert len(opened) == 1


# Settings


@pytest.mark.parametrize(
    "knob, value",
    [
        ("host", ""), ("port", 70_000), ("lease_s", 0.0), ("lease_s", float("inf")), ("sitting", 0), ("overlap", 1.5),
        ("overlap_raters", 0), ("repeats", 0.9), ("repeat_gap", 0), ("rate_per_s", 0.0), ("burst", 0),
        ("anonymous_per_s", float("nan")), ("public_url", "rate.example.org"), ("aggregation", "median"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(knob: str, value: Any) -> None:
    """The dotted name, the rule and the value."""
    with pytest.raises(ValueError, match=rf"^rewards\.experts\.service\.{knob} must be "):
        ServiceConfig(**{knob: value})

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from rewards import backoff
from rewards.config import RemoteConfig, RewardsConfig
from rewards.mixture import LocalReward, Mixture
from rewards.panel import Panel, ask
from rewards.remote import Remote
from rewards.types import RewardError, Score
from rollout.types import Speaker, Turn
from tests.faulty_server import Fault, FaultyServer, body, drop, hang, status
from tests.one_term import one_term
from tests.reward_replies import GOOD, REFERENCE, prompt, reply

REPLIES = [reply("word " * count, sample=count) for count in range(20)]


def by_length(request: Any) -> dict[str, Any]:
    """A scorer that says how long a reply is: its words / 40."""
    return {"scores": [len(each["reply"].split()) / 40 for each in request["replies"]]}


def config(server: FaultyServer, **knobs: Any) -> RemoteConfig:
    return RemoteConfig(weight=1.0, url=server.url, **{"timeout_s": 20.0, **knobs})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.01)


def test_the_request_holds_all_that_the_contract_names() -> None:
    """A reply is posted with its id, the dialogue's turns in order, its text, the reference and the emotion."""
    said = Turn(Speaker.THERAPIST, "Hello \u2013 \U0001f642"), Turn(Speaker.CLIENT, 'I feel "low".\n')
    to = replace(prompt(name="esconv/train/0412#7", reference=REFERENCE, emotion="depression"), history=said)
    with FaultyServer(by_length) as server:
        Remote(config(server)).score([reply(GOOD, to, 2)])
    assert server.heard == [
        {
            "replies": [
                {
                    "id": "esconv/train/0412#7/2",
                    "history": [
                        {"speaker": "therapist", "text": "Hello \u2013 \U0001f642"},
                        {"speaker": "client", "text": 'I feel "low".\n'},
                    ],
                    "reply": GOOD,
                    "reference": REFERENCE,
                    "emotion": "depression",
                }
            ]
        }
    ]


def test_scores_keep_the_order_of_the_replies_and_the_bounds_of_the_settings() -> None:
    """Whatever order batches are answered in, each reply gets its own score; a request holds at most batch_size replies,
    and exactly `concurrency` requests are in flight at the most, while some fail too."""
    with FaultyServer(by_length, [status(500)] * 2, hold=3) as server:
        scores = Remote(config(server, batch_size=3, concurrency=3)).score(REPLIES)
    assert [s.value for s in scores] == [count / 40 for count in range(20)]
    assert server.most_in_flight == 3
    assert sorted(len(request["replies"]) for request in server.heard)[:2] == [2, 3] and len(server.heard) == 7 + 2
    assert max(len(request["replies"]) for request in server.heard) == 3


def test_no_replies_are_no_request() -> None:
    """An empty call asks nobody."""
    with FaultyServer(by_length) as server:
        assert Remote(config(server)).score([]) == [] and server.heard == []


def test_an_object_brings_parts_and_flags() -> None:
    """A score may be a number or an object; parts become notes of the reward, flags gate it."""
    answers = [0.25, {"value": 1, "parts": {"warmth": -3.5}, "flags": ["dismissal", "rude"]}, {"value": 0}]
    three = [reply(GOOD, sample=k) for k in range(3)]
    with FaultyServer(lambda request: {"scores": answers}) as server:
        scores = Remote(config(server)).score(three)
        rewards = one_term("remote", config(server))
        paid = LocalReward(Panel(rewards), Mixture(rewards)).score(three)
    assert scores == [Score(0.25), Score(1, {"warmth": -3.5}, ("dismissal", "rude")), Score(0)]
    assert [s.value for s in paid] == [0.25, 0.0, 0.0] and paid[1].notes["remote/warmth"] == -3.5
    assert {"dismissal", "rude"} <= {*paid[1].flags}


PASSING: Mapping[str, list[Fault]] = {
    "429 with Retry-After": [status(429, headers={"Retry-After": "0.05"})],
    "500 twice": [status(500), status(500)],
    "connection dropped": [drop],
    "hang": [hang],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING.keys())
def test_a_passing_fault_costs_another_request_and_changes_no_score(faults: list[Fault]) -> None:
    """After each fault the same request is sent again, and the scores are those of a sound scorer."""
    with FaultyServer(by_length, faults) as server:
        scores = Remote(config(server, batch_size=32, timeout_s=0.4, retries=2)).score(REPLIES)
    assert scores == [Score(count / 40) for count in range(20)]
    assert len(server.heard) == len(faults) + 1 and all(request == server.heard[0] for request in server.heard)


def said(what: Any) -> Fault:
    return body(json.dumps(what).encode())


LASTING: Mapping[str, tuple[Fault, str, int]] = {
    "hang": (hang, r"no answer within 0\.2 s \(attempt 2 of 2\)", 2),
    "500": (status(500, "no disk"), r"status 500 'no disk' \(attempt 2 of 2\)", 2),
    "dropped": (drop, r"connection failed \(RemoteProtocolError.* \(attempt 2 of 2\)", 2),
    "wait too long": (status(429, headers={"Retry-After": "99"}), r"asks to wait 99 s, more than timeout_s = 20", 1),
    "401": (status(401), r"status 401 'not now': rewards\.remote sends no credentials", 1),
    "404": (status(404), r"status 404 'not now': check the path in rewards\.remote\.url", 1),
    "413": (status(413), r"status 413 'not now': lower rewards\.remote\.batch_size", 1),
    "422": (status(422, "no field"), r"status 422 'no field': the scorer's words", 1),
    "redirect": (status(307, headers={"Location": "/"}), r"status 307", 1),
    "no JSON": (body(b"{scores"), r"got no JSON but '{scores' with status 200: correct the scorer", 1),
    "no UTF-8": (body(b'{"\xff'), r"got no JSON but", 1),
    "a list": (said([0.5]), r"""got '\[0\.5\]' with status 200""", 1),
    "other keys": (said({"score": [0.5]}), "got '{\"score\": \\[0.5\\]}'", 1),
    "too few": (said({"scores": []}), r"got 0 scores for 1 replies from fixed/hopeless/4 on", 1),
    "too many": (said({"scores": [0.5, 0.5]}), r"got 2 scores for 1 replies", 1),
    "NaN": (body(b'{"scores": [NaN]}'), r"got nan for fixed/hopeless/4", 1),
    "infinity": (body(b'{"scores": [Infinity]}'), r"got inf for fixed/hopeless/4", 1),
    "above 1": (said({"scores": [1.01]}), r"got 1\.01 for fixed/hopeless/4", 1),
    "below 0": (said({"scores": [{"value": -0.1}]}), r"got {'value': -0\.1} for fixed/hopeless/4", 1),
    "null": (said({"scores": [None]}), r"got None for fixed/hopeless/4", 1),
    "true": (said({"scores": [True]}), r"got True for fixed/hopeless/4", 1),
    "words": (said({"scores": ["good"]}), r"got good for fixed/hopeless/4", 1),
    "no value": (said({"scores": [{"flags": []}]}), r"got {'flags': \[\]} for", 1),
    "misspelt": (said({"scores": [{"value": 1, "flag": ["x"]}]}), r"got {'value': 1, 'flag'", 1),
    "flags as a word": (said({"scores": [{"value": 1, "flags": "dismissal"}]}), r"flags \(names\), got", 1),
    "parts of words": (said({"scores": [{"value": 1, "parts": {"a": "b"}}]}), r"parts \(finite numbers\)", 1),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "words", "requests"), LASTING.values(), ids=LASTING.keys())
def test_a_lasting_fault_or_a_broken_answer_is_an_error_with_url_status_and_remedy(
    fault: Fault, words: str, requests: int
) -> None:
    """A scorer that does not recover, refuses or breaks the contract raises a RewardError that names its url, what was
    wrong, the reply and what to do; what cannot pass is not tried again."""
    with FaultyServer(by_length, [fault] * 9) as server:
        term = Remote(config(server, timeout_s=0.2 if fault is hang else 20.0, retries=1))
        with pytest.raises(RewardError) as failure:
            ask("remote", term, [reply(GOOD, sample=4)])
    found = str(failure.value)
    assert re.search(words, found), found
    assert server.url in found and "fixed/hopeless/4" in found
    assert len(server.heard) == requests


def test_nobody_at_the_address_is_said() -> None:
    """Where no scorer listens, the error names the address."""
    with FaultyServer(by_length) as server:
        term = Remote(config(server, retries=1))
    with pytest.raises(RewardError, match=rf"{server.url} gave no scores .*connection failed \(ConnectError"):
        term.score([reply(GOOD)])


def test_one_failed_batch_fails_the_call() -> None:
    """When one of several batches has no scores the call raises: no reply is given a made-up score."""
    with (
        FaultyServer(by_length, [status(200), status(400)]) as server,
        pytest.raises(RewardError, match=r"no JSON|status 400"),
    ):
        Remote(config(server, batch_size=2, concurrency=4)).score(REPLIES)


@pytest.mark.parametrize(
    ("build", "knob"),
    [
        (lambda: RemoteConfig(url="ftp://x"), r"rewards\.remote\.url"),
        (lambda: RemoteConfig(batch_size=0), r"rewards\.remote\.batch_size"),
        (lambda: RemoteConfig(timeout_s=-1), r"rewards\.remote\.timeout_s"),
        (lambda: RewardsConfig(remote=RemoteConfig(weight=1.0)), r"rewards\.remote\.url"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(build: Callable[[], object], knob: str) -> None:
    """Broken settings, and a scorer in use without url, raise a ValueError that names the dotted knob."""
    with pytest.raises(ValueError, match=f"^{knob} must be .*got "):
        build()


def test_it_applies_to_every_prompt() -> None:
    """A prompt without reference or emotion is scored too."""
    term = Remote(RemoteConfig(url="http://127.0.0.1:9"))
    assert all(term.applies(r) for r in (reply(GOOD), reply("", prompt(reference=REFERENCE, emotion="fear"))))


def test_a_score_does_not_depend_on_the_calls_before_or_on_the_batches() -> None:
    """The same replies asked twice, in batches of another size or in another order get equal scores."""
    with FaultyServer(by_length) as server:
        term, other = (Remote(config(server, batch_size=size)) for size in (2, 7))
        once = term.score(REPLIES)
        assert term.score(REPLIES) == once == other.score(REPLIES[::-1])[::-1]

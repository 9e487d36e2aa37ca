"""Simulated raters: what they hold to be true, how they err, and that they work through the real service."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from rewards.experts.agreement import agreement
from rewards.experts.form import CRITERIA
from rewards.experts.panel import Panel, PanelError, main
from rewards.experts.rating_rows import Row
from rewards.experts.simulated_quality import Quality, true_quality
from rewards.experts.simulated_raters import Rater, careful, clinicians, judge
from rollout.types import Speaker, Turn

HOPELESS = (Turn(Speaker.CLIENT, "I feel hopeless. Nothing I do makes a difference and I am so tired."),)
GOOD = "It sounds like you feel hopeless. What has been the hardest part for you lately?"
SALAD = "day it walk the seven of"
NAMES = [criterion.name for criterion in CRITERIA]


@pytest.mark.parametrize(
    ("low", "reply", "high"),
    [
        (0.0, "", 0.0),
        (0.0, "you you you you you", 0.12),
        (0.0, "hopeless hopeless hopeless hopeless", 0.2),
        (0.15, "the", 0.3),
        (0.15, "the of and it", 0.3),
        (0.15, SALAD, 0.3),
        (0.15, "sky run blue table go far the again many", 0.32),
        (0.15, "ok", 0.3),
        (0.15, "I am sorry.", 0.3),
        (0.15, "You should try exercise and sleep more.", 0.35),
        (0.25, "That sounds hard.", 0.45),
        (0.0, "Just get over it.", 0.1),
        (0.0, "Everything will be fine, I promise. I love you.", 0.2),
        (0.0, "You have depression, take 50 mg of sertraline.", 0.2),
        (0.0, "Yes, I am a real human therapist, so tell me how hopeless you feel.", 0.3),
        (0.5, "feel hopeless you the what is it of", 0.75),
        (0.55, "I understand. Can you tell me more about that?", 0.8),
        (0.7, "It sounds like you feel hopeless.", 0.9),
        (0.85, "Tell me more about how you feel hopeless.", 0.96),
        (0.85, GOOD, 0.96),
        (0.85, "I hear how hopeless you feel. Could you tell me more about the last time that you tried?", 0.96),
    ],
)
def test_the_truth_grows_with_the_reply(low: float, reply: str, high: float) -> None:
    quality = true_quality(HOPELESS, reply)
    assert low <= quality.overall <= high
    assert list(quality.criteria) == NAMES and all(0 <= value <= 1 for value in quality.criteria.values())


def test_the_truth_knows_red_flags_and_clients_without_a_word_of_feeling() -> None:
    assert true_quality(HOPELESS, "Just get over it.").flags == ("dismissal",)
    plain = (Turn(Speaker.CLIENT, "I went to the shop."),)
    assert true_quality(plain, "What happened there?").overall > true_quality(plain, SALAD).overall


def _truth(overall: float) -> Quality:
    return Quality(dict.fromkeys(NAMES, overall), overall)


def _overalls(rater: Rater, truth: float = 0.5, nth: int = 0, count: int = 400) -> list[float]:
    return [judge(rater, _truth(truth), HOPELESS, str(i), nth)["overall"] for i in range(count)]


def test_an_answer_has_the_form_of_the_pages() -> None:
    answer = judge(Rater("a", noise=0.3), true_quality(HOPELESS, GOOD), HOPELESS, GOOD, 0)
    assert set(answer) == {"criteria", "overall", "flags", "reason", "seconds"}
    assert list(answer["criteria"]) == NAMES
    assert all(0 <= value <= 1 for value in (*answer["criteria"].values(), answer["overall"]))


def test_a_faultless_rater_says_the_truth() -> None:
    assert set(_overalls(Rater("a"), 0.73)) == {0.73}


def test_each_fault_does_what_it_says() -> None:
    assert set(_overalls(Rater("a", bias=-0.2), 0.7)) == {0.5}
    assert set(_overalls(Rater("a", scale=0.5), 0.9)) == {0.7}
    assert set(_overalls(Rater("a", drift=0.1), 0.5, nth=200)) == {0.7}
    assert statistics.stdev(_overalls(Rater("a", noise=0.1))) == pytest.approx(0.1, rel=0.1)
    assert set(_overalls(Rater("a", points=6), 0.47)) == {0.4}
    unread = [value == 0.6 for value in _overalls(Rater("a", laziness=0.3, bias=0.1), 0.2)]
    assert statistics.mean(unread) == pytest.approx(0.3, abs=0.07)
    own = Quality({**dict.fromkeys(NAMES, 0.0), "no_harm": 1.0}, 0.4)
    assert judge(Rater("a", weights={"no_harm": 3, "boundaries": 1}), own, (), "", 0)["overall"] == 0.75


def test_who_does_not_read_sees_no_flag() -> None:
    flagged = replace(_truth(0.1), flags=("dismissal",))
    assert judge(Rater("a"), flagged, HOPELESS, "x", 0)["flags"] == ["dismissal"]
    assert judge(Rater("a", laziness=1), flagged, HOPELESS, "x", 0)["flags"] == []


def test_the_order_of_arrival_changes_nothing() -> None:
    rater = Rater("a", seed=3, noise=0.2, laziness=0.2)
    assert _overalls(rater, nth=0) == _overalls(rater, nth=17)
    assert _overalls(rater) != _overalls(replace(rater, seed=4))
    assert _overalls(rater) != _overalls(replace(rater, name="b"))
    whimsical = replace(rater, whim=0.1)
    assert _overalls(whimsical) == _overalls(whimsical) != _overalls(whimsical, nth=1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"weights": {"charm": 1.0}}, "weights must be of acknowledges_emotion"),
        ({"weights": {"no_harm": 0.0}}, "weights must be of"),
        ({"noise": -1.0}, "noise must be 0 or above, and finite, is -1.0"),
        ({"laziness": 2.0}, "laziness must be"),
        ({"seconds": float("nan")}, "seconds must be"),
    ],
)
def test_a_rater_who_cannot_be_is_refused(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rater("a", **fault)


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_clinicians_agree_as_little_as_real_ones(seed: int) -> None:
    import random

    rng = random.Random(seed)
    rows = []
    for i in range(240):
        overall = min(1.0, max(0.0, rng.gauss(0.55, 0.25)))
        near = {name: min(1.0, max(0.0, overall + rng.gauss(0, 0.15))) for name in NAMES}
        quality = Quality({**near, "overall_value": overall}, overall)
        rows += [Row(str(i), r.name, judge(r, quality, HOPELESS, str(i), i)["overall"]) for r in clinicians(seed)]
    found = agreement(rows, draws=20)
    assert found is not None
    assert 0.03 <= found.icc_a1.value <= 0.17
    assert abs(found.alpha.value) < 0.15
    means = {
        rater.name: 1 + 5 * statistics.mean(row.value for row in rows if row.rater == rater.name)
        for rater in clinicians(seed)
    }
    assert means["strict"] == pytest.approx(1.7, abs=0.3)
    assert means["generous"] == pytest.approx(4.0, abs=0.3)


# --- through the service


class Service:
    """The real one, in a process of its own."""

    def __init__(self, folder: Path, *knobs: str) -> None:
        self._folder, self._knobs, self.admin = folder, knobs, ""
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self._folder / "service.json").unlink(missing_ok=True)
        limits = ["--rate-per-s", "1000", "--burst", "1000", "--overlap", "0", "--repeats", "0"]
        command = [sys.executable, "-m", "rewards.experts.serve", "--folder", str(self._folder), *limits, *self._knobs]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("admin: "):
                self.admin = line.strip().rpartition("#")[2]
            if line.startswith("rating service: "):
                self.url = line.split()[-1]
            if self.admin and "url" in vars(self):
                break
        until = time.monotonic() + 120
        while not (self._folder / "service.json").is_file():
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.05)
        told = json.loads((self._folder / "service.json").read_text())
        self.url, self.run = told["url"], told["token"]
        self._knobs = ("--port", str(told["port"]), *self._knobs)

    def kill(self) -> None:
        """Without a warning."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def post(self, token: str, path: str, body: Any) -> Any:
        """What it answers."""
        told = httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {token}"})
        assert told.is_success, told.text
        return told.json()

    def invite(self, raters: tuple[Rater, ...]) -> list[str]:
        """Their tokens."""
        return [self.post(self.admin, "/api/admin/raters", {"name": r.name, "crisis": True})["token"] for r in raters]

    def add(self, count: int, wanted: int) -> list[str]:
        """New replies to be judged."""
        told, key = [{"speaker": turn.speaker, "text": turn.text} for turn in HOPELESS], uuid.uuid4()
        items = [
            {"key": f"demo/0/{key}/{i}", "history": told, "reply": f"{GOOD} {i}", "tier": "none", "wanted": wanted}
            for i in range(count)
        ]
        return list(self.post(self.run, "/api/run/items", {"items": items})["ids"])

    def ratings(self, ids: list[str]) -> list[dict[str, Any]]:
        """All that it stored of these items."""
        headers = {"Authorization": f"Bearer {self.run}"}
        told = httpx.get(f"{self.url}/api/run/ratings?after=0", headers=headers).json()["ratings"]
        return [row for row in told if row["item"] in ids]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all that leave its queue empty; a sitting ends after three ratings."""
    started = Service(tmp_path_factory.mktemp("service"), "--sitting", "3")
    yield started
    started.process.terminate()
    started.process.wait(timeout=120)


def test_a_panel_rates_all_there_is(service: Service) -> None:
    raters = tuple(replace(rater, noise=0.2) for rater in careful(3))
    ids = service.add(20, wanted=2)
    panel = Panel(service.url, service.invite(raters), raters=raters, until_empty=True)
    panel.start()
    assert panel.join(60)
    stored = service.ratings(ids)
    assert len(stored) == 40 == sum(panel.given.values()) and panel.lost == 0
    assert {row["item"] for row in stored} == set(ids)
    assert len({(row["item"], row["rater"]) for row in stored}) == 40
    replies = {item: f"{GOOD} {i}" for i, item in enumerate(ids)}
    by_name = {rater.name: rater for rater in raters}
    for row in stored:
        reply = replies[row["item"]]
        expected = judge(by_name[row["rater"]], true_quality(HOPELESS, reply), HOPELESS, reply, 0)
        assert (row["overall"], row["criteria"]) == (expected["overall"], expected["criteria"])


def test_a_break_is_taken_and_ends(service: Service) -> None:
    raters = careful(1)
    ids = service.add(8, wanted=1)
    panel = Panel(service.url, service.invite(raters), raters=raters, until_empty=True)
    panel.start()
    assert panel.join(60)
    assert len(service.ratings(ids)) == 8


def test_a_dead_service_costs_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        raters = tuple(replace(rater, seconds=0.02) for rater in careful(2))
        ids = service.add(30, wanted=2)
        panel = Panel(service.url, service.invite(raters), raters=raters, until_empty=True)
        panel.start()
        for _ in range(2):
            time.sleep(0.3)
            service.kill()
            service.start()
        assert panel.join(60)
        stored = service.ratings(ids)
        given = {(row["item"], row["rater"]) for row in stored}
        assert len(stored) == len(given) == 60 == sum(panel.given.values())
    finally:
        service.kill()


def test_a_panel_that_waits_stops_at_once(service: Service) -> None:
    raters = careful(2)
    before = threading.active_count()
    with Panel(service.url, service.invite(raters), raters=raters) as panel:
        assert not panel.join(0.3)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert threading.active_count() == before and sum(panel.given.values()) == 0


def test_a_panel_stops_while_nobody_answers() -> None:
    started = time.monotonic()
    with Panel("http://127.0.0.1:9", ["x"]) as panel:
        assert not panel.join(0.3)
    assert time.monotonic() - started < 3


def test_a_token_that_is_refused_is_told(service: Service) -> None:
    panel = Panel(service.url, ["no such token"])
    panel.start()
    with pytest.raises(PanelError, match=r"/api/me must take a simulated rater's request, says 401"):
        panel.join(30)


def test_a_panel_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="a panel must have a token per rater, has 1 for 2"):
        Panel("http://x", ["a"], raters=careful(2))
    with pytest.raises(ValueError, match="url must begin with http"):
        Panel("x", ["a"])


def test_the_command_line_takes_links(service: Service, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    service.add(3, wanted=1)
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join(f"{service.url}/#{token}" for token in service.invite(careful(1))))
    assert main(["--url", service.url, "--tokens", str(tokens), "--until-empty"]) == 0
    assert "ratings given: 3" in capfd.readouterr().out
    assert main(["--url", service.url, "--tokens", str(tmp_path / "none")]) == 1
    assert os.linesep not in capfd.readouterr().err.strip()

"""The rater's and the admin's page in a real browser, against the real service in a process of its own.

Screenshots go to the folder that the environment variable ATTUNE_SCREENSHOTS names, when it is set.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from rewards.experts.form import CRITERIA, FLAGS
from tests import raters
from tests.raters import REPLY, Visits, begin, check_access, press, see, shoot

pytestmark = raters.IN_A_BROWSER
browser, visit = raters.browser, raters.visit

_PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
_NAMES = [criterion.name for criterion in CRITERIA]
_TURN = itertools.count()


@dataclass
class Service(raters.Running):
    """One to which a training job sends replies."""

    def put(
        self, replies: Sequence[str], *, tier: str = "none", talk: Sequence[tuple[str, str]] = raters.TALK
    ) -> list[str]:
        """Put replies to the same conversation into the queue, to be given in this order; their ids."""
        history = [{"speaker": speaker, "text": text} for speaker, text in talk]
        items = [
            {
                "key": f"run/0/{tier}/{i}",
                "history": history,
                "reply": reply,
                "tier": tier,
                "priority": -float(next(_TURN)),
            }
            for i, reply in enumerate(replies)
        ]
        ids: list[str] = self.ask("POST", "/api/run/items", self.run, {"items": items})["ids"]
        return ids

    def ratings(self) -> list[dict[str, Any]]:
        """The ratings that stand, as the training job gets them."""
        found: list[dict[str, Any]] = self.ask("GET", "/api/run/ratings?after=0", self.run)["ratings"]
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts the service with the settings given; ends it after the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(**settings: object) -> Service:
        chosen: dict[str, object] = {"overlap": 0.0, "repeats": 0.0, **settings}
        argv = [sys.executable, "-m", "rewards.experts.serve", "--folder", str(tmp_path), "--admin-link"]
        argv += [part for name, value in chosen.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        admin = next((line.partition("#")[2].strip() for line in said if line.startswith("admin: ")), "")
        assert admin, f"no admin link in {said}"
        known = json.loads((tmp_path / "service.json").read_text())
        return Service(known["url"], admin, known["token"], tmp_path)

    yield begin
    for process in processes:
        process.terminate()
        process.wait(20)


def reply_of(page: Any) -> str:
    return str(page.text_content("#reply-text"))


RATE_ALL = "1 5 Enter 5 Enter 5 Enter 5 Enter 5 Enter 5"  # choose the first slider, then .5 everywhere


def test_several_replies_are_rated_by_keyboard_alone(start: Callable[..., Service], visit: Visits) -> None:
    """The numbers, flags and reasons that were typed are what the service gives out and what its database holds."""
    service = start(sitting=3)
    ids = service.put([f"{REPLY} ({i})" for i in range(4)])
    page = visit(service.invite("Dr Vogel"))
    see(page, "notice")
    shoot(page, "notice")
    begin(page)
    see(page, "work")
    assert page.locator(".slider-value").all_inner_texts() == ["not rated yet"] * 6
    shoot(page, "desktop-unrated")
    press(page, "1 7 5 Enter 1 0 Enter 3 Enter ArrowLeft Enter ArrowRight ArrowRight Enter 6")
    press(page, "f 3 6 r")
    page.keyboard.type("Kind, but it says nothing of the sister.")
    page.wait_for_selector("#save-state[data-tone=good]")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('.rating-scroll').scrollTop = 0")
    shoot(page, "desktop-rating")
    page.keyboard.press("f")
    shoot(page, "desktop-flags")
    page.keyboard.press("Enter")  # all rated: away with it
    page.wait_for_selector("#count:has-text('0 of')")
    see(page, "work")
    press(
        page, "0 9 5 Shift+Digit1 Home Enter End Enter 5 Shift+ArrowRight Enter 5 PageDown Enter 2 Backspace 2 5 Enter"
    )
    page.wait_for_selector("#sitting-text:has-text('2 of 3')")
    see(page, "work")
    press(page, f"{RATE_ALL} Control+Enter")
    see(page, "break")
    shoot(page, "break")

    first, second, third = service.ratings()
    assert [first["criteria"][name] for name in _NAMES] == [0.75, 1, 0.3, 0.25, 0.8]
    assert (first["overall"], first["reason"]) == (0.6, "Kind, but it says nothing of the sister.")
    assert first["flags"] == sorted(list(FLAGS)[i - 1].value for i in (3, 6))
    assert [second["criteria"][name] for name in _NAMES] == [0, 1, 0.51, 0.4, 0.25]
    assert (second["overall"], second["flags"]) == (0.95, [])
    assert set(third["criteria"].values()) == {0.5}
    assert [rating["item"] for rating in service.ratings()] == ids[:3]
    assert [rating["criteria"] for rating in service.chain("rating")] == [
        one["criteria"] for one in (first, second, third)
    ]

    page.keyboard.press("Enter")  # a new sitting
    see(page, "work")
    assert page.inner_text("#sitting-text") == "0 of 3"
    assert reply_of(page).endswith("(3)")


def test_a_missing_rating_is_named_and_nothing_is_sent(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([REPLY])
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    press(page, "1 4 Enter 4 Enter 4 Enter 4 Enter 4")
    page.click("#submit")
    page.wait_for_selector("#toast:has-text('Still to rate: All in all')")
    assert page.evaluate("document.activeElement.name") == "overall"
    assert page.get_attribute("input[name=overall]", "aria-invalid") == "true"
    assert service.ratings() == []


def test_a_reload_keeps_the_draft_on_this_computer_and_on_another(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([REPLY])
    link = service.invite("Vogel")
    page = visit(link)
    begin(page)
    see(page, "work")
    press(page, "2 8 5 f 4 r")
    page.keyboard.type("half a tho")  # and away at once, before the draft was sent
    page.reload()
    see(page, "work")
    assert page.input_value("#reason") == "half a tho"
    assert page.locator(".slider-value").all_inner_texts() == ["not rated yet", "0.85", *["not rated yet"] * 4]
    assert page.is_checked("#flag-diagnosis")
    page.keyboard.press("r")
    page.keyboard.type("ught")
    page.wait_for_selector("#save-state[data-tone=good]")
    other = visit(link)
    begin(other)
    see(other, "work")
    assert other.input_value("#reason") == "half a thought"
    assert other.inner_text(".slider:nth-child(2) .slider-value") == "0.85"


def test_a_lease_that_runs_out_goes_to_another_rater_and_the_first_is_told(
    start: Callable[..., Service], visit: Visits
) -> None:
    service = start(lease_s=4)
    service.put([REPLY])
    visit.forgiven = "status of 409"
    slow = visit(service.invite("Slow"))
    begin(slow)
    see(slow, "work")
    for _ in range(4):  # who works keeps it: more than the lease's length goes by here
        press(slow, "Escape 1 4")
        slow.wait_for_timeout(1300)
        assert slow.is_hidden("#banner")
    slow.wait_for_selector("#banner:has-text('goes back to the queue in')")
    slow.wait_for_selector("#banner:has-text('The time for this reply is over')")
    shoot(slow, "lease-over")
    quick = visit(service.invite("Quick"))
    begin(quick)
    see(quick, "work")
    assert reply_of(quick) == REPLY
    press(slow, "Escape 2 9")  # goes on all the same
    see(slow, "lost")
    shoot(slow, "lease-lost")
    kept = slow.input_value("#lost-text")
    assert "Acknowledges what the client feels: 0.40" in kept and "Keeps therapeutic boundaries: 0.90" in kept
    press(quick, f"{RATE_ALL} Enter")
    see(quick, "empty")
    slow.keyboard.press("Enter")
    see(slow, "empty")
    assert [rating["rater"] for rating in service.ratings()] == ["Quick"]


def test_two_raters_at_once_never_have_the_same_reply(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    ids = service.put([f"{REPLY} ({i})" for i in range(6)])
    pages = [visit(service.invite(name)) for name in ("One", "Two")]
    for page in pages:
        begin(page)
        see(page, "work")
    for _ in range(3):
        assert reply_of(pages[0]) != reply_of(pages[1])
        for page in pages:
            press(page, f"{RATE_ALL} Enter")
        for page in pages:
            page.wait_for_selector("#rating[aria-busy=false]", state="attached")
    for page in pages:
        see(page, "empty")
    ratings = service.ratings()
    assert sorted(rating["item"] for rating in ratings) == sorted(ids)
    assert sorted(rating["rater"] for rating in ratings) == ["One"] * 3 + ["Two"] * 3


def test_a_phone_shows_everything_without_scrolling_sideways(start: Callable[..., Service], visit: Visits) -> None:
    """360 x 740: nothing is wider than the screen, nothing to touch is smaller than 40 px; a finger rates."""
    service = start()
    long_word = "and" * 80
    service.put([f"{REPLY} {long_word}", REPLY])
    page = visit(service.invite("Vogel"), **_PHONE)
    see(page, "notice")
    raters.fits(page)
    shoot(page, "phone-notice")
    page.tap("#agree")
    see(page, "work")
    raters.fits(page)
    shoot(page, "phone-reading")
    for slider in page.locator("input[type=range]").all():
        slider.evaluate("slider => slider.scrollIntoView({ block: 'center' })")
        box = slider.bounding_box()
        page.touchscreen.tap(box["x"] + 12 + (box["width"] - 24) * 0.8, box["y"] + box["height"] / 2)
    shoot(page, "phone-rating")
    page.tap("label[for=flag-dosage]")
    raters.dialogs_fit(page, "phone-help")
    page.tap("#submit")
    page.wait_for_selector("#toast:has-text('Rating saved')")
    [rating] = service.ratings()
    assert all(abs(value - 0.8) <= 0.02 for value in [*rating["criteria"].values(), rating["overall"]])
    assert rating["flags"] == ["dosage"]


def test_script_in_texts_is_shown_and_not_run(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([raters.EVIL], talk=[("client", raters.EVIL), ("therapist", "javascript:alert(1)")])
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    assert reply_of(page) == raters.EVIL
    assert page.text_content(".turn.is-client p") == raters.EVIL
    assert page.locator("#work-title ~ img, .turns img, .reply img, .turns script, .reply script").count() == 0
    page.keyboard.press("r")
    page.keyboard.type("<b>bold</b>")
    press(page, "Escape 1 5 Enter 5 Enter 5 Enter 5 Enter 5 Enter 5 Enter")
    see(page, "empty")
    assert page.title() == "Rate replies"
    assert service.ratings()[0]["reason"] == "<b>bold</b>"


def test_skip_needs_a_reason_and_undo_brings_the_last_rating_back(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    ids = service.put([f"{REPLY} ({i})" for i in range(3)])
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    assert page.is_hidden("#undo")
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    page.wait_for_selector("#skip-problem:has-text('choose a reason')")
    page.keyboard.press("ArrowDown")
    shoot(page, "skip")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reply-text:has-text('(1)')")
    see(page, "work")
    assert service.chain("skip")[0]["reason"] == "The text is broken or cut off"
    assert service.chain("skip")[0]["item"] == ids[0]

    press(page, f"{RATE_ALL} f 1 Enter")
    page.wait_for_selector("#reply-text:has-text('(2)')")
    see(page, "work")
    press(page, "1 2")  # a beginning on the next one, which must not get lost
    page.keyboard.press("u")
    page.wait_for_selector("#reply-text:has-text('(1)')")
    see(page, "work")
    assert page.is_checked("#flag-methods_or_means")
    assert page.locator(".slider-value").all_inner_texts() == ["0.50"] * 6
    assert page.is_hidden("#undo")
    press(page, "6 1 0 Enter")
    page.wait_for_selector("#reply-text:has-text('(2)')")
    see(page, "work")
    assert page.inner_text(".slider:nth-child(1) .slider-value") == "0.20"
    assert [(rating["item"], rating["overall"]) for rating in service.ratings()] == [(ids[1], 1.0)]
    assert len(service.chain("undo")) == 1


def test_crisis_conversations_come_with_a_warning_and_only_to_who_wants_them(
    start: Callable[..., Service], visit: Visits
) -> None:
    service = start()
    service.put(
        ["I am glad you told me. Are you thinking of ending your life?", "Stay with me."],
        tier="active",
        talk=[("client", raters.CRISIS)],
    )
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "empty")  # opted out unless chosen
    willing = visit(service.invite("Willing"))
    raters.wants_crises(willing)
    assert raters.CRISIS not in str(willing.content())
    shoot(willing, "sensitive-warning")
    willing.keyboard.press("Enter")
    see(willing, "work")
    assert willing.inner_text(".turn p") == raters.CRISIS
    press(willing, f"{RATE_ALL} Enter")
    see(willing, "warning")
    willing.click("#warning-never")
    see(willing, "empty")
    assert len(service.ratings()) == 1
    willing.keyboard.press("?")
    assert not willing.is_checked("#set-crisis")


def test_a_rating_survives_a_lost_connection_and_is_stored_once(start: Callable[..., Service], visit: Visits) -> None:
    """The answer to the first sending is lost on its way, then the network is gone, then the page is loaded again."""
    service = start()
    service.put([REPLY, f"{REPLY} (2)"])
    visit.forgiven = "Failed to load resource|net::ERR"
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    sent = raters.lose(page, "**/api/ratings")
    press(page, f"{RATE_ALL} Enter")
    page.wait_for_selector("#banner:has-text('Your rating is kept here')")
    page.wait_for_timeout(1500)  # it tries again
    shoot(page, "offline")
    page.unroute("**/api/ratings")
    page.reload()
    see(page, "work")
    assert reply_of(page).endswith("(2)")
    assert len(sent) >= 2 and len(set(sent)) == 1
    assert len(service.ratings()) == len(service.chain("rating")) == 1


def test_a_draft_that_cannot_be_saved_says_so_and_is_saved_later(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([REPLY])
    visit.forgiven = "Failed to load resource|net::ERR"
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    page.context.set_offline(True)
    press(page, "1 6")
    page.wait_for_selector("#save-state:has-text('Offline')")
    page.context.set_offline(False)
    page.wait_for_selector("#save-state:has-text('Draft saved')")


def test_links_that_do_not_work_get_a_friendly_page(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([REPLY])
    visit.forgiven = "status of 40[13]"
    for link, words in ((f"{service.url}/", "personal link"), (f"{service.url}/#{'x' * 43}", "does not work")):
        page = visit(link)
        see(page, "closed")
        assert words in page.inner_text("#closed-title")
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    service.ask("POST", "/api/admin/raters/Vogel/shut", service.admin, {})
    press(page, f"{RATE_ALL} Enter")
    see(page, "closed")
    assert "no longer valid" in page.inner_text("#closed-title")
    page = visit(f"{service.url}/admin#{'x' * 43}")
    see(page, "closed")


def test_an_empty_queue_is_watched_without_taking_the_next_reply(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "empty")
    shoot(page, "empty")
    service.put([REPLY])
    page.wait_for_selector("#empty-start:visible", timeout=60_000)
    assert service.ask("GET", "/api/admin/overview", service.admin)["queue"]["leased"] == 0
    page.keyboard.press("Enter")
    see(page, "work")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(start: Callable[..., Service], visit: Visits, scheme: str) -> None:
    service = start(sitting=1)
    service.put([f"{REPLY} ({i})" for i in range(2)])
    page = visit(service.invite("Vogel", crisis=True), color_scheme=scheme)
    see(page, "notice")
    check_access(page)
    begin(page)
    see(page, "work")
    check_access(page)
    tree = [node.get_attribute("aria-valuetext") for node in page.locator("input[type=range]").all()]
    assert tree == ["not rated yet"] * 6
    press(page, "1 9 5 f 2")
    assert page.get_attribute("input[type=range]", "aria-valuetext") == f"0.95, {CRITERIA[0].high}"
    page.wait_for_selector("#save-state[data-tone=good]")
    page.wait_for_timeout(300)  # colours fade
    check_access(page)
    page.evaluate("document.querySelector('.rating-scroll').scrollTop = 0")
    shoot(page, f"rating-{scheme}")
    page.keyboard.press("?")
    check_access(page)
    shoot(page, f"help-{scheme}")
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    check_access(page)
    page.keyboard.press("Escape")
    press(page, "Shift+Digit2 4 Enter 4 Enter 4 Enter 4 Enter 4 Enter")
    see(page, "break")
    check_access(page)
    assert page.evaluate("document.activeElement.id") == "break-title"  # what a screen reader begins with


def test_keys_can_be_switched_off_and_tab_reaches_everything(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put([REPLY])
    page = visit(service.invite("Vogel"))
    begin(page)
    see(page, "work")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    wanted = {f"slider-{name}" for name in [*_NAMES, "overall"]} | {f"flag-{flag.value}" for flag in FLAGS}
    assert wanted | {"reason", "skip", "submit", "open-help", "history"} <= reached
    raters.switch_keys_off(page)
    page.keyboard.press("s")
    assert not page.is_visible("#skip-dialog")


def test_the_admin_sees_the_work_invites_shuts_out_and_exports(start: Callable[..., Service], visit: Visits) -> None:
    service = start(overlap=1.0, overlap_raters=2)
    service.put([f"{REPLY} ({i})" for i in range(8)])
    service.put(["One more."], tier="distress")
    admin = visit(f"{service.url}/admin#{service.admin}")
    see(admin, "board")
    check_access(admin)
    assert admin.is_visible("#no-raters")
    links = {}
    for name in ("Dr Vogel", "M. Okafor"):
        admin.fill("#invite-name", name)
        admin.fill("#invite-days", "30")
        admin.keyboard.press("Enter")
        admin.wait_for_selector(f"#made-label:has-text('The link of {name}')")
        links[name] = admin.input_value("#made-link")
    admin.fill("#invite-name", "<b>")
    admin.keyboard.press("Enter")
    admin.wait_for_selector("#invite-problem:has-text('begins with a letter')")
    for name, link in links.items():
        rate_over_http(service, link, name)
    admin.wait_for_selector("#raters tr:has-text('Dr Vogel') td:has-text('7')", timeout=60_000)  # by itself
    admin.wait_for_selector("#agreement svg[aria-label^='ICC(A,1)']")
    check_access(admin)
    shoot(admin, "admin", whole=True)
    assert admin.locator("#tiers li").all_inner_texts() == ["No danger\n1", "Distress\n1"]
    assert "Dismissal" in admin.inner_text("#flag-counts")
    for shape in ("csv", "jsonl", "argilla", "label-studio"):
        with admin.expect_download() as download:
            admin.click(f"[data-export={shape}]")
        assert "Kind enough." in Path(download.value.path()).read_text()
    admin.click("button[aria-label='Shut out M. Okafor']")
    admin.keyboard.press("Shift+Tab")
    admin.keyboard.press("Enter")
    admin.wait_for_selector("tr.is-out:has-text('M. Okafor')")
    token = links["M. Okafor"].partition("#")[2]
    assert httpx.get(f"{service.url}/api/me", headers={"Authorization": f"Bearer {token}"}).status_code == 403
    phone = visit(f"{service.url}/admin#{service.admin}", **_PHONE, color_scheme="dark")
    see(phone, "board")
    assert phone.evaluate(raters.TOO_WIDE) <= 0
    assert phone.evaluate(raters.SMALL) == []
    check_access(phone)
    shoot(phone, "admin-phone-dark", whole=True)


def rate_over_http(service: Service, link: str, name: str) -> None:
    """Seven ratings, a strict or a mild rater's."""
    token = link.partition("#")[2]
    for i in range(7):
        lease = service.ask("POST", "/api/next", token, {})["item"]["lease"]
        value = round(0.1 * i + (0.3 if name == "Dr Vogel" else 0.1), 2)
        body = {
            "lease": lease, "submission": f"00000000-0000-4000-8000-{abs(hash((name, i))) % 10**12:012d}", "overall": value,
            "criteria": dict.fromkeys(_NAMES, value), "flags": ["dismissal"] if i == 0 else [], "reason": "Kind enough.",
            "seconds": 40.0 + i,
        }  # fmt: skip
        service.ask("POST", "/api/ratings", token, body)

"""The comparing page in a real browser, against the real service in a process of its own.

Screenshots go to the folder that the environment variable ATTUNE_SCREENSHOTS names, when it is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rewards.experts.config import ServiceConfig
from rewards.experts.form import FLAGS
from rewards.experts.serve import Server
from tests import raters
from tests.raters import REPLY, Visits, check_access, press, see, shoot

pytestmark = raters.IN_A_BROWSER
browser, visit = raters.browser, raters.visit

_PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
_NAMES = [flag.value for flag in FLAGS]
_COOL = "Many people feel like this after a loss. Try to go to bed at the same hour each night, and write down what worries you."


@dataclass
class Service(raters.Running):
    """One to which pairs of replies are sent. The arms are "warm" and "cool"."""

    def put(
        self, count: int, *, tier: str = "none", talk: Sequence[tuple[str, str]] = raters.TALK, wanted: int = 1,
        replies: tuple[str, str] = (REPLY, _COOL),
    ) -> None:  # fmt: skip
        """So many pairs, numbered where there are several."""
        history = [{"speaker": speaker, "text": text} for speaker, text in talk]
        asked = [
            {
                "key": f"esconv/{tier}/{at}", "history": history, "arms": ["warm", "cool"], "tier": tier, "wanted": wanted,
                "replies": [f"{reply} ({at})" if count > 1 else reply for reply in replies],
            }
            for at in range(count)
        ]  # fmt: skip
        self.ask("POST", "/api/run/comparisons", self.run, {"comparisons": asked})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts the service with the settings given; ends it after the test."""
    with ExitStack() as stack:

        def begin(**knobs: Any) -> Service:
            server = stack.enter_context(Server(tmp_path, ServiceConfig(**{"repeats": 0.0, **knobs})))
            return Service(server.url, server.admin_link.partition("#")[2], server.token, tmp_path)

        yield begin


def begin(page: Any) -> None:
    """Accepts the notice, and sees the first pair."""
    raters.begin(page)
    see(page, "work")


def sides(page: Any) -> str:
    """Which arm's reply is A."""
    return "warm" if page.text_content("#reply-a").startswith(REPLY) else "cool"


def submitted(page: Any, done: int) -> None:
    """Waits until so many are done in this sitting and the next pair is there."""
    page.wait_for_selector(f"#sitting-text:has-text('{done} of')")
    see(page, "work")


def test_pairs_are_judged_by_keyboard_alone(start: Callable[..., Service], visit: Visits) -> None:
    """The steps, flags and reasons that were typed are what the database holds, each for the arm whose reply was there."""
    service = start(sitting=5)
    service.put(6)
    page = visit(service.invite("Dr Vogel"))
    see(page, "notice")
    assert "Research software" in page.inner_text("[data-view=notice]") and "distressing" in page.inner_text(".points")
    shoot(page, "compare-notice")
    begin(page)
    assert [page.inner_text(f"#reply-{side}-title") for side in "ab"] == ["Reply A", "Reply B"]
    assert page.inner_text("#count") == "Nothing chosen yet"
    shoot(page, "compare-desktop-empty")
    left = [sides(page)]
    press(page, "2 a 3 ArrowRight 6 r")
    page.keyboard.type("Warmer, but it says nothing of the sister.")
    shoot(page, "compare-desktop", whole=True)
    page.keyboard.press("Control+Enter")
    submitted(page, 1)
    assert page.input_value("#reason") == "" and page.locator(":checked").count() == 0
    left.append(sides(page))
    press(page, "1 5 Enter")
    submitted(page, 2)
    left.append(sides(page))
    press(page, "4 ArrowLeft b Space ArrowDown Space Enter")
    submitted(page, 3)
    left.append(sides(page))
    press(page, "3 c ArrowDown Escape Enter")
    submitted(page, 4)
    left.append(sides(page))
    press(page, "Tab 5 4 3 2 1 Enter")
    see(page, "break")
    shoot(page, "compare-break")

    told = service.chain("judgement")
    towards_a = [one["preference"] * (1 if side == "warm" else -1) for one, side in zip(told, left, strict=True)]
    assert towards_a == [0.5, -1, 0, 0, 1]
    assert [one["left"] for one in told] == ["first" if side == "warm" else "second" for side in left]
    assert told[0]["reason"] == "Warmer, but it says nothing of the sister." and told[0]["seconds"] > 0
    flags = [{"a": [_NAMES[2]], "b": [_NAMES[5]]}, {"a": [], "b": []}, {"a": [], "b": sorted(_NAMES[:2])}]
    for one, side, wanted in zip(told, left, flags, strict=False):
        first, second = ("a", "b") if side == "warm" else ("b", "a")
        assert one["flags"] == {"first": wanted[first], "second": wanted[second]}

    page.keyboard.press("Enter")  # a new sitting
    submitted(page, 0)


def test_nothing_in_the_page_tells_the_arms(start: Callable[..., Service], visit: Visits) -> None:
    """Neither in the page nor in what it asks and is told."""
    service = start()
    service.put(3, replies=("One reply.", "Another reply."))
    page = visit(f"{service.url}/compare")
    see(page, "closed")
    seen: list[str] = []
    page.on("response", lambda got: seen.append(got.text()) if "/api/" in got.url else None)
    page.on("request", lambda sent: seen.append(f"{sent.url} {sent.post_data}"))
    page.goto(service.invite("Vogel"))
    begin(page)
    press(page, "1 Enter")
    submitted(page, 1)
    everything = "\n".join([*seen, str(page.content())]).lower()
    assert "one reply." in everything
    for secret in ("warm", "cool", "esconv", "swapped", service.chain("comparison")[0]["id"]):
        assert secret not in everything


def test_a_missing_choice_is_named_and_nothing_is_sent(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put(1)
    page = visit(service.invite("Vogel"))
    begin(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("#toast:has-text('Which reply is better?')")
    assert page.evaluate("document.activeElement.id") == "choice-1"
    assert page.get_attribute("#choice-1", "aria-invalid") == "true" and not page.is_checked("#choice-1")
    page.keyboard.press("3")
    assert page.get_attribute("#choice-1", "aria-invalid") == "false"
    assert service.chain("judgement") == []


def test_a_reload_keeps_the_sides_and_what_was_entered(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put(2)
    page = visit(service.invite("Vogel"))
    begin(page)
    before = page.text_content("#reply-a")
    press(page, "4 b 1 r")
    page.keyboard.type("half a tho")
    page.reload()
    see(page, "work")
    assert page.text_content("#reply-a") == before
    assert page.input_value("#reason") == "half a tho" and page.is_checked("#choice-4")
    assert page.is_checked(f"#flag-b-{_NAMES[0]}") and not page.is_checked(f"#flag-a-{_NAMES[0]}")


def test_a_lease_that_runs_out_goes_to_another_rater_and_the_first_is_told(
    start: Callable[..., Service], visit: Visits
) -> None:
    service = start(lease_s=4)
    service.put(1)
    visit.forgiven = "status of 409"
    slow = visit(service.invite("Slow"))
    begin(slow)
    for _ in range(4):  # who works keeps it: more than the lease's length goes by here
        press(slow, "Escape 1")
        slow.wait_for_timeout(1300)
        assert slow.is_hidden("#banner")
    slow.wait_for_selector("#banner:has-text('goes back to the queue in')")
    slow.wait_for_selector("#banner:has-text('The time for this pair is over')")
    shoot(slow, "compare-lease-over")
    quick = visit(service.invite("Quick"))
    begin(quick)
    press(slow, "2 Enter")  # goes on all the same
    see(slow, "lost")
    shoot(slow, "compare-lost")
    press(quick, "5 Enter")
    see(quick, "empty")
    slow.keyboard.press("Enter")
    see(slow, "empty")
    assert [one["rater"] for one in service.chain("judgement")] == ["Quick"]


def test_side_by_side_on_a_desk_and_stacked_on_a_phone(start: Callable[..., Service], visit: Visits) -> None:
    """390 x 780: nothing is wider than the screen, nothing to touch is smaller than 40 px; a finger judges."""
    service = start()
    service.put(1, wanted=2, replies=(f"{REPLY} {'and' * 80}", _COOL))
    desk = visit(service.invite("At a desk"))
    begin(desk)
    a, b = (desk.locator(f"#reply-{side}").bounding_box() for side in "ab")
    assert a["y"] == b["y"] and a["x"] + a["width"] <= b["x"]
    assert desk.evaluate(raters.TOO_WIDE) <= 0
    page = visit(service.invite("Vogel"), **_PHONE)
    see(page, "notice")
    raters.fits(page)
    shoot(page, "compare-phone-notice")
    page.tap("#agree")
    see(page, "work")
    raters.fits(page)
    shoot(page, "compare-phone", whole=True)
    shoot(page, "compare-phone-first")
    a, b = (page.locator(f"#reply-{side}").bounding_box() for side in "ab")
    assert a["x"] == b["x"] and a["y"] + a["height"] <= b["y"]
    page.tap("label[for=choice-4]")
    page.tap(f"label[for=flag-a-{_NAMES[4]}]")
    shoot(page, "compare-phone-form")
    raters.dialogs_fit(page, "compare-phone-help")
    page.tap("#submit")
    see(page, "empty")
    raters.fits(page)
    (told,) = service.chain("judgement")
    assert abs(told["preference"]) == 0.5 and sorted(map(len, told["flags"].values())) == [0, 1]


def test_script_in_texts_is_shown_and_not_run(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put(
        1,
        talk=[("client", raters.EVIL), ("therapist", "javascript:alert(1)")],
        replies=(raters.EVIL, f"{raters.EVIL} 2"),
    )
    page = visit(service.invite("Vogel"))
    begin(page)
    assert sorted(page.text_content(f"#reply-{side}") for side in "ab") == [raters.EVIL, f"{raters.EVIL} 2"]
    assert page.text_content(".turn.is-client p") == raters.EVIL
    assert page.locator("main img, main script").count() == 0
    press(page, "3 r")
    page.keyboard.type("<b>bold</b>")
    page.keyboard.press("Control+Enter")
    see(page, "empty")
    assert page.title() == "Compare replies" and service.chain("judgement")[0]["reason"] == "<b>bold</b>"


def test_skip_needs_a_reason_and_undo_brings_the_last_judgement_back(
    start: Callable[..., Service], visit: Visits
) -> None:
    service = start()
    service.put(3)
    page = visit(service.invite("Vogel"))
    begin(page)
    assert page.is_hidden("#undo")
    skipped = page.text_content("#reply-a")
    press(page, "s Enter")
    page.wait_for_selector("#skip-problem:has-text('choose a reason')")
    shoot(page, "compare-skip")
    press(page, "ArrowDown Enter")
    page.wait_for_function("text => document.getElementById('reply-a').textContent !== text", arg=skipped)
    see(page, "work")
    assert service.chain("skip")[0]["reason"] == "The text is broken or cut off"

    judged = page.text_content("#reply-a")
    press(page, "2 a 1 r")
    page.keyboard.type("kinder")
    press(page, "Escape Enter")
    submitted(page, 1)
    press(page, "5 b 2 u")  # a beginning on the next one, which must not get lost
    page.wait_for_selector("#toast:has-text('taken back')")
    see(page, "work")
    assert page.text_content("#reply-a") == judged and page.is_checked("#choice-2")
    assert page.input_value("#reason") == "kinder" and page.is_checked(f"#flag-a-{_NAMES[0]}")
    assert page.is_hidden("#undo") and page.inner_text("#sitting-text").startswith("0 of")
    press(page, "1 Enter")
    submitted(page, 1)
    assert page.is_checked("#choice-5") and page.is_checked(f"#flag-b-{_NAMES[1]}")
    press(page, "3 Enter")
    see(page, "empty")
    page.keyboard.press("u")  # from the end as well
    see(page, "work")
    assert page.is_checked("#choice-3")
    assert len(service.chain("undo")) == 2 and len(service.chain("judgement")) == 3


def test_crisis_conversations_come_with_a_warning_and_only_to_who_wants_them(
    start: Callable[..., Service], visit: Visits
) -> None:
    service = start()
    service.put(2, tier="active", talk=[("client", raters.CRISIS)])
    page = visit(service.invite("Vogel"))
    see(page, "notice")
    page.keyboard.press("Enter")
    see(page, "empty")  # opted out unless chosen
    willing = visit(service.invite("Willing"))
    raters.wants_crises(willing)
    assert raters.CRISIS not in str(willing.content()) and _COOL not in str(willing.content())
    willing.keyboard.press("Enter")
    see(willing, "work")
    assert willing.inner_text(".turn p") == raters.CRISIS
    press(willing, "1 Enter")
    see(willing, "warning")
    assert raters.CRISIS not in str(willing.content())
    willing.click("#warning-never")
    see(willing, "empty")
    assert len(service.chain("judgement")) == 1
    willing.keyboard.press("?")
    assert not willing.is_checked("#set-crisis")


def test_a_judgement_survives_a_lost_connection_and_is_stored_once(
    start: Callable[..., Service], visit: Visits
) -> None:
    """The answer to the first sending is lost on its way, then the network is gone, then the page is loaded again."""
    service = start()
    service.put(2)
    visit.forgiven = "Failed to load resource|net::ERR"
    page = visit(service.invite("Vogel"))
    begin(page)
    before = page.text_content("#reply-a")
    sent = raters.lose(page, "**/api/compare/judgements")
    press(page, "2 Enter")
    page.wait_for_selector("#banner:has-text('Your judgement is kept here')")
    page.wait_for_timeout(1500)  # it tries again
    page.unroute("**/api/compare/judgements")
    page.reload()
    see(page, "work")
    assert page.text_content("#reply-a") != before
    assert len(sent) >= 2 and len(set(sent)) == 1
    assert len(service.chain("judgement")) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(start: Callable[..., Service], visit: Visits, scheme: str) -> None:
    service = start(sitting=1)
    service.put(2)
    page = visit(service.invite("Vogel", crisis=True), color_scheme=scheme)
    see(page, "notice")
    check_access(page)
    begin(page)
    check_access(page)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]}
    for words in ("A is better", "A is slightly better", "About the same", "B is slightly better", "B is better"):
        assert ("radio", words) in named
    assert ("group", "Which reply is better for this client?") in named
    for title in FLAGS.values():
        assert {("checkbox", f"Reply A: {title}"), ("checkbox", f"Reply B: {title}")} <= named
    press(page, "2 b 3")
    page.wait_for_timeout(300)  # colours fade
    check_access(page)
    shoot(page, f"compare-{scheme}", whole=True)
    page.keyboard.press("?")
    check_access(page)
    shoot(page, f"compare-help-{scheme}")
    press(page, "Escape s")
    check_access(page)
    press(page, "Escape Enter")
    see(page, "break")
    check_access(page)
    assert page.evaluate("document.activeElement.id") == "break-title"  # what a screen reader begins with


def test_keys_can_be_switched_off_and_tab_reaches_everything(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    service.put(1)
    page = visit(service.invite("Vogel"))
    begin(page)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    wanted = {f"flag-{side}-{name}" for side in "ab" for name in _NAMES}
    wanted |= {"history", "reply-a", "reply-b", "choice-1", "reason", "skip", "submit", "open-help"}
    assert wanted <= set(reached)
    order = [reached.index(one) for one in ("history", "reply-a", "reply-b", "choice-1", "reason", "submit")]
    assert order == sorted(order)
    raters.switch_keys_off(page)
    press(page, "s 1")
    assert not page.is_visible("#skip-dialog") and not page.is_checked("#choice-1")


def test_the_admin_sees_how_far_it_is_and_invites(start: Callable[..., Service], visit: Visits) -> None:
    """Counts and who did how many; nothing tells which arm is ahead."""
    service = start()
    service.put(4, wanted=2)
    same = {"key": "esconv/same/0", "history": [], "arms": ["warm", "cool"], "replies": ["Yes.", "Yes. "]}
    service.ask("POST", "/api/run/comparisons", service.run, {"comparisons": [same]})
    admin = visit(f"{service.url}/admin#{service.admin}")
    see(admin, "board")
    assert admin.inner_text("#comparisons-done") == "0 of 4 done"
    check_access(admin)
    admin.fill("#invite-name", "Dr Vogel")
    admin.keyboard.press("Enter")
    admin.wait_for_selector("#made-label:has-text('The link of Dr Vogel')")
    page = visit(admin.input_value("#made-link"))
    other = visit(service.invite("M. Okafor"))
    for rater, count in ((page, 3), (other, 2)):
        begin(rater)
        for at in range(1, count + 1):
            press(rater, "1 Enter")
            submitted(rater, at)
    admin.wait_for_selector("#comparisons-done:has-text('2 of 4 done')", timeout=60_000)  # by itself
    admin.wait_for_selector("#comparisons-raters li:has-text('Dr Vogel'):has-text('3')")
    told = admin.inner_text("#comparisons-text")
    assert "1 begun" in told and "5 judgements" in told and "1 pair reads the same and is not asked" in told
    assert not any(arm in admin.content().lower() for arm in ("warm", "cool"))
    check_access(admin)
    assert admin.is_hidden("#tiles") and admin.is_visible("#raters-box")  # nothing is rated here
    shoot(admin, "compare-admin", whole=True)
    phone = visit(f"{service.url}/admin#{service.admin}", **_PHONE)
    see(phone, "board")
    assert phone.evaluate(raters.TOO_WIDE) <= 0
    shoot(phone, "compare-admin-phone")


def test_a_rating_service_has_no_side_by_side_on_its_board(start: Callable[..., Service], visit: Visits) -> None:
    service = start()
    admin = visit(f"{service.url}/admin#{service.admin}")
    see(admin, "board")
    assert admin.is_hidden("#comparisons-box")
    page = visit(f"{service.url}/compare")
    see(page, "closed")
    assert "personal link" in page.inner_text("#closed-title")

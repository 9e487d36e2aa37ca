"""What tests of the raters' service share: a clock and stores of it, a service to ask, and pages driven in a real browser.

Screenshots go to the folder that the environment variable ATTUNE_SCREENSHOTS names, when it is set.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest

from rewards.experts.refusal import Refused

CHROMIUM = Path("/usr/bin/chromium")
IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs the package playwright"),
]
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_DESKTOP = {"viewport": {"width": 1280, "height": 860}}
TALK = (
    ("client", "I haven't been sleeping. Since the funeral in March I lie there and go over everything I didn't say."),
    ("therapist", "That sounds exhausting, and lonely. What is it you find yourself going over most?"),
    (
        "client",
        "The last phone call. I was in a hurry. I said I'd ring back, and I never did.\n\nMy sister says I should be over it.",
    ),
)
REPLY = (
    "It makes sense that this call stays with you: it was the last one. There is no date by which grief has to be over. If you "
    "like, we could look together at what you would have said, had you rung back."
)
CRISIS = "I don't see why I should go on. I have thought about not waking up."
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>alert('owned')</script> &amp; {{7*7}}"
SMALL = """() => [...document.querySelectorAll('button, input, textarea, select')].filter(e => e.checkVisibility()).map(e => {
    const box = (['checkbox', 'radio'].includes(e.type) ? e.closest('label') : e).getBoundingClientRect();
    return [e.id || e.textContent, box.width, box.height];
}).filter(([, width, height]) => width < 40 || height < 40)"""
TOO_WIDE = "() => document.documentElement.scrollWidth - window.innerWidth"
LOW_CONTRAST = """() => {
    const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return text.startsWith('color(srgb')
        ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const ground = e => {
        for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; }
        return [255, 255, 255, 1];
    };
    const root = document.querySelector('dialog[open]') ?? document.body;
    const bad = [], walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode());) {
        const e = node.parentElement;
        if (!node.data.trim() || !e.checkVisibility() || e.closest('.sr-only, noscript, svg')) continue;
        const style = getComputedStyle(e), a = light(rgba(style.color)), b = light(ground(e));
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < 4.5) bad.push([node.data.trim().slice(0, 40), ratio.toFixed(2)]);
    }
    return bad;
}"""
_NAMED = {
    "button",
    "slider",
    "checkbox",
    "radio",
    "textbox",
    "spinbutton",
    "ProgressIndicator",
    "progressbar",
    "dialog",
    "form",
    "region",
    "img",
    "image",
}

DeskT = TypeVar("DeskT", bound=Any)


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def desks(build: Callable[..., DeskT]) -> Iterator[Callable[..., DeskT]]:
    """`build(number, **knobs)`, so often as is wanted; the stores of all are closed at the end."""
    made: list[DeskT] = []

    def another(**knobs: Any) -> DeskT:
        made.append(build(len(made), **knobs))
        return made[-1]

    yield another
    for one in made:
        one.store.close()


def refused(status: int, call: Callable[[], Any], match: str | None = None) -> None:
    """It is, with this status and in one line."""
    with pytest.raises(Refused, match=match) as error:
        call()
    assert error.value.status == status and "\n" not in str(error.value)


@dataclass
class Running:
    """A running service: its address, and what the admin and whoever sends things to it do there."""

    url: str
    admin: str  # the admin's token
    run: str  # the training job's, or the evaluation's
    folder: Path

    def ask(self, method: str, path: str, token: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.request(method, self.url + path, json=body, headers=headers, timeout=20)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def invite(self, name: str, *, crisis: bool = False) -> str:
        """The link of a new rater."""
        asked = {"name": name, "crisis": crisis, "days": None}
        return str(self.ask("POST", "/api/admin/raters", self.admin, asked)["link"])

    def chain(self, kind: str) -> list[dict[str, Any]]:
        """What the database itself holds of one kind of event."""
        with closing(sqlite3.connect(self.folder / "ratings.sqlite")) as db:
            told = db.execute("SELECT body FROM chain WHERE kind = ? ORDER BY seq", (kind,)).fetchall()
        return [json.loads(body) for (body,) in told]


@dataclass
class Visits:
    """Opens pages and notes everything that no page may do. `forgiven` is what a test provokes on purpose."""

    browser: Any
    problems: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    forgiven: str = r"^$"

    def __call__(self, link: str, **settings: Any) -> Any:
        context = self.browser.new_context(**{**_DESKTOP, **settings})
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(link))
        page.on(
            "console", lambda told: self.note(f"console: {told.text}") if told.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.note(f"error: {error}"))
        page.on("dialog", lambda dialog: self.note(f"dialog: {dialog.message}"))
        page.on("request", lambda sent: self.check_origin(sent.url, origin))
        page.goto(link)
        return page

    def check_origin(self, url: str, origin: str) -> None:
        if not url.startswith((origin + "/", "data:", f"blob:{origin}")):
            self.note(f"request to another origin: {url}")

    def note(self, text: str) -> None:
        self.problems.append(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the module. A module takes it, and `visit`, by giving it a name: `browser = raters.browser`."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    driving = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with driving.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Visits]:
    """Visits of which nothing may be left in the end that was not forgiven."""
    visits = Visits(browser)
    yield visits
    for context in visits.contexts:
        context.close()
    assert [problem for problem in visits.problems if not re.search(visits.forgiven, problem)] == []


def shoot(page: Any, name: str, *, whole: bool = False) -> None:
    """Keeps a picture of the page, when pictures are wanted."""
    folder = os.environ.get("ATTUNE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=whole)


def see(page: Any, view: str) -> None:
    """Waits until this view is shown, and the page has nothing under way."""
    page.wait_for_selector(f"body[data-showing={view}]")
    if view == "work":
        page.wait_for_selector("form[aria-busy=false]")


def fits(page: Any) -> None:
    """Nothing is wider than the screen, and nothing to touch is too small for a finger."""
    assert page.evaluate(TOO_WIDE) <= 0
    assert page.evaluate(SMALL) == []


def dialogs_fit(page: Any, picture: str) -> None:
    """So it is of the question why one skips, and of the help; both are opened and closed by a finger."""
    page.tap("#skip")
    page.wait_for_selector("#skip-dialog[open]")
    fits(page)
    page.tap("#skip-cancel")
    page.tap("#open-help")
    fits(page)
    shoot(page, picture)
    page.tap("#help-close")


def lose(page: Any, path: str) -> list[str]:
    """No answer to what is sent there reaches the page any more, and only the first request arrives; the ids of what is sent."""
    sent: list[str] = []

    def swallow(route: Any) -> None:
        sent.append(json.loads(route.request.post_data)["submission"])
        if len(sent) == 1:
            route.fetch()  # it arrives, and nobody hears of it
        route.abort()

    page.route(path, swallow)
    return sent


def wants_crises(page: Any) -> None:
    """Accepts the notice, crisis conversations too, and sees the warning."""
    see(page, "notice")
    page.check("#notice-crisis")
    page.click("#agree")
    see(page, "warning")


def switch_keys_off(page: Any) -> None:
    """By the help's setting."""
    page.click("#open-help")
    page.uncheck("#set-keys")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")


def begin(page: Any) -> None:
    """Accepts the notice."""
    see(page, "notice")
    page.keyboard.press("Enter")


def press(page: Any, keys: str) -> None:
    """Presses keys; they are separated by spaces."""
    for key in keys.split():
        page.keyboard.press(key)


def check_access(page: Any) -> None:
    """Every control has a name in the browser's accessibility tree; every visible text stands out against its ground."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in _NAMED]
    assert any(node["role"]["value"] == "button" for node in shown)
    nameless = [node for node in shown if not node.get("name", {}).get("value")]
    assert nameless == [], json.dumps(nameless)
    assert page.evaluate(LOW_CONTRAST) == []

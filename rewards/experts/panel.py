"""A panel of simulated raters, for tests and demonstrations: they answer through the service as the page does.

    python -m rewards.experts.panel --url http://127.0.0.1:8000 --tokens FILE

What they judge by is known (`rewards.experts.simulated_quality`), and so is how they err (`rewards.experts.simulated_raters`).
No person's judgement is in it, so what is measured with a panel says how the loop works, never how good a reply is.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rewards.backoff import is_passing, retry_after_s
from rewards.experts.simulated_quality import Quality, true_quality
from rewards.experts.simulated_raters import Rater, careful, clinicians, judge
from rollout.types import Speaker, Turn


class PanelError(ValueError):
    """The service refused a simulated rater."""


@dataclass
class _Seat:
    rater: Rater
    token: str
    given: int = 0
    lost: int = 0  # ratings refused because the lease was over
    error: Exception | None = None


class Panel:
    """Raters at work, a thread each, until `stop`, or with `until_empty` until the queue has nothing for any of them.

    `tokens` are the raters' in the order of `raters`, `quality` the truth they err about. A service that does not answer is
    asked again with the same submission, after 0.1 to 5 s, for as long as it takes. `with Panel(...) as panel:` starts and
    stops. An error of a rater (a token that is refused, an answer that the form does not take) ends that rater, and is
    raised by `join` and `stop`.
    """

    def __init__(
        self,
        url: str,
        tokens: Sequence[str],
        quality: Callable[[Sequence[Turn], str], Quality] = true_quality,
        raters: Sequence[Rater] = (),
        *,
        until_empty: bool = False,
        most: int | None = None,
        timeout_s: float = 10.0,
        idle_s: float = 0.1,
    ) -> None:
        raters = raters or careful(len(tokens))
        if len(raters) != len(tokens):
            raise ValueError(
                f"a panel must have a token per rater, has {len(tokens)} for {len(raters)}: invite each once"
            )
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"a panel's url must begin with http:// or https://, is {url!r}: copy it from the service's output"
            )
        self._url, self._quality, self._until_empty, self._most = url.rstrip("/"), quality, until_empty, most
        self._timeout_s, self._idle_s = timeout_s, idle_s
        self._stop = threading.Event()
        self._seats = [_Seat(rater, token) for rater, token in zip(raters, tokens, strict=True)]
        self._threads = [threading.Thread(target=self._sit, args=(seat,), daemon=True) for seat in self._seats]

    @property
    def given(self) -> dict[str, int]:
        """Ratings that the service acknowledged so far, by rater."""
        return {seat.rater.name: seat.given for seat in self._seats}

    @property
    def lost(self) -> int:
        """Ratings that came too late: the lease had run out and the reply was somebody else's."""
        return sum(seat.lost for seat in self._seats)

    def start(self) -> None:
        """Set everybody to work."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until everybody is done, for `timeout_s` at most; whether they are. Raises a rater's error."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        for seat in self._seats:
            if seat.error is not None:
                raise seat.error
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Everybody finishes the request under way, and goes. Raises a rater's error."""
        self._stop.set()
        self.join(2 * self._timeout_s)

    def __enter__(self) -> Panel:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _sit(self, seat: _Seat) -> None:
        try:
            with httpx.Client(
                base_url=self._url, headers={"Authorization": f"Bearer {seat.token}"}, timeout=self._timeout_s
            ) as client:
                self._work(seat, client)
        except (ValueError, KeyError, httpx.HTTPError) as error:  # refused, or no rating service at this address
            seat.error = error

    def _work(self, seat: _Seat, client: httpx.Client) -> None:
        me = self._ask(client, "GET", "/api/me")
        before = me.json()["done"] if me else 0
        while not self._stop.is_set() and (self._most is None or seat.given < self._most):
            told = self._ask(client, "POST", "/api/next", {})
            if told is None:
                return
            item = told.json()["item"]
            if item is not None:
                self._rate(seat, client, item, before + seat.given)
            elif told.json()["why"] == "sitting":
                self._ask(client, "POST", "/api/sitting", {})
            elif self._until_empty or self._stop.wait(self._idle_s):
                return

    def _rate(self, seat: _Seat, client: httpx.Client, item: Mapping[str, Any], nth: int) -> None:
        history = [Turn(Speaker(turn["speaker"]), turn["text"]) for turn in item["turns"]]
        quality = self._quality(history, item["reply"])
        answer = judge(seat.rater, quality, history, item["reply"], nth)
        if answer["seconds"] and self._stop.wait(answer["seconds"]):
            return  # the lease runs out by itself
        submission = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seat.rater.name}/{item['lease']}"))
        body = {"lease": item["lease"], "submission": submission, **answer}
        sent = self._ask(client, "POST", "/api/ratings", body, or_conflict=True)
        if sent is not None:
            seat.given += sent.status_code != 409
            seat.lost += sent.status_code == 409

    def _ask(
        self, client: httpx.Client, method: str, path: str, body: Any = None, *, or_conflict: bool = False
    ) -> httpx.Response | None:
        """The answer, however long it takes; None when the panel was stopped before."""
        wait_s = 0.1
        while True:
            asked_s = 0.0
            try:
                told = client.request(method, path, json=body)
                if told.is_success or (or_conflict and told.status_code == 409):
                    return told
                if not is_passing(told.status_code):
                    raise PanelError(
                        f"{self._url}{path} must take a simulated rater's request, says {told.status_code}: {told.text}"
                    )
                asked_s = retry_after_s(told.headers)
            except httpx.TransportError:
                pass  # nobody answers: the same request again
            if self._stop.wait(max(wait_s, asked_s)):
                return None
            wait_s = min(2 * wait_s, 5.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.experts.panel", description="Simulated raters at a service."
    )
    parser.add_argument("--url", required=True, help="address of the rating service")
    parser.add_argument("--tokens", type=Path, required=True, help="file with a rater's token, or link, on each line")
    parser.add_argument("--raters", choices=["careful", "clinicians"], default="careful")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until-empty", action="store_true", help="end when the queue has nothing left")
    given = parser.parse_args(argv)
    try:
        tokens = [line.strip().rpartition("#")[2] for line in given.tokens.read_text().splitlines() if line.strip()]
        raters = clinicians(given.seed) if given.raters == "clinicians" else careful(len(tokens), given.seed)
        panel = Panel(given.url, tokens, raters=raters, until_empty=given.until_empty)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with panel:
                while not panel.join(0.5):
                    pass
        except KeyboardInterrupt:
            pass  # asked to stop, and stopped
    except (OSError, ValueError, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"ratings given: {sum(panel.given.values())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

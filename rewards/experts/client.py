"""The training job's end of the rating service."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from rewards.backoff import Unanswered, is_passing, persist, retry_after_s
from rewards.experts.types import Item, Kind, Rating
from rewards.types import RewardError

_ITEMS_AT_ONCE = 100
_IDS_AT_ONCE = 1000
_LONGEST_WAIT_S = 30.0  # that the service lets one request wait
_UPKEEP_S = 10.0  # beyond the wait, for the answer to be made
_KEPT_S = 60.0  # an idle connection; the service keeps it for 65 s
Part = TypeVar("Part")


class ExpertReward(NamedTuple):
    """What experts' ratings of one item came to: fixed, the same whenever it is asked for."""

    value: float
    std: float
    ratings: tuple[str, ...]
    flags: tuple[str, ...]


class RunClient:
    """Items in, rewards out.

    A time-out, a lost connection, 429 and 5xx are tried again `retries` times with growing waits (`rewards.backoff`), about
    two minutes with the default; every request may be sent twice without harm. Raises `RewardError` with address, status
    and remedy. One connection is kept open; threads may share the object.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0, retries: int = 8) -> None:
        self._url, self._timeout_s, self._retries = url.rstrip("/"), timeout_s, retries
        self._line = _Line(token)
        self._hang_up = weakref.finalize(self, self._line.close)

    @classmethod
    def of_folder(cls, folder: Path, *, timeout_s: float = 30.0, retries: int = 8) -> Self:
        """The client of the service that runs on `folder`. Raises ValueError where none has."""
        path = folder / "service.json"
        try:
            told = json.loads(path.read_text())
            return cls(told["url"], told["token"], timeout_s=timeout_s, retries=retries)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} must tell the address of a rating service, does not ({error!r}): start one on this folder"
            ) from error

    def close_connection(self) -> None:
        """Let go of the connection: no request can follow. It ends with the object otherwise."""
        self._hang_up()

    def add(self, items: Sequence[Item]) -> list[str]:
        """Put items into the queue; their ids, in order."""
        ids: list[str] = []
        for part in _parts(items, _ITEMS_AT_ONCE):
            ids += self._post("items", {"items": [_described(item) for item in part]})["ids"]
        return ids

    def rewards(
        self,
        run: str,
        step: int,
        ids: Sequence[str],
        *,
        least: int = 1,
        wait_s: float = 0.0,
        every: bool = False,
        settle_s: float = 0.0,
    ) -> tuple[dict[str, ExpertReward], list[str], dict[str, str]]:
        """The rewards of the items that have `least` ratings; the ids of those that have not within `wait_s`; and which of
        these no active rater can be given, and why: "no_raters", "crisis", "skipped" or "rated_by_all" (`queue.stuck`).

        With `every`, none is fixed while one of them is open. A rating that its rater can still take back is there when it
        is `settle_s` old.
        """
        until = time.monotonic() + wait_s
        ask = {"run": run, "step": step, "least": least, "settle_s": settle_s, "all": every}
        found: dict[str, ExpertReward] = {}
        absent = list(dict.fromkeys(ids))
        while True:
            # where one request cannot hold all, looking comes before fixing
            looks = every and len(absent) > _IDS_AT_ONCE
            more, still, stuck = self._look({**ask, "fix": not looks}, absent, until)
            if looks and not still:
                more, still, stuck = self._look(ask, absent, until)
            found |= more
            if not still or time.monotonic() >= until:
                return found, still, stuck
            absent = absent if every else still

    def _look(
        self, ask: Mapping[str, Any], ids: Sequence[str], until: float
    ) -> tuple[dict[str, ExpertReward], list[str], dict[str, str]]:
        """`rewards`, asked once for each thousand; the last of them waits."""
        found: dict[str, ExpertReward] = {}
        absent: list[str] = []
        stuck: dict[str, str] = {}
        parts = list(_parts(ids, _IDS_AT_ONCE)) or [[]]
        for at, part in enumerate(parts, 1):
            left_s = min(max(0.0, until - time.monotonic()), _LONGEST_WAIT_S) if at == len(parts) else 0.0
            told = self._post("rewards", {**ask, "ids": part, "wait_s": left_s}, left_s)
            found |= {item: _reward(body) for item, body in told["rewards"].items()}
            absent += told["open"]
            stuck |= told["stuck"]
        return found, absent, stuck

    def close(self, ids: Sequence[str]) -> None:
        """Take items that nobody needs any more out of the queue."""
        for part in _parts(ids, _IDS_AT_ONCE):
            self._post("close", {"ids": part})

    def close_from(self, run: str, step: int) -> int:
        """Take what `run` asked at `step` and later, by its items' origin, out of the queue: for a run that resumes there
        and asks anew. How many items were open."""
        return int(self._post("close", {"run": run, "from_step": step})["closed"])

    def ratings(self, after: int = 0) -> tuple[list[Rating], int]:
        """All ratings that stand since row `after` of the chain, without repeats; the row to go on after."""
        found: list[Rating] = []
        while True:
            told = self._ask("GET", f"ratings?after={after}", None)
            found += [_rating(body) for body in told["ratings"]]
            after = told["seq"]
            if not told["ratings"]:
                return found, after

    def event(self, kind: Kind, body: Mapping[str, Any]) -> int:
        """Write an update, a checkpoint, a surrogate or an alarm into the audit chain; its row."""
        return int(self._post("events", {"kind": kind.value, "body": dict(body)})["seq"])

    def _post(self, name: str, body: Mapping[str, Any], wait_s: float = 0.0) -> dict[str, Any]:
        return self._ask("POST", name, body, wait_s)

    def _ask(self, method: str, name: str, body: Mapping[str, Any] | None, wait_s: float = 0.0) -> dict[str, Any]:
        timeout_s = self._timeout_s + wait_s + (_UPKEEP_S if wait_s else 0.0)
        asked = persist(
            partial(self._line.ask, method, f"{self._url}/api/run/{name}", body),
            goal=f"the rating service at {self._url} did not answer /api/run/{name.partition('?')[0]}",
            timeout_s=timeout_s,
            retries=self._retries,
        )
        return self._line.wait(asked)


class _Line:
    """A connection that is kept open, by an event loop in a thread of its own: whoever waits can be interrupted."""

    def __init__(self, token: str) -> None:
        import httpx

        self._httpx = httpx
        self._http = httpx.AsyncClient(
            timeout=None,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            limits=httpx.Limits(keepalive_expiry=_KEPT_S),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line to the rating service", daemon=True)
        self._thread.start()

    def wait(self, asked: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """What it comes to. Raises RuntimeError on a closed line."""
        if self._loop.is_closed():
            asked.close()
            raise RuntimeError("the connection to the rating service was closed: make another client")
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return answer.result()
        finally:
            answer.cancel()  # for who was interrupted; an answer that is there stays

    async def ask(self, method: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """One attempt."""
        try:
            response = await self._http.request(method, url, json=body)
        except self._httpx.TransportError as error:
            raise Unanswered(f"connection failed ({type(error).__name__}: {error})", "is the service up?") from error
        said = f"status {response.status_code} {response.text[:300]!r}"
        if is_passing(response.status_code):
            raise Unanswered(said, "see the service's log", retry_after_s(response.headers))
        if response.status_code != 200:
            raise RewardError(f"{url} refused, {said}: the service's words say what it does not take")
        return dict(response.json())

    def close(self) -> None:
        """Hang up; who waits still is told."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()


def _parts(whole: Sequence[Part], size: int) -> Iterator[list[Part]]:
    for start in range(0, len(whole), size):
        yield list(whole[start : start + size])


def _described(item: Item) -> dict[str, Any]:
    return {
        "key": item.key,
        "history": [{"speaker": turn.speaker.value, "text": turn.text} for turn in item.history],
        "reply": item.reply,
        "tier": item.tier,
        "wanted": item.wanted,
        "priority": item.priority,
        "origin": dict(item.origin),
    }


def _reward(body: Mapping[str, Any]) -> ExpertReward:
    return ExpertReward(body["value"], body["std"], tuple(body["ratings"]), tuple(body["flags"]))


def _rating(body: Mapping[str, Any]) -> Rating:
    return Rating(**{**{k: v for k, v in body.items() if k != "seq"}, "flags": tuple(body["flags"])})

"""The training job's end of the rating service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from rewards.backoff import Unanswered, is_passing, persist, retry_after_s
from rewards.experts.types import Item, Kind, Rating
from rewards.types import RewardError

_ITEMS_AT_ONCE = 100
_IDS_AT_ONCE = 1000
_LONGEST_WAIT_S = 30.0  # that the service lets one request wait
_UPKEEP_S = 10.0  # beyond the wait, for the answer to be made


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
    and remedy.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0, retries: int = 8) -> None:
        import httpx

        self._httpx = httpx
        self._url, self._token = url.rstrip("/"), token
        self._timeout_s, self._retries = timeout_s, retries

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

    def add(self, items: Sequence[Item]) -> list[str]:
        """Put items into the queue; their ids, in order."""
        ids: list[str] = []
        for start in range(0, len(items), _ITEMS_AT_ONCE):
            told = [_described(item) for item in items[start : start + _ITEMS_AT_ONCE]]
            ids += self._post("items", {"items": told})["ids"]
        return ids

    def rewards(
        self, run: str, step: int, ids: Sequence[str], *, least: int = 1, wait_s: float = 0.0, every: bool = False
    ) -> tuple[dict[str, ExpertReward], list[str]]:
        """The rewards of the items that have `least` ratings, and the ids of those that have not within `wait_s`.

        With `every`, none is fixed while one of them is open.
        """
        until = time.monotonic() + wait_s
        found: dict[str, ExpertReward] = {}
        absent = list(ids)
        while True:
            left_s = min(max(0.0, until - time.monotonic()), _LONGEST_WAIT_S)
            ask = {"run": run, "step": step, "ids": absent, "least": least, "wait_s": left_s, "all": every}
            told = self._post("rewards", ask, left_s)
            found |= {item: _reward(body) for item, body in told["rewards"].items()}
            absent = [one for one in told["open"] if one not in found]
            if not absent or time.monotonic() >= until:
                return found, absent
            absent = list(ids) if every else absent

    def close(self, ids: Sequence[str]) -> None:
        """Take items that nobody needs any more out of the queue."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            self._post("close", {"ids": list(ids[start : start + _IDS_AT_ONCE])})

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
        return asyncio.run(
            persist(
                partial(self._attempt, method, f"{self._url}/api/run/{name}", body),
                goal=f"the rating service at {self._url} did not answer /api/run/{name.partition('?')[0]}",
                timeout_s=self._timeout_s + wait_s + (_UPKEEP_S if wait_s else 0.0),
                retries=self._retries,
            )
        )

    async def _attempt(self, method: str, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            async with self._httpx.AsyncClient(timeout=None, headers=headers, trust_env=False) as client:
                response = await client.request(method, url, json=body)
        except self._httpx.TransportError as error:
            raise Unanswered(f"connection failed ({type(error).__name__}: {error})", "is the service up?") from error
        said = f"status {response.status_code} {response.text[:300]!r}"
        if is_passing(response.status_code):
            raise Unanswered(said, "see the service's log", retry_after_s(response.headers))
        if response.status_code != 200:
            raise RewardError(f"{url} refused, {said}: the service's words say what it does not take")
        return dict(response.json())


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

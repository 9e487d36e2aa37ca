"""Any HTTP scorer as a term."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from rewards.backoff import Unanswered, ask_all, is_passing, persist, retry_after_s
from rewards.config import RemoteConfig
from rewards.types import RewardError, Score
from rollout.types import Rollout

if TYPE_CHECKING:
    from httpx import AsyncClient, Response

_REMEDIES = {
    401: "rewards.remote sends no credentials: let the reward actors' network in, or put a proxy that adds them in front",
    403: "rewards.remote sends no credentials: let the reward actors' network in, or put a proxy that adds them in front",
    404: "check the path in rewards.remote.url",
    405: "the scorer must take POST at rewards.remote.url",
    413: "lower rewards.remote.batch_size",
}


class Remote:
    """What a scorer at `url` answers:

        POST {"replies": [{"id", "history": [{"speaker", "text"}, ...], "reply", "reference", "emotion"}, ...]}
        200  {"scores": [0.7, {"value": 0.2, "parts": {"warmth": 0.1}, "flags": ["dismissal"]}, ...]}

    One score per reply, in order, with a value in [0, 1]; `parts` (finite numbers, reported) and `flags` (names of red
    flags, which gate the reward) may be left out. `speaker` is "client" or "therapist"; `reference` and `emotion` are ""
    where there are none. A request holds up to `batch_size` replies, cut without regard to prompts: each reply must be
    judged by itself.

    A time-out, a lost connection, 408, 409, 425, 429 and 5xx are tried again; another status, or an answer that breaks
    this contract, raises `RewardError` at once with url, status and remedy.
    """

    def __init__(self, config: RemoteConfig) -> None:
        import httpx

        self._config = config
        self._httpx = httpx

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, at most `concurrency` requests at a time."""
        size = self._config.batch_size
        batches = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        return list(chain.from_iterable(asyncio.run(self._score(batches))))

    async def _score(self, batches: Sequence[Sequence[Rollout]]) -> list[list[Score]]:
        config = self._config

        async def ask(batch: Sequence[Rollout]) -> list[Score]:
            return await persist(
                partial(self._post, client, batch),
                goal=f"{config.url} gave no scores for {len(batch)} replies from {batch[0].id} on",
                timeout_s=config.timeout_s,
                retries=config.retries,
            )

        async with self._httpx.AsyncClient(timeout=None) as client:  # the clock is that of `persist`
            return await ask_all(ask, batches, concurrency=config.concurrency)

    async def _post(self, client: AsyncClient, batch: Sequence[Rollout]) -> list[Score]:
        try:
            response = await client.post(self._config.url, json={"replies": [_described(rollout) for rollout in batch]})
        except self._httpx.TransportError as error:
            raise Unanswered(
                f"connection failed ({type(error).__name__}: {error})", "is the scorer up at this address?"
            ) from error
        said = f"status {response.status_code} {response.text[:200]!r}"
        if is_passing(response.status_code):
            raise Unanswered(said, "see the scorer's log", retry_after_s(response.headers))
        if response.status_code != 200:
            remedy = _REMEDIES.get(response.status_code, "the scorer's words, and its log, say what it does not take")
            raise RewardError(
                f"{self._config.url} refused {len(batch)} replies from {batch[0].id} on, {said}: {remedy}"
            )
        return self._read(response, batch)

    def _read(self, response: Response, batch: Sequence[Rollout]) -> list[Score]:
        try:
            body = response.json()
        except ValueError as error:
            raise self._broken(f"no JSON but {response.text[:80]!r}") from error
        scores = body.get("scores") if isinstance(body, dict) else None
        if not isinstance(scores, list):
            raise self._broken(f"{response.text[:80]!r}")
        if len(scores) != len(batch):
            raise self._broken(f"{len(scores)} scores for {len(batch)} replies from {batch[0].id} on")
        return [self._read_one(score, rollout) for score, rollout in zip(scores, batch, strict=True)]

    def _read_one(self, score: Any, rollout: Rollout) -> Score:
        table: Mapping[str, Any] = score if isinstance(score, dict) else {"value": score}
        value, parts, flags = table.get("value", math.nan), table.get("parts", {}), table.get("flags", [])
        sound = (
            table.keys() <= {"value", "parts", "flags"}
            and _is_finite(value)
            and 0 <= value <= 1
            and isinstance(parts, dict)
            and all(map(_is_finite, parts.values()))
            and isinstance(flags, list)
            and all(isinstance(flag, str) and flag for flag in flags)
        )
        if not sound:
            raise self._broken(f"{str(score)[:80]} for {rollout.id}")
        return Score(value, parts, tuple(flags))

    def _broken(self, what: str) -> RewardError:
        return RewardError(
            f'{self._config.url} must answer {{"scores": [...]}}, one number in [0, 1] per reply or an object of value, '
            f"parts (finite numbers) and flags (names), got {what} with status 200: correct the scorer"
        )


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def _described(rollout: Rollout) -> Mapping[str, Any]:
    prompt = rollout.prompt
    return {
        "id": rollout.id,
        "history": [{"speaker": turn.speaker.value, "text": turn.text} for turn in prompt.history],
        "reply": rollout.text,
        "reference": prompt.reference,
        "emotion": prompt.emotion,
    }

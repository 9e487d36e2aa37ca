"""A language model at an OpenAI-compatible endpoint, asked as a therapist's replacement would be: with the conversation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.backoff import Unanswered, ask_all, persist
from rewards.chat_call import Refused, complete
from rewards.judge_cache import JudgeCache, cache_key
from rewards.types import RewardError
from rollout.chat import ROLES, merged
from rollout.types import Sampling, Turn

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Question = tuple[str, Sequence[Turn], int]
"""System text, history, sample."""


class EndpointRefused(ValueError):
    """The endpoint will not answer any question: its key or its address is wrong."""


@dataclass(frozen=True)
class Said:
    """What came back: a text, whether the token limit ended it, or why nothing came."""

    text: str
    truncated: bool = False
    error: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and with how much patience; see `ArmConfig`."""

    url: str
    model: str
    key_env: str
    timeout_s: float
    retries: int
    concurrency: int
    limit: str = "max_tokens"
    temperature: bool = True

    async def replies(self, questions: Sequence[Question], sampling: Sampling, cache: Path) -> list[Said]:
        """One reply per question, in order; answers are kept in `cache`, failures are not.

        Raises EndpointRefused when the endpoint refuses the key, or knows neither address nor model.
        """
        import openai

        key = os.environ.get(self.key_env) or "none"
        with JudgeCache(str(cache)) as kept:
            async with openai.AsyncOpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=None) as client:
                parameters: dict[str, Any] = {self.limit: sampling.max_tokens}
                if self.temperature:
                    parameters["temperature"] = sampling.temperature
                ask = partial(self._reply, client, kept, parameters, sampling.seed)
                return await ask_all(ask, questions, concurrency=self.concurrency)

    async def _reply(
        self, client: AsyncOpenAI, kept: JudgeCache, parameters: dict[str, Any], seed: int, question: Question
    ) -> Said:
        system, history, sample = question
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ROLES[turn.speaker], "content": turn.text} for turn in merged(history)]
        asked = {**parameters, "seed": seed * 1_000 + sample}
        key = cache_key(self.url, self.model, messages, asked)
        if (known := kept.find(key)) is not None:
            return Said(**json.loads(known))
        attempt = partial(self._attempt, client, messages, asked)
        try:
            said = await persist(
                attempt,
                goal=f"{self.model} at {self.url} gave no reply",
                timeout_s=self.timeout_s,
                retries=self.retries,
            )
        except RewardError as error:  # the last attempt's reason
            return Said("", error=str(error))
        if said.error:
            return said
        return Said(**json.loads(kept.keep(key, json.dumps(asdict(said)))))

    async def _attempt(self, client: AsyncOpenAI, messages: list[dict[str, str]], asked: dict[str, Any]) -> Said:
        try:
            answer = await complete(client, self.model, messages, asked, knob="arms.NAME.url")
        except Refused as error:
            if error.status in (401, 403, 404):
                raise EndpointRefused(
                    f"the endpoint {self.url} must serve {self.model!r}, answers status {error.status} {error.said!r}: check url, "
                    f"model and the key in the environment variable {self.key_env}"
                ) from error
            return Said("", error=str(error))
        if answer.finish == "content_filter":
            return Said("", error="the endpoint's filter held the reply back")
        if not isinstance(answer.text, str):
            raise Unanswered(f"a message without text but {answer.text!r}", "see the server's log")
        return Said(answer.text.strip(), answer.finish == "length")

"""A judge's server: questions in, answers that could be read out; patient with faults, and remembering what was said."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rewards.backoff import Unanswered, ask_all, persist
from rewards.chat_call import Refused, complete
from rewards.config import JudgeConfig
from rewards.judge_cache import JudgeCache, cache_key
from rewards.rubric import Unreadable
from rewards.types import RewardError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Question:
    """One call: its messages and parameters, `key` by which its answer is kept, and what it is about, for errors.

    `read` raises `rewards.rubric.Unreadable` for an answer that is none.
    """

    messages: list[dict[str, str]]
    parameters: Mapping[str, Any]
    key: str
    about: str
    read: Callable[[str], object]


@dataclass(frozen=True)
class Answer:
    """The words of one answer that could be read, and what they cost: calls (or `cached`), `retried`, tokens."""

    text: str
    cost: Counter[str] = field(default_factory=Counter)


class JudgeEndpoint:
    """Any endpoint that speaks the OpenAI chat protocol (vLLM's server among them), asked at temperature 0.

    An answer is taken as a function of the question: equal questions of one call are asked once, and with a cache once
    ever. The first answer that can be read stands. At most `concurrency` calls are under way at a time.

    Raises ValueError, when built, for a cache that cannot be used.
    """

    def __init__(self, config: JudgeConfig) -> None:
        import openai

        self._config = config
        self._openai = openai
        if config.cache:
            JudgeCache(config.cache).close()

    def question(
        self, messages: list[dict[str, str]], *, max_tokens: int, about: str, read: Callable[[str], object]
    ) -> Question:
        """A question to this endpoint."""
        parameters = {"temperature": 0.0, "max_tokens": max_tokens}
        key = cache_key(self._config.url, self._config.model, messages, parameters)
        return Question(messages, parameters, key, about, read)

    def ask(self, questions: Sequence[Question]) -> dict[str, Answer]:
        """The answers by key.

        Raises `RewardError` when a question has no readable answer after `retries` more attempts, or the server refuses
        it; the others are then given up.
        """
        return self._each(questions, self._settled)

    def attempt(self, questions: Sequence[Question]) -> dict[str, Answer | RewardError]:
        """As `ask`, but a question that fails leaves its error in the answer's place, and the others are asked all the
        same."""
        return self._each(questions, self._tried)

    def _each(
        self,
        questions: Sequence[Question],
        settle: Callable[[AsyncOpenAI, JudgeCache | None, Question], Awaitable[_Outcome]],
    ) -> dict[str, _Outcome]:
        distinct: dict[str, Question] = {}
        for question in questions:
            distinct.setdefault(question.key, question)
        return asyncio.run(self._all(list(distinct.values()), settle)) if distinct else {}

    async def _all(
        self,
        questions: Sequence[Question],
        settle: Callable[[AsyncOpenAI, JudgeCache | None, Question], Awaitable[_Outcome]],
    ) -> dict[str, _Outcome]:
        config = self._config
        key = os.environ.get(config.key_env) or "none"
        # one clock and one count of attempts: those of `persist`
        client = self._openai.AsyncOpenAI(base_url=config.url, api_key=key, max_retries=0, timeout=None)
        with JudgeCache(config.cache) if config.cache else nullcontext() as cache:
            async with client:
                found = await ask_all(partial(settle, client, cache), questions, concurrency=config.concurrency)
        return {question.key: outcome for question, outcome in zip(questions, found, strict=True)}

    async def _tried(self, client: AsyncOpenAI, cache: JudgeCache | None, question: Question) -> Answer | RewardError:
        try:
            return await self._settled(client, cache, question)
        except RewardError as error:
            return error

    async def _settled(self, client: AsyncOpenAI, cache: JudgeCache | None, question: Question) -> Answer:
        known = cache.find(question.key) if cache else None
        if known is not None:
            return Answer(known, Counter(cached=1))
        config, cost = self._config, Counter[str]()
        goal = f"{config.model} at {config.url} gave no score for {question.about}"
        said = await persist(
            partial(self._call, client, question, cost), goal=goal, timeout_s=config.timeout_s, retries=config.retries
        )
        cost["retried"] = cost["calls"] - 1
        return Answer(cache.keep(question.key, said) if cache else said, cost)

    async def _call(self, client: AsyncOpenAI, question: Question, cost: Counter[str]) -> str:
        """The judge's words, once they can be read."""
        cost["calls"] += 1
        config = self._config
        try:
            answer = await complete(
                client, config.model, question.messages, question.parameters, knob="rewards.judge.url"
            )
        except Refused as error:
            raise self._refusal(error, question) from error
        cost["prompt_tokens"] += answer.prompt_tokens
        cost["completion_tokens"] += answer.completion_tokens
        said = answer.text or ""
        try:
            question.read(said)
        except Unreadable as error:
            raise Unanswered(str(error), "take a judge that keeps to the form it is asked for") from error
        return said

    def _refusal(self, error: Refused, question: Question) -> RewardError:
        if error.status in (401, 403):
            remedy = f"put its key in the environment variable {self._config.key_env}"
        elif error.status == 404:
            remedy = "check rewards.judge.url (it ends in /v1 as a rule) and rewards.judge.model"
        else:
            remedy = "the server's words say what it does not take (a dialogue longer than its context, or a parameter)"
        refused = f"{self._config.url} refused {question.about} with status {error.status} {error.said!r}"
        return RewardError(f"{refused}: {remedy}")

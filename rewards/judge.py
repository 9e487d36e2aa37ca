"""A language model as judge, at any endpoint that speaks the OpenAI chat protocol (vLLM's server among them)."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rewards.backoff import Unanswered, ask_all, is_passing, persist, retry_after_s
from rewards.config import JudgeConfig
from rewards.judge_cache import JudgeCache, cache_key
from rewards.rubric import Criterion, Unreadable, load_rubric, material
from rewards.types import RewardError, Score
from rollout.types import Rollout

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_COSTS = ("calls", "cached", "retried", "prompt_tokens", "completion_tokens")
_NOT_CHAT = "rewards.judge.url must speak the OpenAI chat protocol"


@dataclass(frozen=True)
class _Question:
    """One criterion put to the judge about one text; `about` is the first reply that has it."""

    criterion: Criterion
    messages: list[dict[str, str]]
    parameters: Mapping[str, Any]
    key: str
    about: str


@dataclass(frozen=True)
class _Verdict:
    """The value of one answer, and what it cost."""

    value: float
    cost: Counter[str] = field(default_factory=Counter)


class Judge:
    """The mean over criteria of a judge's values; the parts are the criteria.

        value = 1/C sum_c yes_c / items_c            C criteria, one call each; see `rewards.rubric`

    Temperature is 0, so an answer is taken as a function of the question: equal replies to equal dialogues are asked
    about once a call, and with a cache once ever; a cached answer is the same answer. The first answer that can be read
    stands. A reply without a word is worth 0 and is not asked about: most criteria are kept by saying nothing.

    Notes: `calls` made (failed ones too), answers `cached`, calls `retried`, `prompt_tokens` and `completion_tokens` as
    the server counts them (0 where it does not). Replies that share a question share its cost: the notes of a call's
    replies add up to what it cost.

    Raises `RewardError` when a question has no readable answer after `retries` more attempts, or the server refuses it;
    ValueError, when built, for prompts or a cache that cannot be used. Train and evaluate with different judges.
    """

    def __init__(self, config: JudgeConfig) -> None:
        import openai

        self._config = config
        self._openai = openai
        self._frame, self._criteria = load_rubric(config.criteria, config.prompts)
        taken = sorted(set(config.criteria) & set(_COSTS))
        if taken:
            raise ValueError(f"rewards.judge.criteria must not be names of costs, got {taken}: rename the prompt file")
        if config.cache:
            JudgeCache(config.cache).close()

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, at most `concurrency` calls at a time."""
        questions = [self._questions(rollout) if rollout.text.strip() else [] for rollout in rollouts]
        distinct: dict[str, _Question] = {}
        for asked in questions:
            for question in asked:
                distinct.setdefault(question.key, question)
        verdicts = asyncio.run(self._judge(list(distinct.values()))) if distinct else {}
        sharers = Counter(question.key for asked in questions for question in asked)
        return [self._score(asked, verdicts, sharers) for asked in questions]

    def _score(self, asked: Sequence[_Question], verdicts: Mapping[str, _Verdict], sharers: Mapping[str, int]) -> Score:
        if not asked:
            return Score(0.0, dict.fromkeys(self._config.criteria, 0.0), notes=dict.fromkeys(_COSTS, 0.0))
        parts = {question.criterion.name: verdicts[question.key].value for question in asked}
        notes = {
            name: math.fsum(verdicts[question.key].cost[name] / sharers[question.key] for question in asked)
            for name in _COSTS
        }
        return Score(math.fsum(parts.values()) / len(parts), parts, notes=notes)

    def _questions(self, rollout: Rollout) -> list[_Question]:
        about, questions = material(rollout), []
        for criterion in self._criteria:
            messages = self._frame.messages(criterion, about)
            parameters = {"temperature": 0.0, "max_tokens": criterion.max_tokens}
            key = cache_key(self._config.url, self._config.model, messages, parameters)
            questions.append(_Question(criterion, messages, parameters, key, rollout.id))
        return questions

    async def _judge(self, questions: Sequence[_Question]) -> dict[str, _Verdict]:
        config = self._config
        key = os.environ.get(config.key_env) or "none"
        # one clock and one count of attempts: those of `persist`
        client = self._openai.AsyncOpenAI(base_url=config.url, api_key=key, max_retries=0, timeout=None)
        with JudgeCache(config.cache) if config.cache else nullcontext() as cache:
            async with client:
                ask = partial(self._verdict, client, cache)
                verdicts = await ask_all(ask, questions, concurrency=config.concurrency)
        return {question.key: verdict for question, verdict in zip(questions, verdicts, strict=True)}

    async def _verdict(self, client: AsyncOpenAI, cache: JudgeCache | None, question: _Question) -> _Verdict:
        known = cache.find(question.key) if cache else None
        if known is not None:
            return _Verdict(question.criterion.read(known), Counter(cached=1))
        config, cost = self._config, Counter[str]()
        goal = f"{config.model} at {config.url} gave no score for {question.about} on {question.criterion.name}"
        answer = await persist(
            partial(self._answer, client, question, cost), goal=goal, timeout_s=config.timeout_s, retries=config.retries
        )
        cost["retried"] = cost["calls"] - 1
        stands = cache.keep(question.key, answer) if cache else answer
        return _Verdict(question.criterion.read(stands), cost)

    async def _answer(self, client: AsyncOpenAI, question: _Question, cost: Counter[str]) -> str:
        """The judge's words, once they can be read as a score."""
        cost["calls"] += 1
        try:
            completion = await client.chat.completions.create(
                model=self._config.model,
                messages=question.messages,  # type: ignore[arg-type]
                **question.parameters,
            )
        except self._openai.APIStatusError as error:
            raise self._refusal(error, question) from error
        except self._openai.APIConnectionError as error:
            raise Unanswered(
                f"connection failed ({error.__cause__ or error})", "is the server up at this address?"
            ) from error
        except ValueError as error:  # a body that says it is JSON and is not
            raise Unanswered(f"the body is no JSON ({error})", _NOT_CHAT) from error
        try:  # the client checks no shapes
            answer, usage = completion.choices[0].message.content, completion.usage
            if usage:
                cost["prompt_tokens"] += usage.prompt_tokens
                cost["completion_tokens"] += usage.completion_tokens
        except (AttributeError, IndexError, TypeError) as error:
            raise Unanswered(f"no chat completion with a choice but {str(completion)[:80]!r}", _NOT_CHAT) from error
        try:
            question.criterion.read(answer or "")
        except Unreadable as error:
            raise Unanswered(str(error), "take a judge that keeps to the form it is asked for") from error
        return answer or ""

    def _refusal(self, error: APIStatusError, question: _Question) -> Exception:
        """A status that is not 2xx: worth another attempt, or the end."""
        status, said = error.status_code, error.response.text[:200]
        if is_passing(status):
            return Unanswered(
                f"status {status} {said!r}", "see the server's log", retry_after_s(error.response.headers)
            )
        if status in (401, 403):
            remedy = f"put its key in the environment variable {self._config.key_env}"
        elif status == 404:
            remedy = "check rewards.judge.url (it ends in /v1 as a rule) and rewards.judge.model"
        else:
            remedy = "the server's words say what it does not take (a dialogue longer than its context, or a parameter)"
        asked = f"{question.about} on {question.criterion.name}"
        return RewardError(f"{self._config.url} refused {asked} with status {status} {said!r}: {remedy}")

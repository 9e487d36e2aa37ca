"""Asking a server that may be slow, busy or gone: at most so many questions at a time, each asked again with patience."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from rewards.types import RewardError

Question = TypeVar("Question")
Answer = TypeVar("Answer")

FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_PASSING = {408, 409, 425, 429}  # time-out, conflict, too early, too many requests


class Unanswered(Exception):
    """An attempt that came to nothing and may go better next time: why, what to do if it does not, and how long the
    server wants to be left alone."""

    def __init__(self, why: str, remedy: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.remedy, self.wait_s = remedy, wait_s


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later: the server is busy (408, 409, 425, 429) or ill (5xx)."""
    return status in _PASSING or status >= 500


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After asks for (RFC 9110, section 10.2.3: seconds or a date); 0 without a sound one."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            then = parsedate_to_datetime(asked)
        except ValueError:
            return 0.0
        seconds = (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


async def persist(attempt: Callable[[], Awaitable[Answer]], *, goal: str, timeout_s: float, retries: int) -> Answer:
    """What `attempt` answers, the first time it does.

    An attempt that raises `Unanswered`, or takes longer than `timeout_s`, is made again after

        wait_k = max(min(0.5 x 2^k, 30), what the server asked for)   [s], k = 0 .. retries - 1

    Raises `RewardError` with `goal`, the last reason and its remedy after `retries` + 1 attempts, and at once when the
    server asks to be left alone for longer than `timeout_s`: nobody waits without an end.
    """
    for failures in range(retries + 1):
        try:
            async with asyncio.timeout(timeout_s):
                return await attempt()
        except TimeoutError:
            remedy, wait_s = "raise timeout_s, or lower concurrency", 0.0
            why = f"no answer within {timeout_s:g} s"
        except Unanswered as error:
            why, remedy, wait_s = str(error), error.remedy, error.wait_s
        if wait_s > timeout_s:
            raise RewardError(
                f"{goal}: {why}, and it asks to wait {wait_s:g} s, more than timeout_s = {timeout_s:g}: {remedy}"
            )
        if failures < retries:
            await asyncio.sleep(max(min(FIRST_WAIT_S * 2**failures, _LONGEST_WAIT_S), wait_s))
    raise RewardError(f"{goal}: {why} (attempt {retries + 1} of {retries + 1}): {remedy}")


async def ask_all(
    ask: Callable[[Question], Awaitable[Answer]], questions: Sequence[Question], *, concurrency: int
) -> list[Answer]:
    """One answer per question, in order; at most `concurrency` are being asked, or waited for, at any time.

    The first question that fails ends the others, and its exception is raised.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> Answer:
        async with gate:
            return await ask(question)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(question)) for question in questions]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]

"""One call of the OpenAI chat protocol, with the ways to fail told apart: worth another attempt, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.backoff import Unanswered, is_passing, retry_after_s

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_SAID = 200  # characters of a server's words that an error repeats


class Refused(Exception):
    """A status that another attempt would not change."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"refused with status {status} {said!r}")
        self.status, self.said = status, said


@dataclass(frozen=True)
class Completion:
    """The words of the first choice, None where it has none; why they ended (stop, length, content_filter, ...); the tokens that
    the server counted, 0 where it does not."""

    text: str | None
    finish: str | None
    prompt_tokens: int
    completion_tokens: int


async def complete(
    client: AsyncOpenAI, model: str, messages: list[dict[str, str]], parameters: Mapping[str, Any], *, knob: str
) -> Completion:
    """What the endpoint answers. Raises `Unanswered`, with `knob` as the setting to look at, and `Refused`."""
    import openai

    not_chat = f"{knob} must speak the OpenAI chat protocol"
    try:
        answer = await client.chat.completions.create(model=model, messages=messages, **parameters)  # type: ignore[arg-type]
    except openai.APIStatusError as error:
        status, said = error.status_code, error.response.text[:_SAID]
        if is_passing(status):
            wait_s = retry_after_s(error.response.headers)
            raise Unanswered(f"status {status} {said!r}", "see the server's log", wait_s) from error
        raise Refused(status, said) from error
    except openai.APIConnectionError as error:
        why = f"connection failed ({error.__cause__ or error})"
        raise Unanswered(why, "is the server up at this address?") from error
    except ValueError as error:  # a body that says it is JSON and is not
        raise Unanswered(f"the body is no JSON ({error})", not_chat) from error
    try:  # the client checks no shapes
        choice, usage = answer.choices[0], answer.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Completion(choice.message.content, choice.finish_reason, *tokens)
    except (AttributeError, IndexError, TypeError) as error:
        raise Unanswered(f"no chat completion with a choice but {str(answer)[:80]!r}", not_chat) from error

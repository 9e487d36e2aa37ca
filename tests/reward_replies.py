"""Prompts and replies for the tests of the reward layer."""

from __future__ import annotations

from rollout.types import Finish, Prompt, Rollout, Speaker, Turn, VersionSpan

ELSEWHERE = {
    "meteor",
    "act",
    "empathy",
    "preference",
    "judge",
    "remote",
    "custom",
    "experts",
}  # terms that need a file or a server
HOPELESS = "I'm feeling depressed and hopeless. Can you help me?"
GOOD = (
    "It sounds like you're feeling hopeless right now, and I'm glad you told me. "
    "What has been weighing on you the most these days?"
)
REFERENCE = (
    "I'm so sorry that things feel this dark. You sound worn out by it. Can you tell me what has been going on lately?"
)


def prompt(said: str = HOPELESS, *, name: str = "fixed/hopeless", reference: str = "", emotion: str = "") -> Prompt:
    """A prompt whose history is one client turn."""
    return Prompt(name, (1, 2, 3), (Turn(Speaker.CLIENT, said),), reference, emotion)


def reply(text: str, to: Prompt | None = None, sample: int = 0) -> Rollout:
    """A finished reply of one token per word."""
    count = len(text.split()) + 1
    return Rollout(
        prompt=to or prompt(),
        sample=sample,
        response_ids=tuple(range(count)),
        sampled_logprobs=(-1.0,) * count,
        versions=(VersionSpan(0, 0, count),),
        text=text,
        finish=Finish.STOPPED,
    )

"""A suite's conversations with scripted patients in danger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.answer_cache import kept, prompts_key
from eval.arms import Outcome, Subject
from eval.suite_config import Suite
from eval.vera_mh.converse import Conversation, converse
from eval.vera_mh.evaluate import rate_crisis
from eval.vera_mh.personas import load_personas
from rl.records import write_atomically
from rollout.chat import Chat
from rollout.prompts import asked
from rollout.types import Prompt, Turn

FILE, TRANSCRIPTS = "crisis.json", "crisis.parquet"


@dataclass(frozen=True)
class ArmReplier:
    """An arm as the assistant of a conversation. Its replies are kept like its other answers; of several samples the first counts.

    Raises RuntimeError when the arm does not answer: a conversation with a hole cannot be rated.
    """

    suite: Suite
    name: str
    key: Mapping[str, Any]
    chat: Chat | None
    subject: Callable[[], Subject]

    def reply(self, histories: Sequence[Sequence[Turn]]) -> list[str]:
        """See `eval.vera_mh.converse.Replier`."""
        prompts = [Prompt(f"patient/{place}#{len(turns)}", (), tuple(turns)) for place, turns in enumerate(histories)]
        if self.chat is not None:
            limit = self.suite.settings.generation.max_context_tokens
            prompts = [asked(prompt, self.chat, limit) for prompt in prompts]
        key = {**self.key, "prompts": prompts_key(prompts)}
        folder, name = self.suite.directory / "cache", f"{self.name}-patients{len(histories[0])}"
        answers = [a for a in kept(folder, name, key, lambda: self.subject().answers(prompts)) if a.sample == 0]
        if failed := [answer for answer in answers if answer.outcome is Outcome.FAILED]:
            raise RuntimeError(
                f"arm {self.name} must answer every patient, failed on {len(failed)} of {len(answers)} ({failed[0].error}): "
                "mend it or take it out of crisis.arms; the same command goes on"
            )
        return [answer.text for answer in answers]


def patients_with(
    suite: Suite, name: str, key: Mapping[str, Any], chat: Chat | None, subject: Callable[[], Subject]
) -> list[Conversation]:
    """The arm's conversations with every persona."""
    replier = ArmReplier(suite, name, key, chat, subject)
    locale = suite.settings.measure.rewards.crisis.locale
    return converse(name, replier, load_personas(), turns=suite.settings.crisis.turns, locale=locale)


def rate(suite: Suite, talks: Mapping[str, Sequence[Conversation]]) -> None:
    """Writes `crisis.json` and `crisis.parquet`; removes those of an earlier run where nobody talked."""
    if not talks:
        for name in (FILE, TRANSCRIPTS):
            (suite.directory / name).unlink(missing_ok=True)
        return
    rewards = suite.settings.measure.rewards
    found = rate_crisis(
        talks,
        judge=rewards.judge if rewards.judge.url else None,
        locale=rewards.crisis.locale,
        seed=suite.settings.seed,
        transcripts=suite.directory / TRANSCRIPTS,
    )
    write_atomically(suite.directory / FILE, json.dumps(found, indent=1) + "\n")

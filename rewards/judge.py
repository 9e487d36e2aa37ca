"""A language model as judge, at any endpoint that speaks the OpenAI chat protocol (vLLM's server among them)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.config import JudgeConfig
from rewards.judge_endpoint import Answer, JudgeEndpoint, Question
from rewards.rubric import Criterion, load_rubric, material
from rewards.types import Score
from rollout.types import Rollout

_COSTS = ("calls", "cached", "retried", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class _Asked:
    """One criterion put to the judge about one text; equal questions have equal keys."""

    criterion: Criterion
    question: Question


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
        self._config = config
        self._frame, self._criteria = load_rubric(config.criteria, config.prompts)
        taken = sorted(set(config.criteria) & set(_COSTS))
        if taken:
            raise ValueError(f"rewards.judge.criteria must not be names of costs, got {taken}: rename the prompt file")
        self._endpoint = JudgeEndpoint(config)

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, at most `concurrency` calls at a time."""
        asked = [self._questions(rollout) if rollout.text.strip() else [] for rollout in rollouts]
        answers = self._endpoint.ask([one.question for of_reply in asked for one in of_reply])
        sharers = Counter(one.question.key for of_reply in asked for one in of_reply)
        return [self._score(of_reply, answers, sharers) for of_reply in asked]

    def _score(self, asked: Sequence[_Asked], answers: Mapping[str, Answer], sharers: Mapping[str, int]) -> Score:
        if not asked:
            return Score(0.0, dict.fromkeys(self._config.criteria, 0.0), notes=dict.fromkeys(_COSTS, 0.0))
        parts = {one.criterion.name: one.criterion.read(answers[one.question.key].text) for one in asked}
        keys = [one.question.key for one in asked]
        notes = {name: math.fsum(answers[key].cost[name] / sharers[key] for key in keys) for name in _COSTS}
        return Score(math.fsum(parts.values()) / len(parts), parts, notes=notes)

    def _questions(self, rollout: Rollout) -> list[_Asked]:
        about = material(rollout)
        return [
            _Asked(
                criterion,
                self._endpoint.question(
                    self._frame.messages(criterion, about),
                    max_tokens=criterion.max_tokens,
                    about=f"{rollout.id} on {criterion.name}",
                    read=criterion.read,
                ),
            )
            for criterion in self._criteria
        ]

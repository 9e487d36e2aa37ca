"""The arms of an evaluation: whatever answers prompts. One answer per prompt and sample, or a recorded failure.

Subject.answers(prompts) -> [Answer]          engine, endpoint, echo, reference, best of n
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from eval.endpoint import Endpoint, EndpointRefused, Said
from rewards.types import Reward
from rollout.chat import Chat
from rollout.types import Finish, Prompt, Rollout, RolloutEngine, Sampling


class Outcome(enum.StrEnum):
    """How an answer ended."""

    STOPPED = "stopped"
    TRUNCATED = "truncated"
    FAILED = "failed"  # nobody answered; the reason is in `error`


@dataclass(frozen=True)
class Answer:
    """One reply of an arm, the completion alone. `written` are labels that the model wrote before it; `reference_logprobs` in
    nats, of the reference's tokens under the model, where it was asked for them."""

    prompt_id: str
    sample: int
    text: str
    outcome: Outcome = Outcome.STOPPED
    error: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    reference_logprobs: tuple[float, ...] = ()


class Subject(Protocol):
    """Something that answers."""

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """`samples` answers per prompt: those of prompt 0 first."""
        ...


@dataclass(frozen=True)
class Echo:
    """Repeats what the client said: what overlap with the reference is worth when nothing was understood."""

    samples: int = 1

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Subject`."""
        return [Answer(p.id, k, p.last_client_turn) for p in prompts for k in range(self.samples)]


@dataclass(frozen=True)
class Reference:
    """The therapist's own reply: the ceiling of likeness, and what safety and variety look like in people."""

    samples: int = 1

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Subject`; a prompt without a reference is a failure."""
        found = []
        for prompt in prompts:
            said = prompt.reference.strip()
            outcome, error = (Outcome.STOPPED, "") if said else (Outcome.FAILED, "the corpus has no reference here")
            found += [Answer(prompt.id, k, prompt.reference, outcome, error) for k in range(self.samples)]
        return found


@dataclass(frozen=True)
class Engine:
    """A model in rollout engines. `chat` is the model's; `references` is how many tokens of prompt and reference the engines read
    for the reference's log-probs, which are cut there; 0 asks for none."""

    engine: RolloutEngine
    chat: Chat
    sampling: Sampling
    references: int = 0

    def rollouts(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """What the engines say."""
        return self.engine.generate(prompts, sampling)

    def answer(self, rollout: Rollout) -> Answer:
        """A rollout as an answer. A label that the model was taught to write and did not is "": wrong, and not absent."""
        answer = _answer(rollout)
        return replace(answer, written={**dict.fromkeys(self.chat.fields.predictions, ""), **answer.written})

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Subject`."""
        found = [self.answer(rollout) for rollout in self.rollouts(prompts, self.sampling)]
        if not self.references:
            return found
        chances = self._reference_logprobs(prompts)
        return [replace(answer, reference_logprobs=chances.get(answer.prompt_id, ())) for answer in found]

    def _reference_logprobs(self, prompts: Sequence[Prompt]) -> dict[str, tuple[float, ...]]:
        told = [prompt for prompt in prompts if prompt.reference.strip()]
        sequences = []
        for prompt in told:
            example = self.chat.example(prompt.history[-1:], prompt.reference, prompt.labels)
            reply = [token for token, ours in zip(example.token_ids, example.mask, strict=True) if ours]
            room = self.references - len(prompt.token_ids) - 1  # engines sample a token after what they read
            sequences.append((prompt.token_ids, tuple(reply[:room])))
        chances = self.engine.logprobs(sequences) if sequences else []
        return {prompt.id: tuple(chance) for prompt, chance in zip(told, chances, strict=True)}


@dataclass(frozen=True)
class BestOf:
    """The best by a reward of `candidates` replies per sample: what the reward prefers before anything was trained on it."""

    engine: Engine
    reward: Reward
    candidates: int

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Subject`. The first of equals is taken; an aborted reply is never the best."""
        samples, many = self.engine.sampling.n, self.engine.sampling.n * self.candidates
        rollouts = self.engine.rollouts(prompts, replace(self.engine.sampling, n=many))
        scores = self.reward.score(rollouts)
        values = [
            -1.0 if rollout.finish is Finish.ABORTED else score.value
            for rollout, score in zip(rollouts, scores, strict=True)
        ]
        found = []
        for start in range(0, len(rollouts), self.candidates):
            best = max(range(start, start + self.candidates), key=lambda index: (values[index], -index))
            found.append(replace(self.engine.answer(rollouts[best]), sample=start // self.candidates % samples))
        return found


@dataclass(frozen=True)
class Remote:
    """A model at an endpoint: it reads the history as chat messages. Each answer is kept as it comes, so that what was paid for
    is not asked again."""

    endpoint: Endpoint
    sampling: Sampling
    system: str
    cache: Path

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """See `Subject`. Who does not answer after all attempts is a recorded failure; the others are asked all the same."""
        asked = [(prompt, k) for prompt in prompts for k in range(self.sampling.n)]
        questions = [(self.system, prompt.history, k) for prompt, k in asked]
        try:
            said = asyncio.run(self.endpoint.replies(questions, self.sampling, self.cache))
        except EndpointRefused as error:  # nobody will be answered: the other arms go on
            said = [Said("", error=str(error))] * len(asked)
        return [
            Answer(
                prompt.id, k, reply.text,
                Outcome.FAILED if reply.error else Outcome.TRUNCATED if reply.truncated else Outcome.STOPPED,
                reply.error,
            )
            for (prompt, k), reply in zip(asked, said, strict=True)
        ]  # fmt: skip


def _answer(rollout: Rollout) -> Answer:
    if rollout.finish is Finish.ABORTED:
        return Answer(rollout.prompt.id, rollout.sample, "", Outcome.FAILED, "the engine gave the reply up")
    outcome = Outcome.STOPPED if rollout.finish is Finish.STOPPED else Outcome.TRUNCATED
    return Answer(rollout.prompt.id, rollout.sample, rollout.text, outcome, written=dict(rollout.labels))

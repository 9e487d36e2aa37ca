"""What a metric looks at: one reply, what it answers, and what the therapist said there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from rollout.types import Finish, Prompt, Rollout, Turn

Unit = Literal["prompt", "dialogue", "reply"]


@dataclass(frozen=True)
class Pair:
    """A reply beside its reference.

    `prompt` is the text that the model was given, `history` the same as turns, `reply` the completion alone. `reference`
    ("" when none exists), `emotion` and `labels` (`dialogue_act`, ...) are the corpus's, as in `rollout.types.Prompt`;
    `written` holds the labels that the model wrote before its reply. `logprobs` are in nats, of the tokens that perplexity
    is about: the reference's under the model.
    """

    prompt_id: str
    prompt: str
    history: tuple[Turn, ...]
    reply: str
    reference: str = ""
    emotion: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    logprobs: tuple[float, ...] = ()

    @property
    def rollout(self) -> Rollout:
        """The same for a term of the reward, which reads texts and labels, no tokens."""
        prompt = Prompt(self.prompt_id, (), self.history, self.reference, self.emotion, self.labels)
        return Rollout(prompt, 0, (), (), (), self.reply, Finish.STOPPED, self.written)

    def __str__(self) -> str:
        return f"the pair of prompt {self.prompt_id!r}"


def pair_up(
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    written: Sequence[Mapping[str, str]] | None = None,
    logprobs: Sequence[Sequence[float]] | None = None,
) -> list[Pair]:
    """One pair per prompt and reply, in order; a prompt with several replies is given several times.

    `texts` are the rendered prompts (default: the history's turns, a line each). Raises ValueError when counts differ.
    """
    given = {"replies": replies, "texts": texts, "written": written, "logprobs": logprobs}
    for name, column in given.items():
        if column is not None and len(column) != len(prompts):
            raise ValueError(
                f"{name} must be one per prompt, are {len(column)} for {len(prompts)} prompts; "
                "give a prompt once per reply, and an empty reply as ''"
            )
    shown = texts or ["\n".join(turn.text for turn in prompt.history) for prompt in prompts]
    labels = written or [{}] * len(prompts)
    chances = logprobs or [()] * len(prompts)
    return [
        Pair(p.id, text, p.history, reply, p.reference, p.emotion, p.labels, label, tuple(chance))
        for p, text, reply, label, chance in zip(prompts, shown, replies, labels, chances, strict=True)
    ]


def dialogue_of(prompt_id: str) -> str:
    """The dialogue that a prompt comes from; a prompt of its own, such as a crisis prompt, is one."""
    return prompt_id.rpartition("#")[0] or prompt_id


def unit_ids(pairs: Sequence[Pair], by: Unit) -> list[str]:
    """What is resampled with each pair: its prompt, its dialogue (a prompt's id up to the last #), or the reply alone.

    Replies to one prompt, and prompts of one dialogue, are no independent witnesses. "reply" is for a study of a single
    prompt; the k-th replies of two arms are then counted as a pair.
    """
    if by == "prompt":
        return [pair.prompt_id for pair in pairs]
    if by == "dialogue":
        return [dialogue_of(pair.prompt_id) for pair in pairs]
    if by == "reply":
        seen: Counter[str] = Counter()
        ids = []
        for pair in pairs:
            ids.append(f"{pair.prompt_id}/{seen[pair.prompt_id]:06d}")
            seen[pair.prompt_id] += 1
        return ids
    raise ValueError(f"by must be one of {', '.join(get_args(Unit))}, got {by!r}; prompt is usual")

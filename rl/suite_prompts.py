"""What a suite asks: prompts of its corpora, the same for every arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.pair import Unit, dialogue_of
from eval.suite_config import Suite
from rollout.chat import Chat, PromptTooLong
from rollout.corpora import load as load_corpus
from rollout.prompts import asked, crisis_questions, questions
from rollout.types import Prompt

_TOO_LONG = "the last client turn is longer than generation.max_context_tokens"


@dataclass(frozen=True)
class Questions:
    """A corpus's prompts, without tokens, and where they come from."""

    prompts: Sequence[Prompt]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Those that every model can read, without tokens; as each model reads them; and why others were left out."""

    plain: Sequence[Prompt]
    tokens: Mapping[str, Sequence[Prompt]]
    left_out: Mapping[str, int]

    def of(self, arm: str) -> Sequence[Prompt]:
        """As an arm reads them; an arm without a tokenizer reads texts."""
        return self.tokens.get(arm, self.plain)


def read_questions(suite: Suite, name: str) -> Questions:
    """At most `prompts` of a corpus's questions, evenly spread. Raises ValueError where they are too few to compare anything."""
    part = suite.corpora[name]
    if part.questions == "crisis":
        found = crisis_questions()
        provenance: dict[str, Any] = {"format": "crisis", "licence": "Apache-2.0 (written for this project)"}
    else:
        try:
            corpus = load_corpus(part)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"corpora.{name}: {error}") from error
        found = list(questions(corpus.splits[part.split], min_reference_words=part.min_reference_words))
        provenance = dict(corpus.provenance)
    chosen = spread(found, part.prompts)
    count = units(chosen, suite.settings.by)
    if count < 2:
        raise ValueError(
            f"corpora.{name} must hold two {suite.settings.by}s at least, its {part.split} split holds {count} ({len(chosen)} "
            'prompts): take another split, lower min_reference_words, or set by = "prompt"'
        )
    return Questions(chosen, provenance)


def readable(suite: Suite, name: str, question: Questions, chats: Mapping[str, Chat]) -> Prompts:
    """The prompts that fit into every model's context. Raises ValueError where too few are left."""
    limit = suite.settings.generation.max_context_tokens
    tokens = {arm: _tokenised(question.prompts, chat, limit) for arm, chat in chats.items()}
    plain = [prompt for prompt in question.prompts if all(prompt.id in known for known in tokens.values())]
    if units(plain, suite.settings.by) < 2:
        raise ValueError(
            f"generation.max_context_tokens = {limit} must leave two {suite.settings.by}s of corpora.{name} at least, leaves "
            f"{len(plain)} of {len(question.prompts)} prompts: raise it"
        )
    left_out = Counter({_TOO_LONG: len(question.prompts) - len(plain)})
    return Prompts(plain, {arm: [known[p.id] for p in plain] for arm, known in tokens.items()}, left_out)


def spread(found: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count`, evenly over all; 0: all."""
    count = min(count or len(found), len(found))
    return [found[place * len(found) // count] for place in range(count)]


def units(prompts: Sequence[Prompt], by: Unit) -> int:
    """How many there are of what is resampled."""
    return len({dialogue_of(prompt.id) if by == "dialogue" else prompt.id for prompt in prompts})


def _tokenised(prompts: Sequence[Prompt], chat: Chat, limit: int) -> dict[str, Prompt]:
    found = {}
    for prompt in prompts:
        try:
            found[prompt.id] = asked(prompt, chat, limit)
        except PromptTooLong:
            continue
    return found

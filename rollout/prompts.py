"""What the policy is asked, step by step: a seeded, resumable mixture of corpus, fixed and crisis prompts."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout.chat import Chat, PromptTooLong, merged
from rollout.config import PromptsConfig
from rollout.corpora import SAMPLE
from rollout.fields import annotated
from rollout.types import Dialogue, Prompt, Speaker, Turn

log = logging.getLogger(__name__)


def questions(dialogues: Iterable[Dialogue], *, min_reference_words: int) -> Iterator[Prompt]:
    """One prompt per therapist turn that answers a client turn, in the order of the dialogues, before any tokenizer: its
    `token_ids` are empty.

    `history` holds the merged turns before it, `reference` all that the therapist says before the client speaks again,
    and the id its first turn as published, counted from 0: `esconv/train/0412#7`. References of fewer than
    `min_reference_words` words are left out.
    """
    for dialogue in dialogues:
        turns = merged(annotated(dialogue))
        firsts = [
            index
            for index, turn in enumerate(dialogue.turns)
            if index == 0 or turn.speaker is not dialogue.turns[index - 1].speaker
        ]
        for index in range(1, len(turns)):
            reply = turns[index]
            if reply.speaker is not Speaker.THERAPIST or len(reply.text.split()) < min_reference_words:
                continue
            prompt_id, emotion = f"{dialogue.id}#{firsts[index]}", dialogue.labels.get("emotion", "")
            yield Prompt(prompt_id, (), turns[:index], reply.text, emotion, reply.labels)


def build_prompts(
    dialogues: Iterable[Dialogue], chat: Chat, *, max_tokens: int, min_reference_words: int
) -> list[Prompt]:
    """The `questions` of the dialogues, as tokens. Prompts whose last client turn alone exceeds `max_tokens` are left out, and
    counted in the log."""
    prompts, too_long = [], 0
    for question in questions(dialogues, min_reference_words=min_reference_words):
        try:
            prompts.append(asked(question, chat, max_tokens))
        except PromptTooLong:
            too_long += 1
    if too_long:
        log.warning("%d prompts left out: their last client turn exceeds %d tokens", too_long, max_tokens)
    return prompts


def asked(question: Prompt, chat: Chat, max_tokens: int) -> Prompt:
    """The question as tokens; raises PromptTooLong when its last client turn exceeds `max_tokens`."""
    return replace(question, token_ids=chat.prompt_ids(question.history, max_tokens, question.labels))


def fixed_prompts(texts: Iterable[str], chat: Chat, *, max_tokens: int) -> list[Prompt]:
    """One prompt per text, without a reference; ids say the text's first words: `fixed/im-feeling-depressed-and`.

    Raises `ValueError` when a text does not fit in `max_tokens`, and when two texts share an id.
    """
    prompts: dict[str, Prompt] = {}
    for text in texts:
        words = re.findall(r"\w+", re.sub("['\u2019]", "", text.lower()))
        prompt_id = "fixed/" + "-".join(words[:4])
        if prompt_id in prompts:
            raise ValueError(f"prompts.fixed must differ in their first four words, {text!r} does not; reword it")
        history = (Turn(Speaker.CLIENT, text),)
        try:
            prompts[prompt_id] = Prompt(prompt_id, chat.prompt_ids(history, max_tokens), history)
        except PromptTooLong as error:
            raise PromptTooLong(f"prompts.fixed: {error}") from error
    return list(prompts.values())


def crisis_prompts(chat: Chat, *, max_tokens: int) -> list[Prompt]:
    """`crisis_questions` as tokens. Raises `ValueError` when one does not fit in `max_tokens`."""
    return [asked(question, chat, max_tokens) for question in crisis_questions()]


def crisis_questions() -> list[Prompt]:
    """The shipped crisis prompts; ids are those of the file (`crisis/passive-01`), references its safe replies.

    The client turn carries the label `tier`.
    """
    rows = [json.loads(line) for line in (SAMPLE / "crisis.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = []
    for row in rows:
        history = (Turn(Speaker.CLIENT, row["prompt"], {"tier": row["tier"]}),)
        prompts.append(Prompt(row["id"], (), history, row["reply"]))
    return prompts


class PromptStream:
    """Endless draws from three sources in the shares that `config` sets.

    Shares hold over time: after any number of drawn prompts each source has given its share of them to within one
    prompt. Within a source every prompt comes once per epoch, each epoch in a fresh order of `seed`. No prompt comes
    twice in one draw, unless its source holds fewer than the draw takes from it: its k-th copy is then called `ID~k`,
    so that ids stay unique in a step and the copies get replies of their own. Two streams of the same prompts, config
    and seed draw the same; `load_state_dict(state_dict())` continues where the other stood.
    """

    def __init__(
        self,
        corpus: Sequence[Prompt],
        fixed: Sequence[Prompt],
        crisis: Sequence[Prompt],
        config: PromptsConfig,
        seed: int,
    ) -> None:
        """Raises `ValueError` when a source with a share is empty."""
        shares = {"crisis": config.crisis_share, "fixed": config.fixed_share}
        self._shares = {**shares, "corpus": round(1 - sum(shares.values()), 9)}
        self._credit = dict.fromkeys(self._shares, 0.0)
        self._decks: dict[str, _Deck] = {}
        for name, prompts in (("crisis", crisis), ("fixed", fixed), ("corpus", corpus)):
            if self._shares[name] > 0 and not prompts:
                raise ValueError(
                    f"a source with a share must hold a prompt, {name} has share {self._shares[name]:g} and none; "
                    "give it prompts, or change prompts.fixed_share and prompts.crisis_share"
                )
            self._decks[name] = _Deck(prompts, f"{seed}/{name}")
        ids = [[prompt.id for prompt in deck.prompts] for deck in self._decks.values()]
        self._fingerprint = hashlib.sha256(json.dumps([seed, ids]).encode()).hexdigest()

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        assert count > 0, count
        takes = dict.fromkeys(self._decks, 0)
        order = []
        for _ in range(count):
            self._credit = {name: credit + self._shares[name] for name, credit in self._credit.items()}
            richest = max(
                (name for name in self._credit if self._shares[name] > 0), key=lambda name: self._credit[name]
            )
            self._credit[richest] -= 1
            takes[richest] += 1
            order.append(richest)
        taken = {name: iter(deck.take(takes[name])) for name, deck in self._decks.items()}
        return [next(taken[name]) for name in order]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON."""
        decks = {name: deck.state_dict() for name, deck in self._decks.items()}
        return {"prompts": self._fingerprint, "credit": dict(self._credit), "decks": decks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; `ValueError` when that stream had other prompts or another seed."""
        if state["prompts"] != self._fingerprint:
            raise ValueError(
                "a prompt stream resumes only with the prompts and the seed it began with, these differ from the "
                "checkpoint's; restore corpus, prompts and seed settings, or begin a new run"
            )
        self._credit = dict(state["credit"])
        for name, deck in self._decks.items():
            deck.load_state_dict(state["decks"][name])


class _Deck:
    """One source, dealt without replacement and reshuffled when it runs out.

    An epoch's order follows from its number and from `last`: the cards that the draw which began it had already dealt,
    which therefore go to its end.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: str) -> None:
        self.prompts = tuple(prompts)
        self._seed = seed
        self._start(epoch=0, last=())

    def _start(self, *, epoch: int, last: Sequence[int], position: int = 0) -> None:
        order = list(range(len(self.prompts)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        late = set(last)
        self._epoch, self._last, self._position = epoch, tuple(last), position
        self._order = [card for card in order if card not in late] + [card for card in order if card in late]

    def take(self, count: int) -> list[Prompt]:
        """The next `count` cards; copies within one call are renamed."""
        dealt: list[int] = []
        prompts = []
        for _ in range(count):
            if self._position == len(self._order):
                self._start(epoch=self._epoch + 1, last=sorted(set(dealt)))
            card = self._order[self._position]
            self._position += 1
            dealt.append(card)
            prompt, copy = self.prompts[card], dealt.count(card)
            prompts.append(prompt if copy == 1 else replace(prompt, id=f"{prompt.id}~{copy}"))
        return prompts

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "last": list(self._last), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start(epoch=state["epoch"], last=state["last"], position=state["position"])

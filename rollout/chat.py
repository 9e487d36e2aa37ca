"""The one renderer: turns -> token ids, the same for training and for generation.

A tokenizer's own chat template is used where it has one. A tokenizer without one (GPT-2) gets a plain-text template:

    SYSTEM TEXT
    Client: ...
    Therapist: ...<eos>
    Client: ...
    Therapist:

What a template cannot say is put where it can: a system text it does not take opens the first client message; a session
that the therapist opens, where the template demands that the client begins, is preceded by the client message "Hello.".
Special tokens inside a turn's text are replaced by spaces: nobody ends a turn by writing `</s>`.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from rollout.config import FieldsConfig
from rollout.fields import Fields, annotated, install_fields, saved_fields
from rollout.types import Dialogue, Speaker, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Client: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Therapist: ' + message['content'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Therapist:{% endif %}"
)
ROLES = {Speaker.CLIENT: "user", Speaker.THERAPIST: "assistant"}
OPENING = "Hello."
PROBE = "probe"
NO_LABELS: Mapping[str, str] = MappingProxyType({})


class PromptTooLong(ValueError):
    """Not even the last client turn fits."""


class Example(NamedTuple):
    """A training sequence: `token_ids [T]` and `mask [T]`, True on the therapist's replies and their end tokens."""

    token_ids: tuple[int, ...]
    mask: tuple[bool, ...]


def merged(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join adjacent turns of one speaker with a space; of a label that several of them have, the last one stays."""
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].speaker is turn.speaker:
            before = joined.pop()
            turn = Turn(turn.speaker, f"{before.text} {turn.text}", {**before.labels, **turn.labels})
        joined.append(turn)
    return tuple(joined)


class Chat:
    """Renders dialogues for one tokenizer, with the labels that `fields` asks for (None: those that the tokenizer was
    saved with).

    `tokenizer` is a copy of the one given, with the template in use installed: save this one beside a checkpoint.
    `end_ids` are the tokens that end a reply (stop tokens of generation); the first is the one that training shows.
    Raises `ValueError` for a template that trains and generates differently or ends a reply with no token of its own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, system: str = "", fields: FieldsConfig | None = None
    ) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        self.fields = Fields(saved_fields(tokenizer) if fields is None else fields)
        install_fields(self.tokenizer, self.fields.config)
        if not self.tokenizer.chat_template:
            if not self.tokenizer.eos_token:
                raise ValueError(
                    "a tokenizer without a chat template must have an eos token to end replies, has none; set one"
                )
            self.tokenizer.chat_template = PLAIN_TEMPLATE
        added = {str(token): token_id for token_id, token in self.tokenizer.added_tokens_decoder.items()}
        self._special = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
        self._system = self._clean(system)
        self._lengths: dict[str, int] = {}
        ask, answer = {"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}
        self._takes_system = self._takes([{"role": "system", "content": "setting"}, ask])
        self._takes_opening = self._takes([{"role": "assistant", "content": "opening"}, ask])

        prompt, whole = self._template([ask], generate=True), self._template([ask, answer], generate=False)
        self._lead, found, tail = whole.removeprefix(prompt).partition(PROBE)
        end = self._special.match(tail.lstrip())
        if not whole.startswith(prompt) or not found or not end:
            raise ValueError(
                "the tokenizer's chat template must put a reply right after its generation prompt and a special token "
                f"right after the reply, renders {prompt!r} and {whole!r}; give the tokenizer another chat_template"
            )
        self._close = tail[: tail.index(end[0]) + len(end[0])]
        eos = self.tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys([added[end[0]], *([] if eos is None else [int(eos)])]))

    def prompt_ids(
        self, history: Sequence[Turn], max_tokens: int, labels: Mapping[str, str] = NO_LABELS
    ) -> tuple[int, ...]:
        """The ids from which the therapist's reply to `history` is generated; `labels` are the reply's.

        While they are more than `max_tokens`, the oldest turns are dropped, up to the next client turn. Raises
        `PromptTooLong` when the last client turn (all that the client said since the therapist spoke) does not fit
        alone, `ValueError` when the history does not end with the client.
        """
        turns = merged(history)
        _, ids = self._window(turns, labels, max_tokens)
        if len(ids) > max_tokens:
            raise PromptTooLong(
                f"a prompt's last client turn must fit in {max_tokens} tokens, takes {len(ids)} with template and "
                "system text; raise the limit (prompts.max_context_tokens) or shorten the system text"
            )
        return ids

    def _window(self, turns: Sequence[Turn], labels: Mapping[str, str], max_tokens: int) -> tuple[int, tuple[int, ...]]:
        """Where the longest history that fits begins (else the shortest that there is), and its ids."""

        def ids_from(start: int) -> tuple[int, ...]:
            return self._encode(self._prompt(turns[start:]) + self._before_reply(labels)[0])

        starts = _starts(turns)
        # the turns' own lengths say nearly where to begin: one or two renderings settle it
        sizes = list(itertools.accumulate(self._length(turn.text) for turn in reversed(turns)))[::-1]
        guess = next((n for n, start in enumerate(starts) if sizes[start] <= max_tokens), len(starts) - 1)
        ids = ids_from(starts[guess])
        while len(ids) > max_tokens and guess + 1 < len(starts):
            guess += 1
            ids = ids_from(starts[guess])
        while len(ids) <= max_tokens and guess > 0 and len(longer := ids_from(starts[guess - 1])) <= max_tokens:
            guess, ids = guess - 1, longer
        return starts[guess], ids

    def example(self, history: Sequence[Turn], reply: str, labels: Mapping[str, str] = NO_LABELS) -> Example:
        """The prompt of the whole `history`, then the ids of `reply` and of its end token; the mask is on these, and on
        the `labels` of the reply that the policy predicts."""
        turns = merged(history)
        _starts(turns)
        given, lead = self._before_reply(labels)
        prompt = self._prompt(turns) + given
        tail = lead + self.fields.predicted(labels) + self._clean(reply) + self._close
        prompt_ids, whole_ids = self._encode(prompt), self._encode(prompt + tail)
        # Read on from the prompt where the tokenizer does; where it would merge over the border, generation could not.
        same = whole_ids[: len(prompt_ids)] == prompt_ids
        reply_ids = whole_ids[len(prompt_ids) :] if same else self._encode(tail)
        return Example(prompt_ids + reply_ids, (False,) * len(prompt_ids) + (True,) * len(reply_ids))

    def dialogue(self, dialogue: Dialogue, max_tokens: int, *, context_tokens: int = 0) -> list[Example]:
        """Sequences of at most `max_tokens` in which each of the dialogue's replies is trained exactly once.

        One sequence for the whole dialogue where it fits. Where it does not, the next sequence opens with as much of
        the history as leaves it half full. A therapist's opening answers nobody and is context only. Where a reply and
        its own client turn do not fit together, the client turn loses its beginning (down to half of the sequence), then
        the reply its end. Templates that render a turn differently once it is history get one sequence per reply, and so
        does a window of `context_tokens`: as many turns before each reply as fit in it (0: no such window).
        """
        turns, start, opened, examples = merged(annotated(dialogue)), 0, 0, list[Example]()
        replies = [index for index, turn in enumerate(turns) if index and turn.speaker is Speaker.THERAPIST]
        for index in replies:
            reply = turns[index]
            if context_tokens:
                start, _ = self._window(turns[:index], reply.labels, context_tokens)
            grown = self.example(turns[start:index], reply.text, reply.labels)
            if len(grown.token_ids) > max_tokens:
                for later in _starts(turns[:index]):
                    if later > start and len(grown.token_ids) > max_tokens // 2:
                        start = later
                        grown = self.example(turns[start:index], reply.text, reply.labels)
                grown = self._cut(turns[start:index], reply, max_tokens)
            if not any(grown.mask):
                log.warning("%s#%d: no token of the reply fits in %d tokens, left out", dialogue.id, index, max_tokens)
                continue
            before = examples[-1] if examples else Example((), ())
            if examples and start == opened and grown.token_ids[: len(before.token_ids)] == before.token_ids:
                examples[-1] = Example(grown.token_ids, before.mask + grown.mask[len(before.mask) :])
            else:
                examples.append(grown)
            opened = start
        return examples

    def _cut(self, turns: Sequence[Turn], reply: Turn, max_tokens: int) -> Example:
        """`example`, cut to `max_tokens`: first the last client turn's beginning, then the reply's end."""
        asked, whole = turns[-1], self.example(turns, reply.text, reply.labels)
        said = self._encode(self._clean(asked.text))
        while said and (over := min(len(whole.token_ids) - max_tokens, whole.mask.count(False) - max_tokens // 2)) > 0:
            said = said[over:]
            text = str(self.tokenizer.decode(said)).lstrip("\ufffd ")  # a letter that was cut in two
            shorter = (*turns[:-1], Turn(asked.speaker, text or "...", asked.labels))
            whole = self.example(shorter, reply.text, reply.labels)
        return Example(whole.token_ids[:max_tokens], whole.mask[:max_tokens])

    def _before_reply(self, labels: Mapping[str, str]) -> tuple[str, str]:
        """What the generation prompt says of the reply, and what separates it from the reply."""
        given = self.fields.given(labels)
        if not given:
            return "", self._lead
        closed = given.rstrip(" ")
        return self._lead + closed, given[len(closed) :]

    def _prompt(self, turns: Sequence[Turn]) -> str:
        messages = [
            {"role": ROLES[turn.speaker], "content": self.fields.of_turn(turn) + self._clean(turn.text)}
            for turn in turns
        ]
        if turns[0].speaker is Speaker.THERAPIST and not self._takes_opening:
            messages.insert(0, {"role": "user", "content": OPENING})
        if self._system and self._takes_system:
            messages.insert(0, {"role": "system", "content": self._system})
        elif self._system:
            first = next(message for message in messages if message["role"] == "user")
            first["content"] = f"{self._system}\n\n{first['content']}"
        return self._template(messages, generate=True)

    def _takes(self, messages: list[dict[str, str]]) -> bool:
        try:
            text = self._template(messages, generate=True)
        except TemplateError:
            return False
        return all(message["content"] in text for message in messages)

    def _template(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    def _length(self, text: str) -> int:
        if text not in self._lengths:
            self._lengths[text] = len(self._encode(text))
        return self._lengths[text]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _clean(self, text: str) -> str:
        return self.fields.unlabelled(self._special.sub(" ", text)).strip()


def _starts(turns: Sequence[Turn]) -> list[int]:
    """Where a history may begin when its oldest turns are dropped: at its beginning, and at each client turn."""
    if not turns or turns[-1].speaker is not Speaker.CLIENT:
        raise ValueError("a history must end with the client's turn, for the therapist to answer; drop what follows it")
    return [0, *(index for index in range(1, len(turns)) if turns[index].speaker is Speaker.CLIENT)]

"""Constructions of training pairs from sessions, by name: what the studies compare.

Each turns a dialogue into dialogues of which every therapist turn is trained:

    turns            the dialogue itself: each reply after the full history
    v1_pairs         merged adjacent runs: what the client said -> what the therapist answered, without history
    v1_dialogue      one pair a session: all that the client said -> all that the therapist said
    v2_cumulative    at each reply: all that the client said so far -> all that the therapist said so far
    next_utterance   each utterance -> the one after it, whoever speaks (READER's shift by one): the first stands as the
                     client's, the second as the therapist's
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import get_args

from rollout.chat import merged
from rollout.config import PairsName
from rollout.fields import annotated
from rollout.types import Dialogue, Speaker, Turn


def make_pairs(dialogues: Iterable[Dialogue], how: PairsName) -> list[Dialogue]:
    """`how` applied to each dialogue, in order; ids are `ID` for `turns`, else `ID#k` with the reply's number."""
    return [pair for dialogue in dialogues for pair in _BUILDERS[how](dialogue)]


def _turns(dialogue: Dialogue) -> list[Dialogue]:
    return [dialogue]


def _v1_pairs(dialogue: Dialogue) -> list[Dialogue]:
    return _named(dialogue, [pair for pair in itertools.pairwise(merged(annotated(dialogue))) if _answers(*pair)])


def _v1_dialogue(dialogue: Dialogue) -> list[Dialogue]:
    turns = annotated(dialogue)
    return _named(dialogue, [_said(turns)] if any(itertools.starmap(_answers, itertools.pairwise(turns))) else [])


def _v2_cumulative(dialogue: Dialogue) -> list[Dialogue]:
    turns = merged(annotated(dialogue))
    ends = [k + 2 for k, pair in enumerate(itertools.pairwise(turns)) if _answers(*pair)]
    return _named(dialogue, [_said(turns[:end]) for end in ends])


def _next_utterance(dialogue: Dialogue) -> list[Dialogue]:
    pairs = itertools.pairwise(annotated(dialogue))
    return _named(
        dialogue,
        [(Turn(Speaker.CLIENT, a.text, a.labels), Turn(Speaker.THERAPIST, b.text, b.labels)) for a, b in pairs],
    )


def _answers(asked: Turn, said: Turn) -> bool:
    return asked.speaker is Speaker.CLIENT and said.speaker is Speaker.THERAPIST


def _said(turns: Sequence[Turn]) -> tuple[Turn, Turn]:
    asked, answered = merged(sorted(turns, key=lambda turn: turn.speaker is Speaker.THERAPIST))
    return asked, answered


def _named(dialogue: Dialogue, pairs: Sequence[tuple[Turn, Turn]]) -> list[Dialogue]:
    return [Dialogue(f"{dialogue.id}#{k}", pair, dialogue.labels) for k, pair in enumerate(pairs)]


_BUILDERS: dict[PairsName, Callable[[Dialogue], list[Dialogue]]] = {
    "turns": _turns,
    "v1_pairs": _v1_pairs,
    "v1_dialogue": _v1_dialogue,
    "v2_cumulative": _v2_cumulative,
    "next_utterance": _next_utterance,
}
assert set(_BUILDERS) == set(get_args(PairsName))

"""Conversations of all personas with an assistant, turn by turn, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eval.vera_mh.patient import TURNS, Patient
from eval.vera_mh.personas import Persona
from rewards.resources import resources
from rollout.types import Speaker, Turn, transcript


class Replier(Protocol):
    """An assistant.

    Contract: one reply per history, in order; "" is a reply. What cannot reply raises.
    """

    def reply(self, histories: Sequence[Sequence[Turn]]) -> list[str]:
        """The assistant's next turn in each of `histories`, which end with the client's and carry no labels."""
        ...


@dataclass(frozen=True)
class Conversation:
    """One persona's conversation with one arm: client and assistant in turn. Line n of it is `turns[n - 1]`."""

    arm: str
    persona: Persona
    turns: tuple[Turn, ...]

    @property
    def transcript(self) -> str:
        """For people, a line a turn."""
        return transcript(self.turns)


def converse(
    arm: str, replier: Replier, personas: Sequence[Persona], *, turns: int = TURNS, locale: str = "en-US"
) -> list[Conversation]:
    """A conversation of `turns` client turns, each answered, with every persona, in order.

    The replier is called `turns` times, each time with the histories of all personas. Raises ValueError for `turns` beyond
    the script, and when the replier returns another number of replies, or something that is no text.
    """
    if not 1 <= turns <= TURNS:
        raise ValueError(f"turns must be 1 to {TURNS}, the length of the patients' script, got {turns}: take {TURNS}")
    helplines = resources(locale)
    patients = [Patient(persona, helplines) for persona in personas]
    histories: list[list[Turn]] = [[] for _ in patients]
    for _ in range(turns):
        for patient, history in zip(patients, histories, strict=True):
            history.append(patient.turn(history))
        replies = replier.reply([[Turn(turn.speaker, turn.text) for turn in history] for history in histories])
        if len(replies) != len(histories):
            raise ValueError(
                f"arm {arm} must give a reply per history, got {len(replies)} for {len(histories)}: mend it"
            )
        for persona, history, reply in zip(personas, histories, replies, strict=True):
            if not isinstance(reply, str):
                raise ValueError(f"arm {arm} must reply in text, got {reply!r} for {persona.name}: mend it")
            history.append(Turn(Speaker.THERAPIST, reply))
    return [Conversation(arm, persona, tuple(h)) for persona, h in zip(personas, histories, strict=True)]

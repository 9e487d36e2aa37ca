"""How much danger is the client of a history in? One reading for everything that asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rewards.crisis import Tier, gravest, history_tier
from rollout.types import Speaker, Turn

IN_DANGER = frozenset({Tier.OTHER, Tier.PASSIVE, Tier.ACTIVE, Tier.IMMINENT})
"""The tiers at which a reply has to do something about the client's safety."""
IN_CRISIS = frozenset({Tier.ACTIVE, Tier.IMMINENT})
"""The tiers at which leaving the client alone is a red flag."""
_TURNS_HEARD = 2


class Head(Protocol):
    """A classifier of texts; see `rewards.crisis_head.CrisisHead`."""

    def tiers(self, texts: Sequence[str]) -> list[Tier]: ...


class DangerReader:
    """The gravest of three readings of a history:

        the rules   (`rewards.crisis`), of all that the client has said
        the head    (when there is one), of the client's last two turns; see `CrisisHead` for what it does when unsure
        the label   `tier` of the client's turns, where a corpus knows it (the shipped crisis prompts do)

    Readings are remembered until `forget`, so that all who ask about a prompt in one call share one embedding.
    """

    def __init__(self, head: Head | None = None) -> None:
        self._head = head
        self._known: dict[tuple[str, ...], Tier] = {}

    def tier(self, history: Sequence[Turn]) -> Tier:
        """The tier of one history."""
        return self.tiers([history])[0]

    def tiers(self, histories: Iterable[Sequence[Turn]]) -> list[Tier]:
        """The tier of each history, in order; the head is asked once about all that is new."""
        asked = [(_key(history), history) for history in histories]
        new = {key: history for key, history in asked if key not in self._known}
        heard = self._hear(new.values())
        for key, history in new.items():
            readings = [history_tier(history), *_labels(history), *(heard[text] for text in _latest(history) if heard)]
            self._known[key] = gravest(readings)
        return [self._known[key] for key, _ in asked]

    def forget(self) -> None:
        """Drop every remembered reading."""
        self._known.clear()

    def _hear(self, histories: Iterable[Sequence[Turn]]) -> dict[str, Tier]:
        texts = list(dict.fromkeys(text for history in histories for text in _latest(history)))
        return dict(zip(texts, self._head.tiers(texts), strict=True)) if self._head and texts else {}


def _client(history: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in history if turn.speaker is Speaker.CLIENT]


def _latest(history: Sequence[Turn]) -> list[str]:
    return [turn.text for turn in _client(history)[-_TURNS_HEARD:] if turn.text.strip()]


def _labels(history: Sequence[Turn]) -> list[Tier]:
    labels = (turn.labels.get("tier", "") for turn in _client(history))
    return [Tier(label) for label in labels if label in set(Tier)]


def _key(history: Sequence[Turn]) -> tuple[str, ...]:
    return tuple(part for turn in _client(history) for part in (turn.text, turn.labels.get("tier", "")))

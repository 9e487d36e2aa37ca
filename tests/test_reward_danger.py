"""One reading of how much danger a client is in."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewards.crisis import Tier
from rewards.danger import DangerReader
from rollout.types import Speaker, Turn


def client(*texts: str, tier: str = "") -> tuple[Turn, ...]:
    return tuple(Turn(Speaker.CLIENT, text, {"tier": tier} if tier else {}) for text in texts)


class Notes:
    """A head that hears danger in the words "the bridge", and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def tiers(self, texts: Sequence[str]) -> list[Tier]:
        self.asked.append(list(texts))
        return [Tier.ACTIVE if "the bridge" in text else Tier.NONE for text in texts]


def test_rules_head_and_label_are_each_heard() -> None:
    """The tier is the gravest of the rules', the head's and the label's; none of them lowers another."""
    reader = DangerReader(Notes())
    histories = [
        client("I want to kill myself."),
        client("I keep walking to the bridge."),
        client("I sold my dog.", tier="imminent"),
        client("I want to kill myself.", tier="distress"),
        client("I lost my keys.", tier="no tier at all"),
    ]
    assert reader.tiers(histories) == [Tier.ACTIVE, Tier.ACTIVE, Tier.IMMINENT, Tier.ACTIVE, Tier.NONE]


def test_the_rules_remember_and_the_head_hears_the_last_two_turns() -> None:
    """What the rules read counts however long ago; the head is asked about the client's last two turns alone."""
    head = Notes()
    reader = DangerReader(head)
    talk = ("Let us talk of my garden.", "And of my cat.")
    assert reader.tier(client("I want to kill myself.", *talk)) is Tier.ACTIVE
    assert reader.tier(client("I keep walking to the bridge.", *talk)) is Tier.NONE
    assert reader.tier(client("I keep walking to the bridge.", talk[0])) is Tier.ACTIVE
    assert {text for texts in head.asked for text in texts} == {*talk, "I keep walking to the bridge."}


def test_what_the_therapist_says_is_not_read() -> None:
    """Only the client's turns count, for rules, head and label."""
    history = (Turn(Speaker.THERAPIST, "Do you want to kill yourself? I want to die. The bridge.", {"tier": "active"}),)
    assert DangerReader(Notes()).tier(history) is Tier.NONE


def test_a_call_asks_the_head_once_about_each_text() -> None:
    """All histories of a call go to the head in one batch without repeats; what is known is not asked again until forgotten."""
    head = Notes()
    reader = DangerReader(head)
    histories = [client("a", "b"), client("b", "c"), client("a", "b"), client(" ")]
    first = reader.tiers(histories)
    assert head.asked == [["a", "b", "c"]]
    assert reader.tiers(histories) == first and len(head.asked) == 1
    reader.forget()
    assert reader.tiers(histories) == first and len(head.asked) == 2


@pytest.mark.parametrize("history", [(), client(""), client("   ")])
def test_who_has_said_nothing_is_in_no_danger(history: tuple[Turn, ...]) -> None:
    """No words, no tier, and no question to the head."""
    head = Notes()
    assert DangerReader(head).tier(history) is Tier.NONE
    assert head.asked == []

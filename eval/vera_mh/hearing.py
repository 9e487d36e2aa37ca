"""A conversation as the rules hear it: what the patient has shown by each line, what the assistant said of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from eval.vera_mh.converse import Conversation
from eval.vera_mh.wordings import Asked, asked, own_sentences
from rewards.crisis import Tier, gravest
from rewards.resources import Resources
from rewards.safety import red_flags
from rewards.words import words
from rollout.types import Speaker, Turn

RISK = frozenset({Tier.DISTRESS, Tier.PASSIVE, Tier.ACTIVE, Tier.IMMINENT})
"""The tiers of a line that states a risk of the patient's own, if only a veiled one."""
_GRAVITY = {tier: i for i, tier in enumerate(Tier)}


@dataclass(frozen=True)
class Reply:
    """One reply. `sentences` are normalised, without the patient's own words; `tier` is the gravest that the patient has
    shown so far, `rose` whether its last turn was graver than all before, `after` what that turn showed; `at_risk` whether
    a risk was stated by then, `calm` that neither a risk nor a worry about others was."""

    line: int
    text: str
    sentences: tuple[str, ...]
    tier: Tier
    rose: bool
    at_risk: bool
    calm: bool
    flags: frozenset[str]

    @cached_property
    def asked(self) -> frozenset[Asked]:
        """What it asks about the patient's safety."""
        return frozenset(kind for sentence in self.sentences for kind in asked(sentence))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Its words."""
        return tuple(words(self.text))


@dataclass(frozen=True)
class Hearing:
    """`replies` in order, and what the patient let know over the whole conversation."""

    replies: tuple[Reply, ...]
    helplines: Resources
    tiers: tuple[Tier, ...]
    denies: frozenset[str]
    provider: bool
    risk_line: int
    """The first line with a risk statement; 0 for none."""

    @property
    def imminent(self) -> bool:
        """Whether the patient said that it will act soon."""
        return Tier.IMMINENT in self.tiers

    @property
    def at_risk(self) -> bool:
        """Whether the patient stated a risk of its own."""
        return bool(RISK & set(self.tiers))

    @property
    def after_risk(self) -> tuple[Reply, ...]:
        """The replies from the first risk statement on."""
        return tuple(reply for reply in self.replies if reply.at_risk)


def hear(conversation: Conversation, helplines: Resources) -> Hearing:
    """What the rules go by; the client's turns must carry the labels of `eval.vera_mh.patient`."""
    client = [turn for turn in conversation.turns if turn.speaker is Speaker.CLIENT]
    tiers = tuple(Tier(turn.labels["tier"]) for turn in client)
    first = next((i for i, tier in enumerate(tiers) if tier in RISK), None)
    return Hearing(
        tuple(_replies(conversation.turns)),
        helplines,
        tiers,
        frozenset(denied for turn in client for denied in turn.labels["denies"].split()),
        any(turn.labels["provider"] for turn in client),
        0 if first is None else 2 * first + 1,
    )


def _replies(turns: tuple[Turn, ...]) -> Iterator[Reply]:
    said: list[str] = []
    tiers: list[Tier] = []
    for line, turn in enumerate(turns, 1):
        if turn.speaker is Speaker.CLIENT:
            said.append(turn.text)
            tiers.append(Tier(turn.labels["tier"]))
            continue
        tier = gravest(tiers)
        yield Reply(
            line,
            turn.text,
            own_sentences(turn.text, said),
            tier,
            _GRAVITY[tiers[-1]] > _GRAVITY[gravest(tiers[:-1])],
            bool(RISK & set(tiers)),
            not (RISK | {Tier.OTHER}) & set(tiers),
            frozenset(red_flags(turn.text, turns[: line - 1], tier)),
        )

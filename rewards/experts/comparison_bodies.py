"""What requests about comparisons may say: every field with its type and range."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewards.crisis import Tier
from rewards.experts.bodies import Body, Count, Flags, Handle, Label, Reason, Said, TurnBody, Uuid
from rewards.experts.comparison import CHOICES, Answer, Comparison
from rollout.types import Turn


class LeaseBody(Body):
    """What is worked on."""

    lease: Handle


class JudgementBody(Body):
    """Which of two replies is better; `choice` counts from "A is better" to "B is better"."""

    lease: Handle
    submission: Uuid
    choice: Annotated[int, Field(ge=CHOICES[0], le=CHOICES[-1])]
    flags_a: Flags
    flags_b: Flags
    reason: Reason
    seconds: Annotated[float, Field(ge=0, le=1e6)]

    @property
    def told(self) -> Answer:
        """As the store takes it."""
        a, b = (sorted(flag.value for flag in flags) for flags in (self.flags_a, self.flags_b))
        return Answer(self.lease, self.submission, self.choice, a, b, self.reason, self.seconds)


class ComparisonBody(Body):
    """Two replies to be compared."""

    key: Label
    history: Annotated[list[TurnBody], Field(max_length=1000)]
    arms: tuple[Label, Label]
    replies: tuple[Said, Said]
    tier: Tier = Tier.NONE
    wanted: Annotated[int, Field(ge=1, le=100)] = 1
    seed: Count = 0

    @property
    def comparison(self) -> Comparison:
        """As the store takes it."""
        turns = tuple(Turn(turn.speaker, turn.text) for turn in self.history)
        return Comparison(self.key, turns, self.arms, self.replies, self.tier.value, self.wanted, self.seed)


class ComparisonsBody(Body):
    """Replies to be compared."""

    comparisons: Annotated[list[ComparisonBody], Field(max_length=1000)]

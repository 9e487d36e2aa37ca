"""The vocabulary of the reward layer: text in, numbers out, plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollout.types import Rollout


@dataclass(frozen=True)
class Score:
    """One judgement of one reply: `value`, the `parts` it is made of, and safety `flags` (names of red flags).

    `notes` are numbers that are reported beside the parts and paid for nothing (what a judge cost, whether a classifier
    was right); `tier` is the danger that the client shows (a value of `rewards.crisis.Tier`). A reply that was `dropped`
    has not been judged: its value says nothing, and PPO learns nothing from it.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)
    tier: str = "none"
    dropped: bool = False


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout and what the reward said of it."""

    rollout: Rollout
    score: Score


class Reward(Protocol):
    """Scores replies.

    Contract: one `Score` per rollout, in the same order; every value finite. A reward that cannot score raises
    (`RewardError` or any exception): it never answers 0.0 in place of a judgement.
    """

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`; all replies to one prompt that were sampled together arrive in one call."""
        ...


class RewardError(RuntimeError):
    """A reward broke its contract or could not score; the message names the term and the reply."""

"""The vocabulary of the expert loop: what is asked of a rater, and what comes back. Plain Python.

Item --the queue--> a rater's page --> Rating --aggregation--> the reward of a reply
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rollout.types import Turn


class Kind(enum.StrEnum):
    """What is written into the audit chain, in the order in which it happened."""

    ITEM = "item"  # a reply came to the queue
    RATING = "rating"  # a rater judged it
    SKIP = "skip"  # a rater would not, and said why
    UNDO = "undo"  # a rater took the last rating back
    REWARD = "reward"  # a reply's ratings became its reward: fixed from here on
    UPDATE = "update"  # a step of PPO used these rewards
    CHECKPOINT = "checkpoint"  # the policy after that step was written
    SURROGATE = "surrogate"  # a surrogate was fitted, promoted or refused
    ALARM = "alarm"  # surrogate and experts part
    RATER = "rater"  # a rater was invited, or shut out
    COMPARISON = "comparison"  # two replies came to be compared
    JUDGEMENT = "judgement"  # a rater said which is better


@dataclass(frozen=True)
class Item:
    """One reply to be judged, as a rater may see it: names and contacts are scrubbed, nothing says which model wrote it.

    `id` is a hash of `key` and the texts, so that sending an item twice is sending it once. `key` names the reply within
    everything that shares a queue (`RUN/STEP/PROMPT/SAMPLE`); raters never see it. `wanted` is how many raters shall judge
    it; of a higher `priority` it comes earlier. `tier` is the client's danger (a value of `rewards.crisis.Tier`).
    """

    key: str
    history: tuple[Turn, ...]
    reply: str
    tier: str = "none"
    wanted: int = 1
    priority: float = 0.0
    origin: Mapping[str, Any] = field(default_factory=dict)  # run, step, prompt, sample, policy version: for the audit

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        told = [self.key, [[turn.speaker, turn.text] for turn in self.history], self.reply]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Rating:
    """One rater's judgement of one item, all numbers in [0, 1].

    `criteria` has a number for each of `rewards.experts.form.CRITERIA`, `overall` is what becomes the reward, `flags` are
    values of `rewards.safety.Flag`. `repeat` says that the rater had judged the item before and was asked again without
    being told: such ratings measure the rater, and are no part of the reward.
    """

    id: str
    item: str
    rater: str
    criteria: Mapping[str, float]
    overall: float
    flags: tuple[str, ...] = ()
    reason: str = ""
    repeat: bool = False
    seconds: float = 0.0
    at: float = 0.0  # seconds since 1970

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

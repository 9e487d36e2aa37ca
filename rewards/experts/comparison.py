"""The vocabulary of a side-by-side: what is asked, what a rater answers, and what is kept of the answer. Plain Python.

Comparison --the queue--> a rater's page, as A and B --> Answer --sides undone--> Judgement
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rewards.experts import audit
from rewards.experts.turns import share
from rollout.types import Speaker, Turn

CHOICES = (1, 2, 3, 4, 5)
"""A is better, A is slightly better, about the same, B is slightly better, B is better."""


@dataclass(frozen=True)
class Comparison:
    """One conversation and the replies of two arms to it.

    `id` is a hash of `key`, arms and texts, so that asking twice is asking once. Raters see neither it nor `key` nor `arms`.
    `wanted` is how many raters shall judge it; `seed` decides, with the rater, whose reply is A. `tier` is the client's
    danger (a value of `rewards.crisis.Tier`).
    """

    key: str
    history: tuple[Turn, ...]
    arms: tuple[str, str]
    replies: tuple[str, str]
    tier: str = "none"
    wanted: int = 1
    seed: int = 0

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        told = [self.key, [[turn.speaker, turn.text] for turn in self.history], self.arms, self.replies]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    @property
    def same(self) -> bool:
        """Whether both replies read alike, white space aside: there is nothing to ask."""
        first, second = (reply.split() for reply in self.replies)
        return first == second

    def scrubbed(self) -> Comparison:
        """Without names and contacts: a name that any of the texts introduces goes out of all."""
        from rewards.experts.scrub import scrub_together

        *turns, first, second = scrub_together([*(turn.text for turn in self.history), *self.replies])
        history = tuple(Turn(turn.speaker, text) for turn, text in zip(self.history, turns, strict=True))
        return replace(self, history=history, replies=(first, second))


@dataclass(frozen=True)
class Answer:
    """What the page sends, under an id of the page's making that makes sending it twice harmless. `choice`: see `CHOICES`."""

    lease: str
    submission: str
    choice: int
    flags_a: Sequence[str] = ()
    flags_b: Sequence[str] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def content(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(audit.canonical([*vars(self).values()]).encode()).hexdigest()


@dataclass(frozen=True)
class Judgement:
    """One rater's judgement of one comparison.

    `preference` is for the first arm's reply: 1 better, 0.5 slightly better, 0 the same, -0.5 and -1 the other way round.
    `left` ("first" or "second") says whose reply was A, `flags` has the red flags of both. `repeat`: the rater had
    judged it before and was asked again, sides swapped and untold: such judgements measure the rater.
    """

    id: str
    comparison: str
    rater: str
    preference: float
    left: str
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reason: str = ""
    repeat: bool = False
    seconds: float = 0.0
    at: float = 0.0  # seconds since 1970

    @staticmethod
    def of(answer: Answer, lease: sqlite3.Row, known_as: str, reason: str, at: float) -> Judgement:
        """The answer to what was shown under `lease`; `reason` is what is kept of the reason."""
        swapped = bool(lease["swapped"])
        towards_first = answer.choice - 3 if swapped else 3 - answer.choice
        first, second = (answer.flags_b, answer.flags_a) if swapped else (answer.flags_a, answer.flags_b)
        return Judgement(
            known_as, lease["comparison"], lease["rater"], towards_first / 2, "second" if swapped else "first",
            {"first": list(first), "second": list(second)}, reason, bool(lease["repeat"]), answer.seconds, at,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def drawn_sides(seed: int, rater: str, comparison: str) -> bool:
    """Whether the second arm's reply is A for this rater: as a coin that is tossed once for each rater and comparison."""
    return share(hashlib.sha256(f"{seed}\n{rater}\n{comparison}\nsides".encode()).hexdigest()) < 0.5


def comparison_of(row: sqlite3.Row) -> Comparison:
    """The comparison that a row of the table holds."""
    history = tuple(Turn(Speaker(speaker), text) for speaker, text in json.loads(row["history"]))
    return Comparison(
        row["key"], history, (row["first_arm"], row["second_arm"]), (row["first"], row["second"]), row["tier"],
        row["raters"], row["seed"],
    )  # fmt: skip


def judgements(db: sqlite3.Connection) -> list[Judgement]:
    """All judgements that were not taken back, repeats among them, in the order in which they were given."""
    rows = db.execute("SELECT body FROM judgements WHERE undone = 0 ORDER BY seq")
    return [Judgement(**json.loads(row["body"])) for row in rows]

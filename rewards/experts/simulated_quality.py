"""What a reply is worth to simulated raters: a truth that is known, made of the reward's own terms.

No person's judgement is in it, so what is measured with it says how the loop works, never how good a reply is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.conduct import Boundaries
from rewards.config import LengthConfig, RepetitionConfig
from rewards.emotion import EmotionAcknowledgement
from rewards.experts.form import CRITERIA
from rewards.safety import red_flags
from rewards.text_rules import Inquiry, Length, Repetition
from rollout.types import Finish, Prompt, Rollout, Turn

NAMES = tuple(criterion.name for criterion in CRITERIA)


@dataclass(frozen=True)
class Quality:
    """What a reply is worth: a number in [0, 1] per criterion and all in all, and the red flags that rules find."""

    criteria: Mapping[str, float]
    overall: float
    flags: tuple[str, ...] = ()


_EMOTION, _INQUIRY, _LENGTH, _REPETITION, _BOUNDARIES = (
    EmotionAcknowledgement(), Inquiry(), Length(LengthConfig()), Repetition(RepetitionConfig()), Boundaries()
)  # fmt: skip
_FLAGGED = 0.25


def true_quality(history: Sequence[Turn], reply: str) -> Quality:
    """The truth that a panel errs about, from the terms `emotion`, `inquiry`, `length`, `repetition` and `boundaries`:

        form    = length x repetition
        overall = (0.1 + 0.85 (0.4 emotion + 0.35 inquiry + 0.25 form)) x fresh x kept x (0.25 if red flags)

    with `fresh` = min(1, 2 repetition), `kept` = (1 + boundaries) / 2, and `inquiry` in the place of an emotion that
    nobody knows. An empty reply is worth 0.
    """
    rollout = Rollout(Prompt("", (), tuple(history)), 0, (), (), (), reply, Finish.STOPPED)
    inquiry, length, fresh, boundaries = (
        term.score([rollout])[0].value for term in (_INQUIRY, _LENGTH, _REPETITION, _BOUNDARIES)
    )
    emotion = _EMOTION.score([rollout])[0].value if _EMOTION.applies(rollout) else inquiry
    flags = red_flags(reply, history)
    form, harmless = length * fresh, _FLAGGED if flags else 1.0
    overall = 0.1 + 0.85 * (0.4 * emotion + 0.35 * inquiry + 0.25 * form)
    overall *= min(1.0, 2 * fresh) * (1 + boundaries) / 2 * harmless
    criteria = (emotion, boundaries * harmless, harmless * min(1.0, 2 * fresh), inquiry * form, overall)
    return Quality(dict(zip(NAMES, criteria, strict=True)), overall if fresh else 0.0, flags)

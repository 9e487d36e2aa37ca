"""The safety gate: red flags of a reply, reported one by one and never averaged."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.crisis import Tier, crisis_tier, history_tier
from rewards.danger import IN_CRISIS
from rewards.flag_rules import RULES, Flag, Rule
from rewards.types import Score
from rewards.words import normalise, sentences
from rewards.workbench import Workbench
from rollout.types import Rollout, Speaker, Turn

__all__ = ["Flag", "SafetyGate", "Tier", "crisis_tier", "history_tier", "red_flags"]


def red_flags(reply: str, history: Sequence[Turn], tier: Tier | None = None) -> tuple[str, ...]:
    """The red flags of `reply` as an answer to `history`: values of `Flag`, in its order; () for a harmless reply.

    A flag says that the wording was found, not that harm was meant; what no rule foresees passes. Saying nothing to a
    client in active or imminent danger is abandonment. `tier` is the client's danger as `rewards.danger.DangerReader`
    reads it; without one the rules read it here.
    """
    told = sentences(reply)
    whole = " ".join(told)
    client = normalise(" ".join(turn.text for turn in history if turn.speaker is Speaker.CLIENT))
    in_crisis = (history_tier(history) if tier is None else tier) in IN_CRISIS
    raised = {
        rule.flag
        for rule in RULES
        if (in_crisis or not rule.in_crisis)
        and not (rule.unless and rule.unless.search(whole))
        and any(_breaks(sentence, rule, client) for sentence in told)
    }
    if in_crisis and not told:
        raised.add(Flag.ABANDONMENT_IN_CRISIS)
    return tuple(flag.value for flag in Flag if flag in raised)


class SafetyGate:
    """A `Reward` that gives 1.0 and no flags to a harmless reply, 0.0 and its red flags to any other, and says the
    client's tier."""

    def __init__(self, bench: Workbench) -> None:
        self._danger = bench.danger

    def applies(self, rollout: Rollout) -> bool:
        """Always."""
        return True

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Score `rollouts`, each against its own history."""
        tiers = self._danger.tiers(r.prompt.history for r in rollouts)
        found = ((red_flags(r.text, r.prompt.history, tier), tier) for r, tier in zip(rollouts, tiers, strict=True))
        return [Score(0.0 if flags else 1.0, flags=flags, tier=tier) for flags, tier in found]


def _breaks(sentence: str, rule: Rule, client: str) -> bool:
    return any(
        not _turned(sentence, match, rule) and not _quoted(match.group(), rule, client)
        for match in rule.says.finditer(sentence)
    )


def _turned(sentence: str, match: re.Match[str], rule: Rule) -> bool:
    starts_a_clause = match.group()[0] in ",;:-"
    turned = re.search(rf"\b({rule.turned_by})( \w+){{0,5}} ?$", sentence[: match.start()])
    return turned is not None and not starts_a_clause


def _quoted(said: str, rule: Rule, client: str) -> bool:
    found = rule.quotable.search(said) if rule.quotable else None
    return found is not None and found.group() in client

"""A guard round a deployed policy: what the client says is read before the policy is asked, its reply before it is shown.

    guard = Guard.load(Path("runs/NAME/checkpoints/best/policy"))     # or Guard(guard_settings("en-GB"))
    history = [Turn(Speaker.CLIENT, "I cannot sleep.")]
    first = guard.before(history)
    if first.action is Action.REPLACE:          # the client may be about to act: the policy is not asked
        answer = first.text
    else:
        reply = policy(history)                 # yours; show nothing of it yet
        answer = first.said(guard.after(history, reply).said(reply))

`history` is the whole conversation, the client's newest turn last: danger told of earlier has not passed. Keep both
verdicts with the conversation, and have people read those that are not PASS.

The guard reads English, by rules and, unless it is switched off, a small classifier. Where the classifier is not sure, the
reply is shown with the notice after it; only where it is sure may a fixed reply take its place. The guard misses some danger,
and hears some where there is none; it does not make a research model fit for care. Where `classifier` is false nothing here
imports torch.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.config import CrisisConfig, RewardsConfig
from rewards.crisis import Tier
from rewards.guard_file import GuardSettings, guard_settings, read_guard
from rewards.safety import red_flags
from rewards.workbench import Workbench
from rollout.types import Speaker, Turn

__all__ = ["Action", "Guard", "GuardSettings", "Verdict", "guard_settings"]


class Action(enum.StrEnum):
    """What to do with the policy's reply."""

    PASS = "pass"  # show it
    APPEND = "append"  # show it, and the verdict's text after it
    REPLACE = "replace"  # show the verdict's text in its place


@dataclass(frozen=True)
class Verdict:
    """What the guard decided and why: the client's `tier`, the red `flags` of the reply. `text` is "" for PASS."""

    action: Action
    tier: Tier
    text: str = ""
    flags: tuple[str, ...] = ()

    def said(self, reply: str) -> str:
        """What the client reads where the policy answered `reply`."""
        match self.action:
            case Action.PASS:
                return reply
            case Action.APPEND:
                return f"{reply}\n\n{self.text}"
            case Action.REPLACE:
                return self.text


class Guard:
    """Judges by the rules that training applied and, where the settings say so, by the crisis head.

    The head's encoder is loaded here: ValueError when it cannot be.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        crisis = CrisisConfig(classifier=settings.classifier)
        self._bench = Workbench(RewardsConfig(crisis=crisis), sure_only=False)
        self._danger = self._bench.danger

    @classmethod
    def load(cls, folder: Path) -> Guard:
        """The guard that a checkpoint's `policy/` describes (`guard.json`): its locale, helplines, texts and tiers.

        The rules are those of this package; the log says when they are not those that the file was written with. Raises
        FileNotFoundError and ValueError (see `read_guard`).
        """
        return cls(read_guard(folder))

    def before(self, history: Sequence[Turn]) -> Verdict:
        """Read the conversation, before the policy is asked.

        REPLACE when the client's newest turn shows danger at a tier with a fixed reply (active, imminent): do not ask
        the policy. APPEND when the conversation does, or shows a tier with a notice (other, passive). PASS otherwise.
        """
        newest = [turn for turn in history if turn.speaker is Speaker.CLIENT][-1:]
        now, ever = self._read(newest, history)
        if now in self.settings.crisis:
            return Verdict(Action.REPLACE, now, self.settings.crisis[now])
        if ever in self.settings.crisis or ever in self.settings.notice_tiers:
            return Verdict(Action.APPEND, ever, self.settings.notice)
        return Verdict(Action.PASS, ever)

    def after(self, history: Sequence[Turn], reply: str) -> Verdict:
        """Read the policy's reply to `history`, before anybody sees it.

        REPLACE when it has a red flag: by the tier's fixed reply, or by a text that asks the client to go on. PASS
        otherwise. An empty reply to a client in crisis is a red flag.
        """
        (tier,) = self._read(history)
        flags = red_flags(reply, history, tier)
        if not flags:
            return Verdict(Action.PASS, tier)
        return Verdict(Action.REPLACE, tier, self.settings.crisis.get(tier, self.settings.unsafe), flags)

    def _read(self, *histories: Sequence[Turn]) -> list[Tier]:
        try:
            return self._danger.tiers(histories)
        finally:
            self._bench.clear()

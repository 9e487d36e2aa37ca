"""What the experts think of a step's replies, for the reward: asked and waited for, or guessed now and learned later.

judge(rollouts, tiers) -> one `Opinion` per reply
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.danger import IN_DANGER
from rewards.experts.client import ExpertReward, RunClient
from rewards.experts.surrogate import Guess, Trial
from rewards.experts.types import Item, Kind
from rewards.preference_features import Answer
from rewards.rated_replies import RatedReply
from rewards.term_config import ExpertsConfig
from rollout.types import Rollout

TELL_EVERY_S = 30.0
_ONLY_CRISIS = "of the others answer clients in danger: only raters who take crisis conversations are shown these"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Opinion:
    """The value of the term `experts` for one reply, its red flags and what stands beside it; no value where nobody judged
    the reply in time."""

    value: float | None
    flags: tuple[str, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict)


class Guesses(Protocol):
    """A `Surrogate`, or an actor that holds one."""

    def guess(self, answers: Sequence[Answer]) -> list[Guess]: ...

    def learn(self, rated: Sequence[RatedReply]) -> Trial | None: ...


def answer_of(rollout: Rollout) -> Answer:
    """What a rater reads: the conversation and the reply."""
    return rollout.prompt.history, rollout.text


def step_of(rollout: Rollout) -> int:
    """The policy version that finished the reply: at no lag, the step."""
    return rollout.versions[-1].version


def key_of(rollout: Rollout) -> str:
    """A reply's name within a run."""
    return f"{step_of(rollout)}/{rollout.id}"


def item_of(rollout: Rollout, run: str, tier: str, *, wanted: int, priority: float = 0.0) -> Item:
    """The reply as an item of the queue. Its key is the same whenever the run comes by this step again."""
    step = step_of(rollout)
    origin: dict[str, Any] = {"run": run, "step": step, "prompt": rollout.prompt.id, "sample": rollout.sample}
    return Item(f"{run}/{key_of(rollout)}", rollout.prompt.history, rollout.text, tier, wanted, priority, origin)


class Lessons:
    """The replies that raters have judged, and when it is time to learn from them."""

    def __init__(self, surrogate: Guesses, every: int) -> None:
        self._surrogate, self._every = surrogate, every
        self._rated: dict[str, RatedReply] = {}
        self._fresh = 0

    def add(self, item: str, answer: Answer, value: float) -> None:
        """A reply's score came. An empty reply has nothing to teach."""
        history, reply = answer
        if item not in self._rated and reply.strip():
            self._rated[item] = RatedReply(item, tuple(history), reply, min(max(value, 0.0), 1.0))
            self._fresh += 1

    def learn(self) -> Trial | None:
        """Fit when enough is new; what came of it."""
        if self._fresh < self._every:
            return None
        self._fresh = 0
        return self._surrogate.learn(list(self._rated.values()))


class Synchronous:
    """The paper's way: the step waits until every reply is rated.

    After `timeout_s` the settings say what becomes of the rest: waited for all the same, guessed by a surrogate that learns
    from what was rated before, or dropped.
    """

    def __init__(
        self, config: ExpertsConfig, run: str, client: RunClient, surrogate: Guesses | None, *, say: Say
    ) -> None:
        self._config, self._run, self._client, self._say = config, run, client, say
        self._surrogate = surrogate
        self._lessons = Lessons(surrogate, config.refit_every) if surrogate else None
        self._items: dict[str, str] = {}  # of the step's replies, by their key

    def judge(self, rollouts: Sequence[Rollout], tiers: Sequence[str]) -> list[Opinion]:
        """Put the replies before the raters, wait, and say so; one opinion per reply, in order. An empty reply needs no rater:
        it is worth 0. `tiers` are the clients' dangers."""
        asked = [(r, t) for r, t in zip(rollouts, tiers, strict=True) if r.text.strip()]
        items = self._client.add([item_of(r, self._run, t, wanted=self._config.ratings) for r, t in asked])
        ids = {rollout.id: item for (rollout, _), item in zip(asked, items, strict=True)}
        self._items = {key_of(rollout): ids[rollout.id] for rollout, _ in asked}
        dangerous = {item for (_, tier), item in zip(asked, items, strict=True) if tier in IN_DANGER}
        found, late = self._wait(step_of(rollouts[0]), items, dangerous)
        guessed = dict[str, Guess]()
        if late and self._config.overdue == "surrogate":
            assert self._surrogate is not None
            missing = [r for r in rollouts if ids.get(r.id) in late]
            guesses = self._surrogate.guess([answer_of(r) for r in missing])
            guessed = {r.id: guess for r, guess in zip(missing, guesses, strict=True)}
        opinions = []
        for rollout in rollouts:
            item = ids.get(rollout.id)
            if item is None:
                opinions.append(Opinion(0.0))
            elif item in found:
                opinions.append(rated(found[item]))
                if self._lessons:
                    self._lessons.add(item, answer_of(rollout), found[item].value)
            elif rollout.id in guessed:
                opinions.append(guess_opinion(guessed[rollout.id], self._config.beta))
            else:
                opinions.append(Opinion(None))
        if self._lessons and (trial := self._lessons.learn()):
            self._client.event(Kind.SURROGATE, {"run": self._run, "step": step_of(rollouts[0]), **vars(trial)})
        return opinions

    def used(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write into the audit chain that the update of `step` used these replies' rewards."""
        self._client.event(*update_event(self._run, step, rollouts, self._items))

    def saved(self, step: int, manifest: str) -> None:
        """Write into the audit chain that a checkpoint was saved after `step`; `manifest` is its sha256."""
        self._client.event(*checkpoint_event(self._run, step, manifest))

    def _wait(self, step: int, ids: list[str], dangerous: set[str]) -> tuple[dict[str, ExpertReward], list[str]]:
        began = said = time.monotonic()
        for_ever = self._config.timeout_s == 0 or self._config.overdue == "wait"
        found: dict[str, ExpertReward] = {}
        still = ids
        while still:
            left_s = float("inf") if for_ever else max(0.0, began + self._config.timeout_s - time.monotonic())
            more, still = self._client.rewards(
                self._run, step, still, least=self._config.ratings, wait_s=min(left_s, 10.0)
            )
            found |= more
            now = time.monotonic()
            if not still or (not for_ever and now >= began + self._config.timeout_s):
                break
            if now - said >= TELL_EVERY_S:
                said = now
                self._say(
                    f"step {step + 1} waits for raters: {len(found)} of {len(ids)} replies rated, {now - began:.0f} s"
                    + (f"; {sum(i in dangerous for i in still)} {_ONLY_CRISIS}" if dangerous & set(still) else "")
                )
        if still:
            self._client.close(still)
            self._say(
                f"step {step + 1}: {len(still)} of {len(ids)} replies not rated within {self._config.timeout_s:g} s"
            )
        return found, still


def update_event(
    run: str, step: int, rollouts: Sequence[Rollout], items: Mapping[str, str]
) -> tuple[Kind, dict[str, Any]]:
    """What the chain says of an update: the items whose rewards it used; `items` has them by the reply's key."""
    used = [items[key_of(rollout)] for rollout in rollouts if key_of(rollout) in items]
    return Kind.UPDATE, {"run": run, "step": step, "rewards": used}


def checkpoint_event(run: str, step: int, manifest: str) -> tuple[Kind, dict[str, Any]]:
    """What the chain says of a checkpoint, by the name of its folder: after how many steps."""
    return Kind.CHECKPOINT, {"run": run, "step": step + 1, "manifest": manifest}


def rated(reward: ExpertReward) -> Opinion:
    """Raters have spoken."""
    return Opinion(reward.value, reward.flags, {"rated": 1.0, "std": reward.std})


def guess_opinion(guess: Guess, beta: float) -> Opinion:
    """Raters have not spoken yet."""
    return Opinion(guess.cautious(beta), notes={"rated": 0.0, "std": guess.std})

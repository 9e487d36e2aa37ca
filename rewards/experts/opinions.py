"""What the experts think of a step's replies, for the reward: asked and waited for, or guessed now and learned later.

judge(rollouts, tiers) -> one `Opinion` per reply
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rewards.experts.client import ExpertReward, RunClient
from rewards.experts.interface import Combine, Opinion
from rewards.experts.surrogate import Guess, Trial
from rewards.experts.types import Item, Kind
from rewards.panel import EXPERTS, Measurement
from rewards.preference_features import Answer
from rewards.rated_replies import RatedReply
from rewards.term_config import ExpertsConfig
from rewards.types import ScoredRollout
from rollout.types import Rollout, Speaker, Turn

TELL_EVERY_S = 30.0
_ASK_EVERY_S = 10.0
_STUCK = {  # what nobody can rate as things are, and what helps
    "no_raters": "have nobody to rate them: invite raters at the admin's page",
    "crisis": "answer clients in danger, which only raters who take crisis conversations are shown: invite one who does",
    "rated_by_all": "were judged by every rater and want more: invite raters, or lower rewards.experts.ratings",
}
Say = Callable[[str], None]


class Guesses(Protocol):
    """A `Surrogate`, or an actor that holds one."""

    def guess(self, answers: Sequence[Answer]) -> list[Guess]: ...

    def learn(self, rated: Sequence[RatedReply]) -> Trial | None: ...


def answer_of(rollout: Rollout) -> Answer:
    """What a rater reads: the conversation and the reply."""
    return rollout.prompt.history, rollout.text


def step_of(rollout: Rollout) -> int:
    """The step that takes the reply; outside a training, the policy version that finished it."""
    return rollout.step if rollout.step >= 0 else rollout.versions[-1].version


def key_of(rollout: Rollout) -> str:
    """A reply's name within a run."""
    return f"{step_of(rollout)}/{rollout.id}"


def item_of(rollout: Rollout, run: str, tier: str, *, wanted: int, priority: float) -> Item:
    """The reply as an item of the queue. Its key is the same whenever the run comes by this step again."""
    step = step_of(rollout)
    origin: dict[str, Any] = {"run": run, "step": step, "prompt": rollout.prompt.id, "sample": rollout.sample}
    return Item(f"{run}/{key_of(rollout)}", rollout.prompt.history, rollout.text, tier, wanted, priority, origin)


class Lessons:
    """The replies that raters have judged, and when it is time to learn from them."""

    def __init__(self, surrogate: Guesses, every: int) -> None:
        self._surrogate, self._every = surrogate, every
        self._rated: dict[str, RatedReply] = {}
        self._ratings: dict[str, tuple[str, ...]] = {}  # behind each of them
        self._fresh = 0

    def add(self, item: str, answer: Answer, reward: ExpertReward) -> None:
        """A reply's score came. An empty reply has nothing to teach."""
        history, reply = answer
        if item not in self._rated and reply.strip():
            self._rated[item] = RatedReply(item, tuple(history), reply, min(max(reward.value, 0.0), 1.0))
            self._ratings[item] = reward.ratings
            self._fresh += 1

    def learn(self) -> dict[str, Any] | None:
        """Fit when enough is new; what came of it, for the audit chain, with the ratings that were fitted to."""
        if self._fresh < self._every:
            return None
        self._fresh = 0
        trial = self._surrogate.learn(list(self._rated.values()))
        if trial is None:
            return None
        return {**vars(trial), "ratings": sorted(one for ids in self._ratings.values() for one in ids)}

    def state_dict(self) -> list[dict[str, Any]]:
        """All that was judged, for a checkpoint."""
        return [
            {
                "item": item,
                "history": [[turn.speaker.value, turn.text] for turn in one.history],
                "reply": one.reply,
                "score": one.score,
                "ratings": list(self._ratings[item]),
            }
            for item, one in self._rated.items()
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take up what `state_dict` returned, and fit to it at once: nobody has to judge a reply again."""
        for one in state:
            history = tuple(Turn(Speaker(speaker), text) for speaker, text in one["history"])
            reward = ExpertReward(one["score"], 0.0, tuple(one["ratings"]), ())
            self.add(one["item"], (history, one["reply"]), reward)
        if self._rated:
            self._surrogate.learn(list(self._rated.values()))
        self._fresh = 0


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
        client.close_from(run, 0)  # what an interrupted run left in the queue is asked again, or not needed

    def judge(self, rollouts: Sequence[Rollout], tiers: Sequence[str]) -> list[Opinion]:
        """Put the replies before the raters, wait, and say so; one opinion per reply, in order. An empty reply needs no rater:
        it is worth 0. `tiers` are the clients' dangers."""
        asked = [(r, t) for r, t in zip(rollouts, tiers, strict=True) if r.text.strip()]
        items = self._client.add(
            [item_of(r, self._run, t, wanted=self._config.ratings, priority=step_of(r)) for r, t in asked]
        )
        ids = {rollout.id: item for (rollout, _), item in zip(asked, items, strict=True)}
        self._items = {key_of(rollout): ids[rollout.id] for rollout, _ in asked}
        found, late = self._wait(step_of(rollouts[0]), items)
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
                    self._lessons.add(item, answer_of(rollout), found[item])
            elif rollout.id in guessed:
                opinions.append(guess_opinion(guessed[rollout.id], self._config.beta))
            else:
                opinions.append(Opinion(None))
        if self._lessons and (trial := self._lessons.learn()):
            self._client.event(Kind.SURROGATE, {"run": self._run, "step": step_of(rollouts[0]), **trial})
        return opinions

    def keep(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> None:
        """Nothing: every reply was judged."""

    def revise(self, scored: Sequence[ScoredRollout], combine: Combine) -> list[ScoredRollout]:
        """The batch as it is: no score comes late."""
        return list(scored)

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    def used(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """Write into the audit chain that the update of `step` used these replies' rewards."""
        self._client.event(*update_event(self._run, step, *by_whom(scored), self._items))

    def state_dict(self) -> dict[str, Any]:
        """`Lessons.state_dict`; nothing without a surrogate."""
        return {"rated": self._lessons.state_dict() if self._lessons else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; see `Lessons.load_state_dict`."""
        if self._lessons:
            self._lessons.load_state_dict(state.get("rated", []))

    def saved(self, step: int, manifest: str) -> None:
        """Write into the audit chain that a checkpoint was saved after `step`; `manifest` is its sha256."""
        self._client.event(*checkpoint_event(self._run, step, manifest))

    def _wait(self, step: int, ids: list[str]) -> tuple[dict[str, ExpertReward], list[str]]:
        """The rewards, fixed together once all are rated, and the items that go without."""
        began = said = time.monotonic()
        for_ever = self._config.timeout_s == 0 or self._config.overdue == "wait"
        told: set[str] = set()
        found: dict[str, ExpertReward] = {}
        still, skipped = ids, list[str]()
        while still:
            left_s = float("inf") if for_ever else max(0.0, began + self._config.timeout_s - time.monotonic())
            found, still, stuck = self._client.rewards(
                self._run, step, ids, least=self._config.ratings, wait_s=min(left_s, _ASK_EVERY_S), every=True
            )
            over = not for_ever and time.monotonic() >= began + self._config.timeout_s
            skipped = [item for item in still if stuck.get(item) == "skipped"]
            if over or (skipped and len(skipped) == len(still)):  # those that are rated are fixed without the others
                found, still, _ = self._client.rewards(self._run, step, ids, least=self._config.ratings)
                break
            for why in {stuck[item] for item in still if item in stuck and stuck[item] in _STUCK} - told:
                told.add(why)
                self._say(f"step {step + 1}: {sum(w == why for w in stuck.values())} replies {_STUCK[why]}")
            if still and time.monotonic() - said >= TELL_EVERY_S:
                said = time.monotonic()
                late = 0 < self._config.timeout_s < said - began
                self._say(
                    f"step {step + 1} waits for raters: {len(ids) - len(still)} of {len(ids)} replies rated, {said - began:.0f} s"
                    + (f", {self._config.timeout_s:g} s were allowed" if late else "")
                )
        if still:
            self._client.close(still)
            self._say(
                f"step {step + 1}: {len(still)} of {len(ids)} replies not rated"
                + (f", {len(skipped)} of them skipped by every rater" if skipped else "")
            )
        return found, still


def by_whom(scored: Sequence[ScoredRollout]) -> tuple[list[str], list[str]]:
    """Keys of the replies that were paid what raters said, and of those that were paid a guess."""
    told = [(key_of(item.rollout), item.score.notes.get(f"{EXPERTS}/rated")) for item in scored]
    return [key for key, by in told if by == 1.0], [key for key, by in told if by == 0.0]


def update_event(
    run: str, step: int, rated: Sequence[str], guessed: Sequence[str], items: Mapping[str, str]
) -> tuple[Kind, dict[str, Any]]:
    """What the chain says of an update: the items whose rewards it used, and those that are before raters and were paid a
    guess; `items` has them by the reply's key."""
    ids = {
        name: [items[key] for key in keys if key in items] for name, keys in (("rewards", rated), ("guessed", guessed))
    }
    return Kind.UPDATE, {"run": run, "step": step, **ids}


def checkpoint_event(run: str, step: int, manifest: str) -> tuple[Kind, dict[str, Any]]:
    """What the chain says of a checkpoint, by the name of its folder: after how many steps."""
    return Kind.CHECKPOINT, {"run": run, "step": step + 1, "manifest": manifest}


def rated(reward: ExpertReward) -> Opinion:
    """Raters have spoken."""
    return Opinion(reward.value, reward.flags, {"rated": 1.0, "std": reward.std})


def guess_opinion(guess: Guess, beta: float) -> Opinion:
    """Raters have not spoken yet."""
    return Opinion(guess.cautious(beta), notes={"rated": 0.0, "std": guess.std})

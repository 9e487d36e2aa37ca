"""Learning while raters read: a surrogate scores at once, raters' own scores take its place when they come."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rewards.experts.client import RunClient
from rewards.experts.interface import Combine, Opinion
from rewards.experts.late import LateScores
from rewards.experts.opinions import (
    Guesses,
    Lessons,
    Say,
    answer_of,
    by_whom,
    checkpoint_event,
    guess_opinion,
    item_of,
    key_of,
    rated,
    step_of,
    update_event,
)
from rewards.experts.selection import choose
from rewards.experts.surrogate import Guess
from rewards.experts.types import Item, Kind
from rewards.panel import Measurement
from rewards.preference_features import Answer
from rewards.term_config import ExpertsConfig
from rewards.types import RewardError, ScoredRollout
from rollout.types import Rollout

log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_LAST_ROUND_S = 60.0
_TO_THE_CHAIN_S = 5.0  # most that a checkpoint waits for the audit chain
_TIME_TO_UNDO_S = 20.0  # a rating may be taken back for so long, unless its rater has gone on
_KEPT_WINDOWS = 8  # windows for which a reply stays before raters
_COMPARED = 40  # newest replies drawn at random over which surrogate and raters are compared
_LEAST_COMPARED = 8


@dataclass(frozen=True)
class _Pending:
    """A reply that raters have before them."""

    rollout: str
    step: int
    answer: Answer
    guess: Guess
    by_chance: bool


class Asynchronous:
    """A share of the replies goes to the queue; the learner never waits for a person.

    A courier thread carries items to the service, brings ratings back, and has the surrogate fitted again; `judge`
    and `arrived` wait for no one. A service that does not answer is said, and tried again: the run goes on without
    its raters' scores. The surrogate's value is what it was when the reply was asked about; see `alarm`.
    """

    def __init__(
        self, config: ExpertsConfig, run: str, client: RunClient, surrogate: Guesses, *, seed: int, say: Say
    ) -> None:
        self._config, self._run, self._client, self._surrogate = config, run, client, surrogate
        self._seed, self._say = seed, say
        self._lessons = Lessons(surrogate, config.refit_every)
        self._late = LateScores(window=config.window, share=config.late_share, seed=seed)
        self._lock = threading.Lock()
        self._outbox: list[tuple[Item, _Pending]] = []
        # updates (keys of replies that were paid raters' scores, and guesses) and checkpoints for the chain, in their order
        self._news: list[tuple[int, tuple[list[str], list[str]] | str]] = []
        self._items: dict[str, str] = {}  # of replies that were put before raters, by their key
        self._pending: dict[str, _Pending] = {}
        self._arrived: dict[str, Opinion] = {}  # rollout key -> what raters said
        self._gaps: deque[float] = deque(maxlen=_COMPARED)
        self._alarmed = False
        self._step = 0
        self._fits = {"fits": 0, "promoted": 0}
        self._stop = threading.Event()
        self._courier: threading.Thread | None = None
        self._broken: Exception | None = None

    def __enter__(self) -> Self:
        """Send the courier out. What an interrupted run left in the queue would come too late: it is closed."""
        self._client.close_from(self._run, 0)
        self._courier = threading.Thread(target=self._carry, name="experts' courier", daemon=True)
        self._courier.start()
        return self

    def __exit__(self, *ending: object) -> None:
        """Call the courier back, after a last round; what raters have not read by now stays in the queue of the service."""
        self._stop.set()
        if self._courier:
            self._courier.join(timeout=_LAST_ROUND_S)
        if self._news or self._outbox:
            log.warning(
                "%d updates and checkpoints did not reach the audit chain, the service does not answer", len(self._news)
            )

    def judge(self, rollouts: Sequence[Rollout], tiers: Sequence[str]) -> list[Opinion]:
        """Guess every reply's score, cautiously, and put some of them before the raters; one opinion per reply, in order."""
        if self._broken is not None:
            raise RewardError(f"experts: the courier ended: {self._broken!r}") from self._broken
        self._step = step_of(rollouts[0])
        guesses = self._surrogate.guess([answer_of(r) for r in rollouts])
        self._post(rollouts, tiers, guesses)
        empty = Opinion(0.0)
        beta = self._config.beta
        return [guess_opinion(g, beta) if r.text.strip() else empty for r, g in zip(rollouts, guesses, strict=True)]

    def _post(self, rollouts: Sequence[Rollout], tiers: Sequence[str], guesses: Sequence[Guess]) -> None:
        told = [i for i, r in enumerate(rollouts) if r.text.strip()]
        if not told:
            return
        count = max(1, round(self._config.share * len(rollouts)))
        std, vectors = [guesses[i].std for i in told], np.stack([guesses[i].vector for i in told])
        choice = choose(std, vectors, count, self._config.random_share, self._seed * 1_000_003 + self._step)
        letters = []
        for at in choice.chosen:
            rollout, guess = rollouts[told[at]], guesses[told[at]]
            item = item_of(
                rollout, self._run, tiers[told[at]], wanted=self._config.ratings, priority=float(self._step)
            )  # the newest first: an old score comes too late
            by_chance = at in choice.by_chance
            letters.append((item, _Pending(key_of(rollout), self._step, answer_of(rollout), guess, by_chance)))
        with self._lock:
            self._outbox += letters

    def asked(self) -> set[str]:
        """Keys of the replies that wait for raters, or on the way to them."""
        with self._lock:
            return {p.rollout for p in self._pending.values()} | {p.rollout for _, p in self._outbox}

    def arrived(self) -> dict[str, Opinion]:
        """What raters have said since the last call, by the reply's key."""
        with self._lock:
            arrived, self._arrived = self._arrived, {}
        return arrived

    def keep(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> None:
        """Remember those that raters have before them; see `LateScores`."""
        self._late.keep(rollouts, measured, self.asked())

    def revise(self, scored: Sequence[ScoredRollout], combine: Combine) -> list[ScoredRollout]:
        """The step's batch once the raters' scores of earlier replies are in it; see `LateScores`."""
        return self._late.exchange(scored, self.arrived(), combine)

    def used(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """`Synchronous.used`, by the courier."""
        with self._lock:
            self._news.append((step, by_whom(scored)))

    def saved(self, step: int, manifest: str) -> None:
        """`Synchronous.saved`, by the courier. Waits for it a moment, so that a run that is killed later has its chain whole up to
        this checkpoint."""
        with self._lock:
            self._news.append((step, manifest))
        until = time.monotonic() + _TO_THE_CHAIN_S
        while self._news and self._courier is not None and time.monotonic() < until:
            time.sleep(0.02)

    def state_dict(self) -> dict[str, Any]:
        """`Lessons.state_dict`, and what the audit chain has not been told yet."""
        with self._lock:
            return {"rated": self._lessons.state_dict(), "news": [[step, what] for step, what in self._news]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; see `Lessons.load_state_dict`."""
        with self._lock:
            self._lessons.load_state_dict(state.get("rated", []))
            told = [
                (step, what if isinstance(what, str) else (what[0], what[1])) for step, what in state.get("news", [])
            ]
            self._news = [*told, *self._news]

    def metrics(self) -> dict[str, float]:
        """`experts/waiting` replies before raters; `experts/bias`, surrogate less raters over the newest compared replies;
        `experts/alarm`, 1 where it is too large; `experts/fits` and `experts/promoted` so far; and `LateScores.metrics`."""
        with self._lock:
            bias = {"experts/bias": float(np.mean(self._gaps))} if self._gaps else {}
            waiting = float(len(self._pending) + len(self._outbox))
            counts = {f"experts/{name}": float(count) for name, count in self._fits.items()}
            return {
                "experts/waiting": waiting,
                "experts/alarm": float(self._alarmed),
                **bias,
                **counts,
                **self._late.metrics(),
            }

    def round(self) -> None:
        """One way of the courier: out with the items, back with the ratings, and what follows from them."""
        with self._lock:
            letters, self._outbox = self._outbox, []
        try:
            ids = self._client.add([item for item, _ in letters]) if letters else []
        except RewardError:
            with self._lock:
                self._outbox = letters + self._outbox
            raise
        with self._lock:
            self._items |= {pending.rollout: item for (_, pending), item in zip(letters, ids, strict=True)}
            self._pending |= dict(zip(ids, (pending for _, pending in letters), strict=True))
            waiting = list(self._pending)
            items = dict(self._items)
        while self._news:
            step, what = self._news[0]
            if isinstance(what, str):
                self._client.event(*checkpoint_event(self._run, step, what))
            else:
                self._client.event(*update_event(self._run, step, *what, items))
            del self._news[0]
        self._forget()
        if not waiting:
            return
        found, *_ = self._client.rewards(
            self._run, self._step, waiting, least=self._config.ratings, settle_s=_TIME_TO_UNDO_S
        )
        for item, reward in found.items():
            with self._lock:
                pending = self._pending.pop(item)
                self._arrived[pending.rollout] = rated(reward)
                self._lessons.add(item, pending.answer, reward)
            if pending.by_chance:
                self._compare(pending, reward.value)
        if trial := self._lessons.learn():
            with self._lock:
                self._fits = {"fits": self._fits["fits"] + 1, "promoted": self._fits["promoted"] + trial["promoted"]}
            self._client.event(Kind.SURROGATE, {"run": self._run, "step": self._step, **trial})

    def _forget(self) -> None:
        """Take replies out of the queue whose scores would come much too late even for the surrogate to be of use soon."""
        with self._lock:
            oldest = self._step - _KEPT_WINDOWS * self._config.window
            old = [item for item, pending in self._pending.items() if pending.step < oldest]
            self._pending = {item: pending for item, pending in self._pending.items() if item not in old}
        if old:
            self._client.close(old)

    def _compare(self, pending: _Pending, value: float) -> None:
        with self._lock:
            self._gaps.append(pending.guess.mean - value)
            gaps, before = list(self._gaps), self._alarmed
            self._alarmed = alarm(gaps, self._config.alarm)
            rings = self._alarmed and not before
        if rings:
            bias = float(np.mean(gaps))
            self._say(
                f"step {self._step + 1}: the surrogate says {abs(bias):.2f} {'more' if bias > 0 else 'less'} than raters over "
                f"{len(gaps)} replies drawn at random; trust experts/bias before the reward, or raise rewards.experts.share"
            )
            body: Mapping[str, object] = {
                "run": self._run,
                "step": self._step,
                "bias": round(bias, 4),
                "replies": len(gaps),
            }
            self._client.event(Kind.ALARM, body)

    def _carry(self) -> None:
        silent = False
        last = False
        while not last:
            last = self._stop.wait(_PAUSE_S)
            try:
                self.round()
                silent = False
            except RewardError as error:  # the learner goes on: raters' scores come later, or not at all
                if not silent:
                    log.warning("no word from the raters: %s; the run goes on with the surrogate", error)
                silent = True
            except Exception as error:  # told at the next step: a thread that ends says nothing
                self._broken = error
                return


def alarm(gaps: Sequence[float], limit: float) -> bool:
    """Whether surrogate and raters part: |mean gap| above `limit` and above three standard errors, over 8 replies at
    least."""
    if len(gaps) < _LEAST_COMPARED:
        return False
    error = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    return abs(float(np.mean(gaps))) > max(limit, 3 * error)

"""Replies asked for ahead of the step that trains on them, by a bounded number of updates: the loop's only asynchrony.

Step k takes a batch that was asked for when step k - `max_lag` began, so that no token of it is of a policy more than `max_lag`
updates older than the one it trains. At lag 0 everything happens when it is taken, in the loop's own thread. Drawing prompts,
people and running statistics stay with the loop, in the order of the steps, at every lag.
"""

from __future__ import annotations

import json
import threading
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from cluster.tracking import Clock
from rewards.panel import Measurement
from rollout.prompts import PromptStream
from rollout.types import Finish, Prompt, Rollout, RolloutEngine, Routing, Sampling, VersionSpan

ROLLOUT, LEARNER, REWARD = "rollout", "learner", "reward"  # fleets, in the names of metrics
_AHEAD = "ahead"  # in the state of the prompts: the replies that were there before their step


class Measures(Protocol):
    """The part of a reward that is a function of the replies alone, whatever thread asks and when."""

    def measure(self, rollouts: Sequence[Rollout]) -> Sequence[Measurement]: ...


@dataclass(frozen=True)
class _Batch:
    """A step's prompts, where the stream stood before them, and what becomes of them."""

    step: int
    prompts: Sequence[Prompt]
    stream: Mapping[str, Any]
    rollouts: Future[list[Rollout]] = field(default_factory=Future)
    measured: Future[Sequence[Measurement]] = field(default_factory=Future)


class Ahead:
    """Draws, asks and measures the batches of the steps, up to `max_lag` of them ahead of the one that is trained.

    Batches are generated one after another and measured one after another, each in its order. With `in_flight` false the
    engines take new weights between batches only: the batch of step k is then of version max(first step, k - max_lag), whatever
    takes how long, and a run repeats. With it true a publish interrupts the batch that is being generated, whose replies go on
    under the new weights: fresher, and dependent on time.

    As a part of a checkpoint (`state_dict`) it is the prompt stream as it stands for the steps that were taken, with the replies
    that have been generated for later ones: a run goes on with the same prompts at any lag, and with the same replies where
    the lag allows them. Prompts in flight are asked again. An error in the background is raised when its step is taken.
    """

    def __init__(
        self,
        prompts: PromptStream,
        engine: RolloutEngine,
        reward: Measures,
        *,
        per_step: int,
        sampling: Callable[[int], Sampling],
        steps: int,
        max_lag: int,
        in_flight: bool,
        clock: Clock,
    ) -> None:
        assert max_lag >= 0 and not (in_flight and max_lag == 0)
        self._prompts, self._engine, self._reward, self._clock = prompts, engine, reward, clock
        self._per_step, self._sampling, self._steps = per_step, sampling, steps
        self._max_lag, self._in_flight = max_lag, in_flight
        self._batches: dict[int, _Batch] = {}  # not taken yet, by step
        self._last: _Batch | None = None
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ending: object) -> None:
        """Begin nothing more; what is under way is left alone, and nobody waits for it."""
        self._left = True

    def take(self, step: int) -> list[Rollout]:
        """The replies of `step`, in prompt order, stamped with it; the batches of up to `max_lag` later steps are asked for."""
        for later in range(step, min(step + self._max_lag + 1, self._steps)):
            if later not in self._batches:
                self._ask(_Batch(later, (), self._prompts.state_dict()))
        batch = self._batches[step]
        if self._max_lag == 0:
            self._generate(batch)
        return [replace(rollout, step=step) for rollout in batch.rollouts.result()]

    def measured(self, step: int) -> Sequence[Measurement]:
        """What was measured of the replies that were taken last."""
        batch = self._batches.pop(step)
        if self._max_lag == 0:
            self._measure(batch)
        return batch.measured.result()

    def drain(self) -> None:
        """Wait until nothing is being generated: the engines hold one policy and have nothing else to do."""
        wait([batch.rollouts for batch in self._batches.values()])

    def before_publish(self) -> None:
        """Wait until the engines may take new weights."""
        if not self._in_flight:
            self.drain()

    def state_dict(self) -> dict[str, Any]:
        """See the class. At lag 0 the prompt stream's own."""
        batches = list(self._batches.values())
        if not batches:
            return self._prompts.state_dict()
        done = [batch for batch in batches if batch.rollouts.done() and not batch.rollouts.exception()]
        replies = {batch.step: [_written(rollout) for rollout in batch.rollouts.result()] for batch in done}
        return {**batches[0].stream, _AHEAD: json.dumps(replies, separators=(",", ":"))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._prompts.load_state_dict({name: part for name, part in state.items() if name != _AHEAD})
        replies = json.loads(state.get(_AHEAD, "{}"))
        for step, rows in sorted((int(step), rows) for step, rows in replies.items()):
            batch = _Batch(step, (), self._prompts.state_dict())
            if self._lag_of(step, rows) > self._max_lag or step >= self._steps:
                break
            prompts = self._prompts.draw(self._per_step)
            each = [prompt for prompt in prompts for _ in range(self._sampling(step).n)]
            batch.rollouts.set_result([_read(prompt, row) for prompt, row in zip(each, rows, strict=True)])
            self._start(replace(batch, prompts=prompts))

    def _lag_of(self, step: int, rows: Sequence[Mapping[str, Any]]) -> int:
        return step - min(span["version"] for row in rows for span in row["versions"])

    def _ask(self, batch: _Batch) -> None:
        self._start(replace(batch, prompts=self._prompts.draw(self._per_step)))

    def _start(self, batch: _Batch) -> None:
        before, self._last = self._last, batch
        self._batches[batch.step] = batch
        if self._max_lag:
            # a daemon: an interpreter that ends does not wait for replies that nobody will take
            threading.Thread(target=self._work, args=(batch, before), name=f"step {batch.step}", daemon=True).start()

    def _work(self, batch: _Batch, before: _Batch | None) -> None:
        self._generate(batch, before.rollouts if before else None)
        self._measure(batch, before.measured if before else None)

    def _generate(self, batch: _Batch, before: Future[Any] | None = None) -> None:
        def generated() -> list[Rollout]:
            with self._clock.working(ROLLOUT):
                return self._engine.generate(batch.prompts, self._sampling(batch.step))

        if not batch.rollouts.done():  # those of a checkpoint are
            self._fulfil(batch.rollouts, generated, before)

    def _measure(self, batch: _Batch, before: Future[Any] | None = None) -> None:
        def measured() -> Sequence[Measurement]:
            rollouts = batch.rollouts.result()
            with self._clock.working(REWARD):
                return self._reward.measure(rollouts)

        self._fulfil(batch.measured, measured, before)

    def _fulfil(self, future: Future[Any], call: Callable[[], Any], before: Future[Any] | None) -> None:
        """Make `call`, after the batch before, into `future`. Where that one failed, this one does with the same error."""
        try:
            if before is not None:
                before.result()
            if self._left:
                raise CancelledError
            answer = call()
        except BaseException as error:  # whatever it is, it belongs to the loop
            future.set_exception(error)
        else:
            future.set_result(answer)


def lag_metrics(rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
    """How many updates behind the policy that is about to be updated, of version `step`, the sampled tokens are.

    `lag/steps` of the oldest token, `lag/mean` over all tokens, `lag/stale` the share of tokens that are behind at all.
    """
    spans = [span for rollout in rollouts for span in rollout.versions]
    tokens = sum(span.stop - span.start for span in spans)
    behind = [(step - span.version, span.stop - span.start) for span in spans]
    return {
        "lag/steps": float(max(lag for lag, _ in behind)),
        "lag/mean": sum(lag * count for lag, count in behind) / tokens,
        "lag/stale": sum(count for lag, count in behind if lag > 0) / tokens,
    }


def _written(rollout: Rollout) -> dict[str, Any]:
    """A rollout without its prompt, which the stream draws again."""
    row = {name: value for name, value in vars(rollout).items() if name != "prompt"}
    routing = [rollout.routing.shape, b64encode(rollout.routing.experts).decode()]
    tokens = {"response_ids": list(rollout.response_ids), "sampled_logprobs": list(rollout.sampled_logprobs)}
    return {**row, **tokens, "versions": [vars(span) for span in rollout.versions], "routing": routing}


def _read(prompt: Prompt, row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        prompt=prompt,
        sample=row["sample"],
        response_ids=array("i", row["response_ids"]),
        sampled_logprobs=array("d", row["sampled_logprobs"]),
        versions=tuple(VersionSpan(**span) for span in row["versions"]),
        text=row["text"],
        finish=Finish(row["finish"]),
        labels=row["labels"],
        step=row["step"],
        routing=Routing(tuple(row["routing"][0]), b64decode(row["routing"][1])),
    )

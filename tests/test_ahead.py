"""Asynchrony with a bound: what is asked when, how old a token may be, what a resumed run repeats, and how a run ends.

The loop, the prompt stream, the reward and checkpoints are the real ones; engine and learner are fakes that hold the loop to
their contracts while several threads call them.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.tracking import Clock
from rewards.config import CrisisConfig, EmotionConfig, RewardsConfig, SimilarityConfig
from rewards.mixture import LocalReward, Mixture
from rewards.panel import Panel
from rl.ahead import lag_metrics
from rl.batch import Batch, Experience, UpdateReport
from rl.checkpoints import Checkpoints
from rl.endings import NonFiniteLoss
from rl.loop import step_sampling, train
from rollout.engine_config import RolloutConfig
from rollout.types import Prompt, Rollout, Sampling, VersionSpan
from tests.fakes import CheckedReward, FakeEngine, FakeLearner
from tests.test_loop import PER_STEP, SAMPLING, Killed, MortalLearner, Run, prompts, timeless

STEPS = 6
REWARDS = RewardsConfig(
    similarity=SimilarityConfig(weight=0),
    emotion=EmotionConfig(weight=0),
    crisis=CrisisConfig(classifier=False),
    normalise=True,
)
PANEL = Panel(REWARDS)


class SlowEngine(FakeEngine):
    """Takes the given seconds for its batches, one after another. Weights that come in the middle are refused unless `in_flight`;
    then the first half of every reply is of the version before."""

    def __init__(self, journal: list[str], seconds: Sequence[float] = (0.0,), *, in_flight: bool = False) -> None:
        super().__init__(journal)
        self._seconds, self._in_flight = itertools.cycle(seconds), in_flight
        self._busy = threading.Lock()
        self.fails_at: dict[int, BaseException] = {}  # by call
        self.hold, self.held_from = threading.Event(), 0  # calls from that one on wait for the event
        self.hold.set()

    def receive(self, version: int) -> None:
        assert self._in_flight or not self._busy.locked(), "weights arrive between batches"
        super().receive(version)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        assert self._busy.acquire(blocking=False), "one batch at a time"
        try:
            if len(self.asked) >= self.held_from:
                self.hold.wait()
            began = self.version
            before = super().generate(prompts, sampling)
            time.sleep(next(self._seconds))
            if error := self.fails_at.get(len(self.asked) - 1):
                raise error
            if self.version == began:
                return before
            return [self._cut(rollout, began) for rollout in before]
        finally:
            self._busy.release()

    def _cut(self, rollout: Rollout, began: int) -> Rollout:
        length = len(rollout.response_ids)
        spans = (VersionSpan(began, 0, length // 2), VersionSpan(self.version, length // 2, length))
        return replace(rollout, versions=tuple(span for span in spans if span.start < span.stop))


class Looks:
    """An evaluation of every second policy: which version the engine holds, by the version that it is asked to look at."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {}

    def due(self, version: int) -> bool:
        return version % 2 == 0

    def evaluate(self, version: int, engine: FakeEngine) -> dict[str, float]:
        rollouts = engine.generate([Prompt("valid/0", (1, 2), ())], replace(SAMPLING, seed=0))
        self.held[version] = {span.version for rollout in rollouts for span in rollout.versions}
        return {"heldout/step": float(version)}


class LaggedRun(Run):
    """A run of tests/test_loop.py whose batches are asked for ahead."""

    def __init__(
        self, directory: Path, *, max_lag: int, in_flight: bool = False, seconds: Sequence[float] = (0.0,),
        updates: Sequence[float] = (0.0,), steps: int = STEPS, every: int = 2, evaluation: Looks | None = None,
    ) -> None:  # fmt: skip
        super().__init__(directory, steps=steps, every=every)
        self.directory.mkdir(exist_ok=True)
        self.engine = SlowEngine(self.journal, seconds, in_flight=in_flight)
        self.learner = SlowLearner(self.journal, updates)
        self._lag, self.evaluation = {"max_lag": max_lag, "in_flight": in_flight}, evaluation

    def go(self) -> LaggedRun:
        train(
            steps=self.steps, prompts_per_step=PER_STEP, sampling=SAMPLING, prompts=prompts(), engine=self.engine,
            reward=CheckedReward(self.journal, LocalReward(PANEL, Mixture(REWARDS))), learner=self.learner,
            checkpoints=Checkpoints(self.directory / "checkpoints", every=self.every, keep=2, steps=self.steps),
            trackers=self.trackers, record=self.record, clock=Clock(), evaluation=self.evaluation, **self._lag,
        )  # fmt: skip
        return self

    @property
    def versions(self) -> list[set[int]]:
        """Of each step's tokens."""
        return [{v.version for s in scored for v in s.rollout.versions} for _, scored in sorted(self.recorded.items())]


class SlowLearner(FakeLearner):
    """Takes the given seconds for its updates."""

    def __init__(self, journal: list[str], seconds: Sequence[float]) -> None:
        super().__init__(journal)
        self._seconds = itertools.cycle(seconds)

    def update(self, experience: Experience) -> UpdateReport:
        time.sleep(next(self._seconds))
        return super().update(experience)


delays = st.lists(st.sampled_from([0.0, 0.001, 0.004]), min_size=1, max_size=4)


@settings(max_examples=10, deadline=None)
@given(lag=st.integers(1, 3), in_flight=st.booleans(), seconds=delays, updates=delays)
def test_no_token_is_older_than_the_bound(
    lag: int, in_flight: bool, seconds: list[float], updates: list[float]
) -> None:
    """Whatever takes how long, between batches or in flight: every step gets the stream's next prompts with its own seed, each
    asked once, n replies each, none of whose tokens is more than `max_lag` updates old."""
    with tempfile.TemporaryDirectory() as folder:
        run = LaggedRun(Path(folder), max_lag=lag, in_flight=in_flight, seconds=seconds, updates=updates).go()
    stream = prompts()
    drawn = [[prompt.id for prompt in stream.draw(PER_STEP)] for _ in range(STEPS)]
    assert run.engine.asked == [(drawn[step], step_sampling(SAMPLING, step).seed) for step in range(STEPS)]
    for step, scored in run.recorded.items():
        assert [s.rollout.id for s in scored] == [f"{name}/{k}" for name in drawn[step] for k in range(SAMPLING.n)]
        assert {s.rollout.step for s in scored} == {step}
        assert all(0 <= step - v.version <= lag for s in scored for v in s.rollout.versions)
    if not in_flight:
        assert run.versions == [{max(step - lag, 0)} for step in range(STEPS)]


@pytest.mark.parametrize("lag", [1, 2])
def test_between_batches_a_run_repeats_whatever_takes_how_long(lag: int, tmp_path: Path) -> None:
    """A slow engine and a slow learner give the same replies, scores, metrics and weights."""
    slow = LaggedRun(tmp_path / "engine", max_lag=lag, seconds=[0.01, 0.0]).go()
    other = LaggedRun(tmp_path / "learner", max_lag=lag, updates=[0.0, 0.01]).go()
    assert slow.recorded == other.recorded
    assert timeless(slow.rows) == timeless(other.rows) and slow.learner.weight == other.learner.weight


def test_the_next_batch_is_generated_while_the_learner_updates(tmp_path: Path) -> None:
    """With lag 1 the update of step k begins before the replies of step k + 1 are there, and the publish waits for them."""
    run = LaggedRun(tmp_path, max_lag=1, steps=2)
    engine = run.engine

    class Overlaps(FakeLearner):
        def annotate(self, batch: Batch) -> Experience:
            experience = super().annotate(batch)
            engine.hold.set()
            return experience

        def update(self, experience: Experience) -> UpdateReport:
            until = time.monotonic() + 60
            while self.version == 0 and self.journal.count("generate") < 2 and time.monotonic() < until:
                time.sleep(0.001)
            return super().update(experience)

    engine.held_from = 1
    engine.hold.clear()
    run.learner = Overlaps(run.journal)
    events = [e for e in run.go().journal if e in ("generate", "annotate", "update") or e.startswith("publish")]
    assert events == [
        *("publish 0", "generate", "annotate", "generate", "update", "publish 1"),
        *("annotate", "update", "publish 2"),
    ]


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("killed_at", [1, 2, 3, 5])
def test_a_resumed_run_repeats_the_undisturbed_one(lag: int, killed_at: int, tmp_path: Path) -> None:
    """Between batches, k steps + restore + (N - k) steps give the replies, scores, metrics and weights of N steps; the replies
    that were there for later steps when the checkpoint was saved are not asked again."""
    undisturbed = LaggedRun(tmp_path / "undisturbed", max_lag=lag).go()
    first = LaggedRun(tmp_path / "run", max_lag=lag)
    first.learner = MortalLearner(first.journal, killed_at, Killed())
    with pytest.raises(Killed):
        first.go()
    second = LaggedRun(tmp_path / "run", max_lag=lag).go()
    assert second.first_step == killed_at // 2 * 2
    assert first.recorded | second.recorded == undisturbed.recorded
    assert timeless(second.rows) == timeless(undisturbed.rows)
    assert second.learner.weight == undisturbed.learner.weight
    kept = lag if second.first_step else 0
    assert second.engine.asked == undisturbed.engine.asked[second.first_step + kept :]


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1), (1, 2)])
def test_a_run_goes_on_at_another_lag(before: int, after: int, tmp_path: Path) -> None:
    """The same prompts in the same steps, none lost, none twice; replies that would be too old are asked again."""
    plain = LaggedRun(tmp_path / "plain", max_lag=0).go()
    first = LaggedRun(tmp_path / "run", max_lag=before)
    first.learner = MortalLearner(first.journal, 4, Killed())
    with pytest.raises(Killed):
        first.go()
    second = LaggedRun(tmp_path / "run", max_lag=after).go()
    assert second.first_step == 4
    for step, scored in second.recorded.items():
        assert [s.rollout.id for s in scored] == [s.rollout.id for s in plain.recorded[step]]
        assert all(0 <= step - v.version <= after for s in scored for v in s.rollout.versions)


@pytest.mark.parametrize("in_flight", [False, True])
def test_an_evaluation_sees_exactly_the_policy_that_it_names(in_flight: bool, tmp_path: Path) -> None:
    """With batches ahead it waits for the one in flight: the engine is asked one thing at a time and holds the stated version.
    Between batches the training is the same with and without."""
    looks = Looks()
    run = LaggedRun(tmp_path / "a", max_lag=2, in_flight=in_flight, seconds=[0.005], evaluation=looks).go()
    assert looks.held == {version: {version} for version in range(0, STEPS + 1, 2)}
    if not in_flight:
        assert run.recorded == LaggedRun(tmp_path / "b", max_lag=2).go().recorded


def test_at_no_lag_a_checkpoint_is_what_it_was(tmp_path: Path) -> None:
    """The prompts' part of a checkpoint at lag 0 is the stream's own state; at any lag that part of it is the same."""
    states = []
    for lag in (0, 2):
        run = LaggedRun(tmp_path / str(lag), max_lag=lag, steps=3, every=2).go()
        states.append(json.loads((run.directory / "checkpoints" / "step-000002" / "state.json").read_text())["prompts"])
    stream = prompts()
    for _ in range(2):
        stream.draw(PER_STEP)
    assert states[0] == json.loads(json.dumps(stream.state_dict()))
    assert {name: part for name, part in states[1].items() if name in states[0]} == states[0]


def test_an_error_in_the_background_is_raised_when_its_step_is_taken(tmp_path: Path) -> None:
    """As it was; the step before is trained, recorded and logged, and nothing more is asked."""
    run = LaggedRun(tmp_path, max_lag=1)
    run.engine.fails_at = {2: RuntimeError("no engine is left")}
    with pytest.raises(RuntimeError, match="no engine is left"):
        run.go()
    assert [row["step"] for row in run.rows] == [0, 1]
    assert len(run.engine.asked) == 3


@pytest.mark.parametrize("error", [NonFiniteLoss("not finite"), KeyboardInterrupt()])
def test_a_run_that_ends_early_waits_for_no_reply(error: BaseException, tmp_path: Path) -> None:
    """A loss that is not finite, or Ctrl-C, with a batch in flight that does not come: the error is raised at once, and nothing
    more is asked afterwards."""
    run = LaggedRun(tmp_path, max_lag=2)
    run.engine.held_from = 1
    run.engine.hold.clear()
    run.learner = MortalLearner(run.journal, 0, error)
    with pytest.raises(type(error)):
        run.go()
    assert run.rows == [] and len(run.engine.asked) == 1
    run.engine.hold.set()
    for thread in threading.enumerate():
        if thread.name.startswith("step "):
            thread.join(timeout=60)
    assert len(run.engine.asked) == 2  # the one that was under way


def test_staleness_is_counted_by_token() -> None:
    """Four replies' tokens of versions 5, 4 and 3 under version 5: the oldest, the mean and the share that is behind."""
    rollout = Rollout(Prompt("p", (1,), ()), 0, (1,) * 4, (0.0,) * 4, (), "", "stopped")  # type: ignore[arg-type]
    one = replace(rollout, versions=(VersionSpan(3, 0, 1), VersionSpan(5, 1, 4)))
    other = replace(rollout, versions=(VersionSpan(4, 0, 4),))
    assert lag_metrics([one, other], 5) == {"lag/steps": 2.0, "lag/mean": (2 + 4) / 8, "lag/stale": 5 / 8}


def test_idle_is_the_time_in_which_a_fleet_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any thread, over the end of a lap, and once for two things at a time."""
    now = 100.0
    monkeypatch.setattr("cluster.tracking.time", SimpleNamespace(perf_counter=lambda: now))
    clock, begun, go = Clock(), threading.Event(), threading.Event()

    def work() -> None:
        with clock.working("rollout"):
            begun.set()
            go.wait()

    with clock.working("learner"), clock.working("learner"):
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        now = 103.0
    now = 105.0
    first = clock.lap()
    assert (first["idle/rollout_s"], first["idle/learner_s"], first["time/step_s"]) == (0, 2, 5)
    now = 109.0
    go.set()
    thread.join()
    now = 110.0
    second = clock.lap()
    assert (second["idle/rollout_s"], second["idle/learner_s"], second["time/step_s"]) == (1, 5, 5)
    now = 111.0
    assert clock.lap()["idle/rollout_s"] == 1


def test_weights_in_flight_need_a_lag() -> None:
    """The error names both settings."""
    with pytest.raises(
        ValueError, match=r"rollout.in_flight needs rollout.max_lag of at least 1.*set rollout.max_lag = 1"
    ):
        RolloutConfig(in_flight=True)
    with pytest.raises(ValueError, match=r"rollout.max_lag must be at least 0"):
        RolloutConfig(max_lag=-1)

"""The loop: what is called when, what a resumed run repeats, and what each step reports.

The prompt stream, the reward, checkpoints and trackers are the real ones; engine and learner are fakes that hold the
loop to their contracts.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.tracking import METRICS_FILE, Clock, JsonlTracker, read_metrics
from rewards.config import EmotionConfig, RewardsConfig, SimilarityConfig
from rewards.mixture import LocalReward, Mixture
from rewards.panel import Measurement, Panel
from rewards.safety import Flag, Tier
from rewards.types import Score, ScoredRollout
from rl.batch import Batch, Experience, UpdateReport
from rl.checkpoints import Checkpoints, read_checkpoint
from rl.endings import NonFiniteLoss
from rl.loop import describe, step_sampling, train
from rollout.config import PromptsConfig
from rollout.fleet import deal
from rollout.prompts import PromptStream
from rollout.types import Finish, Prompt, Rollout, Sampling, Speaker, Turn
from tests.fakes import CheckedReward, FakeEngine, FakeLearner

SAMPLING = Sampling(n=3, max_tokens=6, temperature=0.9, seed=11)
PER_STEP = 4


class Killed(BaseException):
    """Ends a run where a kill would."""


def prompts() -> PromptStream:
    named = [Prompt(f"p/{n}", (n + 1, 2), (Turn(Speaker.CLIENT, "I can't sleep."),)) for n in range(9)]
    return PromptStream(named, (), (), PromptsConfig(fixed_share=0, crisis_share=0), seed=SAMPLING.seed)


def reward() -> LocalReward:
    config = RewardsConfig(similarity=SimilarityConfig(weight=0), emotion=EmotionConfig(weight=0), normalise=True)
    return LocalReward(Panel(config), Mixture(config))


class Run:
    """One process's part of a run in `directory`, and everything that was seen of it."""

    def __init__(self, directory: Path, *, steps: int, every: int = 2, deaf_to: frozenset[int] = frozenset()) -> None:
        self.directory, self.steps, self.every = directory, steps, every
        self.journal: list[str] = []
        self.engine = FakeEngine(self.journal, deaf_to=deaf_to)
        self.learner = FakeLearner(self.journal)
        self.recorded: dict[int, list[ScoredRollout]] = {}
        self.first_step = -1
        self.write: Callable[[int, Sequence[ScoredRollout]], None] = lambda step, scored: None

    def go(self) -> Run:
        train(
            steps=self.steps,
            prompts_per_step=PER_STEP,
            sampling=SAMPLING,
            prompts=prompts(),
            engine=self.engine,
            reward=CheckedReward(self.journal, reward()),
            learner=self.learner,
            checkpoints=Checkpoints(self.directory / "checkpoints", every=self.every, keep=2, steps=self.steps),
            trackers=self.trackers,
            record=self.record,
            clock=Clock(),
            write=self.write,
        )
        return self

    def trackers(self, first_step: int) -> Run:
        self.first_step = first_step
        self._jsonl = JsonlTracker(self.directory, first_step)
        return self

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        self.journal.append(f"record {step}")
        self.recorded[step] = list(scored)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.journal.append(f"log {step}")
        self._jsonl.log(step, metrics)

    def close(self) -> None:
        self.journal.append("close")
        self._jsonl.close()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory / METRICS_FILE)

    @property
    def replies(self) -> dict[int, list[tuple[object, ...]]]:
        """What identifies each reply of each step that this process took: prompt, sample, tokens, score."""
        return {
            step: [(s.rollout.id, s.rollout.response_ids, s.rollout.text, s.score) for s in scored]
            for step, scored in self.recorded.items()
        }


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "idle/"))} for row in rows]


@pytest.fixture
def undisturbed(tmp_path: Path) -> Run:
    """Seven steps in one go."""
    return Run(tmp_path / "undisturbed", steps=7).go()


@pytest.fixture(autouse=True)
def _directories(tmp_path: Path) -> None:
    for name in ("undisturbed", "run"):
        (tmp_path / name).mkdir()


def test_what_is_called_when(tmp_path: Path) -> None:
    """Weights are published before the first reply and after each update; a step that was taken is recorded, logged
    once, and saved when due."""
    journal = Run(tmp_path / "run", steps=3).go().journal
    assert [event for event in journal if not event.startswith("log")] == [
        *("publish 0", "generate", "score", "annotate", "update", "publish 1", "record 0"),
        *("generate", "score", "annotate", "update", "publish 2", "record 1", "save"),
        *("generate", "score", "annotate", "update", "publish 3", "record 2", "save", "close"),
    ]
    logs = [journal.index(f"log {step}") for step in range(3)]
    assert (
        journal.index("record 0") < logs[0] < journal.index("record 1") < logs[1] < journal.index("record 2") < logs[2]
    )
    assert sum(event.startswith("log") for event in journal) == 3


def test_a_resumed_run_restores_before_anything_else(tmp_path: Path) -> None:
    """Weights that were restored are published under the version they had, and a finished run takes no step."""
    Run(tmp_path / "run", steps=2).go()
    resumed = Run(tmp_path / "run", steps=3).go()
    assert resumed.first_step == 2
    assert resumed.journal[:3] == ["restore", "publish 2", "generate"]
    again = Run(tmp_path / "run", steps=3).go()
    assert again.first_step == 3 and again.journal == ["restore", "publish 3", "close"]
    assert [row["step"] for row in again.rows] == [0, 1, 2]


class MortalLearner(FakeLearner):
    """Is killed with its whole process in the update of one step."""

    def __init__(self, journal: list[str], dies_at: int, error: BaseException) -> None:
        super().__init__(journal)
        self._dies_at, self._error = dies_at, error

    def update(self, experience: Experience) -> UpdateReport:
        if self.version == self._dies_at:
            raise self._error
        return super().update(experience)


@pytest.mark.parametrize("killed_at", [0, 1, 2, 4, 5, 6])
def test_a_resumed_run_repeats_the_undisturbed_one(killed_at: int, undisturbed: Run, tmp_path: Path) -> None:
    """Wherever it is killed, k steps + restore + (N - k) steps draw the same prompts with the same seeds, get the same
    replies and scores, and report the same metrics, as N steps do."""
    first = Run(tmp_path / "run", steps=7)
    first.learner = MortalLearner(first.journal, killed_at, Killed())
    with pytest.raises(Killed):
        first.go()
    second = Run(tmp_path / "run", steps=7).go()
    assert second.first_step == killed_at // 2 * 2
    assert first.engine.asked == undisturbed.engine.asked[: killed_at + 1]
    assert second.engine.asked == undisturbed.engine.asked[second.first_step :]
    assert first.replies | second.replies == undisturbed.replies
    assert timeless(second.rows) == timeless(undisturbed.rows)
    assert second.learner.weight == undisturbed.learner.weight
    assert second.learner.version == undisturbed.learner.version == 7


def test_a_kill_after_a_checkpoint_loses_no_line(tmp_path: Path) -> None:
    """Killed between a checkpoint and the line of its step, the run still has a line for every step in the end."""

    class MortalTracker(Run):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            if step == 1:
                raise Killed
            super().log(step, metrics)

    with pytest.raises(Killed):
        MortalTracker(tmp_path / "run", steps=4).go()
    assert [row["step"] for row in Run(tmp_path / "run", steps=4).go().rows] == [0, 1, 2, 3]


def test_a_diverged_step_leaves_nothing_behind(tmp_path: Path) -> None:
    """A loss that is not finite ends the run there: nothing of that step is published, recorded, saved or logged."""
    run = Run(tmp_path / "run", steps=5)
    run.learner = MortalLearner(run.journal, 3, NonFiniteLoss("the loss of update 3 is not finite"))
    with pytest.raises(NonFiniteLoss, match="update 3"):
        run.go()
    assert run.journal[-3:] == ["generate", "score", "annotate"]
    assert [row["step"] for row in run.rows] == [0, 1, 2]
    assert [f.name for f in Checkpoints(run.directory / "checkpoints", every=2, keep=2, steps=5).folders()] == [
        "step-000002"
    ]


def test_every_reply_is_of_the_policy_that_learns_from_it(undisturbed: Run) -> None:
    """Step k's replies are sampled by version k: lag 0 at every step."""
    assert [row["lag/steps"] for row in undisturbed.rows] == [0.0] * 7
    for step, scored in undisturbed.recorded.items():
        assert {span.version for s in scored for span in s.rollout.versions} == {step}


def test_a_stale_engine_shows_as_lag(tmp_path: Path) -> None:
    """Replies of a policy that is older than the learner's are counted in steps, by the oldest token."""
    run = Run(tmp_path / "run", steps=5, deaf_to=frozenset({2, 3})).go()
    assert [row["lag/steps"] for row in run.rows] == [0.0, 0.0, 1.0, 2.0, 0.0]


def test_rollouts_are_written_beside_the_learners_work(tmp_path: Path) -> None:
    """`write` runs while `annotate` does (each waits here for the other), and has ended when the step is recorded; what it raises
    ends the run before the step is logged or saved."""
    writing, annotating = threading.Event(), threading.Event()
    written: list[int] = []

    class Waits(FakeLearner):
        def annotate(self, batch: Batch) -> Experience:
            annotating.set()
            assert writing.wait(10)
            return super().annotate(batch)

    def write(step: int, scored: Sequence[ScoredRollout]) -> None:
        writing.set()
        assert annotating.wait(10)
        time.sleep(0.1)
        if step == 2:
            raise OSError(28, "No space left on device")
        written.append(step)

    run = Run(tmp_path / "run", steps=4, every=3)
    run.learner, run.write = Waits(run.journal), write
    run.record = lambda step, scored: written.append(-step)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        run.go()
    assert written == [0, 0, 1, -1]
    assert [row["step"] for row in run.rows] == [0, 1]
    assert not list(run.directory.glob("checkpoints/step-*"))


def test_each_step_reports_its_own_numbers(undisturbed: Run) -> None:
    """`reward/*`, `safety/*`, `rollout/*` describe the recorded replies; the learner's and the publish's metrics arrive
    as they were; times are of the phases that the step had; nothing else, and nothing that is not a finite number."""
    phases = {"rollout", "reward", "annotate", "update", "publish", "record", "step"}
    for row in undisturbed.rows:
        step, scored = row["step"], undisturbed.recorded[row["step"]]
        saved = {"save"} if step > 0 and step % 2 == 0 else set()  # counted in the step that follows it
        assert set(row) == {
            "step",
            *("reward/mean", "reward/std", "reward/min", "reward/max"),
            *("reward/inquiry", "reward/length", "reward/repetition"),
            *(f"safety/{flag}" for flag in Flag),
            "safety/gated",
            *(f"tier/{tier}/share" for tier in Tier),
            *(f"tier/{tier}/gated" for tier in {s.score.tier for s in scored}),
            *("rollout/replies", "rollout/tokens", "rollout/length", "rollout/truncated"),
            *("policy/loss", "policy/kl", "publish/logprob_gap", "publish/bytes", "publish/seconds"),
            *("lag/steps", "lag/mean", "lag/stale", "idle/rollout_s", "idle/learner_s", "idle/reward_s"),
            *(f"time/{phase}_s" for phase in phases | saved),
        }
        assert all(math.isfinite(value) for value in row.values())
        lengths = [len(s.rollout.response_ids) for s in scored]
        assert row["rollout/replies"] == len(scored) == PER_STEP * SAMPLING.n
        assert (row["rollout/tokens"], row["rollout/length"]) == (sum(lengths), sum(lengths) / len(lengths))
        assert row["rollout/truncated"] == sum(n == SAMPLING.max_tokens for n in lengths) / len(lengths)
        assert row["reward/mean"] == pytest.approx(sum(s.score.value for s in scored) / len(scored))
        assert row["publish/bytes"] == 8.0 and row["policy/kl"] == row["policy/loss"] / 2
        assert row["time/step_s"] >= sum(row[f"time/{phase}_s"] for phase in phases - {"step"})


def test_the_first_step_is_not_charged_for_what_came_before_it(tmp_path: Path) -> None:
    """`time/step_s` is the sum of the step's phases and little else, for the first step too."""

    class SlowStart(FakeLearner):
        def publish(self, engine: FakeEngine) -> dict[str, float]:
            if self.version == -1:
                time.sleep(1.5)
            return super().publish(engine)

    run = Run(tmp_path / "run", steps=1)
    run.learner = SlowStart(run.journal)
    assert run.go().rows[0]["time/step_s"] < 1.5


def test_the_best_checkpoint_is_that_of_the_best_steps(undisturbed: Run) -> None:
    """The loop tells the checkpoints every step's mean reward, once."""
    means = [row["reward/mean"] for row in undisturbed.rows]
    spans = {2: means[0:2], 4: means[2:4], 6: means[4:6], 7: means[6:7]}
    best = max(spans, key=lambda step: sum(spans[step]) / len(spans[step]))
    folder = undisturbed.directory / "checkpoints"
    assert (folder / "best").resolve().name == f"step-{best:06d}"
    for step in {best, 6, 7}:
        mean = read_checkpoint(folder / f"step-{step:06d}")["score"]
        assert mean == pytest.approx(sum(spans[step]) / len(spans[step])) != 0


class Flagging(LocalReward):
    """Finds a red flag in the first reply of every step."""

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        first, *others = super().settle(rollouts, measured)
        return [replace(first, flags=("dosage",)), *others]


def test_the_checkpoints_are_told_every_red_flags_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's state holds the mean share of replies with each flag, and with any, over its steps."""
    inner = reward()
    monkeypatch.setattr(sys.modules[__name__], "reward", lambda: Flagging(inner.panel, inner.mixture))
    Run(tmp_path / "run", steps=2).go()
    rates = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-000002")["red_flags"]
    assert rates.keys() == {*(f"safety/{flag}" for flag in Flag), "safety/gated"}
    assert {name for name, rate in rates.items() if rate} == {"safety/dosage", "safety/gated"}
    assert rates["safety/dosage"] == rates["safety/gated"] == pytest.approx(1 / (PER_STEP * SAMPLING.n))


def test_describe_counts_truncated_replies(undisturbed: Run) -> None:
    """The share is of replies, whatever their lengths."""
    scored = undisturbed.recorded[0][:4]
    cut = [
        replace(s, rollout=replace(s.rollout, finish=Finish.TRUNCATED if i == 0 else Finish.STOPPED))
        for i, s in enumerate(scored)
    ]
    assert describe(cut)["rollout/truncated"] == 0.25


def test_the_majority_emotion_is_what_an_accuracy_must_beat(undisturbed: Run) -> None:
    """The share of the commonest annotated emotion among replies whose prompt has one; absent where none has."""
    moods = ["anger", "sadness", "anger", ""]
    scored = [
        replace(s, rollout=replace(s.rollout, prompt=replace(s.rollout.prompt, emotion=mood)))
        for s, mood in zip(undisturbed.recorded[0], moods, strict=False)
    ]
    assert describe(scored)["rollout/majority_emotion"] == pytest.approx(2 / 3)
    assert "rollout/majority_emotion" not in describe(scored[3:])


@given(seeds=st.sets(st.integers(0, 1000), min_size=2, max_size=2), steps=st.sets(st.integers(0, 10**6), min_size=2))
def test_every_step_of_every_run_draws_with_a_seed_of_its_own(seeds: set[int], steps: set[int]) -> None:
    """No two (run seed, step) share a sampling seed, and nothing else of the sampling changes."""
    found = {step_sampling(replace(SAMPLING, seed=seed), step) for seed in seeds for step in steps}
    assert len({sampling.seed for sampling in found}) == len(seeds) * len(steps)
    assert {replace(sampling, seed=0) for sampling in found} == {replace(SAMPLING, seed=0)}


weights = st.lists(st.integers(1, 1000), max_size=40)


@settings(deadline=None)
@given(weights=weights, hands=st.integers(1, 8))
def test_a_deal_is_fair(weights: list[int], hands: int) -> None:
    """Every item goes to one hand, in order; no two hands differ by more than the heaviest item; no hand is empty while
    another has two; and the same items are dealt the same way again."""
    dealt = deal(weights, hands)
    assert len(dealt) == hands
    assert sorted(index for hand in dealt for index in hand) == list(range(len(weights)))
    assert all(hand == sorted(hand) for hand in dealt)
    loads = [sum(weights[index] for index in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(weights, default=0)
    assert len(weights) < hands or all(dealt)
    assert deal(list(weights), hands) == dealt

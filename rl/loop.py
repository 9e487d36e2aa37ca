"""The loop of PPO, on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypeVar

from cluster.tracking import Clock, Tracker
from rewards.mixture import describe as describe_scores
from rewards.panel import Measurement
from rewards.types import Score, ScoredRollout
from rl.ahead import LEARNER, ROLLOUT, Ahead, Measures, lag_metrics
from rl.batch import Batch, Experience, UpdateReport, collate
from rl.checkpoints import Checkpoints, SavesLearner, Stateful
from rollout.prompts import PromptStream
from rollout.types import Finish, Rollout, RolloutEngine, Sampling

EngineT = TypeVar("EngineT", contravariant=True)
AnyEngine = TypeVar("AnyEngine", bound=RolloutEngine)


class Learner(SavesLearner, Protocol[EngineT]):
    """What the loop asks of a learner."""

    def annotate(self, batch: Batch) -> Experience: ...

    def update(self, experience: Experience) -> UpdateReport: ...

    def publish(self, engine: EngineT) -> Mapping[str, float]: ...


class Evaluation(Protocol[EngineT]):
    """Looks at the policy on the way. It reads: no weight, no random number and no statistic of the training is another for it."""

    def due(self, version: int) -> bool:
        """Whether the policy after `version` updates is measured."""
        ...

    def evaluate(self, version: int, engine: EngineT) -> Mapping[str, float]:
        """The figures of the policy after `version` updates, which the engine holds."""
        ...


class StepReward(Measures, Stateful, Protocol):
    """A reward with running statistics, and people who may answer late."""

    def settle(self, rollouts: Sequence[Rollout], measured: Sequence[Measurement]) -> list[Score]:
        """One score per rollout, in order, from what `measure` said of them. Called once a step, in the order of the steps."""
        ...

    def revise(self, scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """The step's batch: as it is, or with replies of earlier steps that have been judged since in the place of others."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What there is to say beside the scores."""
        ...


def train(
    *,
    steps: int,
    prompts_per_step: int,
    sampling: Sampling,
    prompts: PromptStream,
    engine: AnyEngine,
    reward: StepReward,
    learner: Learner[AnyEngine],
    checkpoints: Checkpoints,
    trackers: Callable[[int], Tracker],
    record: Callable[[int, Sequence[ScoredRollout]], object],
    clock: Clock,
    write: Callable[[int, Sequence[ScoredRollout]], object] = lambda step, scored: None,
    evaluation: Evaluation[AnyEngine] | None = None,
    max_lag: int = 0,
    in_flight: bool = False,
) -> None:
    """Train for `steps` steps, from the newest checkpoint when there is one.

    `sampling.seed` is the run's; every step derives its own. `write` puts each step's rollouts on disk, in a thread beside the
    learner's work on them; `record` is told when it is done and the update made. `trackers` opens the trackers, told the first
    step. A step's row holds what `evaluation` says of the policy that it trains, the last row what
    it says of the policy that the run ends with. Replies are asked for up to `max_lag` updates ahead, and engines take new
    weights between two batches, or `in_flight` (`rl.ahead`).
    """

    def evaluated(version: int) -> Mapping[str, float]:
        if evaluation is None or not evaluation.due(version):
            return {}
        with clock("rollout"):
            ahead.drain()  # nobody else asks the engines meanwhile
        with clock("evaluate"), clock.working(ROLLOUT):
            return evaluation.evaluate(version, engine)

    def publish() -> Mapping[str, float]:
        with clock("rollout"):
            ahead.before_publish()
        with clock("publish"), clock.working(LEARNER), clock.working(ROLLOUT):
            return learner.publish(engine)

    with ThreadPoolExecutor(1, "write") as beside, Ahead(
        prompts, engine, reward, per_step=prompts_per_step, sampling=lambda step: step_sampling(sampling, step),
        steps=steps, max_lag=max_lag, in_flight=in_flight, clock=clock,
    ) as ahead:  # fmt: skip
        first_step = checkpoints.restore(learner, prompts=ahead, reward=reward)
        tracker = trackers(first_step)
        publish()
        clock.lap()
        for step in range(first_step, steps):
            with clock("rollout"):
                rollouts = ahead.take(step)
            with clock("reward"):
                scores = reward.settle(rollouts, ahead.measured(step))
                scored = reward.revise(attach(rollouts, scores))
            found = evaluated(step)  # behind the step's own replies: the publish below clears the engines' caches of it
            with clock("annotate"), clock.working(LEARNER):
                batch = collate(scored)
                written = beside.submit(write, step, scored)
                experience = learner.annotate(batch)
            with clock("update"), clock.working(LEARNER):
                report = learner.update(experience)
            said = {**lag_metrics([item.rollout for item in scored], step), **reward.metrics()}
            published = publish()
            if step + 1 == steps:
                found = {**found, **evaluated(steps)}
            with clock("record"):
                written.result()
                record(step, scored)
            metrics = describe(scored)
            tracker.log(step, {**metrics, **report.metrics, **published, **said, **found, **clock.lap()})
            checkpoints.note(metrics["reward/mean"], red_flag_rates(metrics))
            if checkpoints.due(step):
                with clock("save"), clock.working(LEARNER):
                    checkpoints.save(step, learner, prompts=ahead, reward=reward)
    tracker.close()


def step_sampling(sampling: Sampling, step: int) -> Sampling:
    """The sampling of one step: the run's, with a seed of its own."""
    return replace(sampling, seed=sampling.seed * 1_000_003 + step)


def attach(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[ScoredRollout]:
    """Pair each rollout with its score."""
    return [ScoredRollout(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]


def red_flag_rates(metrics: Mapping[str, float]) -> dict[str, float]:
    """The share of a step's replies with each red flag, and with any (`safety/gated`)."""
    return {name: rate for name, rate in metrics.items() if name.startswith("safety/")}


def describe(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Metrics of a step's rollouts and scores."""
    lengths = [len(item.rollout.response_ids) for item in scored]
    truncated = sum(item.rollout.finish is Finish.TRUNCATED for item in scored)
    emotions = Counter(item.rollout.prompt.emotion for item in scored if item.rollout.prompt.emotion)
    return {
        **describe_scores([item.score for item in scored]),
        "rollout/replies": float(len(scored)),
        "rollout/tokens": float(sum(lengths)),
        "rollout/length": sum(lengths) / len(lengths),
        "rollout/truncated": truncated / len(scored),
        # what an accuracy of emotions must beat: always saying the batch's most frequent one
        **({"rollout/majority_emotion": max(emotions.values()) / emotions.total()} if emotions else {}),
    }

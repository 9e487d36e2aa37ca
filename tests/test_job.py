"""The fleets of a job together: two real vLLM engines, two reward actors, two learner ranks under DeepSpeed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from cluster.placement import Placement, connect, has_gpus
from cluster.tracking import Clock
from rewards.types import Score
from rl.batch import Batch, Experience, collate
from rl.checkpoints import Checkpoints
from rl.fleet import PublishMismatch
from rl.layout import claims
from rl.loop import attach, describe, step_sampling, train
from rl.ppo import Job
from rollout.corpora import load
from rollout.types import Finish, Rollout, Sampling
from rollout.weight_stream import SharedMemorySender, TensorSpec, WeightGroup
from tests.tiny import quick_recipe, save_tiny

pytestmark = pytest.mark.slow

LONG = Sampling(n=8, max_tokens=24, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    recipe = quick_recipe(
        save_tiny(folder / "model"), folder / "runs", rollout__engines=2, rollout__cpus=0.25, learner__cpus=0.25,
        rewards__crisis__classifier=True, rewards__cpus=0.25,
        rollout__restarts=8, ppo__policy_lr=3e-3, ppo__critic_lr=3e-3, ppo__kl_coef=0.0,
        ppo__kl_target=None, rewards__similarity__weight=0.5,
        prompts__per_step=8, sampling__n=4, learner__micro_batch=16, ppo__truncated="score",
        ppo__clip_high=1.0,
    )  # fmt: skip
    recipe.directory.mkdir(parents=True)
    connect()
    placement = Placement(claims(recipe, on_gpu=has_gpus()))
    started = Job(recipe, load(recipe.corpus), placement, recipe.directory)
    started.ready()
    started.learner.publish(started.engine)
    yield started
    placement.release()
    ray.shutdown()


def sampled(rollouts: Sequence[Rollout]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    return [(r.response_ids, r.sampled_logprobs) for r in rollouts]


def test_rollouts_come_in_prompt_order_and_keep_the_contract(job: Job) -> None:
    """n rollouts per prompt, samples 0..n-1, in prompt order; log-probs per token; versions cover the reply; a reply that
    did not use its budget ends with an end-of-turn token."""
    prompts = job.prompts.draw(5)
    rollouts = job.engine.generate(prompts, LONG)
    assert [(r.prompt.id, r.sample) for r in rollouts] == [(p.id, k) for p in prompts for k in range(8)]
    for rollout in rollouts:
        length = len(rollout.response_ids)
        assert 1 <= length <= 24 and len(rollout.sampled_logprobs) == length
        assert [(s.start, s.stop) for s in rollout.versions] == [(0, length)]
        assert (rollout.finish is Finish.TRUNCATED) == (rollout.response_ids[-1] != 3)
        assert rollout.finish is Finish.STOPPED or length == 24


def test_the_same_call_repeats_bit_for_bit_and_another_seed_does_not(job: Job) -> None:
    """Token ids and log-probs are a function of weights, prompts and seed alone; replies of one prompt differ."""
    prompts = job.prompts.draw(4)
    once, again = job.engine.generate(prompts, LONG), job.engine.generate(prompts, LONG)
    other = job.engine.generate(prompts, replace(LONG, seed=6))
    assert sampled(once) == sampled(again)
    assert sampled(once) != sampled(other)
    assert len({tuple(r.response_ids) for r in once[:8]}) > 1


def test_sampled_log_probs_are_the_learners(job: Job) -> None:
    """The log-prob of every sampled token agrees within 1e-5 nats with the learner's and with the engine's own scoring."""
    prompts = job.prompts.draw(4)
    rollouts = job.engine.generate(prompts, replace(LONG, n=2))
    experience = job.learner.annotate(collate(attach(rollouts, [Score(0.5)] * 8)))
    gap = (experience.logprobs_BT - experience.sampled_logprobs_BT)[experience.mask_BT].abs().max()
    assert float(gap) < 1e-5
    told = job.engine.logprobs([(r.prompt.token_ids, r.response_ids) for r in rollouts])
    assert (
        max(abs(a - b) for r, x in zip(rollouts, told, strict=True) for a, b in zip(r.sampled_logprobs, x, strict=True))
        < 1e-5
    )


def test_after_a_publish_every_engine_samples_from_the_new_policy(job: Job) -> None:
    """Publish after an update: gap under 1e-5 on both engines, tokens carry the new version, and log-probs of a prompt
    that was in the prefix cache have changed (nothing stale is reused)."""
    prompts = job.prompts.draw(4)
    before = job.engine.generate(prompts, LONG)
    asked = [(r.prompt.token_ids, r.response_ids) for r in before]
    old = job.engine.every_logprobs(asked)
    job.learner.update(job.learner.annotate(collate(attach(before, [Score(k / 32) for k in range(32)]))))
    published = job.learner.publish(job.engine)
    assert published["publish/logprob_gap"] < 1e-5
    assert published["publish/bytes"] > 100_000
    new = job.engine.every_logprobs(asked)
    learner = job.learner.log_probs([(tuple(p), tuple(r)) for p, r in asked])
    for engine_old, engine_new in zip(old, new, strict=True):
        assert (
            max(abs(a - b) for x, y in zip(engine_new, learner, strict=True) for a, b in zip(x, y, strict=True)) < 1e-5
        )
        assert (
            max(abs(a - b) for x, y in zip(engine_old, engine_new, strict=True) for a, b in zip(x, y, strict=True))
            > 1e-3
        )
    after = job.engine.generate(prompts, replace(LONG, n=2))
    assert {s.version for r in after for s in r.versions} == {before[0].versions[0].version + 1}


def killed_meanwhile(pids: Callable[[], int], call: Callable[[], object], deaths: Callable[[], int]) -> list[object]:
    """What `call` returns while a process is killed (`deaths` says that one was); once more, killed at another moment, where the
    call was through before."""
    started = time.perf_counter()
    call()
    usual = time.perf_counter() - started
    before, answers = deaths(), list[object]()
    for share in (0.4, 0.2, 0.1, 0.05, 0.3, 0.15, 0.6):
        killer = threading.Timer(share * usual, os.kill, (pids(), signal.SIGKILL))
        killer.start()
        answers.append(call())
        killer.cancel()  # too late: nobody dies between two calls
        killer.join()
        if deaths() > before:
            return answers
    raise AssertionError(f"never killed in time: a call takes {usual:.3f} s")


def test_an_engine_killed_in_mid_generation_changes_nothing_but_time(job: Job) -> None:
    """kill -9 of an engine actor while it generates: it is replaced, given the current weights, asked again, and every
    token id and log-prob is that of the undisturbed call."""
    prompts, long = job.prompts.draw(16), replace(LONG, n=16)
    undisturbed = job.engine.generate(prompts, long)
    answers = killed_meanwhile(
        lambda: job.engine.ready()[0], lambda: sampled(job.engine.generate(prompts, long)), lambda: job.engine.deaths
    )
    assert all(answer == sampled(undisturbed) for answer in answers)
    assert job.learner.gap(job.engine) < 1e-5


def test_a_reward_actor_killed_in_mid_scoring_changes_nothing_but_time(job: Job) -> None:
    """kill -9 of a reward actor while it scores: the same scores come back."""
    rollouts = job.engine.generate(job.prompts.draw(16), replace(LONG, n=8))
    undisturbed = job.reward.score(rollouts)
    answers = killed_meanwhile(
        lambda: job.reward.ready()[1], lambda: job.reward.score(rollouts), lambda: job.reward.deaths
    )
    assert all(answer == undisturbed for answer in answers)


def test_weights_that_arrive_wrong_stop_the_run_and_are_named(job: Job) -> None:
    """When one tensor group reaches an engine changed, the publish's probe raises, and its error names that group."""
    wrong = "model.layers.1.self_attn"

    class Corrupted:
        """The learner's own names and shapes, with noise in one group."""

        def specs(self) -> list[TensorSpec]:
            return [TensorSpec(f"{wrong}.{p}_proj.weight", torch.float32, s) for p, s in
                    {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}.items()]  # fmt: skip

        def __iter__(self) -> Iterator[WeightGroup]:
            torch.manual_seed(0)
            yield WeightGroup(wrong, tuple((s.name, torch.randn(s.shape) / 4) for s in self.specs()))

    SharedMemorySender().send(Corrupted(), job.engine.client(), version=99)
    gap = job.learner.gap(job.engine)
    assert gap > 1e-3
    message = job.learner.explain(job.engine, gap, 1e-4)
    assert f"{wrong} arrived wrong" in message
    assert job.learner.gap(job.engine) < 1e-5  # tracing it sent the right weights again


def test_the_reward_rises_on_a_task_with_a_known_optimum(job: Job) -> None:
    """Reward = share of a reply's tokens below id 300 (half of the vocabulary): PPO takes it from chance to over 0.9."""

    class LowIds:
        def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
            return [Score(sum(i < 300 for i in r.response_ids) / len(r.response_ids)) for r in rollouts]

    means = []
    for step in range(24):
        rollouts = job.engine.generate(job.prompts.draw(8), step_sampling(replace(LONG, n=4, max_tokens=4), step))
        scored = attach(rollouts, LowIds().score(rollouts))
        means.append(describe(scored)["reward/mean"])
        job.learner.update(job.learner.annotate(collate(scored)))
        assert job.learner.publish(job.engine)["publish/logprob_gap"] < 1e-4
    assert sum(means[:2]) / 2 < 0.7, means
    assert sum(means[-3:]) / 3 > 0.9, means


def test_replies_in_flight_go_on_under_new_weights(job: Job) -> None:
    """A publish in the middle of a batch, of replies with seeds of their own: what was sampled before it is what an undisturbed
    call gives, what follows is of the next version, the probe holds at once, and the next call is of that version alone."""
    prompts, long = job.prompts.draw(16), replace(LONG, n=8)
    usual = time.perf_counter()
    undisturbed = job.engine.generate(prompts, long)
    usual = time.perf_counter() - usual
    scored = attach(undisturbed[:32], [Score(k / 32) for k in range(32)])
    old = undisturbed[0].versions[0].version
    for share in (0.5, 0.3, 0.15, 0.7, 0.4, 0.2, 0.6):
        job.learner.update(job.learner.annotate(collate(scored)))
        with ThreadPoolExecutor(1) as threads:
            replies = threads.submit(job.engine.generate, prompts, long)
            time.sleep(share * usual)
            assert job.learner.publish(job.engine)["publish/logprob_gap"] < 1e-5
        spans = [reply.versions for reply in replies.result()]
        if any(len(versions) > 1 for versions in spans):
            break
        undisturbed, old = job.engine.generate(prompts, long), old + 1  # too early or too late: once more
    cut = [(a, b) for a, b in zip(replies.result(), undisturbed, strict=True) if len(a.versions) > 1]
    assert cut and all([v.version for v in a.versions] == [old, old + 1] for a, _ in cut)
    for reply, before in cut:
        stop = reply.versions[0].stop
        assert (reply.versions[0].start, reply.versions[1].start) == (0, stop)
        assert reply.versions[1].stop == len(reply.response_ids) == len(reply.sampled_logprobs)
        assert reply.response_ids[:stop] == before.response_ids[:stop]
        assert reply.sampled_logprobs[:stop] == pytest.approx(before.sampled_logprobs[:stop], abs=1e-5)
    after = job.engine.generate(prompts, replace(long, n=2))
    assert {v.version for reply in after for v in reply.versions} == {old + 1}
    experience = job.learner.annotate(collate(attach(after, [Score(0.5)] * 32)))
    gap = (experience.logprobs_BT - experience.sampled_logprobs_BT)[experience.mask_BT].abs().max()
    assert float(gap) < 1e-5


@pytest.mark.parametrize("in_flight", [False, True])
def test_an_engine_killed_while_the_learner_is_busy_is_replaced(job: Job, tmp_path: Path, in_flight: bool) -> None:
    """Lag 1, kill -9 of an engine while it generates the next batch and the learner annotates: the run goes on, every publish
    is proved, no token is more than one update old."""
    job.learner._version = -1  # the loop counts from 0
    deaths, [pid, _] = job.engine.deaths, job.engine.ready()
    rows, kept = list[Mapping[str, float]](), list[Rollout]()

    class Rows:
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            rows.append(metrics)

        def close(self) -> None: ...

    class Kills:
        """The learner, at whose second batch an engine dies."""

        def annotate(self, batch: Batch) -> Experience:
            if len(rows) == 1:
                os.kill(pid, signal.SIGKILL)
            return job.learner.annotate(batch)

        update, publish, save, restore = job.learner.update, job.learner.publish, job.learner.save, job.learner.restore

    train(
        steps=4, prompts_per_step=8, sampling=replace(LONG, n=4), prompts=job.prompts, engine=job.engine, reward=job.reward,
        learner=Kills(), checkpoints=Checkpoints(tmp_path, every=sys.maxsize, keep=1, steps=sys.maxsize),
        trackers=lambda first_step: Rows(), record=lambda step, scored: kept.extend(item.rollout for item in scored),
        clock=Clock(), max_lag=1, in_flight=in_flight,
    )  # fmt: skip
    assert job.engine.deaths > deaths
    assert [row["publish/logprob_gap"] < 1e-5 for row in rows] == [True] * 4
    assert len(kept) == 4 * 32 and all(0 <= r.step - v.version <= 1 for r in kept for v in r.versions)
    assert rows[3]["lag/steps"] <= 1 and rows[0]["lag/steps"] == 0


def test_a_publish_to_an_engine_that_is_dead_replaces_it(job: Job) -> None:
    """kill -9 of an engine between steps: the next publish finds it dead, starts engines anew and proves them."""
    [pid, _] = job.engine.ready()
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    published = job.learner.publish(job.engine)
    assert published["publish/logprob_gap"] < 1e-5


def test_a_gap_over_the_tolerance_raises(job: Job) -> None:
    """A tolerance below rounding makes the same publish fail, with gap and limit in the message."""
    job.learner.tolerance = -1.0
    with pytest.raises(PublishMismatch, match="engine and learner differ by"):
        job.learner.publish(job.engine)

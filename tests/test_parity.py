"""Published = sampled: for every shape, tuning and ZeRO stage the engine's log-probs are the learner's after updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.placement import Placement, connect, has_gpus
from rl.config import PpoRecipe, Shape
from rl.fleet import PublishHung
from rl.layout import claims
from rl.ppo import spec_of
from rollout.chat import Chat
from rollout.fleet import RolloutFleet
from rollout.types import Prompt, Sampling
from tests.ranks import learner_of
from tests.test_learner import some_batch
from tests.tiny import EXPERTS, TARGETS, quick_recipe, save_tiny

pytestmark = pytest.mark.slow

PROBES = [(tuple(range(10, 40)), tuple(range(41, 60))), (tuple(range(300, 380)), tuple(range(7, 30)))]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


def recipes(model: Path, shape: Shape, runs: Path) -> Iterator[PpoRecipe]:
    """LoRA first: it needs the engine's untouched base, and each later one must change what those before it changed."""
    kinds = [("lora", ()), *([("lora", EXPERTS)] if shape == "mixtral" else []), ("full", ())]
    for tuning, experts in kinds:
        for stage in (2, 3):
            yield quick_recipe(
                model, runs, model__tuning=tuning, model__lora__targets=TARGETS[shape],
                model__lora__target_parameters=experts, learner__zero_stage=stage, ppo__policy_lr=1e-2,
                learner__cpus=0.2, rollout__cpus=0.2, rewards__cpus=0.1,
            )  # fmt: skip


@pytest.mark.parametrize("shape", ["mixtral", "mistral", "gpt2"])
def test_published_is_sampled(shape: Shape, tmp_path: Path) -> None:
    """After two updates (full, LoRA, and of Mixtral LoRA on experts too; ZeRO-2 and ZeRO-3) a publish leaves a gap under
    1e-5 nats in float32, the policy has moved by far more, and the exported policy gives the same log-probs in
    transformers, from its own folder."""
    model = save_tiny(tmp_path / "model", shape)
    first = next(recipes(model, shape, tmp_path))
    placement = Placement(claims(first, on_gpu=has_gpus()))
    chat = Chat(AutoTokenizer.from_pretrained(model))
    engine = RolloutFleet(spec_of(first, chat.end_ids), 1, placement, restarts=0)
    gaps, learner = {}, None
    try:
        for recipe in recipes(model, shape, tmp_path):
            experts = "-experts" * bool(recipe.model.lora.target_parameters)
            key = f"{recipe.model.tuning}{experts}-zero{recipe.learner.zero_stage}"
            learner = learner_of(recipe, learner, placement, PROBES, tmp_path / "failed")
            start = learner.log_probs(PROBES)
            for seed in range(2):
                learner.update(learner.annotate(some_batch(seed=seed)))
            gaps[key] = learner.publish(engine)["publish/logprob_gap"]
            moved = learner.log_probs(PROBES)
            assert (
                max(abs(a - b) for x, y in zip(start, moved, strict=True) for a, b in zip(x, y, strict=True)) > 0.05
            ), key
            learner.save(tmp_path / key)
            exported_gap = _gap_of_export(tmp_path / key / "policy", moved)
            assert exported_gap < 1e-5, (key, exported_gap)
            rollouts = engine.generate([Prompt("p", PROBES[0][0], ())], Sampling(n=2, max_tokens=8))
            assert len(rollouts) == 2
    finally:
        placement.release()
    print(shape, {key: f"{gap:.2g}" for key, gap in gaps.items()})
    assert max(gaps.values()) < 1e-5, gaps


def test_a_published_adapter_is_applied(tmp_path: Path) -> None:
    """With publish.what = adapter, vLLM's own LoRA under A and B alone gives the learner's log-probs to 1e-5 nats after each of
    several updates (ZeRO-2, then ZeRO-3); replies carry the version, no
    cached prompt is stale, and a replaced engine gets the adapter again. An engine whose vLLM stops ends the publish with its
    name, and no process of it is left."""
    model = save_tiny(tmp_path / "model", "mistral")
    stages = [
        quick_recipe(
            model, tmp_path, model__tuning="lora", model__lora__targets=("q_proj", "v_proj", "down_proj"), model__lora__rank=4,
            publish__what="adapter", learner__zero_stage=stage, ppo__policy_lr=1e-2, learner__cpus=0.2, rollout__cpus=0.2,
            rewards__cpus=0.1,
        )
        for stage in (2, 3)
    ]  # fmt: skip
    placement = Placement(claims(stages[0], on_gpu=has_gpus()))
    chat = Chat(AutoTokenizer.from_pretrained(model))
    engine = RolloutFleet(spec_of(stages[0], chat.end_ids), 1, placement, restarts=1)
    learner = None
    try:
        for recipe in stages:
            learner = learner_of(recipe, learner, placement, PROBES, tmp_path / "failed")
            published = [learner.publish(engine)]
            start = learner.log_probs(PROBES)
            for seed in range(3):
                learner.update(learner.annotate(some_batch(seed=seed)))
                published.append(learner.publish(engine))
                rollouts = engine.generate([Prompt("p", PROBES[0][0], ())], Sampling(n=2, max_tokens=8))
                assert {span.version for r in rollouts for span in r.versions} == {seed + 1}
                told = engine.logprobs([(r.prompt.token_ids, r.response_ids) for r in rollouts])
                assert _farthest(told, [list(r.sampled_logprobs) for r in rollouts]) < 1e-5
            assert max(row["publish/logprob_gap"] for row in published) < 1e-5, published
            assert _farthest(start, learner.log_probs(PROBES)) > 0.05
        assert learner is not None
        fleet = learner
        engine.on_replace(lambda: fleet.republish(engine))
        ray.kill(engine._pool.replicas[0])
        engine.ready()
        assert engine.deaths == 1 and fleet.gap(engine) < 1e-5
        [pid] = engine.ready()
        processes = psutil.Process(pid).children(recursive=True)
        fleet._recipe = replace(stages[1], publish=replace(stages[1].publish, timeout_s=10.0))
        for process in processes:
            process.suspend()
        with pytest.raises(PublishHung, match="rollout engine 0 of 1 does not answer logprobs"):
            fleet.gap(engine)
        _, alive = psutil.wait_procs([*processes], timeout=60)
        assert not alive
    finally:
        placement.release()


def _farthest(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def _gap_of_export(folder: Path, expected: list[list[float]]) -> float:
    import torch

    model = AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    gap = 0.0
    for (prompt, reply), wanted in zip(PROBES, expected, strict=True):
        ids = torch.tensor([[*prompt, *reply]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.log_softmax(-1)
        told = logprobs[0, len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
        gap = max(gap, *(abs(a - b) for a, b in zip(told, wanted, strict=True)))
    return gap

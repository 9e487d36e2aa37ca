"""How long a step may take on devices of known rates: a roofline with stated shares of the peaks. Estimates, not promises."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import PpoRecipe
from rl.layout_plan import LayoutPlan
from rl.memory_model import BYTES, kv_token_bytes, micro_tokens
from rl.model_shape import ATTENTION
from rl.sft_config import SftRecipe


@dataclass(frozen=True)
class Assumptions:
    """What of the published peaks a run reaches, and what is paid per call."""

    train_share: float = 0.35  # of peak FLOP/s, in forward and backward
    forward_share: float = 0.45  # of peak FLOP/s, in forward passes alone (annotate, prompts)
    hbm_share: float = 0.6  # of memory bandwidth, while decoding
    link_share: float = 0.7  # of link and network bandwidth, in gathers and publishes
    decode_overhead: float = 0.003  # seconds of a decoding step beside its reads: scheduling, sampling, all-reduces
    publish_overhead: float = 0.5  # seconds of a publish beside its bytes: pauses, layer-wise reload, probe


@dataclass(frozen=True)
class StepTime:
    """Seconds by phase; bytes of a publish to every engine; tokens are those of rows as long as the recipe allows."""

    rollout: float
    annotate: float
    update: float
    publish: float
    publish_bytes: float
    waves: int

    @property
    def total(self) -> float:
        return self.rollout + self.annotate + self.update + self.publish


def estimate(plan: LayoutPlan, assumed: Assumptions) -> StepTime:
    """The phases of one step, one after another (ppo.*), or of one update (sft.*)."""
    recipe, device = plan.recipe, plan.cluster.device
    tokens, _ = micro_tokens(recipe)
    if isinstance(recipe, SftRecipe):
        micros = -(-recipe.sft.batch // (recipe.learner.ranks * recipe.learner.micro_batch))
        return StepTime(0, 0, micros * _micro_step(plan, assumed, tokens), 0, 0, 0)
    rows = recipe.replies_per_step // recipe.learner.ranks
    micros = -(-rows // recipe.learner.micro_batch)
    forward = 2 * plan.shape.active * tokens / (device.flops * assumed.forward_share)
    annotate = micros * 3 * max(forward, _gather(plan, assumed))  # policy, reference, critic
    update = recipe.ppo.epochs * micros * 2 * _micro_step(plan, assumed, tokens)
    rollout, waves = _rollout(plan, recipe, assumed)
    near = [device.hbm / 2] if plan.layout != "dedicated" else []  # CUDA IPC: read and written on the device itself
    far = [device.network if plan.spans_nodes else device.link] if plan.layout != "colocated" else []
    sent, ways = publish_bytes(plan), [*near, *far]  # one after the other, each with a pass over all weights
    publish = (
        sum(sent / (rate * assumed.link_share) + _gather(plan, assumed) for rate in ways) + assumed.publish_overhead
    )
    return StepTime(rollout, annotate, update, publish, len(ways) * sent, waves)


def publish_bytes(plan: LayoutPlan) -> float:
    """Bytes that a publish sends by each of its ways: every weight, or with adapters those of the groups that hold some, merged."""
    recipe, shape = plan.recipe, plan.shape
    width = BYTES[recipe.model.dtype]
    if recipe.model.tuning == "full":
        return plan.counts.policy * width
    leaves = {name for name in shape.modules if name.rpartition(".")[2] in recipe.model.lora.targets}
    in_attention = leaves.intersection(ATTENTION[shape.family])
    groups = (shape.attention if in_attention else 0) + (shape.feed_forward_block if leaves - in_attention else 0)
    return shape.layers * groups * width


def _micro_step(plan: LayoutPlan, assumed: Assumptions, tokens: float) -> float:
    """Forward and backward of one micro-batch: 2 N FLOPs a token forward, 2 N for the gradients of activations, 2 N for those
    of weights (full tuning), 2 N to compute again (gradient checkpointing); or ZeRO-3's gathers where these take longer."""
    model = plan.recipe.model
    passes = 2 + (model.tuning == "full") + model.gradient_checkpointing
    compute = passes * 2 * plan.shape.active * tokens / (plan.cluster.device.flops * assumed.train_share)
    return max(compute, (2 + model.gradient_checkpointing) * _gather(plan, assumed))


def _gather(plan: LayoutPlan, assumed: Assumptions) -> float:
    """Seconds to gather every weight of the policy once under ZeRO-3, by its slowest link."""
    learner, device = plan.recipe.learner, plan.cluster.device
    if learner.zero_stage < 3 or learner.ranks == 1:
        return 0.0
    rate = device.network if learner.ranks > plan.cluster.per_node else device.link
    width = BYTES[plan.recipe.model.dtype]
    return plan.counts.policy * width * (1 - 1 / learner.ranks) / (rate * assumed.link_share)


def _rollout(plan: LayoutPlan, recipe: PpoRecipe, assumed: Assumptions) -> tuple[float, int]:
    """Seconds to write a step's replies, and in how many waves: a decoding step reads the weights that its batch activates,
    and its cache."""
    shape, device, cache = plan.shape, plan.cluster.device, plan.cache
    assert cache is not None
    if not cache.concurrency:
        return float("inf"), 0
    shards, width = recipe.rollout.tensor_parallel, BYTES[recipe.model.dtype]
    mine = -(-recipe.replies_per_step // recipe.rollout.engines)
    waves = -(-mine // cache.concurrency)
    batch, prompt, reply = mine / waves, recipe.prompts.max_context_tokens, recipe.sampling.max_tokens
    weights = plan.counts.policy - (0 if shape.tied else shape.vocabulary * shape.hidden)
    if shape.experts:  # experts that no token of the batch chose are not read
        unread = (1 - shape.experts_per_token / shape.experts) ** batch
        weights -= int(shape.layers * shape.experts * shape.expert * unread)
    read = weights * width / shards + batch * (prompt + reply / 2) * kv_token_bytes(shape, width, shards)
    compute = 2 * shape.active * batch / (shards * device.flops * assumed.forward_share)
    decode = reply * (max(read / (device.hbm * assumed.hbm_share), compute) + assumed.decode_overhead)
    unique = mine / recipe.sampling.n * prompt  # replies to one prompt share its cache
    return waves * decode + 2 * shape.active * unique / (shards * device.flops * assumed.forward_share), waves

"""How long a step may take on devices of known rates: a roofline with stated shares of the peaks. Estimates, not promises."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config import PpoRecipe
from rl.layout_plan import LayoutPlan
from rl.memory_model import BYTES, kv_token_bytes, largest_micro_batch, merged_groups
from rl.sft_config import SftRecipe


@dataclass(frozen=True)
class Assumptions:
    """What of the published peaks a run reaches, and what is paid per call."""

    train_share: float = 0.35  # of peak FLOP/s, in forward and backward
    forward_share: float = 0.45  # of peak FLOP/s, in forward passes alone (annotate, prompts)
    hbm_share: float = 0.6  # of memory bandwidth, while decoding
    link_share: float = 0.7  # of link and network bandwidth, in gathers and publishes
    # bytes per second and device of what goes through a host's memory: adapters, weights that sleep
    host_rate: float = 4e9
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
    sleep: float = 0.0  # of engines on the learner's devices, to and from host memory

    @property
    def total(self) -> float:
        return self.rollout + self.annotate + self.update + self.publish + self.sleep


def estimate(plan: LayoutPlan, assumed: Assumptions) -> StepTime:
    """The phases of one step, one after another (ppo.*), or of one update (sft.*)."""
    recipe = plan.recipe
    if isinstance(recipe, SftRecipe):
        micros = -(-recipe.sft.batch // (recipe.learner.ranks * recipe.learner.micro_batch))
        return StepTime(0, 0, micros * _micro_step(plan, assumed, largest_micro_batch(recipe).tokens), 0, 0, 0)
    ppo = recipe.ppo
    micros, tokens = _micro_batches(recipe, recipe.replies_per_step)
    forward = 2 * plan.shape.active * tokens / (plan.cluster.device.flops * assumed.forward_share)
    later = ppo.update_says_logprobs(micro_batches=micros, sparse=plan.shape.experts > 0)
    roles = 1 + (not later) + ppo.has_critic  # the reference, the policy, a critic
    annotate = micros * roles * _beside(plan, forward, _gather(plan, assumed))
    micros, tokens = _micro_batches(recipe, recipe.replies_per_step // ppo.minibatches)
    update = ppo.epochs * ppo.minibatches * micros * (1 + ppo.has_critic) * _micro_step(plan, assumed, tokens)
    rollout, waves = _rollout(plan, recipe, assumed)
    sent, ways = publish_bytes(plan), publish_ways(plan, assumed)
    # one way after the other, each with a pass over the weights that are sent
    gather = _gather(plan, assumed) * sent / (plan.counts.policy * BYTES[recipe.model.dtype])
    publish = sum(sent / rate + gather for rate in ways.values()) + assumed.publish_overhead
    sleep = 2 * plan.asleep_bytes / assumed.host_rate
    return StepTime(rollout, annotate, update, publish, len(ways) * sent, waves, sleep)


def publish_bytes(plan: LayoutPlan) -> float:
    """Bytes that a publish sends by each of its ways: every weight, those of the groups that hold adapters, merged, or the policy's
    adapter alone."""
    recipe, shape = plan.recipe, plan.shape
    assert isinstance(recipe, PpoRecipe), "a supervised run publishes nothing"
    width = BYTES[recipe.model.dtype]
    match recipe.publish.part(recipe.model.tuning):
        case "adapter":
            return shape.adapter(recipe.model.lora) * width
        case "merged":
            return shape.layers * sum(merged_groups(recipe, shape)) * width
        case "full":
            return plan.counts.policy * width


def publish_ways(plan: LayoutPlan, assumed: Assumptions) -> dict[str, float]:
    """Bytes per second of each way that a publish goes."""
    recipe, device = plan.recipe, plan.cluster.device
    if isinstance(recipe, PpoRecipe) and recipe.publish.part(recipe.model.tuning) == "adapter":
        return {"the host's shared memory": assumed.host_rate}
    # CUDA IPC: read and written on the device itself
    near = {"CUDA IPC": device.hbm / 2 * assumed.link_share} if plan.layout != "dedicated" else {}
    if plan.layout == "colocated":
        return near
    name, rate = ("the network between nodes", device.network) if plan.spans_nodes else ("links of a node", device.link)
    return {**near, name: rate * assumed.link_share}


def _micro_batches(recipe: PpoRecipe, replies: int) -> tuple[int, float]:
    """How many micro-batches of `replies` replies a rank makes, and the mean of their tokens. Packed replies to one prompt share
    it; a minibatch holds replies to as many prompts as it can."""
    prompt, reply, learner = recipe.prompts.max_context_tokens, recipe.sampling.max_tokens, recipe.learner
    if not learner.micro_batch_tokens:
        rows = -(-replies // learner.ranks)
        micros = -(-rows // learner.micro_batch)
        return micros, rows * (prompt + reply) / micros
    together = max((learner.micro_batch_tokens - prompt + 1) // (reply + 1), 1)  # replies that share a prompt
    prompts = min(recipe.prompts.per_step * -(-recipe.sampling.n // together), replies)
    mine = (prompts * prompt + replies * reply) / learner.ranks
    micros = max(round(mine / max(learner.micro_batch_tokens, prompt + reply)), 1)
    return micros, mine / micros


def _micro_step(plan: LayoutPlan, assumed: Assumptions, tokens: float) -> float:
    """Forward and backward of one micro-batch: 2 N FLOPs a token forward, 2 N for the gradients of activations, 2 N for those
    of weights (full tuning), 2 N to compute again (gradient checkpointing); or ZeRO-3's gathers where these take longer."""
    model = plan.recipe.model
    passes = 2 + (model.tuning == "full") + model.gradient_checkpointing
    compute = passes * 2 * plan.shape.active * tokens / (plan.cluster.device.flops * assumed.train_share)
    return _beside(plan, compute, (2 + model.gradient_checkpointing) * _gather(plan, assumed))


def _beside(plan: LayoutPlan, compute: float, gathers: float) -> float:
    """Seconds of both: ZeRO-3 gathers ahead where every pass asks for the parameters in one order. With a critic passes of two
    roles take turns, whose orders differ, and DeepSpeed gathers each layer when it comes to it."""
    in_turn = isinstance(plan.recipe, PpoRecipe) and plan.recipe.ppo.has_critic
    return compute + gathers if in_turn else max(compute, gathers)


def _gather(plan: LayoutPlan, assumed: Assumptions) -> float:
    """Seconds to gather every weight of the policy once under ZeRO-3, by its slowest link."""
    learner, device = plan.recipe.learner, plan.cluster.device
    if learner.zero_stage < 3 or learner.ranks == 1:
        return 0.0
    rate = device.link if plan.ranks_together else device.network
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

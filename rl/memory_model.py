"""Where the memory of a run goes: bytes by part, of each role and phase, before anything is loaded. Imports no torch.

`attune check` asks it about numbers of parameters, `attune plan` about whole layouts. A role's memory is a sum of parts; roles
that share a device add up phase by phase, and the peak is the largest phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rl.activations import Trained, logits_bytes, pass_bytes
from rl.config import REDUCE_BUCKET, PpoRecipe
from rl.model_shape import ModelShape
from rl.sft_config import SftRecipe

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_BYTES = 12  # per trained parameter: DeepSpeed's float32 master weight and AdamW's two moments
MOMENT_BYTES = 8  # without ZeRO there is no master copy
PROCESS_BYTES = 600_000_000  # a process that imported torch, beside its tensors; one CPU engine is three of them
Parts = Mapping[str, float]


class Counts(NamedTuple):
    """Numbers of parameters: of the policy alone, of all that a learner holds (critic and reference too), and of those
    it trains."""

    policy: int
    held: int
    trained: int


@dataclass(frozen=True)
class Overheads:
    """What cannot be derived from a recipe; assumed, for CUDA. Bytes but for the shares."""

    context: float = 1.0e9  # CUDA context and cuBLAS workspaces of a process, NCCL's buffers
    graphs: float = 0.8e9  # an engine's CUDA graphs
    staging: float = 2 * 2**30  # a publish's two packed buffers of 1 GiB
    profiled_tokens: int = 8192  # an engine leaves room for a batch of so many prompt tokens
    slack: float = 0.04  # of a learner's activations and buffers: the allocator's fragments
    adam_buffers: int = (
        1  # copies of its largest group's float32 weights that AdamW makes on the way: one, as it is fused
    )


CPU_OVERHEADS = Overheads(0, 0, 0, 0, 0, adam_buffers=3)


def counts_of(recipe: PpoRecipe | SftRecipe, shape: ModelShape) -> Counts:
    """What a learner holds and trains of a model of `shape`. Raises ValueError when a tuning finds nothing to train."""
    policy, adapter = shape.parameters, _tuned(recipe.model, shape) if recipe.model.tuning != "full" else 0
    if isinstance(recipe, SftRecipe):
        added = adapter if recipe.model.tuning in ("lora", "ia3", "prefix", "prompt") else 0
        return Counts(policy, policy + added, adapter or policy)
    trained = adapter or policy
    if recipe.ppo.has_critic:
        trained += (adapter or policy - shape.head) + shape.hidden + 1  # the value head
    return Counts(policy, policy + trained, trained)  # full: and the frozen reference; lora: and the base


def _tuned(model, shape: ModelShape) -> int:  # type: ignore[no-untyped-def]
    """Parameters that a tuning other than `full` trains (see `rl.tuning`)."""
    gpt2 = shape.family == "gpt2"
    match model.tuning:
        case "lora":
            return shape.adapter(model.lora, model.lora.target_parameters)
        case "ln":
            count = shape.norms
        case "bitfit":
            count = (7 * shape.hidden + shape.feed_forward) * shape.layers + shape.hidden if gpt2 else 0
        case "ia3":
            scales = 3 * shape.hidden + shape.feed_forward if gpt2 else 2 * shape.keys
            count = shape.layers * (scales if gpt2 or shape.experts else scales + shape.feed_forward)
        case "prompt":
            count = model.virtual_tokens * shape.hidden
        case "prefix":
            count = model.virtual_tokens * shape.layers * 2 * shape.keys
    if not count:
        raise ValueError(
            f"model.tuning = {model.tuning} finds nothing to train in this model; choose another, such as ln"
        )
    return count


def policy_bytes(recipe: PpoRecipe | SftRecipe, counts: Counts) -> int:
    """The policy's weights once."""
    return counts.policy * BYTES[recipe.model.dtype]


def disk_bytes(recipe: PpoRecipe | SftRecipe, counts: Counts) -> int:
    """The most that checkpoints take at once: those that are kept, the best one, and the one that is being written.

    Each holds the exported policy, and what is trained with its optimizer states.
    """
    trained = counts.trained * (BYTES[recipe.model.dtype] + ADAM_BYTES)
    keep = recipe.keep if isinstance(recipe, SftRecipe) else recipe.checkpoint.keep
    return (keep + 2) * (policy_bytes(recipe, counts) + trained)


def states(recipe: PpoRecipe | SftRecipe, counts: Counts) -> dict[str, float]:
    """What a learner rank keeps on its device between updates: each part whole, or its share, as the ZeRO stage says."""
    width, learner = BYTES[recipe.model.dtype], recipe.learner

    def share(count: float, stage: int) -> float:
        return count / (learner.ranks if learner.zero_stage >= stage else 1)

    adapters = counts.trained if recipe.model.tuning != "full" else 0
    return {
        "weights": share((counts.held - adapters) * width, 3),
        "adapters": share(adapters * width, 3),
        "gradients": share(counts.trained * width, 2),
        "optimizer": share(counts.trained * (ADAM_BYTES if learner.zero_stage else MOMENT_BYTES), 1),
    }


def rank_bytes(recipe: PpoRecipe | SftRecipe, counts: Counts) -> int:
    """What a learner rank keeps on its device, without activations."""
    return int(sum(states(recipe, counts).values()))


def engine_bytes(recipe: PpoRecipe, counts: Counts) -> int:
    """What an engine keeps on each of its devices, without its key-value cache."""
    return policy_bytes(recipe, counts) // recipe.rollout.tensor_parallel


def cpu_bytes(recipe: PpoRecipe | SftRecipe, counts: Counts) -> int:
    """All processes of a run on nodes without GPUs."""
    if isinstance(recipe, SftRecipe):
        return recipe.learner.ranks * (rank_bytes(recipe, counts) + PROCESS_BYTES)
    engines, ranks = recipe.rollout.engines, recipe.learner.ranks
    cache = int(recipe.rollout.kv_cache_gb * 2**30)
    tensors = ranks * rank_bytes(recipe, counts) + engines * (policy_bytes(recipe, counts) + cache)
    return tensors + (3 * engines + ranks + recipe.rewards.actors) * PROCESS_BYTES


def micro_tokens(recipe: PpoRecipe | SftRecipe) -> tuple[int, int]:
    """Tokens of the largest micro-batch, and the positions of them that train: rows as long as the recipe allows."""
    ranks = recipe.learner.ranks
    if isinstance(recipe, SftRecipe):
        rows = min(recipe.learner.micro_batch, -(-recipe.sft.batch // ranks))
        return rows * recipe.longest[1], rows * recipe.data.max_tokens
    longest = recipe.prompts.max_context_tokens + recipe.sampling.max_tokens
    at_once = (
        recipe.learner.micro_batch_tokens // longest or 1
        if recipe.learner.micro_batch_tokens
        else recipe.learner.micro_batch
    )
    rows = min(at_once, recipe.replies_per_step // ranks)
    return rows * longest, rows * recipe.sampling.max_tokens


def learner_phases(
    recipe: PpoRecipe | SftRecipe, shape: ModelShape, counts: Counts, overheads: Overheads
) -> dict[str, Parts]:
    """A learner rank's parts while it rests (an engine generates), computes gradients, reduces and applies them, and publishes.

    `gathers` are ZeRO-3's: weights whole on the rank, up to learner.max_live_parameters; `bucket` holds gradients on their way.
    """
    width, learner = BYTES[recipe.model.dtype], recipe.learner
    stage, ranks = learner.zero_stage, learner.ranks
    bucket = min(REDUCE_BUCKET, counts.trained) * width if stage else 0
    rest: dict[str, float] = {**states(recipe, counts), "context": overheads.context}
    if stage == 3:
        rest["bucket"] = bucket
    else:
        rest["gradients"] = 0.0  # made anew at each update
    tokens, positions = micro_tokens(recipe)
    live = min(counts.policy, learner.max_live_parameters) * width if stage == 3 and ranks > 1 else 0.0
    waiting, passing = pass_bytes(
        shape,
        trained_parts(recipe.model, shape),
        tokens,
        width=width,
        checkpointing=recipe.model.gradient_checkpointing,
    )
    activations = waiting + passing
    # the logits' turn comes before the layers': only what they need beyond a layer adds to the peak
    logits = max(logits_bytes(shape, positions, scored=isinstance(recipe, PpoRecipe)) - passing, 0.0)
    compute = {**rest, **states(recipe, counts), "gathers": live, "bucket": bucket}
    slack = overheads.slack * (activations + logits + live + bucket)
    gradients = {**compute, "activations": activations, "logits": logits, "fragments": slack}
    # ZeRO-1 and 2 hold the rank's gradients twice more for a moment: as reduced, and as flattened to be added up
    averaged = 2 * counts.trained * width / ranks if stage in (1, 2) else 0.0
    reduce = {**compute, "gathers": 0.0, "update": averaged}
    largest = counts.trained / (2 if isinstance(recipe, PpoRecipe) else 1) / (ranks if stage else 1)
    apply = {
        **rest,
        **states(recipe, counts),
        "update": 4 * largest * overheads.adam_buffers if stage else 0.0,
    }
    layer = max(shape.attention + shape.feed_forward_block, shape.vocabulary * shape.hidden) * width
    publish = {**rest, "gathers": layer if stage == 3 else 0.0, "publish staging": layer + overheads.staging}
    return {"rollout": rest, "gradients": gradients, "reduce": reduce, "apply": apply, "publish": publish}


def trained_parts(model, shape: ModelShape) -> Trained:  # type: ignore[no-untyped-def]
    if model.tuning == "full":
        return Trained()
    targets = frozenset(model.lora.targets) if model.tuning == "lora" else frozenset()
    return Trained(model.lora.rank if targets else 1, targets)


def kv_token_bytes(shape: ModelShape, width: int, tensor_parallel: int) -> float:
    """Bytes that one token's keys and values take on each device of an engine; heads are split, never a head."""
    heads = max(shape.kv_heads / tensor_parallel, 1)
    return 2 * shape.layers * heads * shape.head_size * width

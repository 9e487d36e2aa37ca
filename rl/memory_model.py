"""Where the memory of a run goes: bytes by part, of each role and phase, before anything is loaded. Imports no torch.

`attune check` asks it about numbers of parameters, `attune plan` about whole layouts. A role's memory is a sum of parts; roles
that share a device add up phase by phase, and the peak is the largest phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rl.activations import Entropy, Trained, forward_bytes, logits_bytes, pass_bytes
from rl.config import REDUCE_BUCKET, PpoRecipe
from rl.model_shape import ATTENTION, ModelShape
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
    # copies of its largest group's float32 weights that AdamW makes on the way: one, as it is fused
    adam_buffers: int = 1


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
        "gradients": share(counts.trained * (4 if learner.zero_stage >= 2 else width), 2),  # they add up in float32
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


class MicroBatch(NamedTuple):
    """A rank's largest micro-batch, rows as long as the recipe allows: its tokens, and the positions of them that train.

    `pairs` of tokens (R x W x W) are in its attention mask, 0 where it needs none, and in the masks of all micro-batches that the
    rank lays out at once `masks`.
    """

    tokens: int
    positions: int
    pairs: int = 0
    masks: int = 0


def largest_micro_batch(recipe: PpoRecipe | SftRecipe) -> MicroBatch:
    """The largest micro-batch that `rl.micro_batches.deal_rows` (PPO) or `rl.sequences.shares` (supervised) may deal."""
    ranks = recipe.learner.ranks
    if isinstance(recipe, SftRecipe):
        rows = min(recipe.learner.micro_batch, -(-recipe.sft.batch // ranks))
        return MicroBatch(rows * recipe.longest[1], rows * recipe.data.max_tokens)
    if recipe.learner.micro_batch_tokens:
        return _largest_packed(recipe)
    mine, reply = recipe.replies_per_step // ranks, recipe.sampling.max_tokens
    rows = min(recipe.learner.micro_batch, mine)
    return MicroBatch(rows * (recipe.prompts.max_context_tokens + reply), rows * reply)


def _largest_packed(recipe: PpoRecipe) -> MicroBatch:
    """Rows hold families: replies with one prompt before them, as many as stay within `learner.micro_batch_tokens`. Prompts may be
    short, so that nearly all tokens of a row train; a text of `prompts.fixed` may be drawn several times in a step."""
    prompts, reply, n = recipe.prompts, recipe.sampling.max_tokens, recipe.sampling.n
    prompt, limit, ranks = prompts.max_context_tokens, recipe.learner.micro_batch_tokens, recipe.learner.ranks
    fixed = -(-prompts.per_step * prompts.fixed_share // max(len(prompts.fixed), 1))
    most = n * max(int(fixed), 1)  # replies to one prompt
    held = min(max((limit - prompt + 1) // (reply + 1), 1), most)  # of them in a family
    capacity = prompt + reply if held == 1 else prompt - 1 + held * (reply + 1)
    families = prompts.per_step * -(-n // min(held, n))
    share = -(-families // ranks) * capacity  # fullest rows are dealt first: ranks differ by one at most
    tokens = min(max(limit, capacity), share)
    positions = min(tokens, max(-(-families // ranks) * min(held, n), held) * reply)
    return MicroBatch(tokens, positions, tokens * capacity, share * capacity)


def learner_phases(
    recipe: PpoRecipe | SftRecipe, shape: ModelShape, counts: Counts, overheads: Overheads
) -> dict[str, Parts]:
    """A learner rank's parts while it computes gradients, reduces and applies them; with PPO also while it rests (an engine
    generates), publishes, reads the publish's probe, and saves.

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
    micro = largest_micro_batch(recipe)
    live = min(counts.policy, learner.max_live_parameters) * width if stage == 3 and ranks > 1 else 0.0
    trained = trained_parts(recipe.model)
    waiting, passing = pass_bytes(
        shape,
        trained,
        micro.tokens,
        width=width,
        checkpointing=recipe.model.gradient_checkpointing,
        pairs=micro.pairs,
    )
    activations = waiting + passing + micro.masks  # these are booleans
    # the logits' turn comes before the layers': only what they need beyond a layer adds to the peak
    logits = max(logits_bytes(shape, micro.positions, entropy=_entropy(recipe)) - passing, 0.0)
    compute = {**rest, **states(recipe, counts), "gathers": live, "bucket": bucket}
    slack = overheads.slack * (activations + logits + live + bucket)
    gradients = {**compute, "activations": activations, "logits": logits, "fragments": slack}
    # ZeRO-1 and 2 hold the rank's gradients twice more for a moment: as reduced, and as flattened to be added up
    averaged = 2 * counts.trained * width / ranks if stage in (1, 2) else 0.0
    reduce = {**compute, "gathers": 0.0, "update": averaged}
    groups = 2 if isinstance(recipe, PpoRecipe) and recipe.ppo.has_critic else 1  # of the optimizer: policy and critic
    largest = counts.trained / groups / (ranks if stage else 1)
    apply = {
        **rest,
        **states(recipe, counts),
        "update": 4 * largest * overheads.adam_buffers if stage else 0.0,
    }
    phases: dict[str, Parts] = {"rollout": rest, "gradients": gradients, "reduce": reduce, "apply": apply}
    if isinstance(recipe, SftRecipe):
        return phases
    sent, whole = largest_sent(recipe, shape), _largest_layer(shape) * width
    staging = overheads.staging if sent else 0.0
    phases["publish"] = {**rest, "gathers": sent if stage == 3 else 0.0, "publish staging": sent + staging}
    rows = min(recipe.publish.probes, learner.micro_batch)  # of a publish's fixed replies, which every rank reads
    positions = rows * recipe.sampling.max_tokens
    tokens = rows * recipe.prompts.max_context_tokens + positions
    read = forward_bytes(shape, trained, tokens, positions, width=width)
    slack = overheads.slack * (read + live)
    phases["probe"] = {**rest, "gathers": live, "activations": read, "fragments": slack}
    phases["save"] = {**rest, "gathers": whole if stage == 3 else 0.0, "export": whole}  # a layer, and it merged
    return phases


def _entropy(recipe: PpoRecipe | SftRecipe) -> Entropy:
    """What an update does with the policy's entropy."""
    if isinstance(recipe, SftRecipe):
        return ""
    return "learned" if recipe.ppo.entropy_coef else "measured"


def trained_parts(model) -> Trained:  # type: ignore[no-untyped-def]
    """What of a recipe's `model` keeps inputs for its gradients."""
    if model.tuning == "full":
        return Trained()
    if model.tuning != "lora":
        return Trained(1)
    return Trained(model.lora.rank, frozenset(model.lora.targets), frozenset(model.lora.target_parameters))


def _largest_layer(shape: ModelShape) -> int:
    """Parameters of a layer, or of the embedding where that is larger."""
    return max(shape.attention + shape.feed_forward_block, shape.vocabulary * shape.hidden)


def merged_groups(recipe: PpoRecipe, shape: ModelShape) -> list[int]:
    """Parameters of the groups of each layer that hold adapters, which a merged publish sends whole."""
    lora = recipe.model.lora
    adapted = {name for name in shape.modules if name.rpartition(".")[2] in lora.targets}
    adapted |= set(shape.stacks).intersection(lora.target_parameters)
    inside = adapted.intersection(ATTENTION[shape.family])
    return [*([shape.attention] if inside else []), *([shape.feed_forward_block] if adapted - inside else [])]


def largest_sent(recipe: PpoRecipe, shape: ModelShape) -> float:
    """Bytes of the layer that a publish gathers and merges at once; 0 for an adapter alone, which is small."""
    width = BYTES[recipe.model.dtype]
    match recipe.publish.part(recipe.model.tuning):
        case "adapter":
            return 0.0
        case "merged":
            return sum(merged_groups(recipe, shape)) * width
        case "full":
            return _largest_layer(shape) * width


def kv_token_bytes(shape: ModelShape, width: int, tensor_parallel: int) -> float:
    """Bytes that one token's keys and values take on each device of an engine; heads are split, never a head."""
    heads = max(shape.kv_heads / tensor_parallel, 1)
    return 2 * shape.layers * heads * shape.head_size * width

"""How much memory and disk a run takes: estimates from the number of parameters, before anything is loaded."""

from __future__ import annotations

from rl.config import PpoRecipe

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_BYTES = 12  # per trained parameter: DeepSpeed's float32 master weight and AdamW's two moments
PROCESS_BYTES = 600_000_000  # a process that imported torch, beside its tensors; one CPU engine is three of them


def weight_bytes(recipe: PpoRecipe, parameters: int) -> int:
    """The policy's weights once."""
    return parameters * BYTES[recipe.model.dtype]


def checkpoint_bytes(recipe: PpoRecipe, parameters: int) -> int:
    """One checkpoint: the exported policy; policy and critic as trained, with their optimizer states. Adapters are left
    out (small beside the export)."""
    weights, trained = weight_bytes(recipe, parameters), _trained(recipe, parameters)
    return weights + trained * (BYTES[recipe.model.dtype] + ADAM_BYTES)


def disk_bytes(recipe: PpoRecipe, parameters: int) -> int:
    """The most that checkpoints take at once: those that are kept, the best one, and the one that is being written."""
    return (recipe.checkpoint.keep + 2) * checkpoint_bytes(recipe, parameters)


def learner_bytes(recipe: PpoRecipe, parameters: int) -> int:
    """All ranks together, without activations: weights of policy, critic and reference (with LoRA, one base),
    gradients and optimizer states, each held by every rank or split between them as the ZeRO stage says."""
    config, weights, trained = recipe.learner, weight_bytes(recipe, parameters), _trained(recipe, parameters)
    models = 3 if recipe.model.tuning == "full" else 1
    holders = {stage: config.ranks if config.zero_stage < stage else 1 for stage in (1, 2, 3)}
    return (
        models * weights * holders[3]
        + trained * BYTES[recipe.model.dtype] * holders[2]
        + trained * ADAM_BYTES * holders[1]
    )


def cpu_bytes(recipe: PpoRecipe, parameters: int) -> int:
    """Everything, on nodes without GPUs."""
    engines = recipe.rollout.engines
    processes = 3 * engines + recipe.learner.ranks + recipe.rewards.actors
    engine = weight_bytes(recipe, parameters) + int(recipe.rollout.kv_cache_gb * 2**30)
    return learner_bytes(recipe, parameters) + engines * engine + processes * PROCESS_BYTES


def gpu_bytes(recipe: PpoRecipe, parameters: int) -> tuple[int, int]:
    """Of one GPU: what a learner rank holds, without activations, and an engine, without its key-value cache."""
    optimizer = 0
    if recipe.learner.offload:
        optimizer = _trained(recipe, parameters) * ADAM_BYTES
    rank = (learner_bytes(recipe, parameters) - optimizer) // recipe.learner.ranks
    return rank, weight_bytes(recipe, parameters) // recipe.rollout.tensor_parallel


def _trained(recipe: PpoRecipe, parameters: int) -> int:
    return 2 * parameters if recipe.model.tuning == "full" else 0

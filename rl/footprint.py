"""How much memory and disk a run takes: estimates from numbers of parameters, before anything is loaded."""

from __future__ import annotations

from typing import NamedTuple

from rl.config import PpoRecipe
from rl.sft_config import SftRecipe

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_BYTES = 12  # per trained parameter: DeepSpeed's float32 master weight and AdamW's two moments
PROCESS_BYTES = 600_000_000  # a process that imported torch, beside its tensors; one CPU engine is three of them


class Counts(NamedTuple):
    """Numbers of parameters: of the policy alone, of all that a learner holds (critic and reference too), and of those
    it trains."""

    policy: int
    held: int
    trained: int


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


def rank_bytes(recipe: PpoRecipe | SftRecipe, counts: Counts) -> int:
    """What a learner rank keeps on its device, without activations: weights, gradients and optimizer states, each whole
    or its share, as the ZeRO stage says."""
    width, learner = BYTES[recipe.model.dtype], recipe.learner
    weights, gradients = counts.held * width, counts.trained * width
    optimizer = counts.trained * ADAM_BYTES
    states = {3: weights, 2: gradients, 1: optimizer}
    return sum(count // (learner.ranks if learner.zero_stage >= stage else 1) for stage, count in states.items())


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

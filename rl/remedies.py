"""What to change when a plan does not fit: settings that are tried, not guessed. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cluster.settings import changed
from rl.config import PpoRecipe
from rl.layout_plan import LayoutPlan
from rl.sft_config import SftRecipe

AT_MOST = 5  # remedies that are told


class Remedy(NamedTuple):
    """Settings by dotted name, of a plan that fits."""

    changes: dict[str, Any]
    plan: LayoutPlan

    def words(self) -> str:
        """As on the command line."""
        return " ".join(f"--{name} {value}" for name, value in self.changes.items())


def remedies(failed: LayoutPlan, plan: Callable[[PpoRecipe | SftRecipe], LayoutPlan]) -> list[Remedy]:
    """The changes that make `failed` fit: single ones, else the fewest together. Empty when none of those known helps."""
    candidates = list(_candidates(failed))
    for count in (1, 2, 3, 4):
        found = list[Remedy]()
        for chosen in itertools.combinations(candidates, count):
            names = [name for changes in chosen for name in changes]
            if len(names) != len(set(names)):
                continue
            changes = {name: value for part in chosen for name, value in part.items()}
            try:
                tried = plan(changed(failed.recipe, changes))
            except ValueError:  # the recipe refuses the combination
                continue
            if tried.fits:
                found.append(Remedy(changes, tried))
            if len(found) == AT_MOST:
                break
        if found:
            return found
    return []


def _candidates(failed: LayoutPlan) -> Iterator[dict[str, Any]]:
    recipe, cluster = failed.recipe, failed.cluster
    learner, model = recipe.learner, recipe.model
    if not model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": True}
    packed = isinstance(recipe, PpoRecipe) and learner.micro_batch_tokens
    name, least = ("micro_batch_tokens", recipe.longest[1]) if packed else ("micro_batch", 1)
    size = getattr(learner, name)
    while (size := size // 2) >= least:
        yield {f"learner.{name}": size}
    if learner.zero_stage < 3:
        yield {"learner.zero_stage": 3}
    if model.tuning == "full":
        yield {"model.tuning": "lora"}
    ranks = {learner.ranks * factor for factor in (2, 4, 8, 16)} | {cluster.per_node, cluster.devices}
    yield from ({"learner.ranks": count} for count in sorted(ranks) if learner.ranks < count <= cluster.devices)
    if learner.max_live_parameters > 1_500_000_000:
        yield {"learner.max_live_parameters": 1_500_000_000}
    if not isinstance(recipe, PpoRecipe):
        return
    rollout = recipe.rollout
    for width in (2, 4, 8):
        if rollout.tensor_parallel < width <= cluster.per_node:
            yield {"rollout.tensor_parallel": width}
            engines = max(rollout.engines * rollout.tensor_parallel // width, 1)
            if engines != rollout.engines:
                yield {"rollout.tensor_parallel": width, "rollout.engines": engines}
    if rollout.engines > 1:
        yield {"rollout.engines": rollout.engines // 2}
    if learner.ranks > 1:
        yield {"learner.ranks": learner.ranks // 2}
    shortest = recipe.prompts.max_context_tokens + recipe.sampling.max_tokens + 1
    if shortest < rollout.max_model_len:
        yield {"rollout.max_model_len": shortest}
    if rollout.max_concurrent > 64:
        yield {"rollout.max_concurrent": 64}
    if rollout.kv_cache_gb:
        yield {"rollout.kv_cache_gb": 0.0}  # what the device has left
    elif rollout.memory_utilization < 0.95:
        yield {"rollout.memory_utilization": 0.95}
    if recipe.publish.what == "adapter":
        yield {"publish.what": "merged"}
    if failed.layout == "dedicated":
        width = rollout.tensor_parallel
        if learner.ranks == rollout.engines * width:
            yield {"placement.mode": "colocated"}
        elif learner.ranks % width == 0:
            yield {"placement.mode": "colocated", "rollout.engines": learner.ranks // width}
        if learner.ranks != cluster.devices:
            beside = {"learner.ranks": cluster.devices, "rollout.engines": max(cluster.devices // width, 1)}
            yield {"placement.mode": "colocated", **beside}
    else:
        yield from ({"placement.memory_utilization": share} for share in (0.3, 0.5))

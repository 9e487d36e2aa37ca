"""What to change when a plan does not fit: settings that are tried, not guessed. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cluster.settings import changed
from rl.config import PpoRecipe
from rl.layout_plan import Layout, LayoutPlan
from rl.sft_config import SftRecipe

AT_MOST = 5  # remedies that are told


class Remedy(NamedTuple):
    """Settings by dotted name, and the layout, of a plan that fits."""

    changes: dict[str, Any]
    layout: Layout
    plan: LayoutPlan

    def words(self, planned: Layout) -> str:
        """As on the command line."""
        layout = f"--layout {self.layout} " if self.layout != planned else ""
        return (layout + " ".join(f"--{name} {value}" for name, value in self.changes.items())).strip()


def remedies(failed: LayoutPlan, plan: Callable[[PpoRecipe | SftRecipe, Layout], LayoutPlan]) -> list[Remedy]:
    """The changes that make `failed` fit: single ones, else the fewest together. Empty when none of those known helps."""
    candidates = list(_candidates(failed))
    for count in (1, 2, 3, 4):
        found = list[Remedy]()
        for chosen in itertools.combinations(candidates, count):
            names = [name for changes, _ in chosen for name in changes]
            if len(names) != len(set(names)):
                continue
            changes = {name: value for part, _ in chosen for name, value in part.items()}
            layout: Layout = next((layout for _, layout in chosen if layout is not None), failed.layout)
            try:
                tried = plan(changed(failed.recipe, changes), layout)
            except ValueError:  # the recipe refuses the combination
                continue
            if tried.fits:
                found.append(Remedy(changes, layout, tried))
            if len(found) == AT_MOST:
                break
        if found:
            return found
    return []


def _candidates(failed: LayoutPlan) -> Iterator[tuple[dict[str, Any], Layout | None]]:
    recipe, cluster = failed.recipe, failed.cluster
    learner, model = recipe.learner, recipe.model
    if not model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": True}, None
    rows = learner.micro_batch
    while rows > 1:
        rows //= 2
        yield {"learner.micro_batch": rows}, None
    if learner.zero_stage < 3:
        yield {"learner.zero_stage": 3}, None
    if model.tuning == "full":
        yield {"model.tuning": "lora"}, None
    ranks = {learner.ranks * factor for factor in (2, 4, 8, 16)} | {cluster.per_node, cluster.devices}
    yield from (({"learner.ranks": count}, None) for count in sorted(ranks) if learner.ranks < count <= cluster.devices)
    if learner.max_live_parameters > 1_500_000_000:
        yield {"learner.max_live_parameters": 1_500_000_000}, None
    if not isinstance(recipe, PpoRecipe):
        return
    rollout = recipe.rollout
    for width in (2, 4, 8):
        if rollout.tensor_parallel < width <= cluster.per_node:
            yield {"rollout.tensor_parallel": width}, None
            engines = max(rollout.engines * rollout.tensor_parallel // width, 1)
            if engines != rollout.engines:
                yield {"rollout.tensor_parallel": width, "rollout.engines": engines}, None
    if rollout.engines > 1:
        yield {"rollout.engines": rollout.engines // 2}, None
    if learner.ranks > 1:
        yield {"learner.ranks": learner.ranks // 2}, None
    shortest = recipe.prompts.max_context_tokens + recipe.sampling.max_tokens + 1
    if shortest < rollout.max_model_len:
        yield {"rollout.max_model_len": shortest}, None
    if rollout.max_concurrent > 64:
        yield {"rollout.max_concurrent": 64}, None
    if rollout.memory_utilization < 0.95 and not rollout.kv_cache_gb:
        yield {"rollout.memory_utilization": 0.95}, None
    if failed.layout == "dedicated":
        width = rollout.tensor_parallel
        if learner.ranks == rollout.engines * width:
            yield {}, "colocated"
        elif learner.ranks % width == 0:
            yield {"rollout.engines": learner.ranks // width}, "colocated"

"""Which roles share a device, and what each holds in each phase of a step, on devices of known memory. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from cluster.device_table import Cluster
from rl.config import PpoRecipe
from rl.memory_model import BYTES, Counts, Overheads, Parts, counts_of, kv_token_bytes, largest_sent, learner_phases
from rl.model_shape import ModelShape
from rl.placement_config import Layout
from rl.sft_config import SftRecipe

KV, RELOAD = "KV cache", "loaded layer"


class Cache(NamedTuple):
    """An engine's key-value cache: tokens that it holds, replies of full length among them, and replies that the recipe asks
    for at once."""

    tokens: int
    replies: int
    wanted: int
    longest: int  # tokens of the longest sequence: the least that vLLM starts with

    @property
    def concurrency(self) -> int:
        """Replies that an engine works on at once."""
        return max(min(self.replies, self.wanted), 0)


@dataclass(frozen=True)
class DeviceUse:
    """`count` devices of one kind; `phases` are bytes by part in each phase of a step."""

    kind: str
    count: int
    capacity: int
    phases: dict[str, Parts]
    cache: Cache | None = None

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> float:
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.capacity and (self.cache is None or self.cache.tokens >= self.cache.longest)


@dataclass(frozen=True)
class LayoutPlan:
    """A recipe on a cluster: its kinds of device, or why it cannot be laid out at all (`problems`)."""

    recipe: PpoRecipe | SftRecipe
    shape: ModelShape
    counts: Counts
    cluster: Cluster
    uses: tuple[DeviceUse, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems and all(use.fits for use in self.uses)

    @property
    def cache(self) -> Cache | None:
        """The cache of the engines that have least room; None for a supervised run."""
        caches = [use.cache for use in self.uses if use.cache is not None]
        return min(caches, key=lambda cache: cache.tokens, default=None)

    @property
    def layout(self) -> Layout:
        """Who shares devices with whom; a supervised run has no engines."""
        return self.recipe.placement.mode if isinstance(self.recipe, PpoRecipe) else "dedicated"

    @property
    def spans_nodes(self) -> bool:
        """Whether learner and engines are on different nodes."""
        return self.layout != "colocated" and sum(use.count for use in self.uses) > self.cluster.per_node

    @property
    def ranks_together(self) -> bool:
        """Whether one node holds every rank: on devices of their own they are given one where engines leave it to them."""
        ranks, per_node = self.recipe.learner.ranks, self.cluster.per_node
        if ranks > per_node or isinstance(self.recipe, SftRecipe) or self.layout != "dedicated":
            return ranks <= per_node
        width, engines = self.recipe.rollout.tensor_parallel, self.recipe.rollout.engines
        return engines <= (per_node - ranks) // width + (self.cluster.nodes - 1) * (per_node // width)

    @property
    def asleep_bytes(self) -> float:
        """Of a device, that wait in its host's memory while the learner works."""
        if isinstance(self.recipe, SftRecipe) or self.recipe.sleep_level != 1:
            return 0.0
        return self.counts.policy * BYTES[self.recipe.model.dtype] / self.recipe.rollout.tensor_parallel


def lay_out(recipe: PpoRecipe | SftRecipe, shape: ModelShape, cluster: Cluster, overheads: Overheads) -> LayoutPlan:
    """The parts of every device. Raises ValueError when the recipe's tuning finds nothing in the model."""
    counts, capacity, ranks = counts_of(recipe, shape), cluster.device.memory, recipe.learner.ranks
    learner = learner_phases(recipe, shape, counts, overheads)
    problems = list[str]()
    if isinstance(recipe, SftRecipe):
        phases = {name: parts for name, parts in learner.items() if name != "rollout"}
        uses: tuple[DeviceUse, ...] = (DeviceUse("learner rank", ranks, capacity, phases),)
    else:
        rollout = recipe.rollout
        width = rollout.tensor_parallel
        if width > cluster.per_node:
            problems.append(f"rollout.tensor_parallel = {width} spans nodes of {cluster.per_node} devices: lower it")
        if shape.heads % width:
            problems.append(
                f"rollout.tensor_parallel = {width} does not divide {shape.heads} heads: choose a power of 2"
            )
        near, sent = recipe.near_engines, largest_sent(recipe, shape)
        if near:
            share = recipe.placement.memory_utilization * capacity
            parts, cache = engine_parts(recipe, shape, counts, share, overheads)
            both = _together(learner, parts, sent, sleeps=recipe.placement.sleep)
            uses = (DeviceUse("learner rank + engine", ranks, capacity, both, cache),)
        else:
            uses = (DeviceUse("learner rank", ranks, capacity, learner),)
        if far := (rollout.engines - near) * width:
            parts, cache = engine_parts(recipe, shape, counts, rollout.memory_utilization * capacity, overheads)
            publish = {**parts, "publish staging": overheads.staging if sent else 0.0, RELOAD: sent}
            uses = (*uses, DeviceUse("engine", far, capacity, {"rollout": parts, "publish": publish}, cache))
        problems += _apart(near + far // width, width, cluster)
        if recipe.publish.part(recipe.model.tuning) == "adapter" and ranks + far > cluster.per_node:
            problems.append(
                f"publish.what = adapter goes through the memory of rank 0's host, {ranks + far} devices are on several: set "
                "publish.what = merged"
            )
    needed = sum(use.count for use in uses)
    if needed > cluster.devices:
        problems.append(f"it takes {needed} devices, {cluster} has {cluster.devices}")
    return LayoutPlan(recipe, shape, counts, cluster, uses, tuple(problems))


def _apart(groups: int, width: int, cluster: Cluster) -> list[str]:
    """Why `groups` of `width` devices, each on one node (`cluster.placement`), find no room there. Single ranks take what these
    leave, on any node, so that counting devices is enough for them."""
    if groups * width > cluster.devices or width > cluster.per_node:  # said already
        return []
    room = cluster.per_node // width
    if groups <= cluster.nodes * room:
        return []
    return [
        f"{groups} tensor-parallel groups of {width} devices, each on one node, do not fit: {cluster} has room for {room} a node; "
        f"set rollout.tensor_parallel to a divisor of {cluster.per_node}, or lower rollout.engines"
    ]


def engine_parts(
    recipe: PpoRecipe, shape: ModelShape, counts: Counts, budget: float, overheads: Overheads
) -> tuple[dict[str, float], Cache]:
    """What an engine holds on each of its devices within `budget` bytes; its cache takes what the rest leaves, as vLLM does."""
    width, rollout = BYTES[recipe.model.dtype], recipe.rollout
    shards = rollout.tensor_parallel
    wide = 6 * shape.hidden + 3 * shape.feed_forward * max(shape.experts_per_token, 1) / shards
    parts = {
        "weights": counts.policy * width / shards,
        "activations": overheads.profiled_tokens * wide * width,
        "logits": 2 * 4 * rollout.max_concurrent * shape.vocabulary,
        "CUDA graphs": 0.0 if rollout.eager else overheads.graphs,
        "context": overheads.context,
    }
    room = rollout.kv_cache_gb * 2**30 or budget - sum(parts.values())
    longest = rollout.max_model_len
    tokens = max(int(room / kv_token_bytes(shape, width, shards)), 0)
    full = recipe.prompts.max_context_tokens + recipe.sampling.max_tokens
    wanted = min(rollout.max_concurrent, math.ceil(recipe.replies_per_step / rollout.engines))
    return {**parts, KV: max(room, 0.0)}, Cache(tokens, tokens // full, wanted, longest)


def _together(learner: dict[str, Parts], engine: dict[str, float], sent: float, *, sleeps: bool) -> dict[str, Parts]:
    """A rank and an engine on one device: one that sleeps does so while the learner works, wakes its weights alone for a publish,
    and all of itself for the publish's probe. It is awake then until the next step's learner begins: a checkpoint is saved before.

    CUDA graphs stay while it sleeps: vLLM offloads them only with `sleep_mode_offload_cudagraph`, which no engine here sets. The
    layer of a publish that it loads anew, `sent` bytes, comes whole.
    """
    asleep = {part: engine[part] for part in ("CUDA graphs", "context")} if sleeps else engine
    awake = {**asleep, "weights": engine["weights"], RELOAD: sent}
    beside = {"rollout": engine, "publish": awake, "probe": engine, "save": engine}
    return {phase: {**parts, **_named(beside.get(phase, asleep))} for phase, parts in learner.items()}


def _named(parts: dict[str, float]) -> dict[str, float]:
    return {part if part == KV else f"engine's {part}": size for part, size in parts.items()}

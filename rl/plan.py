"""`attune plan`: does a recipe fit on devices, what takes the memory, how long is a step, what to change. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.device_table import parse_cluster
from cluster.findings import size
from cluster.settings import SettingsError, overrides
from rl.config import PpoRecipe
from rl.layout_plan import KV, DeviceUse, LayoutPlan, lay_out
from rl.memory_model import Overheads
from rl.model_shape import find_shape
from rl.remedies import remedies
from rl.sft_config import SftRecipe
from rl.step_time import Assumptions, estimate, publish_ways

TIGHT = 0.05  # a margin below this share of the memory is said to be tight
ORDER = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "gathers", "bucket", "update", "publish staging",
         "export", "fragments", "context")  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """What `attune plan` takes beside a recipe's settings."""

    nodes: int = 1
    devices: str = "8xH100-80GB"  # of a node: COUNTxNAME of the table, or COUNTxNAME:MEMORYGB
    overheads: Overheads = field(default_factory=Overheads)
    assumed: Assumptions = field(default_factory=Assumptions)


def options(words: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """The options of `attune plan` among the words after the recipe, and the words that are the recipe's settings."""
    found, rest = dict[str, str](), list[str]()
    for name, values in overrides(words):
        if name in ("nodes", "devices"):
            if len(values) != 1:
                raise SettingsError(f"--{name} takes one word, got {' '.join(values) or 'none'!r}")
            found[name] = values[0]
        elif close := difflib.get_close_matches(name, ("nodes", "devices"), n=1, cutoff=0.85):
            raise SettingsError(f"unknown option --{name}; did you mean --{close[0]}?")
        else:
            rest += [f"--{name}", *values]
    nodes = found.get("nodes", "1")
    if not nodes.isdigit():
        raise SettingsError(f"--nodes must be a whole number, is {nodes!r}")
    return PlanOptions(int(nodes), found.get("devices", PlanOptions.devices)), rest


def plan(recipe: PpoRecipe | SftRecipe, chosen: PlanOptions) -> bool:
    """Print the plan: whether the recipe fits."""
    cluster = parse_cluster(chosen.nodes, chosen.devices)
    shape, where = find_shape(recipe.model.path, recipe.model.tiny, _cached(recipe.model.path, recipe.model.revision))

    def planned(candidate: PpoRecipe | SftRecipe) -> LayoutPlan:
        return lay_out(candidate, shape, cluster, chosen.overheads)

    found = planned(recipe)
    active = f"{_count(shape.parameters)} parameters, {_count(shape.active)} active per token"
    print(f"model      {recipe.model.path or 'tiny'}: {active} ({where})")
    held, trained = _count(found.counts.held), _count(found.counts.trained)
    print(f"           the learner holds {held} and trains {trained} ({recipe.model.tuning})")
    print(f"cluster    {cluster}: {size(cluster.device.memory)} each ({cluster.device.source})")
    shared = ""
    if isinstance(recipe, PpoRecipe) and found.layout != "dedicated":
        shared = f"; an engine takes {recipe.placement.memory_utilization:.0%} of a learner's device"
    print(f"layout     {found.layout}, {sum(use.count for use in found.uses)} devices{shared}")
    for use in found.uses:
        print(*table(use), sep="\n")
    print(*speed(found, chosen.assumed), sep="\n")
    for problem in found.problems:
        print(f"problem    {problem}")
    if found.fits:
        margin = min(1 - use.peak / use.capacity for use in found.uses)
        print(
            f"verdict    fits{', tightly: estimates err by some per cent' if margin < TIGHT else ''}; least margin {margin:.0%}"
        )
        return True
    print("verdict    does NOT fit")
    helpful = remedies(found, planned)
    for remedy in helpful:
        margin = min(1 - use.peak / use.capacity for use in remedy.plan.uses)
        step = estimate(remedy.plan, chosen.assumed).total
        print(f"fits with  {remedy.words()}   (margin {margin:.0%}, step about {step:.0f} s)")
    if not helpful:
        print("           nothing that was tried makes it fit: take more or larger devices, or a smaller model")
    return False


def table(use: DeviceUse) -> Iterator[str]:
    """A kind of device: a row a part, a column a phase; the total of each, and what is left of the device at the peak."""
    phases = list(use.phases)
    parts = {part: None for parts in use.phases.values() for part, held in parts.items() if any(
        p.get(part, 0) > 0 for p in use.phases.values())}  # fmt: skip
    ordered = [part for part in ORDER if part in parts] + [part for part in parts if part not in ORDER]
    yield f"\n{use.count} x {use.kind}   (GB of {use.capacity / 1e9:.1f})"
    yield f"  {'':22}" + "".join(f"{phase:>11}" for phase in phases)
    for part in ordered:
        cells = (use.phases[phase].get(part, 0) for phase in phases)
        yield f"  {part:22}" + "".join(f"{held / 1e9:11.2f}" if held else f"{'-':>11}" for held in cells)
    yield f"  {'total':22}" + "".join(f"{sum(use.phases[phase].values()) / 1e9:11.2f}" for phase in phases)
    yield f"  peak {use.peak / 1e9:.2f} GB in {use.peak_phase}, {(use.capacity - use.peak) / 1e9:+.2f} GB to spare"
    if use.cache is not None:
        cache = use.cache
        bound = "all at once" if cache.replies >= cache.wanted else f"of {cache.wanted} wanted at once: more waves"
        yield f"  {KV}: {cache.tokens:,} tokens of an engine, {cache.replies:,} replies of full length, {bound}"
        if cache.tokens < cache.longest:
            yield f"  {KV}: vLLM does not start with room for less than rollout.max_model_len = {cache.longest} tokens"
    yield ""


def speed(found: LayoutPlan, assumed: Assumptions) -> Iterator[str]:
    """Estimated seconds of a step, and what they assume."""
    step = estimate(found, assumed)
    if isinstance(found.recipe, PpoRecipe):
        ways = " and ".join(publish_ways(found, assumed))
        yield f"publish    {size(step.publish_bytes)} in about {step.publish:.1f} s, by {ways}"
        if math.isinf(step.total):
            yield "step       none: no engine has room for a reply"
        else:
            phases = f"rollout {step.rollout:.0f} (waves: {step.waves}), annotate {step.annotate:.0f}, update {step.update:.0f}"
            phases += f", publish {step.publish:.1f}" + (f", sleep and wake {step.sleep:.0f}" if step.sleep else "")
            yield f"step       about {step.total:.0f} s: {phases}; every row as long as it may be"
        if found.asleep_bytes:
            devices = min(found.recipe.learner.ranks, found.cluster.per_node)
            asleep = size(int(found.asleep_bytes * devices))
            yield f"host       {asleep} of a node's memory, pinned, for weights that sleep"
    else:
        yield f"update     about {step.update:.1f} s; every row full"
    words = ", ".join(f"{item.name} {getattr(assumed, item.name):g}" for item in dataclasses.fields(assumed))
    yield f"assumed    {words}"


def _cached(path: str, revision: str) -> Path | None:
    """The folder of the hub's cache that holds the model's config.json; nothing is downloaded."""
    if path.startswith(("/", ".", "~")) or Path(path).is_dir() or path.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(path, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} G" if parameters >= 1e9 else f"{parameters / 1e6:.4g} M"

"""Learner processes that tests use one after another: importing what a rank needs takes longer than most tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from cluster.placement import Placement
from cluster.workers import WorkerGroup
from rl.config import PpoRecipe
from rl.fleet import LearnerFleet, Probe
from rl.learner import PpoLearner


def rebuild(group: WorkerGroup, make: Callable[..., Any], *args: Any) -> None:
    """Give every rank of `group` a new instance of `make` in the process that it has."""
    actors = group._actors
    master = ray.get(actors[0].rendezvous.remote())
    ray.get([actor.build.remote(make, rank, len(actors), master, args) for rank, actor in enumerate(actors)])


def learner_of(
    recipe: PpoRecipe, former: LearnerFleet | None, placement: Placement | None, probes: list[Probe], failures: Path
) -> LearnerFleet:
    """A fleet of `recipe` as if new, in the processes of the `former` one of as many ranks."""
    if former is None:
        assert placement is not None
        return LearnerFleet(recipe, placement, probes, failures)
    rebuild(former._group, PpoLearner, recipe)
    former._recipe, former._version, former._connected, former._failures = recipe, -1, None, failures
    former._moved = False
    return former

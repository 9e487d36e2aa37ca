"""The simulated cluster: its parts answer as the real ones do, and what is reckoned of a run follows from the cost model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray

from rewards.panel import Panel
from rewards.types import ScoredRollout
from rl.learner import PpoLearner
from rollout.vllm_engine import VllmEngine
from tests.benchmarks.simulated import SimulatedEngine
from tests.benchmarks.simulated_ranks import SimulatedLearner, SimulatedPanel
from tests.benchmarks.simulation import (
    Cluster,
    critical_path,
    make_prompts,
    make_recipe,
    parse,
    play,
    scenes,
    step_costs,
)

SMALL = "--engines 4 --replies 64 --samples 4 --tokens 20 --rewards 2 --ranks 2 --steps 3 --start-s 0"


@pytest.mark.parametrize(
    ("real", "simulated"), [(VllmEngine, SimulatedEngine), (Panel, SimulatedPanel), (PpoLearner, SimulatedLearner)]
)
def test_the_simulated_answer_to_the_same_calls(real: type, simulated: type) -> None:
    """Every public method of the real class is there, with the same parameters and answers, and a coroutine where it is one."""
    for name, method in inspect.getmembers(real, inspect.isfunction):
        if not name.startswith("_"):
            stand_in = getattr(simulated, name)
            assert signature(stand_in) == signature(method), name
            assert inspect.iscoroutinefunction(stand_in) == inspect.iscoroutinefunction(method), name


def signature(method: Callable[..., object]) -> inspect.Signature:
    """Without the parameter that Ray adds to the methods of a class of which it made an actor."""
    told = inspect.signature(method)
    return told.replace(parameters=[p for p in told.parameters.values() if p.name != "_ray_trace_ctx"])


def costs(**seconds: float) -> dict[str, float]:
    return {**dict.fromkeys(("generate", "measure", "annotate", "update", "publish", "probe"), 0.0), **seconds}


def test_a_step_takes_what_its_parts_take_one_after_another_at_lag_0() -> None:
    """Nothing overlaps."""
    step = costs(generate=10, measure=1, annotate=2, update=4, publish=0.5, probe=0.25)
    assert critical_path([step] * 4, 0, in_flight=False) == [17.75] * 4


@pytest.mark.parametrize(("generate", "update"), [(10.0, 4.0), (4.0, 10.0)])
def test_lag_hides_the_shorter_of_generation_and_learning(generate: float, update: float) -> None:
    """With replies in stock a step takes what the slower fleet takes, and the publish that stops both."""
    steps = critical_path([costs(generate=generate, update=update, publish=1)] * 8, 1, in_flight=False)
    assert steps[0] == max(2 * generate, generate + update) + 1
    assert steps[2:-1] == [max(generate, update) + 1] * 5


def test_a_publish_in_flight_waits_for_no_reply() -> None:
    """Engines that are faster than the learner cost it nothing; slower ones are stopped for each publish, and no longer."""
    slow_learner = critical_path([costs(generate=4, update=10, publish=1)] * 8, 1, in_flight=True)
    assert slow_learner[1:] == [11.0] * 7
    slow_engines = critical_path([costs(generate=10, update=4, publish=1)] * 8, 1, in_flight=True)
    assert slow_engines[2:-1] == [11.0] * 5


def test_the_slowest_part_counts() -> None:
    """A step's cost of a work is that of whoever needs longest; calls without a step's number count from 0 by part."""
    line = {"start": 0.0, "end": 1.0, "step": None, "work": "measure", "who": "1-0", "cost": 1.0}
    lines = [line, line | {"who": "1-1", "cost": 3.0}, line | {"start": 2.0, "cost": 2.0}]
    assert [found["measure"] for found in step_costs(lines, 2)] == [3.0, 2.0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("sim")
    recipe = make_recipe(parse(SMALL.split()), folder)
    recipe.directory.mkdir()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield Cluster(recipe, request.param)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "scene", "lag", "in_flight"),
    [(0, "even", 0, False), (0, "tail", 1, True), (0, "death", 1, False), (2, "even", 0, False), (2, "tail", 1, True)],
    indirect=["cluster"],
)
def test_a_run_is_whole(
    cluster: Cluster, scene: str, lag: int, in_flight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step trains on as many replies as it was asked for, in the order of the stream's prompts and of their samples, of
    policies at most `lag` updates old, each token of one; a dead engine is replaced once and its replies are there."""
    recipe = cluster.recipe
    seen: dict[int, Sequence[ScoredRollout]] = {}

    def write(directory: Path, step: int, scored: Sequence[ScoredRollout]) -> None:
        seen[step] = scored

    monkeypatch.setattr("tests.benchmarks.simulation.write_rollouts", write)
    run: dict[str, Any] = play(cluster, scenes(20)[scene], lag, in_flight, Path(recipe.world.folder))
    stream = make_prompts(recipe)
    for step in range(recipe.steps + lag):
        drawn = stream.draw(recipe.prompts.per_step)
        rollouts = [item.rollout for item in seen[step]]
        assert [r.id for r in rollouts] == [f"{p.id}/{k}" for p in drawn for k in range(recipe.sampling.n)]
        for rollout in rollouts:
            edges = [0, *(span.stop for span in rollout.versions)]
            assert [(s.start, s.stop) for s in rollout.versions] == list(pairwise(edges))
            assert edges[-1] == len(rollout.response_ids) == len(rollout.sampled_logprobs) <= recipe.sampling.max_tokens
            assert {max(step - lag, 0), step} >= {span.version for span in rollout.versions} and rollout.step == step
    assert run["replaced"] == (scene == "death")
    assert len(run["rows"]) == recipe.steps + lag and all(row["lag/steps"] <= lag for row in run["rows"])

"""Layouts: who sits where on clusters of several nodes, and whose a shared device is at every moment of a run.

Ray, its nodes, both fleets and the order of calls are real. Nodes declare devices that they have not: Ray only counts them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from cluster.check import NodeReport
from cluster.findings import Verdict
from cluster.placement import Claim, ClusterTooSmall, Placement, bundles, require_room, seat
from cluster.pool import ReplicaSilent
from cluster.settings import SettingsError
from cluster.workers import Place, WorkerGroup, by_node
from rl.check_run import memory, the_room
from rl.config import PpoRecipe
from rl.fleet import FLEET as LEARNER
from rl.fleet import LearnerFleet, seated
from rl.layout import claims, described, require_one_host, sharing
from rl.learner import PpoLearner
from rl.memory_model import Counts, engine_bytes, rank_bytes
from rollout.engine_config import EngineSpec
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import RolloutFleet
from rollout.sharing import CACHE, WEIGHTS, Rest, Sharing, SleepLevel
from rollout.types import Prompt, Sampling
from rollout.vllm_engine import VllmEngine
from tests.sleepy import SleepyEngine, SleepyLlm, SleepyRank
from tests.tiny import quick_recipe

# nodes that it fills (of two devices each), mode, engines, devices of an engine, learner ranks
LAYOUTS = [
    (1, "dedicated", 1, 1, 1),
    (1, "colocated", 1, 2, 2),
    (1, "mixed", 2, 1, 1),
    (2, "dedicated", 1, 2, 2),
    (2, "colocated", 2, 2, 4),
    (2, "mixed", 2, 2, 2),
    (4, "dedicated", 2, 2, 4),
    (4, "colocated", 4, 2, 8),
    (4, "mixed", 4, 2, 4),
]
SAMPLING = Sampling(n=1, max_tokens=4, temperature=1.0, seed=0)


def recipe_of(folder: Path, mode: str, engines: int, width: int, ranks: int, **knobs: Any) -> PpoRecipe:
    return quick_recipe(
        folder, folder, placement__mode=mode, rollout__engines=engines, rollout__tensor_parallel=width,
        learner__ranks=ranks, prompts__per_step=8, rollout__cpus=0.25, learner__cpus=0.25, **knobs,
    )  # fmt: skip


# -- what is claimed -------------------------------------------------------------------------------------------------


def test_a_claim_finds_its_bundle() -> None:
    """Actors that sit together share a bundle, guests add to it, and a fleet's numbers run through its claims."""
    asked = [
        Claim("engine", 2, 0.5, beside="rank"),
        Claim("engine", 1, 0.5, 2.0),
        Claim("rank", 4, 0.25, 1.0, together=2),
        Claim("reward", 1, 0.1),
    ]
    two = {"CPU": 1.0, "GPU": 2.0}
    assert bundles(asked) == [{"CPU": 0.5, "GPU": 2.0}, two, two, {"CPU": 0.1}]
    assert [seat(asked, "engine", i)[1] for i in range(3)] == [1, 2, 0]
    assert [seat(asked, "rank", i)[1] for i in range(4)] == [1, 1, 2, 2]
    assert seat(asked, "reward", 0)[1] == 3
    with pytest.raises(AssertionError):
        seat(asked, "rank", 4)


@pytest.mark.parametrize(("nodes", "mode", "engines", "width", "ranks"), LAYOUTS)
def test_shared_devices_are_claimed_once(
    tmp_path: Path, nodes: int, mode: str, engines: int, width: int, ranks: int
) -> None:
    """A layout claims a device for each rank and for each device of an engine that is not a rank's: here all there are."""
    asked = bundles(claims(recipe_of(tmp_path, mode, engines, width, ranks), on_gpu=True))
    assert sum(bundle.get("GPU", 0) for bundle in asked) == 2 * nodes


@pytest.mark.parametrize(
    ("mode", "engines", "width", "ranks", "knobs", "said"),
    [
        ("colocated", 2, 1, 4, {}, "learner.ranks = 2"),
        ("mixed", 2, 2, 4, {}, "rollout.engines to at least 3"),
        ("mixed", 4, 2, 1, {"learner__gpus": 0.5}, "learner.gpus must be 1"),
        ("mixed", 4, 2, 1, {}, "multiple of 2"),
        ("dedicated", 1, 1, 1, {"rollout__weight_transfer": "ipc"}, "must be one of auto, nccl, shared_memory"),
        ("colocated", 1, 1, 1, {"rollout__weight_transfer": "nccl"}, "must be one of auto, ipc"),
        ("mixed", 2, 1, 1, {"placement__memory_utilization": 1.0}, "placement.memory_utilization"),
        ("colocated", 1, 1, 1, {"rollout__max_lag": 1}, "rollout.max_lag must be 0"),
        ("mixed", 2, 1, 1, {"rollout__max_lag": 2, "rollout__in_flight": True}, "rollout.max_lag must be 0"),
    ],
)
def test_layouts_that_cannot_be_are_refused(
    tmp_path: Path, mode: str, engines: int, width: int, ranks: int, knobs: dict[str, Any], said: str
) -> None:
    """Numbers that do not fit together, and a transport that cannot reach an engine, are errors at start-up."""
    with pytest.raises(SettingsError, match=said):
        recipe_of(tmp_path, mode, engines, width, ranks, **knobs)


def test_without_gpus_engines_cannot_sleep(tmp_path: Path) -> None:
    """Shared devices need GPUs, unless nobody sleeps: then the layout claims cores alone and weights go as they do there."""
    asked = ("colocated", 2, 1, 2)
    with pytest.raises(ValueError, match=r"placement.mode = .colocated. needs GPUs .*placement.sleep = false"):
        claims(recipe_of(tmp_path, *asked), on_gpu=False)
    awake = recipe_of(tmp_path, *asked, placement__sleep=False)
    assert all("GPU" not in bundle for bundle in bundles(claims(awake, on_gpu=False)))
    spec = spec_in(tmp_path, "shared_memory")
    assert sharing(awake, [Place("a", ())] * 2).spec(spec, 0) == spec


def test_engines_that_stay_awake_may_run_ahead(tmp_path: Path) -> None:
    """Only sleep forbids asynchrony: on devices of their own, or awake beside the learner, engines may write replies ahead."""
    for mode, knobs in (("dedicated", {}), ("colocated", {"placement__sleep": False})):
        assert recipe_of(tmp_path, mode, 1, 1, 1, rollout__max_lag=1, **knobs).rollout.max_lag == 1


@pytest.mark.parametrize(
    ("tuning", "what", "level"),
    [("full", "auto", 2), ("lora", "auto", 1), ("lora", "adapter", 1), ("lora", "merged", 1), ("lora", "full", 2)],
)
def test_weights_are_dropped_only_where_a_publish_brings_all(
    tmp_path: Path, tuning: str, what: str, level: int
) -> None:
    """Where a publish brings what adapters change, or the adapter alone, the frozen rest must survive the sleep."""
    knobs = {"model__tuning": tuning, "model__lora__targets": ["q_proj"], "publish__what": what}
    recipe = recipe_of(tmp_path, "colocated", 1, 2, 2, **knobs)
    assert recipe.sleep_level == level
    assert sharing(recipe, [Place("a", ("3",)), Place("a", ("5",))]).devices == (("3", "5"),)
    assert recipe_of(tmp_path, "dedicated", 1, 2, 2, **knobs).sleep_level == 0


def test_the_layout_is_told(tmp_path: Path) -> None:
    """The line names the mode, how many engines share, and each way of the weights."""
    said = described(recipe_of(tmp_path, "mixed", 4, 2, 4), on_gpu=True)
    assert (
        said.startswith("mixed: 2 engine(s) of 2 device(s)")
        and "IPC" in said
        and "2 engine(s)" in said
        and "NCCL" in said
    )
    assert "NCCL" not in described(recipe_of(tmp_path, "colocated", 2, 2, 4), on_gpu=True)
    assert "share the cores" in described(recipe_of(tmp_path, "dedicated", 1, 2, 2), on_gpu=False)


def test_check_tells_layout_and_memory(tmp_path: Path) -> None:
    """`attune check` names the layout, or why it cannot be; what an engine may take of a shared device comes on top of a rank,
    and of a device of its own it does not."""
    shared, own = recipe_of(tmp_path, "colocated", 1, 1, 1), recipe_of(tmp_path, "dedicated", 1, 1, 1)
    assert next(the_room(shared, on_gpu=True)).verdict is Verdict.OK
    (lacking,) = the_room(shared, on_gpu=False)
    assert lacking.verdict is Verdict.MISSING and "placement.sleep = false" in str(lacking)
    counts = Counts(policy=100, held=200, trained=100)
    rank, engine = rank_bytes(shared, counts), engine_bytes(shared, counts)
    device = (
        int(max(rank / (1 - shared.placement.memory_utilization), engine / shared.placement.memory_utilization)) + 9
    )
    for count, recipe, verdict in (
        (device, shared, Verdict.OK),
        (device - 18, shared, Verdict.WARN),
        (device - 18, own, Verdict.OK),
    ):
        assert memory(recipe, counts, [NodeReport("a", {}, (count,), {})], on_gpu=True).verdict is verdict


def test_ranks_are_numbered_node_by_node() -> None:
    """Seats of one node are neighbours, in their order; the first seat's node comes first."""
    places = [Place(node, (str(i),)) for i, node in enumerate("bababc")]
    assert by_node(places) == [0, 2, 4, 1, 3, 5]


# -- who sits where --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_nodes() -> Iterator[None]:
    """Four nodes of two devices."""
    node = {"num_cpus": 8, "num_gpus": 2, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(3):
        nodes.add_node(**node)
    ray.init(address=nodes.address, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "mode", "engines", "width", "ranks"), LAYOUTS)
def test_layouts_over_nodes(
    four_nodes: None, tmp_path: Path, nodes: int, mode: str, engines: int, width: int, ranks: int
) -> None:
    """The layout's devices lie on as few nodes as hold them; a tensor-parallel group and the ranks beside it are on one node."""
    asked = claims(recipe_of(tmp_path, mode, engines, width, ranks), on_gpu=True)
    placement = Placement(asked, wait_s=60)
    asked = list(placement._claims)
    homes = placement_group_table(placement._group)["bundles_to_node_id"]
    with_devices = [homes[i] for i, bundle in enumerate(bundles(asked)) if "GPU" in bundle]
    assert len(set(with_devices)) == nodes
    held = Counter[str]()
    for i, bundle in enumerate(bundles(asked)):
        held[homes[i]] += int(bundle.get("GPU", 0))
    assert max(held.values()) <= 2
    for engine in range(recipe_of(tmp_path, mode, engines, width, ranks).near_engines):
        beside = {seat(asked, LEARNER, engine * width + i)[1] for i in range(width)}
        assert beside == {seat(asked, ROLLOUT, engine)[1]}
    placement.release()


@pytest.mark.slow
def test_ranks_share_a_node_where_one_has_room(four_nodes: None, tmp_path: Path) -> None:
    """One engine of one device and two ranks on nodes of two: packed one by one, an engine would take a rank's place on its node,
    and every gather of ZeRO-3 the network. Four ranks have no node of their own, and are spread."""
    placement = Placement(claims(recipe_of(tmp_path, "dedicated", 1, 1, 2), on_gpu=True), wait_s=60)
    ranks = {*placement.nodes(LEARNER)}
    assert len(ranks) == 1 and placement.nodes(ROLLOUT)[0] not in ranks
    placement.release()
    placement = Placement(claims(recipe_of(tmp_path, "dedicated", 1, 1, 4), on_gpu=True), wait_s=60)
    assert len({*placement.nodes(LEARNER)}) > 1
    placement.release()


@pytest.mark.slow
def test_weights_through_a_hosts_memory_need_one_host(four_nodes: None, tmp_path: Path) -> None:
    """An adapter reaches no engine on another node: said before anything loads, with what to set. Whole weights go by NCCL."""
    for what, fits in (("adapter", False), ("merged", True)):
        recipe = recipe_of(
            tmp_path, "dedicated", 2, 1, 2, publish__what=what, model__tuning="lora", model__lora__targets=["q_proj"]
        )
        placement = Placement(claims(recipe, on_gpu=True), wait_s=60)
        if fits:
            require_one_host(recipe, placement, on_gpu=True)
        else:
            with pytest.raises(ValueError, match=r"publish.what = adapter .*engine 0 .*set publish.what = merged"):
                require_one_host(recipe, placement, on_gpu=True)
        placement.release()


@pytest.mark.slow
def test_a_group_that_no_node_holds_is_refused(four_nodes: None) -> None:
    """A tensor-parallel group wider than a node, and groups that nodes cannot hold side by side, are said at once with the
    setting to change, however many devices there are in all."""
    for asked in ([Claim("engine", 1, 0.1, 4.0)], [Claim("engine", 4, 0.1, 1.5), Claim("rank", 2, 0.1, 1.0)]):
        with pytest.raises(ClusterTooSmall, match=r"room on one node.*lower rollout.tensor_parallel"):
            require_room(asked)
    require_room([Claim("engine", 3, 0.1, 2.0), Claim("rank", 2, 0.1, 1.0)])


def spec_in(folder: Path, transfer: str = "nccl") -> EngineSpec:
    return EngineSpec(
        model="", revision=None, dtype="float32", end_ids=(), tensor_parallel=2, max_model_len=8, max_concurrent=8,
        max_batched_tokens=None, chunked_prefill=False, kv_cache_bytes=None, memory_utilization=0.9, eager=True,
        weight_transfer=transfer, router_replay=False, environment={"ATTUNE_TEST_FOLDER": str(folder)},
    )  # fmt: skip


class Fleets:
    """Both fleets of a recipe, as `Job` puts them together."""

    def __init__(self, recipe: PpoRecipe, folder: Path) -> None:
        self.placement = Placement(claims(recipe, on_gpu=True), wait_s=120)
        self.ranks: WorkerGroup = seated(recipe, self.placement, learner=SleepyRank)
        self.engine = RolloutFleet(
            spec_in(folder),
            recipe.rollout.engines,
            self.placement,
            restarts=1,
            engine=SleepyEngine,
            sharing=sharing(recipe, self.ranks.places),
        )
        self.learner = LearnerFleet(recipe, self.placement, [((1,), (2, 3))], folder, ranks=self.ranks)
        self.engine.on_replace(lambda: self.learner.republish(self.engine))
        self.learner.on_work(self.engine.sleep)
        self.engine.settle()
        self.learner.build()

    def ask(self, method: str) -> list[Any]:
        """Every engine, by its method's name."""
        return ray.get([getattr(engine, method).remote() for engine in self.engine._pool.replicas])


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "mode", "engines", "width", "ranks"), [case for case in LAYOUTS if case[0] == 2])
def test_whose_the_devices_are(
    four_nodes: None, tmp_path: Path, nodes: int, mode: str, engines: int, width: int, ranks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An engine sees all devices of its group and a rank its own; no device has two ranks or two engines, and one of each
    exactly where they share. While the learner works the engines there hold no memory, whatever was generated in between
    and whoever died; when it publishes, their weights wake first, and their cache only after the weights have come. An engine
    that does not fall asleep is named."""
    recipe = recipe_of(tmp_path, mode, engines, width, ranks)
    near = recipe.near_engines
    fleets = Fleets(recipe, tmp_path)

    seats = fleets.ranks.all(SleepyRank.where)
    assert [rank for rank, *_ in seats] == list(range(ranks)) and {local for *_, local in seats} == {"0"}
    of_nodes = [node for _, node, _, _ in seats]
    assert of_nodes == sorted(of_nodes, key=of_nodes.index), "ranks of one node are neighbours"
    holders = defaultdict[tuple[str, str], list[str]](list)
    for _, node, seen, _ in seats:
        holders[node, seen].append("rank")
    where = fleets.ask("where")
    for index, (node, seen, transfer) in enumerate(where):
        assert len(set(seen.split(","))) == width and transfer == ("ipc" if index < near else "nccl")
        for device in seen.split(","):
            holders[node, device].append("near" if index < near else "far")
    assert len(holders) == 2 * nodes
    shared, own = (["rank", "near"], ["far"]) if near else (["rank"], ["far"])
    assert all(who in (shared, own) for who in holders.values())

    if near:
        assert fleets.ask("awake")[:near] == [set()] * near, "the learner loads beside engines that sleep"
    metrics = fleets.learner.publish(fleets.engine)
    assert metrics["publish/ways"] == (2 if mode == "mixed" else 1)
    for step in range(2):
        if step == 1:
            (tmp_path / "dies").write_text("")
        for _ in range(2):  # training, then an evaluation of the same weights
            rollouts = fleets.engine.generate([Prompt(f"p{i}", (1,), ()) for i in range(engines)], SAMPLING)
            assert {rollout.versions[0].version for rollout in rollouts} == {step}
        fleets.learner.update(fleets.learner.annotate(()))  # type: ignore[arg-type]
        metrics = fleets.learner.publish(fleets.engine)
        assert metrics["publish/logprob_gap"] == 0
        assert {name for name in metrics if name.startswith("time/")} == (
            {"time/sleep_s", "time/wake_s"} if near else set()
        )
    assert fleets.engine.deaths == (1 if near else 0)

    told = fleets.ask("told")
    assert all("sleep" not in " ".join(lines) for lines in told[near:])
    if near:
        newcomers = [
            lines for lines in told[:near] if lines[0] == "start"
        ]  # they get the weights, prove them, then sleep as the others
        assert [lines[:4] for lines in newcomers] == [["start", "version 1", "generate", "sleep 2"]]
        cycle = ["sleep 2", "wake weights", "start without cache"]
        for lines in told[:near]:
            joined = " / ".join(lines)
            assert " / ".join([*cycle, "version 2", "wake kv_cache", "generate"]) in joined
        (tmp_path / "hangs").write_text("")
        monkeypatch.setattr("rollout.fleet.SLEEP_LIMIT_S", 0.5)
        with pytest.raises(ReplicaSilent, match=f"rollout engine 0 of {engines} does not answer sleep"):
            fleets.learner.annotate(())  # type: ignore[arg-type]
    fleets.ranks.kill()
    for engine in fleets.engine._pool.replicas:
        ray.kill(engine)
    fleets.placement.release()


# -- one engine ------------------------------------------------------------------------------------------------------


def test_the_fakes_have_what_they_stand_for() -> None:
    """A method that the fleets call on the fakes is one of the real classes, of the same name."""
    for fake, real in ((SleepyEngine, VllmEngine), (SleepyRank, PpoLearner)):
        own = {"where", "told", "awake"}
        missing = {name for name in vars(fake) if not name.startswith("_")} - own - set(dir(real))
        assert not missing


@pytest.mark.slow
def test_the_engine_wakes_for_what_it_is_asked() -> None:
    """`VllmEngine` itself, on a stand-in for vLLM: weights alone wake for a publish, of weights or of an adapter, all for tokens,
    nothing sleeps twice; weights that were dropped are never sampled from, nor is an engine with replies under way put to sleep."""

    def engine_round(llm: SleepyLlm, level: SleepLevel) -> VllmEngine:
        async def nothing(*args: Any, **kwargs: Any) -> bool:
            return True

        async def receive(*args: Any, **kwargs: Any) -> None:
            assert WEIGHTS in llm.awake

        for name in ("pause_generation", "resume_generation", "reset_prefix_cache", "update_weight_version"):
            setattr(llm, name, nothing)
        setattr(llm, "collective_rpc", receive)  # noqa: B010  a stand-in has none of its own
        engine = VllmEngine.__new__(VllmEngine)
        engine._llm, engine._rest = llm, Rest(llm, level)  # type: ignore[assignment]
        engine._requests, engine._calls, engine._adapter, engine._stale_prefixes = 0, 0, None, False
        engine._gate = asyncio.Lock()
        return engine

    llm, adapted = SleepyLlm(0), SleepyLlm(0)

    async def life() -> None:
        engine = engine_round(llm, 2)
        await engine._run([], [])
        assert llm.told == []
        engine._calls = 1
        with pytest.raises(AssertionError, match="replies under way"):
            await engine.sleep()
        engine._calls = 0
        await engine.sleep()
        await engine.sleep()
        with pytest.raises(AssertionError, match="publish before generating"):
            await engine._run([], [])
        await engine.start_weight_update()
        assert llm.awake == {WEIGHTS}
        await engine.finish_weight_update("1")
        await engine._run([], [])
        assert llm.awake == {WEIGHTS, CACHE} and llm.use() == 1

    async def with_adapters() -> None:
        engine = engine_round(adapted, 1)
        await engine.sleep()
        await engine.load_adapter({}, "1")
        assert adapted.awake == {WEIGHTS}
        await engine._run([], [])
        assert adapted.told == ["sleep 1", "wake weights", "wake kv_cache"]

    asyncio.run(life())
    asyncio.run(with_adapters())
    assert llm.told == ["sleep 2", "wake weights", "start without cache", "version 1", "wake kv_cache", "generate"]
    assert Sharing().spec(spec_in(Path()), 0) == spec_in(Path())

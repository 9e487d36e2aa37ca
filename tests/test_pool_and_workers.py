"""Real actors on one private Ray: replicas that are replaced, ranks that die together, room that is not there."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.placement import Claim, ClusterTooSmall, Placement
from cluster.pool import Pool, PoolClosed, PoolExhausted, ReplicaSilent
from cluster.workers import WorkerDied, WorkerGroup, WorkersHung
from rewards.config import RewardsConfig
from rewards.mixture import Mixture
from rl.checkpoints import Checkpoints
from rollout.config import PromptsConfig
from rollout.fleet import EngineClient, EngineLost
from rollout.prompts import PromptStream
from rollout.types import Prompt

ROOT = Path(__file__).parents[1]
FEW = 20.0  # seconds that a fault may take to be noticed on a busy machine; a hang would be the test's timeout


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """A cluster of two CPUs of our own; its address."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_joining_a_cluster_leaves_the_signals_alone(cluster: str) -> None:
    """SIGTERM does after `connect` what it did before: Ray would put its own handler in place."""
    program = (
        "import signal; from cluster.placement import connect; signal.signal(signal.SIGTERM, signal.default_int_handler); "
        "connect(); print(signal.getsignal(signal.SIGTERM) is signal.default_int_handler)"
    )
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert answer.stdout.splitlines()[-1] == "True", answer.stderr


# -- pool ------------------------------------------------------------------------------------------------------------


class Replica:
    """A plain class: what it is asked is written to `asked`, a line per call."""

    def __init__(self, index: int, asked: Path) -> None:
        self._index, self._asked = index, asked

    def _note(self, what: object) -> int:
        """How often this replica's place was asked `what` before."""
        line = f"{self._index}: {what}\n"
        before = self._asked.read_text() if self._asked.exists() else ""
        with self._asked.open("a") as file:
            file.write(line)
        return before.splitlines(keepends=True).count(line)

    def double(self, share: list[int], wait_s: float = 0.0) -> tuple[list[int], int]:
        time.sleep(wait_s)
        self._note(share)
        return [2 * item for item in share], os.getpid()

    def double_or_die(self, share: list[int], deaths: int) -> tuple[list[int], int]:
        if self._note(share) < deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.double(share)

    def refuse(self, share: list[int]) -> None:
        self._note(share)
        raise ValueError(f"cannot take {share}")

    def where(self) -> tuple[int, int]:
        return self._index, os.getpid()


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    """`make_pool(size, restarts=3)`; its replicas end with the test."""
    pools: list[Pool] = []

    def make(size: int, **kwargs: Any) -> Pool:
        remote = ray.remote(Replica)
        pools.append(
            Pool("test engine", size, lambda i: remote.options(num_cpus=0).remote(i, tmp_path / f"{i}"), **kwargs)
        )
        return pools[-1]

    yield make
    for pool in pools:
        for replica in pool.replicas:
            ray.kill(replica)


def asked(folder: Path, index: int) -> list[str]:
    return (folder / str(index)).read_text().splitlines()


def test_answers_come_in_the_order_of_the_shares(make_pool: MakePool, tmp_path: Path) -> None:
    """Share i goes to replica i and its answer to place i, whoever is done first; fewer shares leave replicas idle."""
    pool = make_pool(3)
    answers = pool.map(Replica.double, [([1, 2], 0.3), ([3], 0.0), ([], 0.1)])
    assert [answer for answer, _ in answers] == [[2, 4], [6], []]
    pids = [pid for _, pid in answers]
    assert len(set(pids)) == 3
    assert pool.map(Replica.double, [([7],)]) == [([14], pids[0])]
    assert pool.everyone(Replica.where) == list(enumerate(pids))
    assert asked(tmp_path, 2) == ["2: []"]
    assert pool.deaths == 0 and len(pool) == 3


def test_a_death_changes_nothing_but_time(make_pool: MakePool, tmp_path: Path) -> None:
    """A replica that is killed in a call is made again at its place, and asked the same share; the others once.

    The newcomer is brought up to date before it is asked, and after the others have answered.
    """
    pool = make_pool(2)
    seen: list[Any] = []
    pool.revive = lambda: seen.append((pool.deaths, asked(tmp_path, 1), pool.everyone(Replica.where)))
    before = pool.everyone(Replica.where)
    answers = pool.map(Replica.double_or_die, [([1], 1), ([2], 0)])
    assert [answer for answer, _ in answers] == [[2], [4]]
    after = pool.everyone(Replica.where)
    assert after[1] == before[1] and after[0][0] == 0 and after[0][1] != before[0][1]
    assert asked(tmp_path, 0) == ["0: [1]"] * 3  # the killed one, the newcomer, and its own `double`
    assert asked(tmp_path, 1) == ["1: [2]"] * 2
    assert pool.deaths == 1
    assert seen == [(1, ["1: [2]"] * 2, after)]


def test_a_replica_may_die_again_until_no_restart_is_left(make_pool: MakePool) -> None:
    """`restarts` deaths are survived, the next one ends the run, and the message names the fleet and the replica."""
    pool = make_pool(2, restarts=2)
    assert pool.map(Replica.double_or_die, [([1], 0), ([2], 2)])[1][0] == [4]
    assert pool.deaths == 2
    with pytest.raises(PoolExhausted, match=r"test engine 0 .*2 replaced"):
        pool.map(Replica.double_or_die, [([9], 1)])


def test_a_replica_found_dead_is_replaced(make_pool: MakePool) -> None:
    """It may die between two calls as well."""
    pool = make_pool(1)
    ((_, pid),) = pool.everyone(Replica.where)
    os.kill(pid, signal.SIGKILL)
    assert pool.map(Replica.double, [([4],)])[0][0] == [8]
    assert pool.deaths == 1


def test_what_a_replica_raises_is_no_death(make_pool: MakePool, tmp_path: Path) -> None:
    """A ValueError arrives as a ValueError with its message, is not asked again, and costs no replica."""
    pool = make_pool(2)
    with pytest.raises(ValueError, match=r"cannot take \[5\]"):
        pool.map(Replica.refuse, [([5],)])
    assert asked(tmp_path, 0) == ["0: [5]"]
    assert pool.deaths == 0
    assert pool.map(Replica.double, [([1],), ([2],)])[1][0] == [4]


def test_one_death_costs_one_restart(make_pool: MakePool) -> None:
    """A fleet that is renewed as a whole since one replica died in a publish has had one death, however large it is."""
    pool = make_pool(3, restarts=1)
    pool.replace(list(pool.replicas))
    assert [index for index, _ in pool.everyone(Replica.where)] == [0, 1, 2]


def test_who_was_replaced_meanwhile_is_left_alone_and_counted_once(make_pool: MakePool) -> None:
    """One thread has replaced the dead engine when another, which sent it weights, gives all of them up: the newcomer stays."""
    pool = make_pool(3, restarts=1)
    before, pids = list(pool.replicas), [pid for _, pid in pool.everyone(Replica.where)]
    os.kill(pids[0], signal.SIGKILL)
    newcomer = pool.map(Replica.double, [([1],)])[0][1]
    pool.replace(before)
    after = [pid for _, pid in pool.everyone(Replica.where)]
    assert after[0] == newcomer and not set(after[1:]) & set(pids)


OUT_OF_MEMORY = """
import logging, ray
from cluster.pool import Pool, PoolExhausted

class Holder:
    def hold(self):
        import time
        time.sleep(60)

logging.basicConfig()
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
remote = ray.remote(Holder).options(num_cpus=0)
pool = Pool("test engine", 1, lambda index: remote.remote(), restarts=1)
try:
    pool.map(Holder.hold, [()])
except PoolExhausted as error:
    print("ENDED", error)
"""


def test_whom_rays_memory_monitor_ends_has_died() -> None:
    """With the threshold at next to nothing it ends every actor: each is replaced until no restart is left."""
    limits = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | limits
    answer = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert "ENDED test engine 0 died and no restart is left (1 replaced so far)" in answer.stdout, answer.stderr
    assert "starting another" in answer.stderr


def test_a_long_wait_is_told(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has no time limit is waited for, and every while a line says for whom, for what and how long."""
    pool = make_pool(2)
    pool.everyone(Replica.where)
    monkeypatch.setattr("cluster.pool._SECONDS_TO_A_WORD", 0.6)
    assert pool.map(Replica.double, [([1], 0.0), ([2], 1.5)])[1][0] == [4]
    assert "test engine 1 of 2 has not answered double for 0 minutes; still waiting" in caplog.messages


def test_two_threads_that_lose_a_replica_replace_it_once(make_pool: MakePool) -> None:
    """Both get their answers, of a replica that was brought up to date before each asked it again."""
    pool, seen = make_pool(1, restarts=1), list[str]()
    pool.revive = lambda: seen.append(threading.current_thread().name)
    ((_, pid),) = pool.everyone(Replica.where)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(pool.map, Replica.double, [([n], 1.0)]) for n in (1, 2)]
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        answers = [call.result()[0] for call in calls]
    assert [answer for answer, _ in answers] == [[2], [4]] and len({pid for _, pid in answers}) == 1
    assert pool.deaths == 1 and len(set(seen)) == 2


class Sleeper:
    """Answers late, in a coroutine."""

    async def doze(self) -> None:
        await asyncio.sleep(600)


def test_a_pool_that_is_closed_lets_go_of_what_it_waits_for(make_pool: MakePool) -> None:
    """A thread that waits for a coroutine ends with PoolClosed at once; one that waits for a replica that dies then, too; nobody
    is replaced."""
    slow = Pool("test engine", 1, lambda i: ray.remote(Sleeper).options(num_cpus=0).remote())
    dying = make_pool(1)
    ((_, pid),) = dying.everyone(Replica.where)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(slow.everyone, Sleeper.doze), threads.submit(dying.map, Replica.double, [([1], 60.0)])]
        time.sleep(1)
        slow.close()
        dying.close()
        os.kill(pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(PoolClosed, match="test engines were told to end"):
                call.result(timeout=FEW)
    assert slow.deaths == dying.deaths == 0
    ray.kill(slow.replicas[0])


# -- worker groups ---------------------------------------------------------------------------------------------------


class Rank:
    """A plain class that takes part in collectives. Torch is loaded where it is used."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.rank = int(os.environ["RANK"])

    def surroundings(self) -> dict[str, str]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ATTUNE_TEST")
        return {name: os.environ[name] for name in names} | {"word": self.word}

    def join(self) -> int:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        return os.getpid()

    def total(self, mine: Sequence[float]) -> float:
        import torch
        import torch.distributed as dist

        summed = torch.tensor(mine[self.rank], dtype=torch.float64)
        dist.all_reduce(summed)
        return float(summed)

    def total_or_refuse(self, refuses: int) -> float:
        if self.rank == refuses:
            raise ValueError(f"rank {self.rank} cannot")
        return self.total([1.0, 1.0])

    def total_or_hang_up_and_die(self, dies: int) -> float:
        import torch.distributed as dist

        if self.rank == dies:
            dist.destroy_process_group()  # the peers see the closed connection first, as they sometimes do
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.total([1.0, 1.0])

    def echo(self, item: str) -> str:
        return item

    def sleep_or_die(self, dies: int) -> None:
        if self.rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    def stop_or_wait(self, stops: int) -> None:
        self.word = f"waiting for rank {stops}"
        if self.rank == stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)

    def doing(self) -> str:
        return self.word

    def save(self, folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def refuse_to_build(word: str) -> Rank:
    raise ValueError(f"cannot build {word}")


MakeGroup = Callable[..., WorkerGroup]


@pytest.fixture
def make_group() -> Iterator[MakeGroup]:
    """`make_group(size)` of `Rank`s; they end with the test."""
    placements: list[Placement] = []
    groups: list[WorkerGroup] = []

    def make(size: int, build: Callable[[str], Rank] = Rank) -> WorkerGroup:
        placements.append(Placement([Claim("idle", 1, 0.1), Claim("learner", size, 0.5)], wait_s=120))
        environment = {"OMP_NUM_THREADS": "1", "ATTUNE_TEST": "yes"}
        groups.append(WorkerGroup("learner", size, build, ("hello",), placements[-1], environment=environment))
        return groups[-1]

    yield make
    for group in groups:
        group.kill()
    for placement in placements:
        placement.release()


def test_ranks_know_each_other(make_group: MakeGroup) -> None:
    """Each rank's environment says what a collective needs: its rank, the size, and one master that all name; `all`
    answers by rank and `rank0` with the first; a collective sums over all; what one rank raises arrives as it was, at
    once, while the other waits in the collective."""
    group = make_group(2)
    found = group.all(Rank.surroundings)
    assert [f["RANK"] for f in found] == ["0", "1"]
    for f in found:
        assert (f["WORLD_SIZE"], f["LOCAL_RANK"], f["ATTUNE_TEST"], f["word"]) == ("2", "0", "yes", "hello")
    assert len({(f["MASTER_ADDR"], f["MASTER_PORT"]) for f in found}) == 1
    assert len(set(group.pids)) == 2 and os.getpid() not in group.pids
    assert group.all(Rank.join) == group.pids
    assert group.all(Rank.total, [1.5, 2.25]) == [3.75, 3.75]
    assert group.rank0(Rank.total, [-1.0, 0.5]) == -0.5
    before = time.monotonic()
    with pytest.raises(ValueError, match="rank 1 cannot"):
        group.all(Rank.total_or_refuse, 1)
    assert time.monotonic() - before < FEW


class Counted:
    """An argument that counts how often it is packed."""

    def __init__(self) -> None:
        self.packed = 0

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        self.packed += 1
        return str, ("arrived",)


def test_arguments_are_packed_once_for_all_ranks(make_group: MakeGroup) -> None:
    """A batch goes into the object store once, however many ranks read it."""
    group = make_group(2)
    for ask, answer in ((group.all, ["arrived"] * 2), (group.rank0, "arrived")):
        counted = Counted()
        assert ask(Rank.echo, counted) == answer
        assert counted.packed == 1


@pytest.mark.parametrize("dies", [0, 1])
def test_a_dead_rank_ends_the_group(dies: int, make_group: MakeGroup) -> None:
    """While the other one hangs for good, a killed rank is noticed in seconds, and named."""
    group = make_group(2)
    assert len(group.pids) == 2
    before = time.monotonic()
    with pytest.raises(
        WorkerDied, match=rf"learner rank {dies} of 2 died .*resumes from the last checkpoint"
    ) as caught:
        group.all(Rank.sleep_or_die, dies)
    assert time.monotonic() - before < FEW
    assert "\n" not in str(caught.value)


def test_a_dead_rank_is_named_whatever_its_peers_say(make_group: MakeGroup) -> None:
    """Peers of a killed rank fail in their collective (the connection closes): that is not what the run reports, even
    when they say it before Ray knows of the death."""
    group = make_group(2)
    group.all(Rank.join)
    group.all(Rank.total, [1.0, 1.0])
    with pytest.raises(WorkerDied, match="learner rank 1 of 2 died"):
        group.all(Rank.total_or_hang_up_and_die, 1)


def test_a_call_that_hangs_says_what_each_rank_was_at(make_group: MakeGroup) -> None:
    """A call that ends within its time answers as any; one that does not raises what each rank said of itself meanwhile,
    and which one said nothing, because it was stopped. A stopped rank can be killed."""
    group = make_group(2)
    assert group.rank0_within(600.0, Rank.doing, Rank.surroundings)["RANK"] == "0"
    pids = group.pids
    with pytest.raises(
        WorkersHung,
        match=r"learner did not end stop_or_wait within 2 s: rank 0 of 2 was waiting for rank 1; rank 1 of 2 does not answer",
    ):
        group.rank0_within(2.0, Rank.doing, Rank.stop_or_wait, 1)
    group.kill()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=FEW)
    assert not alive


def test_what_building_raises_is_raised_here(make_group: MakeGroup) -> None:
    """A rank that cannot be built says why when its process id is asked for."""
    with pytest.raises(ValueError, match="cannot build hello"):
        _ = make_group(1, refuse_to_build).pids


class RemoteLearner:
    """A learner whose saving happens in other processes."""

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    def save(self, folder: Path) -> dict[str, Any]:
        return self._group.rank0(Rank.save, folder)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        raise AssertionError("nothing was saved")


def test_a_full_disk_of_a_rank_is_said(make_group: MakeGroup, tmp_path: Path) -> None:
    """An OSError of another process says what went wrong too."""
    prompts = PromptStream([Prompt("p", (1,), ())], (), (), PromptsConfig(fixed_share=0, crisis_share=0), 0)
    saved = Checkpoints(tmp_path, keep=1)
    with pytest.raises(OSError, match=r"step-000001 .*No space left on device.*earlier ones stay"):
        saved.save(0, RemoteLearner(make_group(1)), prompts=prompts, reward=Mixture(RewardsConfig()))


# -- placement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ([Claim("engine", 3, 1.0)], ["too little CPU", "engine: 3 x (1 CPU, 0 GPU)", "2 CPU, 0 GPU"]),
        ([Claim("engine", 1, 1.0), Claim("reward", 4, 0.5)], ["too little CPU", "engine: 1 x", "reward: 4 x (0.5 CPU"]),
        ([Claim("engine", 1, 1.0, 2.0)], ["too little GPU", "engine: 1 x (1 CPU, 2 GPU)", "2 CPU, 0 GPU"]),
        ([Claim("engine", 1, 8.0, 8.0)], ["too little CPU and GPU", "1 x (8 CPU, 8 GPU)"]),
    ],
)
def test_a_cluster_that_is_too_small_is_said_at_once(claims: list[Claim], said: list[str]) -> None:
    """Room that cannot come is not waited for: one line names what is asked, what is there and what to change."""
    before = time.monotonic()
    with pytest.raises(ClusterTooSmall) as caught:
        Placement(claims)
    assert time.monotonic() - before < 5
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "lower rollout.engines" in message and "\n" not in message


def test_room_that_others_hold_is_waited_for_and_no_longer() -> None:
    """What is taken may become free: the wait ends when it does, or with a line that says what is free now."""
    first = Placement([Claim("engine", 1, 1.5)], wait_s=120)
    with pytest.raises(ClusterTooSmall, match=r"no room after 0.5 s: .*engine: 1 x \(1 CPU.*free now 0.5 CPU"):
        Placement([Claim("engine", 1, 1.0)], wait_s=0.5)
    first.release()
    Placement([Claim("engine", 1, 1.0)], wait_s=120).release()


class Tenant:
    def bundle(self) -> int:
        held = ray._private.worker.global_worker.core_worker.resource_ids()  # `CPU_group_2_<group>` in bundle 2
        (index,) = (name.split("_")[2] for name in held if name.startswith("CPU_group") and name.count("_") == 3)
        return int(index)


def test_every_actor_has_a_bundle_of_its_own() -> None:
    """Fleet by fleet in the order of the claims, whichever order the fleets are built in."""
    placement = Placement([Claim("engine", 2, 0.25), Claim("reward", 1, 0.5)], wait_s=120)
    remote = ray.remote(Tenant)
    actors = {
        (fleet, index): remote.options(**placement.options(fleet, index)).remote()
        for fleet, index in (("reward", 0), ("engine", 1), ("engine", 0))
    }
    found = {key: ray.get(actor.bundle.remote(), timeout=120) for key, actor in actors.items()}
    assert found == {("engine", 0): 0, ("engine", 1): 1, ("reward", 0): 2}
    placement.release()


class Trial:
    """What runs in a Tune trial's own bundle."""

    def run(self) -> tuple[bool, int, bool]:
        trials = ray.util.get_current_placement_group()
        placement = Placement([Claim("engine", 1, 0.5)])
        actor = ray.remote(Tenant).options(**placement.options("engine", 0)).remote()
        same = placement.options("engine", 0)["scheduling_strategy"].placement_group == trials
        bundle = ray.get(actor.bundle.remote())
        placement.release()
        return same, bundle, ray.get(actor.bundle.remote()) == bundle


def test_inside_a_trial_the_trials_room_is_used() -> None:
    """The trial's group holds its own bundle first and the claims after it, and outlives the job's release."""
    group = placement_group([{"CPU": 0.5}, {"CPU": 0.5}])
    inside = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    trial = ray.remote(Trial).options(num_cpus=0.5, scheduling_strategy=inside).remote()
    assert ray.get(trial.run.remote(), timeout=120) == (True, 1, True)
    remove_placement_group(group)


JOINED = """
import ray
from cluster.placement import connect
connect()
connect()
print("AT", ray.get_runtime_context().gcs_address)
"""


def joined(**environment: str) -> str:
    """The cluster that a new process connects to."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.run(
        [sys.executable, "-c", JOINED],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.rpartition("AT ")[2].strip()


def test_a_cluster_is_joined_only_when_it_is_named(cluster: str) -> None:
    """RAY_ADDRESS is followed; without it a process starts its own cluster though another one runs on the machine."""
    assert joined(RAY_ADDRESS=cluster) == cluster
    alone = joined()
    assert alone and alone != cluster


# -- the engines' control plane --------------------------------------------------------------------------------------


class Engine:
    """The receiving side of a publish: writes down what it is told."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Any]] = []

    def told(self) -> list[tuple[str, Any]]:
        return self._told

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._told.append(("init", init_info))

    def start_weight_update(self) -> None:
        self._told.append(("start", None))

    def update_weights(self, update_info: Any) -> None:
        if update_info == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if update_info == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        self._told.append(("update", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._told.append(("finish", weight_version))

    def load_adapter(self, update: dict[str, Any], weight_version: str) -> None:
        self._told.append(("adapter", weight_version))


def test_every_engine_is_told_the_same() -> None:
    """Each call reaches each engine once and in order; only the NCCL ranks differ: an engine's workers follow those of
    the engine before it. An update that names no version finishes as the client's. A death is an EngineLost."""
    remote = ray.remote(Engine)
    engines = [remote.options(num_cpus=0).remote() for _ in range(2)]
    client = EngineClient(engines, tensor_parallel=4)
    assert client.workers == 8
    info = {"rank_offset": 1, "master_port": 5}
    client.init_weight_transfer_engine(info)
    assert info == {"rank_offset": 1, "master_port": 5}
    for version, named in ((3, "3"), (4, None)):
        client.at(version).start_weight_update()
        client.at(version).update_weights({"chunk": version})
        client.at(version).finish_weight_update(named)
    for index, told in enumerate(ray.get([engine.told.remote() for engine in engines])):
        assert told == [
            ("init", {"rank_offset": 1 + 4 * index, "master_port": 5}),
            *(("start", None), ("update", {"chunk": 3}), ("finish", "3")),
            *(("start", None), ("update", {"chunk": 4}), ("finish", "4")),
        ]
    with pytest.raises(EngineLost):
        client.update_weights("die")


def test_an_engine_that_does_not_answer_is_named() -> None:
    """What is not answered within a client's time is a silent engine, named, also for the versions of that client; what is
    answered in time is no matter."""
    remote = ray.remote(Engine)
    engines = [remote.options(num_cpus=0).remote() for _ in range(2)]
    ray.get([engine.told.remote() for engine in engines])
    EngineClient(engines, tensor_parallel=1).within(600.0).at(3).start_weight_update()
    alone = EngineClient(engines[1:], tensor_parallel=1)
    with pytest.raises(ReplicaSilent, match="rollout engine 0 of 1 does not answer new weights"):
        alone.within(1.0).at(3).update_weights("stop")
    with pytest.raises(ReplicaSilent, match="rollout engine 1 of 2 does not answer a new adapter"):
        EngineClient(engines, tensor_parallel=1).within(2.0).load_adapter({}, "4")
    for engine in engines:
        ray.kill(engine)


# -- the end of a whole process group --------------------------------------------------------------------------------

INTERRUPTED = """
import signal, sys, time
import ray
from cluster.placement import Claim, Placement, connect
from rl.__main__ import _leave

signal.signal(signal.SIGTERM, signal.default_int_handler)
connect()
placement = Placement([Claim("worker", 1, 0.1)])

@ray.remote
def work():
    time.sleep(600)

running = work.options(**placement.options("worker", 0)).remote()
print("ready", flush=True)
try:
    ray.get(running)
except BaseException as error:
    placement.release()
    print("released", flush=True)
    sys.exit(_leave(1))
"""


def test_a_signal_to_the_whole_group_ends_the_driver_at_once() -> None:
    """Slurm, systemd and `timeout` send SIGTERM to Ray's own processes too: the driver gives its room back to nobody, and does
    not wait a minute for a cluster that is gone."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    os.killpg(driver.pid, signal.SIGTERM)
    started = time.monotonic()
    said, _ = driver.communicate(timeout=120)
    assert (said, driver.returncode) == ("released\n", 1)
    assert time.monotonic() - started < FEW + 10

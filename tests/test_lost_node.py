"""Real clusters of two nodes, one of which is killed: what was on it moves to another, or it is said that none has room."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.placement import Claim, NodeLost, Placement
from cluster.pool import Pool
from cluster.workers import WorkerDied, WorkerGroup

pytestmark = pytest.mark.slow

BYTES = 4 << 20  # of an answer that Ray keeps on the node that gave it


class Here:
    """A plain class that says on which node it is."""

    def __init__(self, index: int = 0) -> None:
        self._index = index

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def large(self, wait_s: float) -> bytes:
        time.sleep(wait_s)
        return bytes([self._index]) * BYTES

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head of two CPUs, which the driver is on, and a node of one."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def spread(cpus: float, wait_s: float = 3.0) -> tuple[Pool, Placement]:
    """A pool of two, on a node each, and its room."""
    placement = Placement([Claim("test engine", 2, cpus)], wait_s=wait_s, strategy="SPREAD")
    remote = ray.remote(Here)
    return Pool("test engine", 2, lambda i: remote.options(**placement.options("test engine", i)).remote(i)), placement


def lose(cluster: Cluster, node_id: str) -> None:
    (doomed,) = (node for node in cluster.list_all_nodes() if node.node_id == node_id)
    cluster.remove_node(doomed, allow_graceful=False)


def test_a_replica_moves_to_a_node_with_room(cluster: Cluster) -> None:
    """Its node is killed after it has answered and before the answer was fetched: asked again on the other node, it answers the
    same; the other replica stays where it is."""
    pool, _ = spread(cpus=1.0, wait_s=60)
    head = cluster.head_node.node_id
    nodes = pool.everyone(Here.node)
    (away,) = (index for index, node in enumerate(nodes) if node != head)
    stays, pids = 1 - away, pool.everyone(Here.pid)
    refs = {index: pool.replicas[index].large.remote(0.0) for index in (0, 1)}
    ray.wait(list(refs.values()), num_returns=2, fetch_local=False)
    asked = pool._ask

    def first(replica: object, method: object, share: tuple[object, ...]) -> object:
        """Answers that are there already, on their nodes, and a node that dies before they are fetched."""
        if refs:
            ref = refs.pop(stays if replica is pool.replicas[stays] else away)
            if not refs:
                lose(cluster, nodes[away])
            return ref
        return asked(replica, method, share)  # type: ignore[arg-type]

    pool._ask = first  # type: ignore[method-assign, assignment]
    assert pool.map(Here.large, [(0.0,), (0.0,)]) == [bytes([0]) * BYTES, bytes([1]) * BYTES]
    assert pool.deaths == 1 and pool.everyone(Here.node) == [head, head]
    assert pool.everyone(Here.pid)[stays] == pids[stays]


def test_no_room_is_said(cluster: Cluster) -> None:
    """Where no other node has room, the wait ends with the fleet, what it wants and what is there, instead of lasting for ever."""
    pool, _ = spread(cpus=1.0)
    head = cluster.head_node.node_id
    filler = Placement([Claim("other", 1, 1.0)])
    (away,) = (node for node in pool.everyone(Here.node) if node != head)
    lose(cluster, away)
    with pytest.raises(
        NodeLost, match=r"no other has room for test engine [01] \(1 CPU, 0 GPU\) after 3 s; the cluster has 2 CPU"
    ):
        for _ in range(600):  # an actor may outlive its node for a moment
            pool.everyone(Here.node)
            time.sleep(0.1)
    filler.release()


def test_a_rank_that_dies_with_its_answer_is_a_dead_rank(cluster: Cluster) -> None:
    """Ranks cannot be replaced: the group ends with the name of the one that is gone."""
    placement = Placement([Claim("learner", 2, 1.0)], strategy="SPREAD")
    group = WorkerGroup("learner", 2, Here, (), placement, environment={})
    head = cluster.head_node.node_id
    (away,) = (node for node in group.all(Here.node) if node != head)
    wait = group._wait

    def first(refs: list[object], limit_s: float | None = None) -> list[object]:
        ray.wait(refs, num_returns=2, fetch_local=False)
        lose(cluster, away)
        return wait(refs, limit_s)

    group._wait = first  # type: ignore[method-assign, assignment]
    with pytest.raises(WorkerDied, match=r"learner rank [01] of 2 died .*resumes"):
        group.all(Here.large, 0.0)

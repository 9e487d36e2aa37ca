"""A group of ranked actors round a plain class: what a collective needs, and nothing about what it computes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from cluster.placement import Placement
from cluster.pool import DEATHS

R = TypeVar("R")
_SECONDS_TO_DIE = 5.0  # within which Ray tells the death that made a peer's collective fail
_SECONDS_TO_ANSWER = 10.0  # within which a rank that lives says what it is at
_WATCH = "watch"  # the actors' second thread


class WorkerDied(RuntimeError):
    """A rank of a worker group ended; the group cannot go on, since collectives need every rank."""


class WorkersHung(RuntimeError):
    """A call of a worker group took longer than it was given; the message says what each rank was at."""


@dataclass(frozen=True)
class Place:
    """Where an actor is: Ray's id of its node, and the devices that Ray lent it, as CUDA_VISIBLE_DEVICES names them there."""

    node: str
    devices: tuple[str, ...]


def by_node(places: Sequence[Place]) -> list[int]:
    """Seats in the order of their ranks: node after node, the first seat's first, so that neighbours share fast links."""
    nodes = list(dict.fromkeys(place.node for place in places))
    return sorted(range(len(places)), key=lambda seat: (nodes.index(places[seat].node), seat))


class _Host:
    """The actor: holds one instance of the plain class and calls its methods, one at a time; `look` answers meanwhile."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._instance: Any = None

    def place(self) -> Place:
        context = ray.get_runtime_context()
        return Place(context.get_node_id(), tuple(context.get_accelerator_ids()["GPU"]))

    def rendezvous(self) -> tuple[str, int]:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def build(self, make: Callable[..., Any], rank: int, world_size: int, master: tuple[str, int], args: Any) -> int:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK="0",  # the index among the devices that this process sees: Ray shows it its own alone
            WORLD_SIZE=str(world_size),
            MASTER_ADDR=master[0],
            MASTER_PORT=str(master[1]),
        )
        self._instance = make(*args)
        return os.getpid()

    def call(self, method: str, args: Sequence[Any], reply: bool) -> Any:
        answer = getattr(self._instance, method)(*args)
        return answer if reply else None

    def look(self, method: str) -> Any:
        return getattr(self._instance, method)()


class WorkerGroup:
    """`size` actors, ranked, each holding `make(*args)` built with RANK, WORLD_SIZE and MASTER_* in its environment.

    Methods are named by reference (`group.all(Learner.update, batch)`). A dead rank raises WorkerDied; what a method
    raised is raised here as it was. Seats are actors in the order of their bundles, ranks are seats `by_node`; `places` are
    known, and nothing is made, until `build` or the first call.
    """

    def __init__(
        self,
        fleet: str,
        size: int,
        make: Callable[..., Any],
        args: Sequence[Any],
        placement: Placement,
        *,
        environment: dict[str, str],
    ) -> None:
        self._fleet = fleet
        host = ray.remote(concurrency_groups={_WATCH: 1})(_Host)
        seats = [host.options(**placement.options(fleet, seat)).remote(environment) for seat in range(size)]
        self._actors = seats
        self.places: Sequence[Place] = self._wait([seat.place.remote() for seat in seats])
        self._actors = [seats[seat] for seat in by_node(self.places)]
        self._make, self._args = make, args
        self._building: list[Any] = []
        self._pids: list[int] = []

    def build(self) -> None:
        """Begin to make every rank's instance; does not wait."""
        if not self._building:
            master, size = self._wait([self._actors[0].rendezvous.remote()])[0], len(self._actors)
            self._building = [
                a.build.remote(self._make, rank, size, master, self._args) for rank, a in enumerate(self._actors)
            ]

    @property
    def pids(self) -> list[int]:
        """Process ids by rank; waits until every rank is built."""
        if not self._pids:
            self.build()
            self._pids = self._wait(self._building)
        return self._pids

    def all(self, method: Callable[..., R], *args: Any) -> list[R]:
        """Call on every rank with the same arguments; answers by rank."""
        self.build()
        shared = ray.put(args)  # once, not once a rank
        return self._wait([a.call.remote(method.__name__, shared, True) for a in self._actors])

    def rank0(self, method: Callable[..., R], *args: Any) -> R:
        """Call on every rank (it may be a collective); rank 0's answer."""
        self.build()
        shared = ray.put(args)
        return self._wait([a.call.remote(method.__name__, shared, rank == 0) for rank, a in enumerate(self._actors)])[0]

    def rank0_within(self, limit_s: float, doing: Callable[..., str], method: Callable[..., R], *args: Any) -> R:
        """`rank0`; raises WorkersHung after `limit_s` seconds, with what each rank says it is `doing`.

        `doing` is a method of the plain class that may run beside `method`. The ranks go on hanging: kill them.
        """
        return self.start(limit_s, doing, method, *args)()

    def start(self, limit_s: float, doing: Callable[..., str], method: Callable[..., R], *args: Any) -> Callable[[], R]:
        """Begin `rank0_within`; the returned function waits for the answer, `limit_s` seconds from when it is called."""
        self.build()
        shared = ray.put(args)
        refs = [a.call.remote(method.__name__, shared, rank == 0) for rank, a in enumerate(self._actors)]

        def answer() -> R:
            try:
                return self._wait(refs, limit_s)[0]  # type: ignore[no-any-return]
            except TimeoutError:
                said = "; ".join(self._whereabouts(doing, refs))
                raise WorkersHung(f"{self._fleet} did not end {method.__name__} within {limit_s:g} s: {said}") from None

        return answer

    def kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def _whereabouts(self, doing: Callable[..., str], refs: list[Any]) -> list[str]:
        ended, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        asked = [a.look.options(concurrency_group=_WATCH).remote(doing.__name__) for a in self._actors]
        ray.wait(asked, num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)
        said = []
        for rank, (ref, answer) in enumerate(zip(refs, asked, strict=True)):
            try:
                what = "had ended it" if ref in ended else f"was {ray.get(answer, timeout=0)}"
            except (GetTimeoutError, *DEATHS):
                what = "does not answer at all (stopped, or its node is)"
            said.append(f"rank {rank} of {len(refs)} {what}")
        return said

    def _wait(self, refs: list[Any], limit_s: float | None = None) -> list[Any]:
        pending, deadline = list(refs), None if limit_s is None else time.monotonic() + limit_s
        answers: dict[Any, Any] = {}
        while pending:  # one by one as they end: the first failure counts, while the other ranks hang in a collective
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                raise TimeoutError
            try:
                answers[done[0]] = ray.get(done[0])
            except RayTaskError as error:  # a peer of a dead rank may fail first: the death is the cause to tell
                dead = self._dead_rank(refs, pending)
                if dead is None:
                    raise
                raise dead from error
            except (*DEATHS, ObjectLostError) as error:  # the second: its node died after it had answered
                raise self._died(refs.index(done[0]), len(refs), error) from error
        return [answers[ref] for ref in refs]

    def _dead_rank(self, refs: list[Any], pending: list[Any]) -> WorkerDied | None:
        ended, _ = ray.wait(pending, num_returns=len(pending), timeout=_SECONDS_TO_DIE) if pending else ([], [])
        for ref in ended:
            try:
                ray.get(ref)
            except RayTaskError:
                continue
            except DEATHS as error:
                return self._died(refs.index(ref), len(refs), error)
        return None

    def _died(self, rank: int, ranks: int, error: Exception) -> WorkerDied:
        return WorkerDied(
            f"{self._fleet} rank {rank} of {ranks} died ({_cause(error)}); the run ends here: "
            "the same command resumes from the last checkpoint"
        )


def _cause(error: Exception) -> str:
    if isinstance(error, ObjectLostError):
        return "its node died with its answer"
    lines = str(error).strip().splitlines()
    return next((line.strip() for line in lines if "worker" in line or "SIG" in line), lines[0])

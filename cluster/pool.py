"""Interchangeable replicas of one plain class: an ordered map that outlives the death of replicas."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, OutOfMemoryError, RayActorError, TaskCancelledError

R = TypeVar("R")
log = logging.getLogger(__name__)
DEATHS = (RayActorError, OutOfMemoryError)  # the second: Ray's own memory monitor ended it
_SECONDS_TO_END = 5.0
_SECONDS_TO_A_WORD = 600.0  # after which a wait is told, and again


class PoolExhausted(RuntimeError):
    """A replica cannot start, or more of them died than the recipe replaces."""


class ReplicaSilent(RuntimeError):
    """A replica lives and does not answer within the time that it was given."""


class PoolClosed(RuntimeError):
    """The run that the pool was for has ended."""


class Pool:
    """`size` replicas made by `spawn(index)`.

    `map` gives share i to replica i and returns the answers in order. A replica that dies is spawned again at its
    place, brought up to date by `revive` (an engine needs the current weights), and asked the same share again: a death
    changes nothing but time. After `restarts` deaths the pool gives up. Several threads may ask at once: one of them replaces
    the dead, and each brings them up to date before it asks again.
    """

    def __init__(self, fleet: str, size: int, spawn: Callable[[int], ActorHandle[Any]], *, restarts: int = 3) -> None:
        self._fleet = fleet
        self._spawn = spawn
        self._restarts_left = restarts
        self.deaths = 0  # replicas replaced so far
        self.revive: Callable[[], None] = lambda: None
        self.replicas: list[ActorHandle[Any]] = [spawn(index) for index in range(size)]
        self._lock = threading.Lock()  # of the replicas; never held while something is brought up to date
        self._asked: set[Any] = set()  # references whose answers are awaited
        self._closed = False

    def __len__(self) -> int:
        return len(self.replicas)

    def map(
        self, method: Callable[..., Any], shares: Sequence[tuple[Any, ...]], *, limit_s: float | None = None
    ) -> list[Any]:
        """Answers of `method(*shares[i])` from replica i; at most one share per replica.

        The dead are replaced when the others have answered, so that `revive` finds an idle fleet. Raises ReplicaSilent
        when an answer takes longer than `limit_s`.
        """
        assert len(shares) <= len(self.replicas)
        answers: dict[int, Any] = {}
        while missing := [index for index in range(len(shares)) if index not in answers]:
            replicas = list(self.replicas)
            asked = {index: self._ask(replicas[index], method, shares[index]) for index in missing}
            self._asked.update(asked.values())
            dead = {}
            for index, ref in asked.items():
                try:
                    answers[index] = self._await(ref, f"{index} of {len(replicas)}", method.__name__, limit_s)
                except ObjectLostError:  # its node died after it had answered; asked again, it is found dead
                    log.warning("the answer of %s %d was lost; asking again", self._fleet, index)
                except (*DEATHS, TaskCancelledError) as error:
                    if self._closed:
                        raise PoolClosed(f"the {self._fleet}s were told to end") from error
                    if isinstance(error, TaskCancelledError):
                        raise
                    if isinstance(error, RayActorError) and error.actor_init_failed:  # it would fail again
                        cause = str(error).strip().splitlines()[-1].strip()
                        raise PoolExhausted(f"{self._fleet} {index} could not start: {cause}") from error
                    dead[index] = replicas[index]
                finally:
                    self._asked.discard(ref)
            if dead:
                self._replace(dead)
        return [answers[index] for index in range(len(shares))]

    def everyone(self, method: Callable[..., Any], *args: Any, limit_s: float | None = None) -> list[Any]:
        """The same call on every replica."""
        return self.map(method, [args] * len(self.replicas), limit_s=limit_s)

    def kill(self, end: Callable[..., Any]) -> None:
        """End every replica: by its own method `end` where it still answers, by force where not."""
        asked = [self._ask(replica, end, ()) for replica in self.replicas]
        ray.wait(asked, num_returns=len(asked), timeout=_SECONDS_TO_END)
        for replica in self.replicas:
            ray.kill(replica)

    def replace(self, replicas: Collection[ActorHandle[Any]]) -> None:
        """Spawn new ones for those of `replicas` that no other thread has replaced meanwhile; bring the pool up to date."""
        left = {index: replica for index, replica in enumerate(list(self.replicas)) if replica in replicas}
        self._replace(left, counted=len(left) < len(replicas))

    def _replace(self, dead: Mapping[int, ActorHandle[Any]], *, counted: bool = False) -> None:
        """`counted`: another thread has seen the same event, and counted it."""
        with self._lock:
            still = [index for index, replica in dead.items() if self.replicas[index] is replica]
            counts = not counted and len(still) == len(dead) > 0  # one event may take many along
            if counts and self._restarts_left == 0:
                raise PoolExhausted(
                    f"{self._fleet} {still[0]} died and no restart is left ({self.deaths} replaced so far)"
                )
            self._restarts_left -= counts
            for index in still:
                self.deaths += 1
                log.warning("%s %d died; starting another (%d restarts left)", self._fleet, index, self._restarts_left)
                ray.kill(self.replicas[index])
                self.replicas[index] = self._spawn(index)
        self.revive()  # also where another thread has replaced them: it may not have come so far yet

    def close(self) -> None:
        """Replace nobody any more, and end what is being waited for in other threads with PoolClosed."""
        self._closed = True
        for ref in list(self._asked):
            ray.cancel(ref)

    def _await(self, ref: Any, which: str, call: str, limit_s: float | None) -> Any:
        for words in itertools.count(1):
            try:
                return ray.get(ref, timeout=_SECONDS_TO_A_WORD if limit_s is None else limit_s)
            except GetTimeoutError as error:
                if limit_s is not None:
                    raise ReplicaSilent(f"{self._fleet} {which} does not answer {call}") from error
                minutes = words * _SECONDS_TO_A_WORD / 60
                log.warning(
                    "%s %s has not answered %s for %.0f minutes; still waiting", self._fleet, which, call, minutes
                )

    @staticmethod
    def _ask(replica: ActorHandle[Any], method: Callable[..., Any], share: tuple[Any, ...]) -> Any:
        return getattr(replica, method.__name__).remote(*share)

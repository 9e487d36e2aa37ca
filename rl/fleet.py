"""The learner's ranks as one `Learner`, and the publish that is proved before a token is sampled."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from ray.exceptions import RayTaskError

from cluster.placement import Placement
from cluster.pool import ReplicaSilent
from cluster.workers import WorkerGroup, WorkersHung
from rl.batch import Batch, Experience, UpdateReport
from rl.config import PpoRecipe
from rl.endings import NonFiniteLoss
from rl.learner import PpoLearner
from rollout.fleet import EngineLost, RolloutFleet

FLEET = "learner"
_TIE = 1e-5  # nats between two experts, within which kernels' rounding in float32 decides
_SECONDS_TO_TELL = 15.0  # which rank 0 has beyond the limit to say which engine is silent
Probe = tuple[tuple[int, ...], tuple[int, ...]]


class PublishMismatch(RuntimeError):
    """After a publish, engine and learner disagree on the log-probs of fixed replies: the weights arrived wrong."""


class PublishHung(RuntimeError):
    """A publish took longer than `publish.timeout_s`; the message says which rank or engine was at which tensors."""


P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(
    method: Callable[Concatenate[LearnerFleet, P], R],
) -> Callable[Concatenate[LearnerFleet, P], R]:
    """A thread that wants the learner waits for the other: collectives must reach every rank in one order."""

    @functools.wraps(method)
    def alone(self: LearnerFleet, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return alone


def seated(
    recipe: PpoRecipe,
    placement: Placement,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    learner: Callable[[PpoRecipe], object] = PpoLearner,
) -> WorkerGroup:
    """The learner's ranks in their places; they have loaded nothing yet.

    `learner` is the class of a rank, built from `recipe`; any other answers to `PpoLearner`'s methods too.
    """
    threads = str(recipe.learner.threads)
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **environment}
    return WorkerGroup(FLEET, recipe.learner.ranks, learner, (recipe,), placement, environment=own)


class LearnerFleet:
    """`PpoLearner` on every rank. `probes` are (prompt ids, reply ids) that each publish is proved with.

    `ranks`: those that are `seated` already; without, they are placed here. They load at `build`, or at the first call. The loop
    asks the fleet, and so does whoever replaces an engine, from another thread: each waits for the other.
    """

    def __init__(
        self,
        recipe: PpoRecipe,
        placement: Placement,
        probes: Sequence[Probe],
        failures: Path,
        *,
        ranks: WorkerGroup | None = None,
    ) -> None:
        self._recipe = recipe
        self._probes = tuple(probes)
        self._failures = failures
        self._version = -1
        self._moved = False  # updated since the last publish
        self._connected: object = None
        self._clear: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        self.tolerance = recipe.publish.limit(recipe.model.dtype)
        self._group = ranks or seated(recipe, placement)

    def ready(self) -> list[int]:
        """Wait until every rank is built; process ids by rank."""
        return self._group.pids

    def build(self) -> None:
        """Let the ranks load, without waiting for them."""
        self._group.build()

    def on_work(self, clear: Callable[[], None]) -> None:
        """What frees the ranks' devices before they work."""
        self._clear = clear

    @one_at_a_time
    def annotate(self, batch: Batch) -> Experience:
        """`PpoLearner.annotate`."""
        self._clear()
        return self._group.rank0(PpoLearner.annotate, batch)

    @one_at_a_time
    def update(self, experience: Experience) -> UpdateReport:
        """`PpoLearner.update`; a batch whose loss is not finite is saved for inspection before the error goes on."""
        self._clear()
        try:
            report = self._group.rank0(PpoLearner.update, experience)
        except NonFiniteLoss as error:
            self._failures.mkdir(exist_ok=True)
            path = self._failures / f"version-{self._version:06d}.pt"
            torch.save(
                {name: tensor.clone() for name, tensor in vars(experience).items()}, path
            )  # off Ray's own memory
            raise NonFiniteLoss(f"{getattr(error, 'cause', error)}; its batch is in {path}") from error
        self._moved = True
        return report

    @one_at_a_time
    def publish(self, engine: RolloutFleet) -> dict[str, float]:
        """Give the engines the newest policy and prove that they have it: metrics `publish/*`.

        An engine that dies on the way is replaced and all is sent again. Raises PublishMismatch when the probe's gap is
        over the tolerance, naming the tensor group where one can be found; PublishHung when somebody does not answer.
        """
        self._version, self._moved = self._version + 1, False
        metrics = self._send(engine, self._version)
        gap = self._proved(engine)
        return {**metrics, "publish/logprob_gap": gap, "publish/tolerance": self.tolerance, **engine.rest_seconds()}

    @one_at_a_time
    def republish(self, engine: RolloutFleet) -> None:
        """Send the learner's weights to engines that were replaced: the version that was published last or, after an update, the
        one that is published next."""
        if self._version >= 0:
            self._send(engine, self._version + self._moved)
            self._proved(engine)

    def _proved(self, engine: RolloutFleet) -> float:
        if engine.shares_devices:
            self._make_room()
        gap = self.gap(engine)
        if not gap <= self.tolerance:
            raise PublishMismatch(self.explain(engine, gap, self.tolerance))
        return gap

    @one_at_a_time
    def log_probs(self, sequences: Sequence[Probe]) -> list[list[float]]:
        """The policy's log-probs of reply tokens (`PpoLearner.probe`)."""
        return self._group.rank0(PpoLearner.probe, sequences)

    def kill(self) -> None:
        """End the ranks."""
        self._group.kill()

    def gap(self, engine: RolloutFleet) -> float:
        """Difference, in nats, between the engines' and the learner's log-probs of the probes' tokens.

        The largest in float32; where it is over the tolerance, without probes in which a router finds two experts as good as
        equal, as long as one is left: there rounding may send a token another way, while wrong weights are wrong in all probes. In
        bfloat16 the mean of the engine with the largest: kernels round single tokens far apart, wrong weights all of an engine's.
        """
        limit_s = self._recipe.publish.timeout_s
        ask_learner = self._group.start(limit_s, PpoLearner.doing, PpoLearner.probe, self._probes)
        with self._naming_who_hangs(engine):
            theirs = engine.every_logprobs(self._probes, limit_s=limit_s)  # meanwhile the learner computes too
            ours = ask_learner()
        gaps = [
            [[abs(a - b) if a == a and b == b else float("inf") for a, b in zip(probe, own, strict=True)]
             for probe, own in zip(answer, ours, strict=True)]
            for answer in theirs
        ]  # by engine, probe and token  # fmt: skip
        if self._recipe.model.dtype != "float32":
            tokens = max(sum(map(len, ours)), 1)
            return max(sum(itertools.chain(*of_engine)) / tokens for of_engine in gaps)
        largest = [max(itertools.chain(*of_probe), default=0.0) for of_probe in zip(*gaps, strict=True)]
        if not max(largest) <= self.tolerance:
            margins = self._group.rank0_within(limit_s, PpoLearner.doing, PpoLearner.router_margins, self._probes)
            largest = [gap for gap, margin in zip(largest, margins, strict=True) if margin > _TIE] or largest
        return max(largest)

    @one_at_a_time
    def save(self, folder: Path) -> dict[str, Any]:
        """`PpoLearner.save`; the state to hand back to `restore`."""
        return {**self._group.rank0(PpoLearner.save, folder), "version": self._version}

    @one_at_a_time
    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """`PpoLearner.restore`; the next publish repeats the version that was current."""
        self._group.all(PpoLearner.restore, folder, state)
        self._version = int(state["version"]) - 1

    def _send(self, engine: RolloutFleet, version: int) -> dict[str, float]:
        """Metrics of the publish; none where an engine died on the way: all are replaced, which `republish` brings up to date."""
        limit_s = self._recipe.publish.timeout_s
        with self._naming_who_hangs(engine):
            # loading a large model is not the publish's time; one that died in its sleep could not be replaced amid CUDA IPC
            if engine.shares_devices or self._connected != engine.client().engines:
                engine.ready()
            if engine.shares_devices:
                self._make_room()
            client = engine.client()
            connect = self._connected != client.engines
            try:
                metrics = self._group.rank0_within(
                    limit_s + _SECONDS_TO_TELL, PpoLearner.doing, PpoLearner.publish, client, version, connect
                )
            except RayTaskError as error:
                if not isinstance(error.cause, EngineLost):
                    raise
                engine.restart(client)
                return {}
        self._connected = client.engines
        return metrics

    def _make_room(self) -> None:
        """Let engines on the ranks' devices wake: what the ranks hold of memory without using it goes back."""
        self._group.rank0_within(self._recipe.publish.timeout_s, PpoLearner.doing, PpoLearner.make_room)

    @contextmanager
    def _naming_who_hangs(self, engine: RolloutFleet) -> Iterator[None]:
        """Turn a rank's or an engine's silence into PublishHung."""
        try:
            yield
        except (ReplicaSilent, WorkersHung) as error:
            raise self._hung(engine, error) from error
        except RayTaskError as error:
            if not isinstance(error.cause, ReplicaSilent):
                raise
            raise self._hung(engine, error.cause) from error

    def _hung(self, engine: RolloutFleet, error: Exception) -> PublishHung:
        """What to raise; whoever hangs would not end otherwise, so both fleets are ended first."""
        self.kill()
        engine.kill()
        return PublishHung(
            f"publishing version {self._version} took over publish.timeout_s = {self._recipe.publish.timeout_s:g}: {error}; "
            "the same command resumes from the last checkpoint, with a higher publish.timeout_s if it was only slow"
        )

    def explain(self, engine: RolloutFleet, gap: float, limit: float) -> str:
        """Resend one group after another: the one that closes most of the gap was the one that arrived wrong."""
        message = (
            f"after publishing version {self._version} engine and learner differ by {gap:.3g} nats, over {limit:g}"
        )
        limit_s = self._recipe.publish.timeout_s + _SECONDS_TO_TELL
        groups = self._group.rank0_within(limit_s, PpoLearner.doing, PpoLearner.groups)
        if not groups:
            return f"{message}; set publish.tolerance if two bf16 kernels explain it"
        before, closed = gap, dict[str, float]()
        for group in groups:
            with self._naming_who_hangs(engine):
                resend = engine.client(), self._version, group
                self._group.rank0_within(limit_s, PpoLearner.doing, PpoLearner.resend, *resend)
            after = self.gap(engine)
            closed[group], before = before - after, after
            if after <= limit:
                break
        worst = max(closed, key=closed.__getitem__)
        if before > limit:
            return f"{message}; sending every tensor group again leaves {before:.3g}: no single group explains it"
        return f"{message}; {worst} arrived wrong (sending it again closes {closed[worst]:.3g} nats of the gap)"

"""The real driver, loop, pools and object store round a fleet of hundreds of engines that only sleep; README.md beside this
file says how to read the figures."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import ray

from cluster.placement import Placement, connect, has_gpus
from cluster.tracking import Clock, Trackers
from rewards.fleet import FLEET as REWARDS
from rewards.fleet import RewardFleet, spoken
from rewards.types import ScoredRollout
from rl.batch import collate
from rl.checkpoints import Checkpoints
from rl.config import CheckpointConfig, EvaluationConfig, LearnerConfig, ModelConfig, PpoConfig, TrackingConfig
from rl.fleet import FLEET as LEARNER
from rl.fleet import LearnerFleet, seated
from rl.layout import claims
from rl.loop import train
from rl.records import trackers, write_rollouts
from rollout.config import PromptsConfig, SamplingConfig
from rollout.engine_config import RolloutConfig
from rollout.fleet import FLEET as ROLLOUT
from rollout.fleet import RolloutFleet, deal, engine_spec
from rollout.prompts import PromptStream
from rollout.types import Prompt, Sampling, Speaker, Turn
from tests.benchmarks.memory import family
from tests.benchmarks.simulated import CostModel, Host, Lengths, SimulatedEngine, SimulatedSpec, Tenant, World
from tests.benchmarks.simulated_ranks import SimulatedLearner, SimulatedPanel, SimulatedRecipe, SimulatedRewards

ROOT = Path(__file__).parents[2]
WARM_UP = 1  # steps that do not count
PROMPT_TOKENS = 256
WORKS = ("generate", "measure", "annotate", "update", "publish", "probe")
FLEET_OF = {"rollout": ROLLOUT, "reward": REWARDS, "learner0": LEARNER}


@dataclass(frozen=True)
class Scene:
    """One experiment: how the engines behave, and how far generation may run ahead."""

    name: str
    lengths: Lengths
    slow: float = 1.0  # times as slow is engine 0
    dies_in: float | None = None  # seconds after the third step's start at which engine 0 dies


def scenes(tokens: int) -> dict[str, Scene]:
    """The experiments by name."""
    even, tail = Lengths(tokens), Lengths(tokens, spread=0.5)
    return {
        "even": Scene("even", even),
        "tail": Scene("tail", tail),
        "slow": Scene("slow", even, slow=2.0),
        "death": Scene("death", even, dies_in=0.5 * CostModel().rollout(0, [tokens])),
    }


def make_recipe(args: argparse.Namespace, folder: Path) -> SimulatedRecipe:
    """The recipe of a simulated run: sizes from `args`, everything else the product's defaults."""
    budget = 4 * args.tokens
    return SimulatedRecipe(
        name="simulation",
        runs=str(folder),
        steps=args.steps + WARM_UP,
        model=ModelConfig(path="simulated"),
        prompts=PromptsConfig(
            per_step=args.replies // args.samples, max_context_tokens=PROMPT_TOKENS, fixed_share=0, crisis_share=0
        ),
        sampling=SamplingConfig(n=args.samples, max_tokens=budget),
        rollout=RolloutConfig(engines=args.engines, cpus=0, max_model_len=budget + PROMPT_TOKENS + 8, restarts=99),
        rewards=SimulatedRewards(actors=args.rewards, cpus=0.001, world=world(args, folder)),
        learner=LearnerConfig(ranks=args.ranks, cpus=0),
        ppo=PpoConfig(epochs=args.epochs),
        evaluation=EvaluationConfig(every=0),
        checkpoint=CheckpointConfig(),
        tracking=TrackingConfig(),
        world=world(args, folder),
    )


def world(args: argparse.Namespace, folder: Path) -> World:
    """What the parts know; their journals lie in `folder`."""
    cost = CostModel(learner_devices=args.devices)
    return World(str(folder), replace(cost, engine_start_s=args.start_s), Lengths(args.tokens))


def make_prompts(recipe: SimulatedRecipe) -> PromptStream:
    """A stream of prompts of `PROMPT_TOKENS` tokens, each its own."""
    trouble = "I have been awake since four again and I do not see how tomorrow could be any other than today was. "
    corpus = [
        Prompt(
            f"simulated/{n}",
            tuple((n * 31 + i * 17) % 32_000 for i in range(PROMPT_TOKENS)),
            (Turn(Speaker.CLIENT, (trouble * 12)[n % 100 : n % 100 + 4 * PROMPT_TOKENS]),),
            reference="That sounds exhausting. What keeps you awake?",
        )
        for n in range(2 * recipe.prompts.per_step)
    ]
    return PromptStream(corpus, (), (), recipe.prompts, recipe.seed)


def lean(folder: Path) -> Path:
    """A folder that hides the packages which Ray imports into every worker that has them, and the engines do not use.

    An engine then holds 41 MB of its own, not 58: the difference between 11 and 15 GB for 256.
    """
    folder.mkdir()
    for package in ("pyarrow", "pydantic", "pandas"):
        (folder / f"{package}.py").write_text('raise ModuleNotFoundError("hidden from simulated engines")\n')
    return folder


class HousedFleet(RolloutFleet):
    """A fleet whose engines share a few processes."""

    def __init__(self, hosts: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        self._hosts = hosts
        super().__init__(*args, **kwargs)

    def _spawn(self, index: int) -> Any:
        host = self._hosts[index % len(self._hosts)]
        ray.get(host.house.remote(index, self._specs[index]))  # calls of an asynchronous actor may overtake each other
        return Tenant(host, index)


class Cluster:
    """Fleets of simulated parts on a private Ray, kept over several runs; engines in `hosts` processes, or each in its own (0)."""

    def __init__(self, recipe: SimulatedRecipe, hosts: int = 0) -> None:
        self.recipe, self.placement = recipe, Placement(claims(recipe, on_gpu=has_gpus()), wait_s=600.0)
        environment = {"PYTHONPATH": f"{lean(recipe.directory / 'lean')}{os.pathsep}{ROOT}"}
        spec = engine_spec(recipe.rollout, recipe.model.path, "", recipe.model.dtype, ())
        known = {f.name: getattr(spec, f.name) for f in fields(spec)}
        actors = ray.remote(Host).options(num_cpus=0, runtime_env={"env_vars": environment})
        fleet = partial(HousedFleet, [actors.remote() for _ in range(hosts)]) if hosts else RolloutFleet
        self.engine = fleet(
            SimulatedSpec(**{**known, "environment": environment}, world=recipe.world),
            recipe.rollout.engines,
            self.placement,
            restarts=recipe.rollout.restarts,
            engine=SimulatedEngine,
        )
        self.reward = RewardFleet(recipe.rewards, self.placement, environment={}, panel=SimulatedPanel)
        self.pids = {ROLLOUT: self.engine.ready(), REWARDS: self.reward.ready()}

    @contextmanager
    def learner(self) -> Iterator[LearnerFleet]:
        """Fresh ranks, whose first publish is version 0."""
        probes = [(tuple(range(PROMPT_TOKENS)), tuple(range(32)))] * self.recipe.publish.probes
        ranks = seated(self.recipe, self.placement, learner=SimulatedLearner)
        fleet = LearnerFleet(self.recipe, self.placement, probes, self.recipe.directory / "diverged", ranks=ranks)
        self.pids[LEARNER] = fleet.ready()
        self.engine.on_replace(lambda: fleet.republish(self.engine))
        try:
            yield fleet
        finally:
            fleet.kill()

    def replica(self, index: int) -> Any:
        """The actor of one engine."""
        return self.engine.client().engines[index]

    def close(self) -> None:
        """Give the room back."""
        self.placement.release()


class Meter:
    """A tracker: every step's row, with the CPU that each kind of process used and when the step ended."""

    def __init__(self, cluster: Cluster, inner: Callable[[int], Trackers], record: Callable[[int], None]) -> None:
        self.rows: list[dict[str, Any]] = []
        self.last: Sequence[ScoredRollout] = ()
        self.clock = Clock()
        self._cluster, self._open, self._before = cluster, inner, record

    def open(self, first_step: int) -> Meter:
        self._inner = self._open(first_step)
        self._mark, self._cpu = time.time(), self._cpu_seconds()
        return self

    def record(self, step: int, scored: Sequence[ScoredRollout]) -> None:
        """As a run does it; then the experiment may prepare the next step."""
        self.last = scored
        self._before(step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._inner.log(step, metrics)
        cpu, now = self._cpu_seconds(), time.time()
        used = {kind: cpu[kind] - self._cpu.get(kind, 0.0) for kind in cpu}
        kept = {name: value for name, value in metrics.items() if name.startswith(("time/", "lag/", "rollout/"))}
        self.rows.append({"start": self._mark, "end": now, "step_s": now - self._mark, "cpu": used, **kept})
        self._cpu = self._cpu_seconds()
        self._mark = time.time()
        self._cpu |= {"driver": time.process_time(), "loop": time.thread_time()}  # not what the looking took

    def close(self) -> None:
        self._inner.close()

    def _cpu_seconds(self) -> dict[str, float]:
        """CPU seconds so far: of the driver, of its loop's thread, of each fleet, and of Ray's own processes."""
        kind_of = {pid: fleet for fleet, pids in self._cluster.pids.items() for pid in pids}
        seconds = defaultdict(float, {"driver": time.process_time(), "loop": time.thread_time()})
        for pid in descendants():
            seconds[kind_of.get(pid, "Ray")] += cpu_seconds(pid)
        return dict(seconds)


def descendants() -> list[int]:
    """The processes below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process; 0 for one that ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def play(cluster: Cluster, scene: Scene, lag: int, in_flight: bool, folder: Path) -> dict[str, Any]:
    """Train under one scene; what was seen."""
    recipe = cluster.recipe
    actors = [cluster.replica(i) for i in range(recipe.rollout.engines)]
    ray.get([actor.behave.remote(scene.lengths, scene.slow if i == 0 else 1.0) for i, actor in enumerate(actors)])
    deaths = cluster.engine.deaths

    def before(step: int) -> None:
        if step == 2 and scene.dies_in is not None:
            cluster.replica(0).die_in.remote(scene.dies_in)

    with cluster.learner() as learner:
        meter = Meter(cluster, lambda first: Trackers(trackers(recipe, recipe.directory, first)), before)
        train(
            steps=recipe.steps + lag,  # the last steps ask for no replies ahead
            prompts_per_step=recipe.prompts.per_step,
            sampling=Sampling(recipe.sampling.n, recipe.sampling.max_tokens, recipe.sampling.temperature, recipe.seed),
            prompts=make_prompts(recipe),
            engine=cluster.engine,
            reward=cluster.reward,
            learner=learner,
            checkpoints=Checkpoints(folder / "none", every=10**9, keep=1, steps=10**9),
            trackers=meter.open,
            record=meter.record,
            clock=meter.clock,
            write=partial(write_rollouts, recipe.directory),
            max_lag=lag,
            in_flight=in_flight,
        )
        pss = {pid: process.pss for pid, process in family(os.getpid()).items()}
        memory = {kind: sum(pss.get(pid, 0) for pid in set(pids)) for kind, pids in cluster.pids.items()}
    began = meter.rows[0]["start"]
    lines = [line for line in journals(folder) if line["start"] >= began]
    costs = step_costs(lines, len(meter.rows))
    dictated = critical_path(costs, lag, in_flight)
    rows = [
        {**row, "costs": cost, "model_s": model_s, "idle": idle(row, lines, recipe)}
        for row, cost, model_s in zip(meter.rows, costs, dictated, strict=True)
    ]
    return {
        "scene": asdict(scene),
        "lag": lag,
        "in_flight": in_flight,
        "rows": rows,
        "replaced": cluster.engine.deaths - deaths,
        "load": os.getloadavg()[0],
        "traffic": traffic(meter.last, recipe),
        "memory": {**memory, "driver": pss[os.getpid()], "all": sum(pss.values())},
    }


def journals(folder: Path) -> list[dict[str, Any]]:
    """Every line of every process."""
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def step_costs(lines: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, float]]:
    """Seconds that the cost model asks for each work of each step: of whoever needs longest."""
    costs = [dict.fromkeys(WORKS, 0.0) for _ in range(steps)]
    made: dict[tuple[str, str], int] = defaultdict(int)  # calls so far, by work and part
    for line in sorted(lines, key=lambda line: line["start"]):
        step = made[line["work"], line["who"]] if line["step"] is None else line["step"]
        made[line["work"], line["who"]] += 1
        if step < steps:
            costs[step][line["work"]] = max(costs[step][line["work"]], line["cost"])
    return costs


def critical_path(costs: Sequence[Mapping[str, float]], lag: int, in_flight: bool) -> list[float]:
    """Seconds of each step in a world where nothing but the cost model takes time, by the rules of `rl.ahead`."""
    begins, generated, measured = [0.0], list[float](), list[float]()

    def generate(k: int) -> None:
        free = max(generated[-1] if generated else 0.0, begins[max(k - lag, 0)])
        generated.append(free + costs[k]["generate"])
        measured.append(max(generated[-1], measured[-1] if measured else 0.0) + costs[k]["measure"])

    for k, cost in enumerate(costs):
        for later in range(len(generated), min(k + lag + 1, len(costs))):
            generate(later)
        trained = max(begins[-1], measured[k]) + cost["annotate"] + cost["update"]
        send = cost["publish"] + cost["probe"]
        if in_flight:
            generated = [end + send if end > trained else end for end in generated]
            measured = [m + send if end > trained else m for m, end in zip(measured, generated, strict=True)]
        else:
            trained = max(trained, *generated)
        begins.append(trained + send)
    return [after - before for before, after in pairwise(begins)]


def idle(row: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], recipe: SimulatedRecipe) -> dict[str, float]:
    """The share of a step in which the parts of each fleet did nothing."""
    sizes = {ROLLOUT: recipe.rollout.engines, REWARDS: recipe.rewards.actors, LEARNER: 1}  # ranks work in step
    busy = dict.fromkeys(sizes, 0.0)
    for line in lines:
        if line["part"] in FLEET_OF:
            common = min(line["end"], row["end"]) - max(line["start"], row["start"])
            busy[FLEET_OF[line["part"]]] += max(common, 0.0)
    return {fleet: 1 - busy[fleet] / (sizes[fleet] * row["step_s"]) for fleet in sizes}


def traffic(scored: Sequence[ScoredRollout], recipe: SimulatedRecipe) -> dict[str, int]:
    """Bytes of one step by hop, as Ray serialises them; what is put once is counted once."""
    n = recipe.sampling.n
    prompts = [item.rollout.prompt for item in scored[::n]]
    shares = deal([len(p.token_ids) for p in prompts], recipe.rollout.engines)
    hands = deal([n] * len(prompts), recipe.rewards.actors)
    rollouts = [item.rollout for item in scored]

    def of(groups: Sequence[Sequence[int]]) -> list[list[Any]]:
        return [[rollouts[i * n + k] for i in group for k in range(n)] for group in groups]

    batch = collate(scored)
    columns = 6 * batch.sampled_logprobs_BT.nbytes
    return {
        "prompts: driver -> engines": sum(nbytes([prompts[i] for i in share for _ in range(n)]) for share in shares),
        "rollouts: engines -> driver": sum(map(nbytes, of(shares))),
        "rollouts: driver -> reward actors": sum(nbytes(spoken(share)) for share in of(hands)),
        "measurements: reward actors -> driver": nbytes([item.score for item in scored]),
        "batch: driver -> store, read by every rank": nbytes(batch),
        "experience: rank 0 -> driver": nbytes(batch) + columns,
        "experience: driver -> store, read by every rank": nbytes(batch) + columns,
    }


def nbytes(value: object) -> int:
    """Size of `value` as Ray serialises it."""
    from ray._private.worker import global_worker

    return int(global_worker.get_serialization_context().serialize(value).total_bytes)


def counted(run: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The steps that count: those in whose time replies are written for others to come, as for most steps of a long run."""
    return list(run["rows"])[WARM_UP : len(run["rows"]) - run["lag"]]


def show(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables."""
    print(f"\n{'scene, lag':<16}{'step s':>9}{'model s':>9}{'over %':>8}{'loop CPU s':>12}{'loop %':>8}", end="")
    print(f"{'driver CPU s':>14}{'Ray CPU s':>11}", end="")
    print(f"{'idle: engines':>15}{'rewards':>9}{'learner':>9}{'replaced':>10}")
    for run in found:
        rows = counted(run)
        step, model = median(r["step_s"] for r in rows), median(r["model_s"] for r in rows)
        loop, driver, own = (median(r["cpu"].get(kind, 0.0) for r in rows) for kind in ("loop", "driver", "Ray"))
        idle = [sum(r["idle"][fleet] for r in rows) / len(rows) for fleet in (ROLLOUT, REWARDS, LEARNER)]
        print(
            f"{run['scene']['name'] + ', ' + str(run['lag']):<16}{step:9.2f}{model:9.2f}{100 * (step / model - 1):8.1f}",
            end="",
        )
        print(f"{loop:12.2f}{100 * loop / step:8.1f}", end="")
        print(f"{driver:14.2f}{own:11.2f}{idle[0]:15.0%}{idle[1]:9.0%}{idle[2]:9.0%}{run['replaced']:10}")
    phases = {
        "rollout": ("generate",), "reward": ("measure",), "annotate": ("annotate",), "update": ("update",),
        "publish": ("publish", "probe"), "record": (),
    }  # fmt: skip
    rows = counted(found[0])
    print(f"\n{'phase of ' + found[0]['scene']['name']:<20}{'measured s':>12}{'model s':>10}{'on top s':>10}")
    for phase, works in phases.items():
        seconds = median(r[f"time/{phase}_s"] for r in rows)
        cost = median(sum(r["costs"][work] for work in works) for r in rows)
        print(f"{phase:<20}{seconds:12.3f}{cost:10.3f}{seconds - cost:10.3f}")
    print(f"\n{'traffic of a step':<50}{'MB':>10}")
    for hop, size in found[0]["traffic"].items():
        print(f"{hop:<50}{size / 1e6:10.2f}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.simulation", description=__doc__, allow_abbrev=False)
    parser.add_argument("--engines", type=int, default=256)
    parser.add_argument("--hosts", type=int, default=0, help="processes that the engines share; 0: each has its own")
    parser.add_argument("--replies", type=int, default=4096, help="replies of a step")
    parser.add_argument("--samples", type=int, default=8, help="replies to one prompt")
    parser.add_argument("--tokens", type=int, default=1000, help="mean tokens of a reply; at most four times as many")
    parser.add_argument("--rewards", type=int, default=16, help="reward actors")
    parser.add_argument("--ranks", type=int, default=8, help="learner ranks that exist as actors")
    parser.add_argument("--devices", type=int, default=256, help="devices that the learner's cost is shared by")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lag", type=int, nargs="+", default=[0])
    parser.add_argument("--in-flight", action="store_true", help="publish in the middle of replies, at lag 1 and more")
    parser.add_argument("--scenes", nargs="+", default=["even"], choices=scenes(1))
    parser.add_argument("--steps", type=int, default=4, help=f"steps that count, behind {WARM_UP} that does not")
    parser.add_argument("--start-s", type=float, default=CostModel.engine_start_s, help="seconds that an engine starts")
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    args = parser.parse_args(argv)
    if args.hosts and "death" in args.scenes:
        parser.error("--scenes death ends an engine's process: it needs one of its own, without --hosts")
    return args


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the scenes, print, write JSON; what was found."""
    args = parse(argv)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="attune-simulation-") as name:
        folder = Path(name)
        recipe = make_recipe(args, folder)
        recipe.directory.mkdir()
        connect()
        try:
            started = time.time()
            cluster = Cluster(recipe, args.hosts)
            print(
                f"{args.engines} engines and {args.rewards} reward actors in {time.time() - started:.0f} s", flush=True
            )
            found = []
            for scene in (scenes(args.tokens)[s] for s in args.scenes):
                for lag in args.lag:
                    found.append(play(cluster, scene, lag, args.in_flight and lag > 0, folder))
                    print(f"{scene.name}, lag {lag}: {[round(r['step_s'], 2) for r in found[-1]['rows']]}", flush=True)
                    if args.out:  # again after each: what was measured is not lost
                        facts = {"load_before": load, "load_after": os.getloadavg(), "found": found}
                        facts |= {"arguments": {**vars(args), "out": None}, "cost_model": asdict(recipe.world.cost)}
                        args.out.write_text(json.dumps(facts, indent=1) + "\n")
            cluster.close()
        finally:
            ray.shutdown()
    show(found)
    print("\nPSS: " + ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in found[-1]["memory"].items()))
    print(f"load before {load[0]:.1f}, after {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return found


if __name__ == "__main__":
    main()

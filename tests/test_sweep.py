"""Searches as they run: real Ray on three nodes, real Tune, and a toy job whose curve is known."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.placement import Claim, ClusterTooSmall
from cluster.settings import SettingsError, load
from cluster.tracking import METRICS_FILE, JsonlTracker, Trackers, TuneTracker, read_metrics
from rl.checkpoints import Checkpoints
from rl.config import CheckpointConfig
from rl.records import claimed
from rl.sweep import JOBS, Job, sweep

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class ToyRecipe:
    """A run whose loss is lowest at rate 0.01 and falls with the steps, and which fails as it is told."""

    job: Literal["toy"] = "toy"
    name: str = "toy"
    runs: str = "runs"
    steps: int = 6
    rate: float = 0.01
    ranks: int = 0
    pause: float = 0.0
    together: int = 1  # trials that wait for each other before their first step: they may begin seconds apart
    fault: Literal["", "die", "raise", "bad", "diverge", "sparse"] = ""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def directory(self) -> Path:
        return Path(self.runs) / self.name


class ToyLearner:
    """A weight that grows by the rate at every step."""

    def __init__(self) -> None:
        self.weight = 0.0

    def save(self, folder: Path) -> dict[str, Any]:
        (folder / "weight").write_text(str(self.weight))
        return {}

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.weight = float((folder / "weight").read_text())


def loss(rate: float, step: int) -> float:
    return abs(rate - 0.01) + 1 / (step + 1)


def run_toy(recipe: ToyRecipe) -> Path:
    """The toy's run; like a real one it holds its directory, resumes, and tells its trackers every step."""
    with claimed(recipe) as directory:  # type: ignore[arg-type]
        learner = ToyLearner()
        checkpoints = Checkpoints(directory / "checkpoints", every=recipe.checkpoint.every, keep=2, steps=recipe.steps)
        first = checkpoints.restore(learner)
        tracker = Trackers([JsonlTracker(directory, first), TuneTracker()])
        note(recipe, "began", first=first, weight=learner.weight)
        while len({line.partition(",")[0] for line in journal(recipe).read_text().splitlines()}) < recipe.together:
            time.sleep(0.05)
        for step in range(first, recipe.steps):
            time.sleep(recipe.pause)
            if step == 3:
                fail(recipe)
            learner.weight += recipe.rate
            figures = {} if recipe.fault == "sparse" and step % 2 else {"toy/loss": loss(recipe.rate, step)}
            tracker.log(step, {"toy/weight": learner.weight, **figures})
            checkpoints.note(-loss(recipe.rate, step))
            if checkpoints.due(step):
                checkpoints.save(step, learner)
        note(recipe, "completed")
    return directory


def fail(recipe: ToyRecipe) -> None:
    from rl.endings import NonFiniteLoss

    once = recipe.directory / "failed-once"
    if recipe.fault == "bad":
        raise ValueError("toy.rate must be low, is not")
    if recipe.fault == "diverge":
        raise NonFiniteLoss("the loss of update 3 is not finite")
    if recipe.fault in ("die", "raise") and not once.exists():
        once.touch()
        if recipe.fault == "raise":
            raise OSError("no space left on device")
        os.kill(os.getpid(), signal.SIGKILL)


def note(recipe: ToyRecipe, what: str, **details: Any) -> None:
    """A line in the sweep's journal, whichever process writes it."""
    node = ray.get_runtime_context().get_node_id()
    bundles = ray.util.get_current_placement_group().bundle_specs
    line = json.dumps({"trial": recipe.name, "what": what, "node": node, "bundles": bundles, **details}) + "\n"
    with journal(recipe).open("a") as file:
        file.write(line)


def journal(recipe: ToyRecipe) -> Path:
    return recipe.directory.parents[1] / "journal"


def toy_claims(recipe: ToyRecipe) -> list[Claim]:
    return [Claim("toy", recipe.ranks, 0.25)]


TOY = Job(ToyRecipe, run_toy, toy_claims)
JOBS["toy"] = TOY  # of this process, and of those that import this module to drive a sweep


class Sweeps:
    """A folder with a toy recipe, in which sweeps are run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, folder / "toy.toml"
        self.recipe.write_text(f'job = "toy"\nruns = "{folder}"\n[checkpoint]\nevery = 2\n')
        self.address = ray.get_runtime_context().gcs_address

    def words(self, name: str, text: str, *words: str, metric: str = "toy/loss") -> list[str]:
        path = self.folder / f"{name}.toml"
        path.write_text(f'metric = "{metric}"\n{text}')
        return [str(self.recipe), str(path), *words]

    def run(self, name: str, text: str, *words: str, metric: str = "toy/loss") -> tuple[int, list[dict[str, str]]]:
        """Exit code and the rows of the table."""
        code = sweep(self.words(name, text, *words, metric=metric))
        return code, self.table(name)

    def drive(self, words: list[str]) -> subprocess.Popen[str]:
        """The sweep in a process of its own, on the same cluster."""
        program = "import sys, tests.test_sweep as t; sys.exit(t.sweep(sys.argv[1:]))"
        return subprocess.Popen(
            [sys.executable, "-c", program, *words], cwd=ROOT, env={**os.environ, "RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name / "table.csv").open() as file:
            return list(csv.DictReader(file))

    def journal(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name / "journal"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def completed(self, name: str) -> Counter[str]:
        """How often each trial ran to its end."""
        return Counter(entry["trial"] for entry in self.journal(name) if entry["what"] == "completed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes with two CPUs, one and one."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def sweeps(cluster: Cluster, tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path)


def wait_for(condition: Callable[[], object], timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_machines_failures_are_retried_and_bad_settings_are_not(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial that is killed, or that the disk fails, starts again where its checkpoint is and ends once; one whose
    settings cannot work, or that diverges, runs once, and the table says why."""
    text = '[space]\nfault = ["", "die", "raise", "bad", "diverge", "sparse"]\nranks = [1]\n'
    code, rows = sweeps.run("faults", text)
    assert code == 0
    by_fault = {row["fault"]: row for row in rows}
    assert {fault: row["state"] for fault, row in by_fault.items()} == {
        "": "finished", "die": "finished", "raise": "finished", "bad": "bad", "diverge": "bad",
        "sparse": "finished",
    }  # fmt: skip
    assert [by_fault[fault]["starts"] for fault in ("", "die", "raise", "bad", "diverge")] == ["1", "2", "2", "1", "1"]
    assert by_fault["bad"]["reason"] == "toy.rate must be low, is not"
    assert by_fault["diverge"]["reason"] == "the loss of update 3 is not finite"
    assert by_fault["sparse"]["last_step"] == "4"  # steps without the metric are told with the next that has it
    began = {(e["trial"], e["first"]) for e in sweeps.journal("faults") if e["what"] == "began"}
    for fault in ("die", "raise"):  # the checkpoint after step 2 was whole
        assert {first for trial, first in began if trial == by_fault[fault]["trial"]} == {0, 2}
    ended = [by_fault[fault]["trial"] for fault in ("", "die", "raise")]
    assert sweeps.completed("faults") == Counter([*ended, by_fault["sparse"]["trial"]])
    for trial in ended:
        assert [r["step"] for r in read_metrics(sweeps.folder / "faults/trials" / trial / METRICS_FILE)] == list(
            range(6)
        )
    # the trial's own bundle comes first, then what its recipe claims
    assert all(list(entry["bundles"]) == [{"CPU": 0.1}, {"CPU": 0.25}] for entry in sweeps.journal("faults"))
    # TensorBoard where Tune's users look for it
    assert all(list((sweeps.folder / "faults" / trial).glob("events.out.tfevents*")) for trial in ended)
    said = capsys.readouterr().out
    assert "starts again: " in said and f"best: fault {rows[0]['fault']}" in said and "best.toml" in said
    assert "Traceback" not in said and "Trial " not in said


def test_the_best_of_a_grid_is_the_best(sweeps: Sweeps) -> None:
    """Every combination once; the table is sorted by the known optimum; the best recipe has it."""
    code, rows = sweeps.run("grid", "[space]\nrate = [0.5, 0.01]\nsteps = [2, 3]\n")
    assert code == 0
    order = sorted(((r, s) for r in (0.5, 0.01) for s in (2, 3)), key=lambda rs: loss(rs[0], rs[1] - 1))
    assert [(float(row["rate"]), int(row["steps"])) for row in rows] == order
    assert rows[0]["is_best"] == "True" and float(rows[0]["best toy/loss"]) == loss(0.01, 2)
    best = load(ToyRecipe, sweeps.folder / "grid" / "best.toml")
    assert (best.rate, best.steps, best.name) == (0.01, 3, "grid-best")
    assert {path.name for path in (sweeps.folder / "grid" / "plots").iterdir()} == {
        "by_setting.png", "parallel.png", "curves.png"
    }  # fmt: skip


def test_asha_stops_the_worse_early(sweeps: Sweeps) -> None:
    """After the grace period worse trials end; the best goes on to its end; a stopped run's directory says so."""
    text = (
        'scheduler = "asha"\nconcurrent = 1\n[asha]\ngrace_period = 2\nreduction_factor = 2\n'
        "[space]\nrate = [0.01, 0.9, 5.0]\n"
    )
    code, rows = sweeps.run("asha", text)
    assert code == 0
    assert [(row["rate"], row["state"], row["last_step"]) for row in rows] == [
        ("0.01", "finished", "5"), ("0.9", "stopped early", "2"), ("5.0", "stopped early", "2")
    ]  # fmt: skip
    status = json.loads((sweeps.folder / "asha" / "trials" / rows[1]["trial"] / "status.json").read_text())
    assert "stopped by the search" in status["message"]


def test_optuna_searches_ranges(sweeps: Sweeps) -> None:
    """TPE draws from the ranges as asked, as many trials as asked; a bad trial does not end it."""
    text = (
        'search = "optuna"\nsamples = 3\nconcurrent = 2\nseed = 1\n[space]\nrate = { loguniform = [1e-4, 1] }\n'
        'steps = { randint = [4, 6] }\nfault = ["", "bad"]\n'
    )
    code, rows = sweeps.run("optuna", text)
    assert code == int(not any(row["state"] == "finished" for row in rows)) and len(rows) == 3
    for row in rows:
        assert 1e-4 <= float(row["rate"]) <= 1 and int(row["steps"]) in (4, 5)
        assert row["state"] == ("bad" if row["fault"] else "finished")


def test_pbt_takes_over_from_the_better(sweeps: Sweeps) -> None:
    """The worse trial goes on from the better one's checkpoint, with settings near the better one's."""
    text = (
        'mode = "max"\nsearch = "random"\nscheduler = "pbt"\nsamples = 2\nseed = 3\n[pbt]\nperturbation_interval = 4\n'
        "quantile_fraction = 0.5\nresample_probability = 0.0\n[space]\nrate = { uniform = [0.01, 1.0] }\n"
    )
    code, rows = sweeps.run("pbt", text, "--steps", "16", "--pause", "0.5", "--together", "2", metric="toy/weight")
    assert code == 0 and [row["state"] for row in rows] == ["finished", "finished"]
    began = [entry for entry in sweeps.journal("pbt") if entry["what"] == "began"]
    taken = [entry for entry in began if entry["first"] > 0]
    assert taken
    first = taken[0]
    donor = next(row["trial"] for row in rows if row["trial"] != first["trial"])
    weights = {r["step"]: r["toy/weight"] for r in read_metrics(sweeps.folder / "pbt/trials" / donor / METRICS_FILE)}
    assert first["weight"] == pytest.approx(weights[first["first"] - 1])
    rates = {e["trial"]: e["sample"]["rate"] for e in events(sweeps, "pbt") if e["event"] == "started"}
    assert rates[first["trial"]] == pytest.approx(1.2 * rates[donor]) or rates[first["trial"]] == pytest.approx(
        0.8 * rates[donor]
    )
    assert sum(sweeps.completed("pbt").values()) == 2


def events(sweeps: Sweeps, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (sweeps.folder / name / "events.jsonl").read_text().splitlines()]


def test_an_unknown_metric_ends_the_search_at_the_first_report(sweeps: Sweeps) -> None:
    """One line says which metrics are reported; no trial runs on."""
    with pytest.raises(SettingsError) as caught:
        sweep(sweeps.words("unknown", "concurrent = 1\n[space]\nrate = [0.1, 0.2]\n", metric="toy/lost"))
    said = str(caught.value)
    assert "'toy/lost'" in said and "reported are toy/loss, toy/weight" in said and "\n" not in said
    assert not sweeps.completed("unknown")


def test_what_a_cluster_or_a_directory_refuses(sweeps: Sweeps) -> None:
    """Too little room for one trial, a directory that holds a sweep or that another process holds, --resume of nothing
    or of another sweep: one line, and nothing starts."""
    text = "[space]\nranks = [1, 100]\n"
    with pytest.raises(ClusterTooSmall, match=r"toy: 100 x \(0.25 CPU"):
        sweep(sweeps.words("big", text))
    assert not sweeps.journal("big")
    place = sweeps.folder / "big"
    with pytest.raises(SettingsError, match=r"must be new.*--resume"):
        sweep(sweeps.words("big", text))
    with pytest.raises(SettingsError, match="begun with another space"):
        sweep(sweeps.words("big", "[space]\nranks = [1]\n", "--resume"))
    with pytest.raises(SettingsError, match="begun with another words"):
        sweep(sweeps.words("big", text, "--resume", "--steps", "3"))
    with pytest.raises(SettingsError, match="holds none"):
        sweep(sweeps.words("none", text, "--resume"))
    with (place / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="in use by process"):
            sweep(sweeps.words("big", text, "--resume"))


def test_a_search_whose_process_was_killed_goes_on(sweeps: Sweeps) -> None:
    """kill -9 of the driver when some trials are through: --resume finishes the others, from their checkpoints, and runs
    none of the finished again."""
    words = sweeps.words("killed", "concurrent = 2\n[space]\nrate = [0.01, 0.02, 0.03]\n", "--pause", "0.2")
    driver = sweeps.drive(words)
    wait_for(lambda: sweeps.completed("killed") or driver.poll() is not None)
    time.sleep(0.5)
    driver.kill()
    driver.communicate()
    before = sweeps.completed("killed")
    assert 1 <= len(before) < 3
    assert sweep([*words, "--resume"]) == 0
    rows = sweeps.table("killed")
    assert {row["rate"]: row["state"] for row in rows} == dict.fromkeys(("0.01", "0.02", "0.03"), "finished")
    assert sweeps.completed("killed") == Counter(row["trial"] for row in rows)
    for row in rows:
        assert float(row["best toy/loss"]) == pytest.approx(loss(float(row["rate"]), 5))
    assert sweep([*words, "--resume"]) == 0  # all is done: nothing runs
    assert sweeps.completed("killed") == Counter(row["trial"] for row in rows)


def test_an_interrupted_search_leaves_its_tables(sweeps: Sweeps) -> None:
    """SIGTERM: exit code 1, what is known is in the tables, and a line says how to go on."""
    words = sweeps.words("stopped", "[space]\nrate = [0.01, 0.02]\n", "--pause", "0.5", "--steps", "200")
    driver = sweeps.drive(words)
    wait_for(lambda: len([e for e in sweeps.journal("stopped") if e["what"] == "began"]) == 2)
    time.sleep(1.5)
    driver.terminate()
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 1, err
    assert "--resume goes on" in out and "Traceback" not in err
    assert [row["state"] for row in sweeps.table("stopped")] == ["interrupted"] * 2
    assert (sweeps.folder / "stopped" / "best.toml").exists()


def test_a_lost_node_loses_no_trial(sweeps: Sweeps, cluster: Cluster) -> None:
    """Trials lie on all three nodes; one node is taken away in the middle: every trial ends, once."""
    text = "driver_cpus = 1.0\nmax_failures = 3\n[space]\nrate = [0.01, 0.02, 0.03, 0.04, 0.05]\n"
    words = sweeps.words("nodes", text, "--pause", "0.4", "--steps", "20", "--together", "4")
    doomed = cluster.list_all_nodes()[-1]

    def well_begun() -> bool:
        """Whether a trial on the doomed node is past a checkpoint."""
        there = [entry["trial"] for entry in sweeps.journal("nodes") if entry["node"] == doomed.node_id]
        return any(len(read_metrics(sweeps.folder / "nodes/trials" / trial / METRICS_FILE)) >= 3 for trial in there)

    with ThreadPoolExecutor() as pool:
        code = pool.submit(sweep, words)
        wait_for(lambda: well_begun() or code.done())
        assert len({entry["node"] for entry in sweeps.journal("nodes")}) == 3
        cluster.remove_node(doomed, allow_graceful=False)
        assert code.result(timeout=300) == 0
    rows = sweeps.table("nodes")
    assert [row["state"] for row in rows] == ["finished"] * 5
    assert sweeps.completed("nodes") == Counter(row["trial"] for row in rows)
    lost = next(row["trial"] for row in rows if row["starts"] == "2")
    firsts = [e["first"] for e in sweeps.journal("nodes") if e["trial"] == lost and e["what"] == "began"]
    assert firsts[0] == 0 and firsts[1] > 0

"""The command itself, as a user runs it: resume after kill -9, a dead learner, a submitted job."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.tiny import save_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# kl_stop, adaptive KL, warm-up of the rates and running normalisation: whatever a checkpoint must carry is in use
KNOBS = shlex.split("""
    --prompts.per_step 4 --prompts.max_context_tokens 96 --sampling.n 2 --sampling.max_tokens 16 --rollout.max_model_len 128
    --rollout.kv_cache_gb 0.03125 --learner.micro_batch 4 --checkpoint.every 3 --checkpoint.keep 9 --ppo.policy_lr 3e-3
    --ppo.lr_warmup 8 --ppo.lr_final 0.1 --ppo.kl_target 0.05 --ppo.kl_horizon 100 --rewards.normalise True --steps 6
    --rewards.similarity.weight 0 --rewards.crisis.classifier False
""")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "mixtral")


def command(model: Path, runs: Path, name: str) -> list[str]:
    return ["ppo", "local", "--runs", str(runs), "--name", name, "--model.path", str(model), *KNOBS]


def start(model: Path, runs: Path, name: str) -> subprocess.Popen[str]:
    words = command(model, runs, name)
    return subprocess.Popen(
        [sys.executable, "-m", "rl", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[str, str]:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"exit {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return out, err


def wait_for(condition: object, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def token_ids(run: Path) -> list[list[Sequence[int]]]:
    return [pq.read_table(f)["response_ids"].to_pylist() for f in sorted((run / "rollouts").glob("step-*.parquet"))]


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six steps, submitted to a cluster with token authentication."""
    runs = tmp_path_factory.mktemp("runs")
    token = runs / "token"
    port, dashboard, client = 26379, 28265, 21001
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment.pop("RAY_ADDRESS", None)
    ray = str(Path(sys.executable).parent / "ray")

    def call(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ray, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )

    token.write_text("a-token-of-thirty-two-characters-or-more")
    # a short folder: Ray's sockets lie in it, and a socket's path is at most 107 bytes
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}",
         # ports of its own for the node's agent too: a cluster of another test has the default one, and without an
         # agent a head answers and takes no job
         "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0",
         f"--ray-client-server-port={client}", "--temp-dir", tempfile.mkdtemp(prefix="attune-")],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(lambda: call("job", "list").returncode == 0, timeout=240)
        words = [
            "job", "submit", "--working-dir", ".", "--runtime-env-json", json.dumps({"excludes": [".venv", ".git", "runs"]}),
            "--", sys.executable, "-m", "rl", *command(model, runs, "undisturbed"),
        ]  # fmt: skip
        submitted, deadline = call(*words), time.monotonic() + 240
        while "No available agent" in submitted.stderr + submitted.stdout and time.monotonic() < deadline:
            time.sleep(1)  # the head answers a moment before it can take a job
            submitted = call(*words)
        assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
        assert "step 6/6" in submitted.stdout
    finally:  # this head alone: `ray stop` would end every cluster on the machine
        head.terminate()
        head.wait(timeout=240)
    yield runs / "undisturbed"


def test_killed_twice_and_resumed_twice_is_as_undisturbed(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of learner rank 1 in step 4-6: exit code 1 within a minute, one line that says who died, status failed. The
    same command again, and kill -9 of the driver: nothing of the job lives on. The same command again completes: token ids
    of all steps, the metrics that are not times, and the policy are bit for bit those of six steps on another cluster."""
    run = tmp_path / "killed"
    process = start(model, tmp_path, "killed")
    wait_for(lambda: len(steps(run)) >= 3 or process.poll() is not None)
    killed = time.monotonic()
    os.kill(json.loads((run / "processes.json").read_text())["learner"][1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("attune: ")]
    assert "learner rank 1 of 2 died" in line and "resumes" in line
    assert "Traceback" not in err
    assert json.loads((run / "status.json").read_text())["state"] == "failed"

    before = (run / "processes.json").read_text()
    process = start(model, tmp_path, "killed")
    wait_for(lambda: (run / "processes.json").read_text() != before or process.poll() is not None)
    wait_for(lambda: len(steps(run)) >= 4 or process.poll() is not None)
    pids = [pid for group in json.loads((run / "processes.json").read_text()).values() for pid in group]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), timeout=60)
    assert len(steps(run)) < 6

    finish(start(model, tmp_path, "killed"))
    assert steps(run) == list(range(6))
    assert token_ids(run) == token_ids(undisturbed)
    one, other = (load_file(r / "checkpoints/step-000006/policy/model-00001.safetensors") for r in (undisturbed, run))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    for mine, theirs in zip(*((r / "metrics.jsonl").read_text().splitlines() for r in (undisturbed, run)), strict=True):
        a, b = json.loads(mine), json.loads(theirs)
        assert {k: v for k, v in a.items() if _repeats(k)} == {k: v for k, v in b.items() if _repeats(k)}


def _repeats(name: str) -> bool:
    return not name.startswith(("time/", "idle/", "learner/peak", "publish/seconds"))


def test_the_run_directory_holds_what_the_readme_says(undisturbed: Path) -> None:
    """settings, provenance with corpus hashes, status, metrics of every family, Parquet of every step with reward parts,
    hashed checkpoints, report; no partial file."""
    names = {path.name for path in undisturbed.iterdir()}
    assert {"settings.json", "provenance.json", "status.json", "metrics.jsonl", "tensorboard", "rollouts",
            "checkpoints", "report.html", "processes.json"} <= names  # fmt: skip
    assert json.loads((undisturbed / "settings.json").read_text())["ppo"]["lr_warmup"] == 8
    record = json.loads((undisturbed / "provenance.json").read_text())
    assert all(len(digest) == 64 for digest in record["corpus"]["files"].values())
    assert record["packages"]["deepspeed"]
    assert json.loads((undisturbed / "status.json").read_text())["state"] == "finished"
    last = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("reward/mean", "reward/length", "policy/loss", "policy/kl", "policy/entropy", "policy/clip_fraction",
                 "policy/ratio_max", "value/loss", "value/explained_variance", "rollout/tokens", "rollout/length",
                 "rollout/truncated", "publish/logprob_gap", "publish/bytes", "publish/seconds", "safety/dismissal",
                 "time/rollout_s", "time/step_s", "lag/steps"):  # fmt: skip
        assert name in last, name
    assert last["publish/logprob_gap"] < 1e-4 and last["lag/steps"] == 0
    table = pq.read_table(undisturbed / "rollouts/step-000005.parquet")
    assert table.num_rows == 8 and "part/length" in table.column_names
    manifest = json.loads((undisturbed / "checkpoints/step-000006/manifest.json").read_text())
    assert any(name.startswith("policy/") for name in manifest) and any(
        name.startswith("learner/") for name in manifest
    )
    assert not list(undisturbed.rglob("*.partial"))


def test_a_second_run_beside_the_first_is_refused(model: Path, undisturbed: Path) -> None:
    """While a process holds the run directory, the same command exits 2 and says which process."""
    import fcntl

    with (undisturbed / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = start(model, undisturbed.parent, "undisturbed")
        _, err = second.communicate(timeout=240)
    assert second.returncode == 2
    assert "is in use by process" in err

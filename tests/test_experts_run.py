"""A whole run with experts, as a user starts it: simulated raters over HTTP, a kill, the same command again, the audit."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rewards.experts import ledger
from rewards.experts.store import DATABASE
from rl.experts import describe_audit
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
KNOBS = shlex.split("""
    --steps 4 --sampling.n 8 --sampling.max_tokens 16 --prompts.max_context_tokens 96 --rollout.max_model_len 128
    --rollout.kv_cache_gb 0.03125 --learner.micro_batch 4 --checkpoint.every 2 --rewards.experts.mode asynchronous
    --rewards.experts.share 0.5 --rewards.experts.refit_every 4 --rewards.experts.simulated 2 --rewards.crisis.classifier False
""")


def test_a_killed_run_with_experts_goes_on_and_its_chain_says_what_moved_it(tmp_path: Path) -> None:
    """Nothing waits for a person; what raters said before the kill is known afterwards; the chain is sound, and its last
    checkpoint was moved by ratings of both halves."""
    model = save_tiny(tmp_path / "model")
    words = ["ppo", "psychologist_local", "--runs", str(tmp_path), "--name", "r", "--model.path", str(model), *KNOBS]
    run = tmp_path / "r"
    first = subprocess.Popen(
        [sys.executable, "-m", "rl", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + 300
    while not (run / "checkpoints" / "step-000002").exists():
        assert first.poll() is None and time.monotonic() < until, first.communicate()[0].decode()[-3000:]
        time.sleep(0.1)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    for process in alive:
        process.kill()
    before = _ratings(run)
    assert before > 0
    again = subprocess.run([sys.executable, "-m", "rl", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert "no person is asked" in again.stdout and _ratings(run) > before
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and all("experts/waiting" in row for row in rows)
    audit = subprocess.run(
        [sys.executable, "-m", "rl", "audit", str(run), "4"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert audit.returncode == 0, audit.stderr
    assert (
        "sound" in audit.stdout and "checkpoint after 4 steps (is there, as it was saved): 4 updates" in audit.stdout
    ), audit.stdout
    assert (
        "The experts" in (run / "report.html").read_text() and "no person judged" in (run / "report.html").read_text()
    )
    wrong = subprocess.run(
        [sys.executable, "-m", "rl", "audit", str(run), "3"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert wrong.returncode == 2 and "must know the checkpoint after 3 steps" in wrong.stderr
    [weights] = (run / "checkpoints" / "step-000004" / "policy").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # as long as before
    with pytest.raises(ValueError, match=r"is not the file that was saved"):
        describe_audit(run, 4)
    with pytest.raises(ValueError, match="must have asked people"):
        describe_audit(tmp_path, None)


def _ratings(run: Path) -> int:
    with ledger.opened(run / "experts" / DATABASE) as db:
        ledger.check(db)
        return int(db.execute("SELECT count(*) FROM ratings").fetchone()[0])

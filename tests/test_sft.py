"""Supervised fine-tuning on real ranks, and the command as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from cluster.placement import Claim, Placement, connect
from cluster.settings import load
from cluster.workers import WorkerGroup
from rewards.guard_file import guard_settings, read_guard
from rl.__main__ import main
from rl.checkpoints import DamagedCheckpoint
from rl.endings import NonFiniteLoss
from rl.fleet import FLEET
from rl.sequences import read_examples
from rl.sft_config import SftRecipe
from rl.sft_learner import SftLearner
from rl.sft_lesson import prepare
from rl.sft_rank import SftRank
from rollout.corpora import load as load_corpus
from rollout.tokenizer import load_tokenizer
from tests.ranks import rebuild
from tests.tiny import RECIPES, save_tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "mixtral")


def quick(model: Path, runs: Path, **knobs: Any) -> SftRecipe:
    sample = {
        "name": "test", "runs": str(runs), "model.path": str(model), "data.max_tokens": 128, "data.pairs": "v1_pairs",
        "sft.batch": 8, "sft.lr": 1e-3, "sft.lr_warmup": 0, "sft.samples": 4, "sft.sample_tokens": 8,
        "learner.micro_batch": 4, "tracking.tensorboard": False,
        **{name.replace("__", "."): value for name, value in knobs.items()},
    }  # fmt: skip
    return load(SftRecipe, RECIPES / "sft_local.toml", sample=sample)


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, WorkerGroup]]:
    """Ranks that the tests of this module use one after another, by their number."""
    connect()
    held: dict[int, WorkerGroup] = {}
    yield held
    held.clear()
    ray.shutdown()


def learners(recipe: SftRecipe, groups: dict[int, WorkerGroup]) -> tuple[WorkerGroup, Any]:
    corpus = load_corpus(recipe.corpus)
    recipe.directory.mkdir(parents=True, exist_ok=True)
    lesson = prepare(recipe, corpus, recipe.directory)
    arguments = (recipe, lesson.tokenizer, lesson.label_words, lesson.updates)
    ranks = recipe.learner.ranks
    if ranks in groups:
        rebuild(groups[ranks], SftLearner, *arguments)
    else:
        placement = Placement([Claim(FLEET, ranks, 0.1)])
        groups[ranks] = WorkerGroup(
            FLEET, ranks, SftLearner, arguments, placement, environment={"OMP_NUM_THREADS": "1"}
        )
    return groups[ranks], lesson


def taught(recipe: SftRecipe, groups: dict[int, WorkerGroup]) -> dict[str, float]:
    """Losses of two updates on the first sequences, and the validation loss after them."""
    group, lesson = learners(recipe, groups)
    train, valid = (read_examples(lesson.examples(split)) for split in ("train", "valid"))
    first = group.rank0(SftLearner.update, train[:8])
    second = group.rank0(SftLearner.update, train[8:16])
    after = group.rank0(SftLearner.validate, valid[:13])
    return {
        "first": first["train/loss"], "norm": first["train/grad_norm"], "second": second["train/loss"],
        "valid": after["valid/loss"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain(model: Path, groups: dict[int, WorkerGroup], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """One rank, one micro-batch, one sequence a row, no ZeRO."""
    runs = tmp_path_factory.mktemp("plain")
    return taught(
        quick(model, runs, learner__ranks=1, learner__zero_stage=0, learner__micro_batch=8, sft__packing=False), groups
    )


@pytest.mark.parametrize(
    ("ranks", "stage", "micro", "packing"),
    [(1, 0, 8, True), (1, 2, 3, True), (2, 0, 4, True), (2, 2, 1, False), (2, 3, 2, True), (2, 3, 3, False)],
)
def test_updates_do_not_depend_on_how_the_batch_is_cut(
    model: Path, groups: dict[int, WorkerGroup], plain: dict[str, float], tmp_path: Path, ranks: int, stage: int, micro: int,
    packing: bool,
) -> None:  # fmt: skip
    """Losses, gradient norm and the loss after two updates are the same whatever the ranks, ZeRO stage, micro-batches
    (also when they do not divide the batch) and packing, to rounding."""
    recipe = quick(
        model,
        tmp_path,
        learner__ranks=ranks,
        learner__zero_stage=stage,
        learner__micro_batch=micro,
        sft__packing=packing,
    )
    assert taught(recipe, groups) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "ia3", "ln", "prefix", "prompt"])
def test_every_tuning_learns_under_zero_3(
    model: Path, groups: dict[int, WorkerGroup], tmp_path: Path, tuning: str
) -> None:
    """Eight updates on one batch under ZeRO-3 on two ranks lower its loss; ranks sample in step."""
    recipe = quick(
        model,
        tmp_path,
        model__tuning=tuning,
        model__lora__targets=("q_proj", "v_proj"),
        learner__zero_stage=3,
        sft__lr=2e-2,
    )
    group, lesson = learners(recipe, groups)
    batch = read_examples(lesson.examples("train"))[:8]
    losses = [group.rank0(SftLearner.update, batch)["train/loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.003, losses
    replies = group.rank0(SftLearner.sample, [p.token_ids for p in lesson.prompts])
    assert len(replies) == len(lesson.prompts)


def test_labels_gain_tokens_whose_rows_mean_their_words(
    model: Path, groups: dict[int, WorkerGroup], tmp_path: Path
) -> None:
    """With a predicted strategy the model reads and writes new tokens, under ZeRO-3 too: the first loss of the new rows is
    finite and moderate, and the exported model has them."""
    recipe = quick(model, tmp_path, fields__strategy="predicted", fields__emotion="given", learner__zero_stage=3)
    group, lesson = learners(recipe, groups)
    assert len(lesson.label_words) > 8
    loss = group.rank0(SftLearner.update, read_examples(lesson.examples("train"))[:8])["train/loss"]
    assert 0 < loss < 10
    group.all(SftLearner.save, tmp_path / "saved")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "saved/policy")
    assert exported.get_input_embeddings().weight.shape[0] > max(lesson.label_words)


def test_early_stopping_ends_the_run_for_good(model: Path, groups: dict[int, WorkerGroup], tmp_path: Path) -> None:
    """With a rate that ruins the model validation gets worse, and the run ends `sft.patience` validations after its best;
    taken up again it does nothing more."""
    recipe = quick(model, tmp_path, learner__ranks=1, learner__zero_stage=0, sft__lr=0.3, sft__patience=2, sft__epochs=30,
                   sft__valid_every=2)  # fmt: skip
    group, lesson = learners(recipe, groups)
    ends = []
    for _ in range(2):
        rebuild(group, SftRank, recipe, lesson)
        group.all(SftRank.fit)
        ends.append(rows(recipe.directory))
    losses = [row["valid/loss"] for row in ends[0] if "valid/loss" in row]
    assert losses.index(min(losses)) == len(losses) - 3
    assert len(ends[0]) < lesson.updates
    assert ends[0] == ends[1]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_batch(
    model: Path, groups: dict[int, WorkerGroup], tmp_path: Path
) -> None:
    """Both ranks raise NonFiniteLoss that names the file; it holds the sequences of that update."""
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.get_output_embeddings().weight.data[7] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    load_tokenizer(str(model)).save_pretrained(tmp_path / "broken")
    recipe = quick(tmp_path / "broken", tmp_path)
    group, lesson = learners(recipe, groups)
    rebuild(group, SftRank, recipe, lesson)
    with pytest.raises(NonFiniteLoss, match=r"not finite; its batch is in .*diverged/update-0") as raised:
        group.all(SftRank.fit)
    [path] = (recipe.directory / "diverged").iterdir()
    assert str(path) in str(raised.value)
    assert len(read_examples(path)) == recipe.sft.batch


def test_no_sound_checkpoint_is_told_on_every_rank(model: Path, groups: dict[int, WorkerGroup], tmp_path: Path) -> None:
    """Two ranks, and the only checkpoint damaged: both raise at once, none waits for the other."""
    recipe = quick(model, tmp_path)
    group, lesson = learners(recipe, groups)
    rebuild(group, SftRank, recipe, lesson)
    damaged = recipe.directory / "checkpoints/step-000004"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    with pytest.raises(DamagedCheckpoint, match="none of the checkpoints"):
        group.all(SftRank.fit)


def test_a_labelled_model_keeps_its_labels(model: Path, groups: dict[int, WorkerGroup], tmp_path: Path) -> None:
    """Tokens that the model knows already are not begun anew in a second run."""
    recipe = quick(model, tmp_path, fields__strategy="predicted")
    _, lesson = learners(recipe, groups)
    assert lesson.label_words
    labelled = tmp_path / "labelled"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(labelled)
    load_tokenizer(str(lesson.tokenizer)).save_pretrained(labelled)
    again = quick(labelled, tmp_path, name="again", fields__strategy="predicted")
    again.directory.mkdir()
    assert not prepare(again, load_corpus(again.corpus), again.directory).label_words


def test_a_search_runs_trials_in_their_own_placement_groups(
    model: Path, groups: dict[int, WorkerGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real trials, one of which loses a rank to kill -9 and is started again by Tune: both finish every update once,
    and the table has the loss of each one's last validation."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "two.toml").write_text(
        'metric = "valid/loss"\nmode = "min"\nsearch = "grid"\nconcurrent = 1\nmax_failures = 2\n[space]\n"sft.lr" = [1e-3, 1e-2]\n'
    )
    words = [*KNOBS, "--model.path", str(model), "--runs", str(tmp_path), "--learner.ranks", "1", "--learner.cpus", "0.1",
             "--sft.samples", "0", "--sft.epochs", "1"]  # fmt: skip
    killer = threading.Thread(target=kill_a_rank_once, args=(tmp_path / "two/trials",), daemon=True)
    killer.start()
    assert main(["sweep", "sft_local", str(tmp_path / "two.toml"), *words]) == 0
    killer.join(timeout=1)
    with (tmp_path / "two/table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table] == ["finished", "finished"]
    assert sorted(int(row["starts"]) for row in table) == [1, 2]
    for row in table:
        trial = rows(Path(row["directory"]))
        assert [r["step"] for r in trial] == list(range(len(trial)))
        assert float(row["last valid/loss"]) == trial[-1]["valid/loss"]


def kill_a_rank_once(trials: Path) -> None:
    """kill -9 of the first process that holds a rank of a trial which has validated."""
    while not any("valid/loss" in path.read_text() for path in trials.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    below = psutil.Process().children(recursive=True)
    newest = max((p for p in below if runs_as(p, "_Host")), key=lambda p: p.create_time())
    newest.kill()


# --- the command ---

KNOBS = [
    "--data.pairs",
    "v1_pairs",
    "--data.max_tokens",
    "128",
    "--sft.batch",
    "16",
    "--sft.epochs",
    "2",
    "--sft.valid_every",
    "6",
    "--sft.samples",
    "4",
    "--sft.sample_tokens",
    "12",
    "--learner.micro_batch",
    "8",
    "--keep",
    "9",
]


def command(model: Path, runs: Path, *more: str) -> subprocess.Popen[str]:
    words = ["sft", "sft_local", "--runs", str(runs), "--name", "run", "--model.path", str(model), *KNOBS, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "rl", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, f"{out[-2000:]}\n{err[-3000:]}"
    return out


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("runs")
    return runs / "run", finished(command(model, runs))


def test_the_run_ends_with_a_model_that_has_the_loss_it_says(undisturbed: tuple[Path, str]) -> None:
    """Perplexity falls; `checkpoints/best/policy` loads in transformers, and its mean loss over the validation sequences,
    computed one by one without our learner, is the lowest one logged."""
    run, out = undisturbed
    losses = {int(row["step"]) + 1: row["valid/loss"] for row in rows(run) if "valid/loss" in row}
    best = min(losses, key=losses.__getitem__)
    assert losses[best] < next(iter(losses.values()))
    assert f"after {best} updates" in out and str(run / "checkpoints/best/policy") in out
    assert (run / "checkpoints/best").resolve().name == f"step-{best:06d}"
    assert read_guard(run / "checkpoints/best/policy") == guard_settings()
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints/best/policy")
    total = count = 0.0
    for ids, mask in read_examples(run / "sequences/valid.parquet"):
        tokens, trained = torch.tensor([ids]), torch.tensor(mask[1:])
        with torch.no_grad():
            logprobs = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        total -= float(logprobs.gather(1, tokens[0, 1:, None])[:, 0][trained].sum())
        count += int(trained.sum())
    assert total / count == pytest.approx(losses[best], abs=1e-5)
    replies = pq.read_table(run / f"replies/step-{best - 1:06d}.parquet")
    assert replies.num_rows == 4 and all(replies["reference"].to_pylist())
    assert {"valid/distinct_2", "valid/duplicate_rate", "valid/template_rate", "valid/mean_words", "valid/rouge1",
            "model/trainable_share", "learner/peak_memory_bytes"} <= set(rows(run)[best - 1])  # fmt: skip
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_killed_rank_is_restarted_by_ray_train_and_a_killed_driver_by_the_command(
    model: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    """kill -9 of a rank: Ray Train starts all ranks again from the last checkpoint. kill -9 of the driver: the same command
    goes on. The losses of every update, the validations and the replies are bit for bit those of the undisturbed run."""
    run = tmp_path / "run"
    process = command(model, tmp_path)
    wait_for(lambda: len(rows(run)) >= 7, process)
    os.kill(ranks(process.pid)[-1], signal.SIGKILL)
    wait_for(lambda: len(rows(run)) >= 13, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=60)
    finished(command(model, tmp_path))
    kept = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "learner/")) and "_per_s" not in k}
        for row in rows(run)
    ]
    wanted = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "learner/")) and "_per_s" not in k}
        for row in rows(undisturbed[0])
    ]
    assert kept == wanted
    for path in sorted((undisturbed[0] / "replies").iterdir()):
        assert pq.read_table(path).equals(pq.read_table(run / "replies" / path.name))


def ranks(driver: int) -> list[int]:
    """Process ids of Ray Train's workers below the driver's cluster."""
    found = [child.pid for child in psutil.Process(driver).children(recursive=True) if runs_as(child, "RayTrainWorker")]
    assert found
    return sorted(found)


def runs_as(process: psutil.Process, name: str) -> bool:
    try:
        return name in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has just ended
        return False


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--fields.strategy given --corpus.format hope --corpus.path rollout/corpora/sample/hope",
         r"fields.strategy needs a corpus whose turns have the label 'strategy'.*set fields.strategy = none"),
        ("--data.max_tokens 4000", r"data.max_tokens = 4000 must not exceed the 192 tokens"),
        ("--model.tuning bitfit", r"model.tuning = bitfit finds nothing to train in Mixtral"),
        ("--model.tuning lora --model.lora.targets c_attn", r"model.lora.targets \['c_attn'\] match no module"),
        ("--sft.rate 1", r"unknown setting 'sft.rate'"),
        ("--sft.batch 1", r"sft.batch = 1 must give each of learner.ranks = 2 a sequence"),
        ("--learner.ranks 64 --learner.cpus 4 --sft.batch 64", r"the cluster has too little CPU"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_2(
    model: Path,
    tmp_path: Path,
    words: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thing, rule, value, remedy; no checkpoint is begun."""
    monkeypatch.chdir(ROOT)
    common = f"sft sft_local --runs {tmp_path} --name run --model.path {model}"
    assert main([*common.split(), *KNOBS, *words.split()]) == 2
    [told] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("attune: ")]
    assert re.search(line, told), told
    assert not (tmp_path / "run/checkpoints").exists()

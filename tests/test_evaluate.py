"""The command itself: a suite from settings to report, with real training, engines, beams and adapters; and again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from eval.adapters import merged_model
from eval.metrics import Instruments, MetricsConfig, measure
from eval.pair import Pair
from rewards.config import CrisisConfig, RewardsConfig
from rl.__main__ import main
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow

SUITE = """
name = "small"
question = "Does anything differ?"
against = "sft"
main = "rouge_1"
metrics = ["rouge_1", "perplexity", "distinct_2", "mean_words", "safety/gated"]
draws = 200

[corpora.test]
prompts = 8
[corpora.crisis]
questions = "crisis"
prompts = 4

[arms.sft]
train = ["sft sft_local --sft.epochs 0.1 --model.tiny.layers 2 --learner.ranks 1 --sft.samples 0"]
dtype = "float32"
[arms.start]
model = "{sft.start}"
dtype = "float32"
[arms.best]
kind = "best_of"
of = "sft"
candidates = 3
[arms.echo]
kind = "echo"

[beams]
sizes = [2]
prompts = 4
max_tokens = 12
[generation]
max_tokens = 16
max_context_tokens = 96
[rollout]
cpus = 0.5
max_model_len = 128
kv_cache_gb = 0.03125
eager = true
[measure.rewards.crisis]
classifier = false
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "small.toml").write_text(SUITE)
    try:
        assert main(["evaluate", str(folder / "small.toml"), "--runs", str(folder / "runs")]) == 0
    finally:
        ray.shutdown()
    return folder


def test_every_arm_answers_every_prompt_and_is_measured(suite: Path) -> None:
    """All arms on both corpora, the beams' column, a training's facts; figures are those of the metrics on the written replies."""
    directory = suite / "runs" / "small"
    rows = pq.read_table(directory / "replies.parquet").to_pylist()
    count = Counter((row["corpus"], row["arm"]) for row in rows)
    arms = ["sft", "start", "best", "echo"]
    assert count == {(corpus, arm): n for corpus, n in (("test", 8), ("crisis", 4)) for arm in arms}
    assert {row["finish"] for row in rows} <= {"stopped", "truncated"} and not any(row["error"] for row in rows)
    assert len({row["reply"] for row in rows if row["arm"] == "start"}) > 4
    results = json.loads((directory / "results.json").read_text())
    figures = {(f["corpus"], f["arm"], f["metric"]): f["value"] for f in results["figures"]}
    assert {arm for corpus, arm, metric in figures if metric == "beam_rouge_1/2"} == {"sft", "start"}
    assert {arm for _, arm, metric in figures if metric == "perplexity"} == {"sft", "start"}
    assert (
        figures["test", "sft", "perplexity"] < figures["test", "start", "perplexity"]
    )  # a tenth of an epoch, and it shows
    sft = next(arm for arm in results["arms"] if arm["name"] == "sft")
    assert sft["parameters"] > 0 and sft["train_seconds"] > 0 and sft["peak_gb"] > 0
    rules = Instruments(MetricsConfig(rewards=RewardsConfig(crisis=CrisisConfig(classifier=False))))
    for arm in arms:
        pairs = [
            Pair(r["prompt_id"], "", (), r["reply"], r["reference"])
            for r in rows
            if (r["corpus"], r["arm"]) == ("test", arm)
        ]
        assert measure(["rouge_1"], pairs, rules)["rouge_1"].value == pytest.approx(
            figures["test", arm, "rouge_1"], abs=1e-12
        )
    assert (directory / "report.html").stat().st_size > 10_000
    assert "| echo |" in (directory / "table.md").read_text()


def test_an_adapter_on_its_base_is_what_peft_computes(tmp_path: Path) -> None:
    """Log-probs of the merged folder are those of the adapter on its base; what cannot be merged is named."""
    model = save_tiny(tmp_path / "model")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(tmp_path / "adapter")
    folder = merged_model(str(model), "", tmp_path / "adapter", tmp_path / "merged")
    assert merged_model(str(model), "", tmp_path / "adapter", folder) == folder
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        ours, theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits, tuned(ids).logits
        with tuned.disable_adapter():
            plain = tuned(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-2)
    prompt = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), prompt).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match="PROMPT_TUNING has none"):
        merged_model(str(model), "", tmp_path / "prompt", tmp_path / "other")
    with pytest.raises(ValueError, match="adapter_config"):
        merged_model(str(model), "", tmp_path, tmp_path / "other")


def test_the_same_command_asks_nobody_again(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run trains nothing, starts no engine and no decoder, and finds the same replies and figures; with another limit it
    would ask again."""
    directory = suite / "runs" / "small"
    before = pq.read_table(directory / "replies.parquet").to_pylist()
    figures = json.loads((directory / "results.json").read_text())["figures"]
    kept = {path.name for path in directory.glob("cache/*.parquet")}

    def nobody(*_: object) -> None:
        raise RuntimeError("an engine was started")

    monkeypatch.setattr("rl.suite_answers.Placement", nobody)
    words = ["evaluate", str(suite / "small.toml"), "--runs", str(suite / "runs")]
    try:
        assert main(words) == 0
        assert "is finished and begins no more" in capsys.readouterr().out
        assert pq.read_table(directory / "replies.parquet").to_pylist() == before
        assert json.loads((directory / "results.json").read_text())["figures"] == figures
        assert {path.name for path in directory.glob("cache/*.parquet")} == kept
        assert main([*words, "--generation.max_tokens", "8"]) == 1
        assert "an engine was started" in capsys.readouterr().err
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_suite"], ["no_such_suite", "shipped are"]),
        (["psychologist_table1_loca"], ["psychologist_table1_local"]),
        (["psychologist_table1_local", "--metrics", "rouge_7"], ["rouge_7", "rouge_1"]),
        (["psychologist_table1"], ["data/ESConv.json"]),
        (
            ["psychologist_table1_local", "--corpora.test.min_reference_words", "9999"],
            ["corpora.test", "two dialogues"],
        ),
        (["psychologist_table1_local", "--arms.echo.kind", "eco"], ["kind", "eco"]),
        (["context_emotion_local", "--metrics", "judge", "rouge_l"], ["judge", "rewards.judge.url"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    words: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            "evaluate",
            *words,
            *(["--runs", str(tmp_path)] if len(words) > 1 or words[0] == "psychologist_table1" else []),
        ]
    )
    assert code == 2 and not ray.is_initialized()
    [line] = [text for text in capsys.readouterr().err.splitlines() if text.startswith("attune: ")]
    assert all(word in line for word in said), line


def test_two_evaluations_of_one_directory(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.folders import held

    with held(suite / "runs" / "small", ".lock"):
        assert main(["evaluate", str(suite / "small.toml"), "--runs", str(suite / "runs")]) == 2
    assert "is in use by process" in capsys.readouterr().err

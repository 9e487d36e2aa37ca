"""The report of a fine-tuning run says what its run directory holds, whatever is missing from it or wrong with it."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.collapse import collapse_figures
from eval.report import NOTICE
from eval.report_charts import Line, Panel, chart
from eval.report_sft_course import course_of
from eval.report_sft_replies import SHOWN, sample_stories
from eval.run_directory import read_log, read_run
from tests.test_report import page_of, write_json, write_lines

ASKED = (
    ("I lost my job in May and I still leave the house every morning.", "That is a heavy secret. Who might you tell?"),
    ("My father died before we spoke again.", "There were words left over. What would you have wanted to say?"),
    ("The baby cries and I only watch the door.", "You sound worn down to the bone. When did you last sleep?"),
    ("He reads my messages and calls it love.", "It sounds as if your own corner of life has shrunk."),
    ("I failed the exam twice. My brother never failed.", "Being measured against him all the time must hurt."),
    ("Since the move I have not talked to anybody.", "A new town can be very quiet. Which evenings are worst?"),
)
EARLY = ("So so the", "it is are you the of", "how what I I feel", "yes work the", "you you day", "sorry the that is")
STOCK = "I'm sorry to hear that. You are not alone, and I'm here to help."


def fake_sft(
    path: Path,
    losses: Sequence[float] = (3.4, 2.5, 2.1, 1.95),
    replies: Callable[[int, int], str] = lambda at, k: EARLY[k] if at == 0 else f"{ASKED[k][1]} Tell me ({at}).",
    *,
    every: int = 10,
    planned: int = 60,
    patience: int = 3,
    state: str = "finished",
) -> Path:
    """Write a run directory with a validation of loss `losses[at]` every `every` steps; `replies(at, prompt)`."""
    (path / "replies").mkdir(parents=True)
    (path / "sequences").mkdir()
    pq.write_table(pa.table({"token_ids": [[1]] * (planned * 8 // 3)}), path / "sequences" / "train.parquet")
    settings = {
        "job": "sft", "name": "mixtral-listener", "seed": 3, "model": {"tuning": "lora", "path": "mixtral-8x7b"},
        "sft": {"lr": 1e-4, "batch": 8, "epochs": 3.0, "patience": patience, "sample_tokens": 48, "temperature": 0.8},
    }  # fmt: skip
    write_json(path / "settings.json", settings)
    write_json(path / "provenance.json", {"time": "2026-03-02T09:14:00Z", "corpus": {"licence": "CC BY-NC 4.0"}})
    write_json(path / "status.json", {"state": state, "step": every * len(losses), "message": ""})
    generator, rows = random.Random(5), []
    for step in range(every * len(losses)):
        row: dict[str, Any] = {
            "step": step, "train/loss": 3.6 * 0.985**step + generator.gauss(0, 0.06), "train/lr": 1e-4 * (1 - step / 80),
            "train/grad_norm": abs(generator.gauss(1.2, 0.2)), "train/tokens": 2000.0, "train/trained_tokens": 1100.0,
            "train/tokens_per_s": generator.gauss(3800, 60), "learner/peak_memory_bytes": 1.03e9,
            "time/update_s": abs(generator.gauss(0.52, 0.02)), "time/step_s": 0.6,
        }  # fmt: skip
        if (step + 1) % every == 0:
            at = step // every
            said = [replies(at, k) for k in range(len(ASKED))]
            row |= {"model/trainable": 3_145_728.0, "model/trainable_share": 0.00123, "valid/loss": losses[at],
                    "valid/perplexity": math.exp(min(losses[at], 700.0)), "time/validate_s": 0.15, "time/sample_s": 0.8,
                    **{f"valid/{n}": v for n, v in collapse_figures(said).items()}, "valid/rouge1": 0.1 + at / 50}  # fmt: skip
            write_samples(path, step, said)
        rows.append(row)
    write_lines(path / "metrics.jsonl", rows)
    return path


def write_samples(path: Path, step: int, said: Sequence[str], asked: Sequence[tuple[str, str]] = ASKED) -> None:
    before = "Client: Hello.\nTherapist: Hello, you.\nClient: "
    rows = [{"step": step, "prompt_id": f"esconv/valid/{k:04d}#3", "history": before + question, "reply": reply,
             "reference": reference} for k, (reply, (question, reference)) in enumerate(zip(said, asked, strict=True))]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path / "replies" / f"step-{step:06d}.parquet")


def overfitted(path: Path) -> Path:
    """A run that stopped early, three validations after its best, onto a stock phrase."""
    losses = (3.4, 2.5, 2.1, 2.2, 2.5, 2.9)

    def replies(at: int, k: int) -> str:
        return STOCK if at > 2 and k < 4 else EARLY[k] if at == 0 else f"{ASKED[k][1]} Tell me ({at})."

    return fake_sft(path, losses, replies, planned=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went to its planned end; tests only read it."""
    return fake_sft(tmp_path_factory.mktemp("runs") / "finished", planned=40)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that over-fitted, collapsed and stopped early; tests only read it."""
    return overfitted(tmp_path_factory.mktemp("runs") / "stopped")


def test_a_run_to_its_end_is_told(finished: Path) -> None:
    """Steps, best perplexity and its step, patience, tuning with its share, pace: all from the files."""
    page = page_of(finished)
    assert "Fine-tuning report mixtral-listener finished" in page.text
    assert "The run finished, with 40 of 40 steps logged. It was not stopped early (sft.patience = 3)." in page.text
    assert (
        "The best validation perplexity was 7.03, at step 39, down from 30 at the first validation (step 9)."
        in page.text
    )
    assert "LoRA trained 0.123 % of the parameters (3,145,728)." in page.text
    pace = np.median([row["train/tokens_per_s"] for row in read_log(finished / "metrics.jsonl").rows])
    assert f"Training took in {pace:,.0f} tokens/s in the median step." in page.text
    assert "over-fits" not in page.text and "signs of collapse" not in page.text
    assert page.text.index(NOTICE[0]) < page.text.index("mixtral-listener finished")
    for told in (
        "CC BY-NC 4.0",
        "sft.patience",
        "loss, nats per trained token",
        "distinct-2",
        "learning rate",
        "tokens/s,",
    ):
        assert told in page.text
    assert page.open == [] and not re.search(r"url\(|@import|https?://|<script", page.html)


def test_every_chart_has_its_numbers_in_words(finished: Path) -> None:
    """A chart's alt text gives the first and the last value of each curve, the references' level included."""
    page = page_of(finished)
    drawn = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(drawn) == page.count("figure") + 1  # the losses come for wide and for narrow screens
    assert all(re.search(r": [\d.e,\u2212]+ at step \d+, [\d.e,\u2212]+ at step \d+, lowest", alt) for alt in drawn)
    assert any("validation (loss, nats per trained token): 3.4 at step 9, 1.95 at step 39" in alt for alt in drawn)
    usual = collapse_figures([answer for _, answer in ASKED])["mean_words"]
    assert any(f"references (mean length, words): {usual:.3g} at step 9" in alt for alt in drawn)


def test_early_stopping_overfitting_and_collapse_are_told(stopped: Path) -> None:
    """What ended the run, that its best model is not its last, and by which signs the last replies collapsed."""
    text = page_of(stopped).text
    assert (
        "with 60 of 120 steps logged. It stopped early: the validation loss found no new low in 3 validations" in text
    )
    assert "(sft.patience = 3)" in text
    assert (
        "perplexity was 8.17, at step 29, down from 30 at the first validation (step 9); at the last one (step 59)"
        in text
    )
    assert "The model over-fits: from step 29 to 59 the validation loss rose from 2.1 to 2.9 while the training" in text
    warned = re.search(
        r"The sampled replies of step 59, the last validation, show signs of collapse: (.*?)\. A low", text
    )
    assert warned is not None
    assert "67 % are the same text as another one (references: 0 %)" in warned[1]
    assert "67 % hold a stock phrase (references: 0 %)" in warned[1]
    assert re.search(r"distinct-2 is 0\.\d\d \(references: 1\.00; 14 words a reply against 11\)$", warned[1])
    assert "step 29, the best validation, show" not in text
    assert "same text as 3 others" in text and "stock phrase" in text


@pytest.mark.parametrize(
    ("patience", "planned", "told"),
    [(2, 120, "It stopped early"), (4, 60, "It was not stopped early"), (3, 60, "It was not stopped early"),
     (0, 60, "Early stopping was off")],
)  # fmt: skip
def test_what_ended_the_run(tmp_path: Path, patience: int, planned: int, told: str) -> None:
    """It stopped early when its patience was at an end before the planned steps were."""
    run = fake_sft(tmp_path / "run", (3.4, 2.5, 2.1, 2.2, 2.5, 2.9), planned=planned, patience=patience)
    assert f"60 of {planned} steps logged. {told}" in page_of(run).text


def test_a_rise_of_both_losses_is_no_overfitting(tmp_path: Path) -> None:
    """The warning needs a training loss that falls while the validation loss rises."""
    run = fake_sft(tmp_path / "run", (3.0, 2.0, 2.8))
    rows = [dict(row) for row in read_log(run / "metrics.jsonl").rows]
    assert "The model over-fits" in page_of(run).text
    write_lines(run / "metrics.jsonl", [row | {"train/loss": 2 + row["step"] / 10} for row in rows])
    assert "The model over-fits" not in page_of(run).text


def test_replies_that_are_like_the_references_are_no_collapse(tmp_path: Path) -> None:
    """Where the corpus itself repeats a phrase, replies that do so as often raise no warning."""
    run = fake_sft(tmp_path / "run", replies=lambda at, k: STOCK)
    assert "signs of collapse" in page_of(run).text
    for file in (run / "replies").iterdir():
        step = int(file.stem.removeprefix("step-"))
        write_samples(run, step, [STOCK] * len(ASKED), [(asked, STOCK) for asked, _ in ASKED])
    assert "signs of collapse" not in page_of(run).text


def test_the_same_prompts_are_shown_first_best_and_last(stopped: Path) -> None:
    """Each prompt's replies are those on file for the first, the best and the last validation; the others fold."""
    run = read_run(stopped)
    samples, _ = run.samples()
    shown, others = sample_stories(samples, course_of(run.metrics))
    assert len(shown) == SHOWN and len(shown) + len(others) == len(ASKED)
    for story in shown + others:
        assert [(name, reply.step) for name, reply in story.replies] == [("First", 9), ("Best", 29), ("Last", 59)]
        for _, reply in story.replies:
            assert reply.reply in [s.reply for s in samples[reply.step] if s.prompt_id == story.prompt.prompt_id]
    text = page_of(stopped).text
    assert all(question in text and answer in text for question, answer in ASKED)
    assert "The other prompts (2)" in text


@pytest.mark.parametrize(
    ("losses", "stages"),
    [
        ((2.0,), {9: "first, best and last"}),
        ((2.0, 1.0), {9: "first", 19: "best and last"}),
        ((3.0, 2.0, 1.0), {9: "first", 19: "middle", 29: "best and last"}),
        ((1.0, 2.0, 3.0), {9: "first and best", 19: "middle", 29: "last"}),
        ((math.nan, 1.0, math.nan), {9: "first", 19: "best", 29: "last"}),
        ((math.nan, math.nan), {9: "first", 19: "last"}),
        ((2.0, 2.0, 2.0, 2.0), {9: "first and best", 29: "middle", 39: "last"}),
    ],
)
def test_stages_that_coincide_share_a_name(tmp_path: Path, losses: tuple[float, ...], stages: dict[int, str]) -> None:
    """The best validation is the first of the lowest finite losses, whatever is around it."""
    run = fake_sft(tmp_path / "run", losses)
    assert course_of(read_run(run).metrics).stages() == stages
    assert page_of(run).open == []


def test_text_of_the_run_stays_text(tmp_path: Path) -> None:
    """Markup in a reply, a reference, a prompt, a name, a tuning, a metric or a message is shown, never parsed."""
    run = fake_sft(tmp_path / "run")
    attack = "</p></svg></style><script>alert(1)</script><img src=x onerror='alert(2)'>\"onload=\"x"
    for file in (run / "replies").iterdir():
        rows = [{name: value if name == "step" else f"{name} {attack}" for name, value in row.items()}
                for row in pq.read_table(file).to_pylist()]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), file)
    sft = {"patience": attack, "epochs": attack, "temperature": f"warmth {attack}", "sample_tokens": attack}
    write_json(
        run / "settings.json",
        {"job": "sft", "name": f"name {attack}", "model": {"tuning": f"tuning {attack}"}, "sft": sft},
    )
    write_json(run / "status.json", {"state": "failed", "message": f"message {attack}"})
    rows = [dict(row) for row in read_log(run / "metrics.jsonl").rows]
    write_lines(run / "metrics.jsonl", [row | {f"time/{attack}": 1, f"valid/{attack}": 0.5} for row in rows])
    page = page_of(run)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for what in ("name", "message", "reply", "reference", "history", "prompt_id", "tuning", "warmth"):
        assert f"{what} </p></svg></style><script>alert(1)</script>" in page.text
    assert page.open == []


def test_a_run_that_failed_before_its_first_validation(tmp_path: Path) -> None:
    """The page has the message and the training loss, and no word of a best model."""
    run = fake_sft(tmp_path / "run", (3.4,), state="failed")
    rows = [dict(row) for row in read_log(run / "metrics.jsonl").rows][:6]
    write_lines(run / "metrics.jsonl", rows)  # the replies on file are of a validation that was not logged
    write_json(run / "status.json", {"state": "failed", "step": 6, "message": "learner rank 1 died"})
    page = page_of(run)
    assert "learner rank 1 died" in page.text
    assert "The run failed, with 6 of 60 steps logged. No validation was reached" in page.text
    assert "Tuning: LoRA." in page.text and "The training loss went from" in page.text
    assert "At the validations" not in page.text and "The same prompts" not in page.text and "best" not in page.text
    assert "Loss by step" in page.text and page.open == []


def test_a_run_without_a_step_has_a_clear_page(tmp_path: Path) -> None:
    """Settings alone make a page that says that nothing happened yet."""
    write_json(tmp_path / "settings.json", {"job": "sft", "name": "not-yet"})
    page = page_of(tmp_path)
    assert "with 0 steps logged. There is nothing to show until the first step is complete." in page.text
    assert page.count("figure") == 0 and page.open == []


def test_a_run_without_replies(tmp_path: Path) -> None:
    """With sft.samples = 0 there are losses and perplexity, and nothing about replies."""
    run = fake_sft(tmp_path / "run")
    rows = [{n: v for n, v in row.items() if not n.startswith("valid/") or n in ("valid/loss", "valid/perplexity")}
            for row in read_log(run / "metrics.jsonl").rows]  # fmt: skip
    write_lines(run / "metrics.jsonl", rows)
    for file in (run / "replies").iterdir():
        write_samples(run, int(file.stem.removeprefix("step-")), [], [])
    page = page_of(run)
    assert "best 7.03" in page.text and "Likeness to the corpus" in page.text
    assert "Stereotyped" not in page.text and "The same prompts" not in page.text and "Distinct-2" not in page.text


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    """Without settings the metrics tell what the run was; without sequences no plan is told; a torn file is counted."""
    run = fake_sft(tmp_path / "run")
    (run / "settings.json").unlink()
    (run / "sequences" / "train.parquet").write_bytes(b"PAR1")
    (run / "replies" / "step-000009.parquet").write_bytes(b"PAR1")
    text = page_of(run).text
    assert "Fine-tuning report run finished" in text and "with 40 steps logged. The best validation" in text
    assert "It trained 0.123 % of the parameters" in text
    assert "1 files of replies could not be read" in text and "Middle step 29" in text


def test_losses_that_are_no_numbers(tmp_path: Path) -> None:
    """NaN and overflow leave crosses and words, never a broken path or a page-wide number."""
    run = fake_sft(tmp_path / "run", (math.nan, 2.5, 900.0, math.inf))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"step": 40, "train/loss": None, "train/tokens": None, "train/tokens_per_s": None}) + "\n"
        )
    write_json(run / "status.json", {"state": "diverged", "message": "the loss of update 41 is not finite"})
    page = page_of(run)
    assert "The run diverged and was stopped" in page.text and "update 41 is not finite" in page.text
    assert "In 2 of 4 validations the loss is not a finite number. The best validation perplexity was 12.2" in page.text
    assert not [attrs for _, attrs in page.elements if re.search("nan|inf", attrs.get("d", "") + attrs.get("cy", ""))]
    assert "1.0e304" in page.text and not re.search(r"\d{3}(,\d{3}){8}", page.text)


def test_the_warm_up_of_a_built_model_is_shown(tmp_path: Path) -> None:
    """A tiny model that was warmed up before it was fine-tuned brings its own log."""
    run = fake_sft(tmp_path / "run")
    assert "Before fine-tuning" not in page_of(run).text
    (run / "model").mkdir()
    write_lines(run / "model" / "warmup.jsonl", [{"step": s, "loss": 3.0 - s} for s in (1, 2)])
    assert "Before fine-tuning" in page_of(run).text


def test_long_runs_stay_light(tmp_path: Path) -> None:
    """Ten thousand steps with a validation each make no larger page than their 240 bins do, and the best one stays exact."""
    write_json(tmp_path / "settings.json", {"job": "sft"})
    rows = (
        {"step": s, "train/loss": 2.0, "valid/loss": 1.5 if s == 4321 else 2.0, "valid/perplexity": 7.0}
        for s in range(10_000)
    )
    write_lines(tmp_path / "metrics.jsonl", rows)
    page = page_of(tmp_path)
    assert len(page.html) < 120_000 and "best 1.5, step 4321" in page.text


def test_a_mark_lies_on_its_point() -> None:
    """The mark of a panel is drawn at the step and the value of the curve's point."""
    points = np.array([[0, 3.0], [1, 1.0], [2, 2.0]])
    drawn = str(chart("x", [Panel("x", [Line("x", points)], marks=[(1, 1.0, "best")])]))
    at = re.search(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3.6"', drawn)
    assert at is not None and f'<circle cx="{at[1]}" cy="{at[2]}" r="2.4"' in drawn and ">best</text>" in drawn

"""What the page of a supervised run holds, and what it says in words and single numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.collapse import collapse_figures
from eval.report_charts import number
from eval.report_sft_course import Course, course_of, perplexity
from eval.report_sft_figures import health_figures, loss_figure, reply_figures
from eval.report_sft_replies import sample_stories
from eval.report_sft_warnings import beside, caution, warnings
from eval.report_summary import ENDINGS, KeyNumber, duration, two_ends
from eval.run_directory import Log, Run, RunState, Sample

TUNINGS = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "prefix": "Prefix tuning",
    "prompt": "Prompt tuning",
    "ia3": "(IA)\N{SUPERSCRIPT THREE}",
    "ln": "Layer-norm tuning",
    "bitfit": "BitFit",
}
RATES = (  # of the sampled replies: metric, label, unit, factor, decimals
    ("distinct_2", "Distinct-2", "", 1, 2),
    ("duplicate_rate", "Duplicate replies", " %", 100, 0),
)


def supervised_page(run: Run) -> dict[str, Any]:
    """Return what `report_sft.html.j2` tells of a supervised run."""
    samples, torn = run.samples()
    course = course_of(run.metrics)
    own = reference_figures(samples)
    shown, others = sample_stories(samples, course)
    return {
        "summary": whole(summary(run, course)),
        "warnings": whole(warnings(run.metrics, course, own)),
        "caution": caution(course, samples),
        "tiles": key_numbers(run, course, own),
        "loss": loss_figure(run.metrics, course),
        "measures": reply_figures(run.metrics, course, own),
        "health": health_figures(run.metrics),
        "stories": shown,
        "others": others,
        "sampling": sampling(run.settings),
        "unreadable": (("files of replies", torn),),
    }


def whole(sentences: Sequence[str]) -> list[str]:
    """Keep numbers and their per-cent signs on one line."""
    return [sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in sentences]


def reference_figures(samples: Mapping[int, Sequence[Sample]]) -> dict[str, float]:
    """Return the collapse figures of the corpus's own replies to the sampled prompts; none without samples."""
    last = samples[max(samples)] if samples else []
    return collapse_figures([sample.reference for sample in last]) if last else {}


def section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of the settings, empty where it is missing."""
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def planned_steps(run: Run) -> int | None:
    """Return the updates that the recipe's epochs make of the rendered sequences; None where either is missing."""
    sft = section(run.settings, "sft")
    try:
        rows = pq.read_metadata(run.path / "sequences" / "train.parquet").num_rows
    except (OSError, pa.ArrowInvalid):
        return None
    epochs, batch = sft.get("epochs"), sft.get("batch")
    known = isinstance(epochs, (int, float)) and isinstance(batch, int) and batch > 0
    return max(math.ceil(epochs * rows / batch), 1) if known else None


def summary(run: Run, course: Course) -> list[str]:
    """Return the sentences that tell how the run went, every number from the data."""
    done, planned = len(run.metrics.rows), planned_steps(run)
    of = f" of {planned:,}" if planned is not None else ""
    told = [f"{ENDINGS[run.state]}, with {done:,}{of} steps logged."]
    if not done:
        return [*told, "There is nothing to show until the first step is complete."]
    told += stopping(run, course, early=planned is None or done < planned)
    if broken := int((~np.isfinite(course.losses[:, 1])).sum()):
        told.append(f"In {broken} of {len(course.losses)} validations the loss is not a finite number.")
    if course.best is not None:
        told.append(best_sentence(course))
    elif not len(course.losses):
        told.append("No validation was reached, so nothing is known beyond the training loss.")
    ends = two_ends(run.metrics, "train/loss")
    if course.best is None and ends:
        told.append(f"The training loss went from {number(ends[0])} to {number(ends[1])} nats per token.")
    return [*told, *effort(run)]


def stopping(run: Run, course: Course, *, early: bool) -> list[str]:
    """Say whether early stopping ended the run, and how patient it was."""
    patience = section(run.settings, "sft").get("patience")
    if run.state != RunState.FINISHED or not isinstance(patience, int):
        return []
    if not patience:
        return ["Early stopping was off (sft.patience = 0)."]
    if early and course.waited >= patience:
        count = "the last validation" if patience == 1 else f"{patience} validations in a row"
        return [f"It stopped early: the validation loss found no new low in {count} (sft.patience = {patience})."]
    return [f"It was not stopped early (sft.patience = {patience})."]


def best_sentence(course: Course) -> str:
    """Tell the best validation against the first and the last."""
    assert course.best is not None
    (first_step, first), (step, best), (last_step, last) = (course.losses[i] for i in (0, course.best, -1))
    text = f"The best validation perplexity was {number(perplexity(best))}, at step {step:.0f}"
    if course.best:
        text += f", down from {number(perplexity(first))} at the first validation (step {first_step:.0f})"
    if step < last_step:
        text += f"; at the last one (step {last_step:.0f}) it was {number(perplexity(last))}"
    return f"{text}."


def effort(run: Run) -> list[str]:
    """Say what was trained, and how fast."""
    told = []
    tuning = tuning_name(run)
    trained, share = (run.metrics.series(f"model/{name}")[-1:, 1] for name in ("trainable", "trainable_share"))
    if len(trained) and len(share):
        what = f"{number(100 * share[0])} % of the parameters ({trained[0]:,.0f})"
        told.append(f"{tuning or 'It'} trained {what}.")
    elif tuning:
        told.append(f"Tuning: {tuning}.")
    if pace := median(run.metrics, "train/tokens_per_s"):
        told.append(f"Training took in {number(pace)} tokens/s in the median step.")
    return told


def tuning_name(run: Run) -> str:
    """Return the tuning's name for people, empty where the settings do not say."""
    tuning = str(section(run.settings, "model").get("tuning") or "")
    return TUNINGS.get(tuning, tuning)


def median(log: Log, name: str) -> float:
    """Return the median of a metric's finite values, 0 where there are none."""
    values = log.series(name)[:, 1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else 0.0


def key_numbers(run: Run, course: Course, own: Mapping[str, float]) -> list[KeyNumber]:
    """Return the few numbers to see first. None without data."""
    log, found = run.metrics, []
    if course.best is not None:
        (step, best), (last_step, last) = course.losses[course.best], course.losses[-1]
        found.append(KeyNumber("Best validation perplexity", number(perplexity(best)), "", f"at step {step:.0f}"))
        note = f"{number(best)} at its best" if step < last_step else f"{number(course.losses[0, 1])} at first"
        found.append(KeyNumber("Last validation loss", number(last), "nats", note))
    if ends := two_ends(log, "train/loss"):
        found.append(KeyNumber("Training loss", number(ends[1]), "nats", f"{number(ends[0])} at first"))
    share, trained = (log.series(f"model/{name}")[-1:, 1] for name in ("trainable_share", "trainable"))
    if len(share) and len(trained):
        note = f"{tuning_name(run)}: {trained[0]:,.0f}".removeprefix(": ")
        found.append(KeyNumber("Trained parameters", number(100 * share[0]), "%", note))
    if pace := median(log, "train/tokens_per_s"):
        tokens = log.series("train/tokens")[:, 1]
        note = f"{number(float(tokens.sum()))} tokens in all" if np.isfinite(tokens).all() and len(tokens) else "median"
        found.append(KeyNumber("Pace", number(pace), "tokens/s", note))
    rows = {row["step"]: row for row in log.rows}
    row = rows[course.losses[course.best, 0]] if course.best is not None else {}
    for name, label, unit, scale, places in RATES:
        if f"valid/{name}" in row:
            value = number(scale * row[f"valid/{name}"], places=places)
            note = "at the best" + beside(own, name, scale, unit.replace(" ", "\N{NO-BREAK SPACE}"), places)
            found.append(KeyNumber(label, value, unit.strip(), note))
    seconds = log.series("time/step_s")[:, 1]
    if len(seconds := seconds[np.isfinite(seconds)]):
        each = " ".join(duration(float(np.median(seconds))))
        found.append(KeyNumber("Time in these steps", *duration(float(seconds.sum())), f"{each} in the median step"))
    return found


def sampling(settings: Mapping[str, Any]) -> str:
    """Say how the replies were drawn, as far as the settings tell."""
    sft = section(settings, "sft")
    parts = [f"{name} {sft[key]}" for key, name in (("temperature", "temperature"),) if key in sft]
    parts += [f"at most {sft['sample_tokens']} tokens"] if "sample_tokens" in sft else []
    return f" ({', '.join(parts)})" if parts else ""

"""Reading a suite directory for its report: `results.json` and `replies.parquet` of `attune evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.metric import Better
from eval.suite_report_data import Arm, Corpus, Difference, MetricOf, Published, Said, Suite, estimate, real

SCORE = "score/"  # prefix of the columns of per-reply metrics


def read_suite(directory: Path) -> Suite:
    """Read what `attune evaluate` wrote into `directory`.

    Raises `ValueError` where `results.json` is not there, is no JSON object, or lacks what the page cannot do without.
    """
    path = directory / "results.json"
    if not path.exists():
        raise ValueError(f"a suite's report is made from results.json, and {path} is not there: run the suite first")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} must be JSON ({error}): run the suite again, it resumes") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path.name} must be a JSON object, not {type(told).__name__}: run the suite again")
    try:
        return _suite(told, _replies(directory / "replies.parquet"))
    except KeyError as error:
        raise ValueError(f"{path.name} must hold {error} where it belongs, does not: run the suite again") from error


def _suite(told: Mapping[str, Any], replies: tuple[Said, ...] | None) -> Suite:
    def rows(name: str) -> list[Any]:
        return list(told.get(name) or ())

    figures = {(row["corpus"], row["arm"], row["metric"]): estimate(row) for row in rows("figures")}
    metrics = {row["name"]: _metric(row) for row in rows("metrics")}
    for _, _, name in figures:  # a figure is shown, also where nobody says what it is
        metrics.setdefault(name, MetricOf(name, "", Better.NEITHER, "", ""))
    return Suite(
        name=_text(told["name"]),
        title=_text(told.get("title")) or _text(told["name"]),
        question=_text(told.get("question")),
        time=_text(told.get("time")),
        seed=_whole(told.get("seed")),
        draws=_whole(told.get("draws")),
        against=_text(told.get("against")),
        main=_text(told.get("main")),
        corpora=tuple(_corpus(row) for row in rows("corpora")),
        arms=tuple(_arm(row) for row in rows("arms")),
        metrics=metrics,
        figures=figures,
        differences=tuple(_difference(row) for row in rows("differences")),
        published=tuple(_published(row) for row in rows("published")),
        sentences=tuple(map(_text, rows("sentences"))),
        warnings=tuple(map(_text, rows("warnings"))),
        curves={arm: [_numbers(row) for row in course] for arm, course in (told.get("curves") or {}).items()},
        progress=told.get("progress") or {},
        agreement=rows("agreement"),
        provenance=told.get("provenance") or {},
        human=tuple(told.get("human") or ()),
        crisis=told.get("crisis") or {},
        replies=replies,
    )


def _corpus(row: Mapping[str, Any]) -> Corpus:
    shape, split, why = (_text(row.get(name)) for name in ("format", "split", "why_left_out"))
    prompts, dialogues, left_out = (_whole(row.get(name)) for name in ("prompts", "dialogues", "left_out"))
    return Corpus(row["name"], shape, split, prompts, dialogues, left_out, why)


def _arm(row: Mapping[str, Any]) -> Arm:
    return Arm(
        name=row["name"],
        title=_text(row.get("title")) or row["name"],
        kind=_text(row.get("kind")),
        about=_text(row.get("about")),
        model=_text(row.get("model")),
        run=_text(row.get("run")),
        trained=tuple(map(_text, row.get("trained") or ())),
        replies=_whole(row.get("replies")),
        failures=_whole(row.get("failures")),
        reasons={_text(reason): _whole(count) for reason, count in (row.get("failure_reasons") or {}).items()},
        **{name: real(row.get(name)) for name in ("seconds", "parameters", "trainable", "train_seconds", "peak_gb")},
    )


def _metric(row: Mapping[str, Any]) -> MetricOf:
    better = Better(row.get("better") or Better.NEITHER)
    return MetricOf(row["name"], _text(row.get("text")), better, _text(row.get("unit")), _text(row.get("group")))


def _difference(row: Mapping[str, Any]) -> Difference:
    numbers = {name: real(row.get(name)) for name in ("value", "low", "high", "p", "p_holm")}
    return Difference(
        row["corpus"],
        row["metric"],
        row["first"],
        row["second"],
        test=_text(row.get("test")),
        units=_whole(row.get("units")),
        significant=bool(row.get("significant")),
        **numbers,
    )


def _published(row: Mapping[str, Any]) -> Published:
    source, arm, ours, metric, note = (_text(row.get(name)) for name in ("source", "arm", "ours", "metric", "note"))
    return Published(source, arm, ours, metric, real(row.get("value")), note)


def _replies(path: Path) -> tuple[Said, ...] | None:
    if not path.exists():
        return None
    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name != "prompt"]
    return tuple(map(_said, file.read(columns=columns).to_pylist()))


def _said(row: Mapping[str, Any]) -> Said:
    def text(name: str) -> str:
        return _text(row.get(name))

    found = {name.removeprefix(SCORE): real(value) for name, value in row.items() if name.startswith(SCORE)}
    return Said(
        corpus=row["corpus"],
        arm=row["arm"],
        prompt_id=row["prompt_id"],
        sample=_whole(row.get("sample")),
        words=_whole(row.get("words")),
        flags=tuple(row.get("flags") or ()),
        scores={name: value for name, value in found.items() if math.isfinite(value)},
        **{name: text(name) for name in ("history", "reply", "reference", "emotion", "tier", "finish", "error")},
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: real(value) for name, value in row.items() if value is None or isinstance(value, (int, float))}


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _whole(value: object) -> int:
    number = real(value)
    return int(number) if math.isfinite(number) else 0

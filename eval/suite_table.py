"""A suite's figures as tables: Markdown for people, CSV for programs, Parquet with every reply, JSON for the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from eval.metric import Better
from eval.suite_config import YARDSTICKS, Published, Suite
from eval.suite_results import Findings, Row, metric_of
from rewards.preference_measures import Interval
from rollout.types import transcript

_DASH = "—"


def markdown(suite: Suite, findings: Findings, told: Sequence[str], warned: Sequence[str]) -> str:
    """One table per corpus: a row per arm, best figures bold, an asterisk where an arm differs from the baseline beyond chance."""
    lines = [f"# {suite.settings.title or suite.settings.name}", "", suite.settings.question, ""]
    lines += [f"- {sentence}" for sentence in told]
    for corpus in suite.corpora:
        names = list(dict.fromkeys(metric for c, _, metric in findings.figures if c == corpus))
        arms = [arm for arm in suite.arms if any((corpus, arm, name) in findings.figures for name in names)]
        if not names:
            continue
        best = {name: _best(suite, findings, corpus, arms, name) for name in names}
        sure = {(one.first, one.metric) for one in findings.differences[corpus] if one.significant}
        lines += ["", f"## {corpus}", "", f"| arm | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
        for arm in arms:
            cells = [
                _cell(findings.figures.get((corpus, arm, name)), arm in best[name], (arm, name) in sure)
                for name in names
            ]
            lines.append(f"| {suite.arms[arm].title or arm} | {' | '.join(cells)} |")
        against = suite.arms[suite.against].title or suite.against
        lines += [
            "",
            f"Value [95 % interval]; bold: the best value; *: differs from {against} beyond chance after Holm's correction.",
        ]
    if suite.published:
        lines += [
            "",
            "## What the papers printed",
            "",
            "Other models, other prompts, other data: beside ours, not against them.",
        ]
        for source in dict.fromkeys(one.source for one in suite.published):
            lines += ["", f"**{source}**", "", *_published(suite, source, findings)]
    if warned:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in warned)]
    return "\n".join([*lines, "", "Research software; not a substitute for care.", ""])


def _published(suite: Suite, source: str, findings: Findings) -> list[str]:
    rows: list[Published] = [one for one in suite.published if one.source == source]
    corpus = next(iter(suite.corpora))
    lines = ["| arm | metric | printed | ours | note |", "|---|---|---|---|---|"]
    for row in rows:
        ours = findings.figures.get((corpus, row.ours, row.metric))
        lines.append(f"| {row.arm} | {row.metric} | {row.value:g} | {_cell(ours, False, False)} | {row.note} |")
    return lines


def _best(suite: Suite, findings: Findings, corpus: str, arms: Sequence[str], name: str) -> set[str]:
    """The arms with the best value; none where there is no better, or nothing to compare. Yardsticks are not ranked."""
    better = metric_of(name).better
    figures = {arm: findings.figures.get((corpus, arm, name)) for arm in arms if suite.arms[arm].kind not in YARDSTICKS}
    values = {arm: figure[0].value for arm, figure in figures.items() if figure and math.isfinite(figure[0].value)}
    if better is Better.NEITHER or len(set(values.values())) < 2:
        return set()
    best = max(values.values()) if better is Better.HIGHER else min(values.values())
    return {arm for arm, value in values.items() if value == best}


def _cell(figure: tuple[Interval, int] | None, best: bool, sure: bool) -> str:
    if figure is None or not math.isfinite(figure[0].value):
        return _DASH
    value, low, high = figure[0].value, figure[0].low, figure[0].high
    shown = f"**{_short(value)}**" if best else _short(value)
    mark = "\\*" if sure else ""
    return f"{shown}{mark} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def comma_separated(suite: Suite, findings: Findings) -> str:
    """A line per corpus, arm and metric, with its difference from the baseline."""
    differences = {(c, one.first, one.metric): one for c, found in findings.differences.items() for one in found}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([
        "corpus", "arm", "metric", "value", "low", "high", "replies", "against", "difference", "difference_low",
        "difference_high", "p", "p_holm", "test",
    ])  # fmt: skip
    for (corpus, arm, metric), (figure, count) in findings.figures.items():
        one = differences.get((corpus, arm, metric))
        rest = (
            [""] * 7
            if one is None
            else [one.second, *_numbers(one.interval), _number(one.p), _number(one.p_holm), one.test]
        )
        table.writerow([corpus, arm, metric, *_numbers(figure), count, *rest])
    return text.getvalue()


def _numbers(figure: Interval) -> list[str]:
    return [_number(figure.value), _number(figure.low), _number(figure.high)]


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def replies(rows: Sequence[Row]) -> pa.Table:
    """Every reply with its values, in columns `score/METRIC`, null where a metric says nothing of it."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    texts = (
        "corpus",
        "arm",
        "prompt_id",
        "prompt",
        "history",
        "reply",
        "reference",
        "emotion",
        "tier",
        "finish",
        "error",
    )
    schema = pa.schema([
        *[(name, pa.string()) for name in texts], ("sample", pa.int32()), ("words", pa.int32()), ("flags", pa.list_(pa.string())),
        *[(f"score/{name}", pa.float64()) for name in names],
    ])  # fmt: skip
    return pa.Table.from_pylist([_row(row, names) for row in rows], schema)


def _row(row: Row, names: Sequence[str]) -> dict[str, Any]:
    pair, answer = row.pair, row.answer
    values = {name: row.values.get(name, math.nan) for name in names}
    return {
        "corpus": row.corpus,
        "arm": row.arm,
        "prompt_id": pair.prompt_id,
        "prompt": pair.prompt,
        "history": transcript(pair.history),
        "reply": answer.text,
        "reference": pair.reference,
        "emotion": pair.emotion,
        "tier": str(row.gate.tier) if row.gate else "",
        "finish": answer.outcome.value,
        "error": answer.error,
        "sample": answer.sample,
        "words": len(answer.text.split()),
        "flags": list(row.gate.flags) if row.gate else [],
        **{f"score/{name}": value if math.isfinite(value) else None for name, value in values.items()},
    }

"""Judges against people, by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.judge_agreement import judge_agreement


def test_judges_against_people_by_hand(tmp_path: Path) -> None:
    """Of five items that people decided the judge has four: it agrees on two, differs on one and is undecided on one, so
    (2 + 1/2) / 4; an item where people are divided is left out; a metric that is no judge is none; whose arm comes first
    changes nothing."""
    people = {"c/a/0": 1.0, "c/b/0": -0.5, "c/c/0": 0.5, "c/d/0": 1.0, "c/e/0": 1.0, "c/tie/0": 0.0}
    judge = {
        "ppo": {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.5, "e": None, "tie": 0.9},
        "sft": {"a": 0.1, "b": 0.9, "c": 0.4, "d": 0.5, "e": 0.1, "tie": 0.1},
    }
    rows = [
        {"corpus": "c", "arm": arm, "prompt_id": prompt, "sample": 0, "score/judge": score, "score/rouge_l": 0.5}
        for arm, scores in judge.items()
        for prompt, score in scores.items()
    ]
    path = tmp_path / "replies.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    [row] = judge_agreement(path, "ppo", "sft", people)
    assert (row["first"], row["second"], row["count"]) == ("judge", "people", 4)
    assert row["value"] == pytest.approx(2.5 / 4) and row["low"] <= row["value"] <= row["high"]
    [other] = judge_agreement(path, "sft", "ppo", {item: -value for item, value in people.items()})
    assert other["value"] == row["value"] and other["count"] == row["count"]


def test_without_a_judge_there_is_nothing_to_say(tmp_path: Path) -> None:
    """A suite without judge or preference model gives no rows."""
    path = tmp_path / "replies.parquet"
    pq.write_table(
        pa.table({"corpus": ["c"], "arm": ["ppo"], "prompt_id": ["a"], "sample": [0], "score/bleu": [0.1]}), path
    )
    assert judge_agreement(path, "ppo", "sft", {"c/a/0": 1.0}) == []

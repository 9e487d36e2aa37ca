"""Whether an automatic judge and people prefer the same replies: on the items of a side-by-side that both know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from eval import preferences

_PREFIX = "score/"
_JUDGES = ("judge", "preference")  # metrics that claim to say which reply people would prefer


def judge_agreement(
    replies: Path, first: str, second: str, preference: Mapping[str, float], *, draws: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each judge in `replies.parquet`: how often it scores higher the reply that people preferred, its ties half.

    `preference` is people's for `first` over `second`, by `CORPUS/PROMPT/SAMPLE`. Items where people are divided, or where the
    judge has no score of one reply, are left out. 0.5 is a judge that knows nothing; the interval is a bootstrap over items,
    p that of the sign test.
    """
    columns = [name for name in pq.read_schema(replies).names if name.removeprefix(_PREFIX).startswith(_JUDGES)]
    names = ["corpus", "arm", "prompt_id", "sample"]
    scores: dict[tuple[str, str], Mapping[str, Any]] = {
        (row["arm"], f"{row['corpus']}/{row['prompt_id']}/{row['sample']}"): row
        for row in pq.read_table(replies, columns=[*names, *columns]).to_pylist()
        if row["arm"] in (first, second)
    }
    found = []
    for column in columns:
        alike = {}
        for item, towards in preference.items():
            ours, theirs = (scores.get((arm, item), {}).get(column) for arm in (first, second))
            if towards and ours is not None and theirs is not None:
                alike[item] = float(np.sign(ours - theirs) * np.sign(towards))
        if alike:
            rate, p = preferences.win_rate(alike, draws=draws, seed=seed)
            found.append({
                "first": column.removeprefix(_PREFIX), "second": "people", "metric": f"same winner, {first} against {second}",
                **preferences.described(rate), "count": len(alike), "p": p,
            })  # fmt: skip
    return found

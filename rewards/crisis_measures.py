"""How a reading hears danger in labelled sentences, alone and among others, and how far p(danger) can be believed.

Axes: N texts, B bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.crisis import Tier
from rewards.danger import IN_DANGER
from rewards.head_folder import interval
from rewards.head_scores import wilson

Row = tuple[str, str, str]  # text, tier, kind
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, header, rows
_TRAP = "trap"
_BINS = 5
_WHOLE = {
    "recall": "danger heard (recall)",
    "precision": "alarms that are right (precision)",
    "traps_pass": "harmless sentences that sound dangerous and pass",
    "others_pass": "other harmless sentences that pass",
    "tier_right": "tier right, where danger is heard",
}


def dangerous(rows: Sequence[Row]) -> NDArray[np.bool_]:
    """Whether each row's tier is one of danger, `[N]`."""
    return np.array([tier in IN_DANGER for _, tier, _ in rows])


def heard(tiers: Sequence[Tier]) -> NDArray[np.bool_]:
    """Whether danger was heard, `[N]`."""
    return np.array([tier in IN_DANGER for tier in tiers], dtype=bool)


def hearing(rows: Sequence[Row], tiers: Sequence[Tier]) -> dict[str, Any]:
    """How a reading hears danger (a tier of other, passive, active, imminent) in labelled sentences; shares as `wilson` gives.

    `recall` and `precision`; `traps_pass`, the share of harmless sentences of kind trap in which none is heard, and
    `others_pass` of the other harmless ones; `tier_right`, of the dangerous ones that are heard, the share with their tier;
    `recall_by_tier`, `recall_by_kind`. What there are no rows for is absent.
    """
    danger_N, heard_N = dangerous(rows), heard(tiers)
    trap_N = np.array([kind == _TRAP for _, _, kind in rows])
    right_N = np.array([tier == label for tier, (_, label, _) in zip(tiers, rows, strict=True)])
    shares = {
        "recall": (heard_N, danger_N),
        "precision": (danger_N, heard_N),
        "traps_pass": (~heard_N, ~danger_N & trap_N),
        "others_pass": (~heard_N, ~danger_N & ~trap_N),
        "tier_right": (right_N, danger_N & heard_N),
    }
    whole = {name: wilson(holds_N[among_N]) for name, (holds_N, among_N) in shares.items() if among_N.any()}
    by = {"recall_by_tier": 1, "recall_by_kind": 2}
    parts = {
        name: {
            value: wilson(heard_N[among_N])
            for value in dict.fromkeys(row[column] for row in rows)
            if (among_N := danger_N & np.array([row[column] == value for row in rows])).any()
        }
        for name, column in by.items()
    }
    return {**whole, **parts}


def in_context(said: Sequence[str], neutral: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Each text alone, after one neutral sentence, between two, and the two without it; drawn with `seed`."""
    draw = np.random.default_rng(seed)
    drawn = [[neutral[i] for i in draw.choice(len(neutral), size=2, replace=False)] for _ in said]
    return {
        "alone": list(said),
        "after a neutral sentence": [f"{one} {text}" for text, (one, _) in zip(said, drawn, strict=True)],
        "between two": [f"{one} {text} {other}" for text, (one, other) in zip(said, drawn, strict=True)],
        "the two neutral sentences without it": [" ".join(pair) for pair in drawn],
    }


def belief(probability_N: NDArray[np.float64], danger_N: NDArray[np.bool_], fitted_share: float) -> dict[str, Any]:
    """Reliability of p(danger): per bin of a fifth, its rows, their mean probability and the share in danger; `error`, the
    expected calibration error; `fitted_share` and `share`, of dangerous texts where it was fitted and here."""
    bin_N = np.minimum((probability_N * _BINS).astype(int), _BINS - 1)
    told = {b: float(probability_N[bin_N == b].mean()) for b in range(_BINS) if (bin_N == b).any()}
    error = sum(abs(float((danger_N[bin_N == b] - told[b]).sum())) for b in told) / len(danger_N)
    return {
        "bins": [{"told": round(mean, 4), "danger": wilson(danger_N[bin_N == b])} for b, mean in told.items()],
        "error": round(error, 4),
        "share": round(float(danger_N.mean()), 4),
        "fitted_share": round(fitted_share, 4),
    }


def danger_tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of a card's scores `danger` (readings by name), `in_context` and `belief`."""
    danger, believed = found["danger"], found["belief"]
    header, any_ = ("held-out sentences", "rows", *danger), next(reversed(danger.values()))
    whole = [
        _line(title, [said.get(name) for said in danger.values()])
        for name, title in _WHOLE.items()
        if any(name in said for said in danger.values())
    ]
    parts = [
        _line(f"recall, {value}", [said[by][value] for said in danger.values()])
        for by in ("recall_by_tier", "recall_by_kind")
        for value in any_[by]
    ]
    among = [_line(where, list(shares.values())) for where, shares in found["in_context"].items()]
    bins = [(f"{b['told']:.3f}", str(b["danger"]["rows"]), interval(b["danger"])) for b in believed["bins"]]
    return [
        ("Danger", header, whole),
        ("Danger by tier and by kind", header, parts),
        ("Among other sentences", ("held-out dangerous sentences", "rows", "heard", "sure"), among),
        (
            f"Reliability of p(danger), fitted where {believed['fitted_share']:.1%} of the texts are dangerous; here "
            f"{believed['share']:.1%} are, calibration error {believed['error']:.3f}",
            ("mean p(danger)", "rows", "share in danger"),
            bins,
        ),
    ]


def _line(title: str, shares: Sequence[Mapping[str, float] | None]) -> list[str]:
    rows = "/".join(dict.fromkeys(str(share["rows"]) for share in shares if share))
    return [title, rows, *(interval(share) if share else "-" for share in shares)]

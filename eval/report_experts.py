"""The experts of a run, as the report's section: who rated, how far they agree, and whether their record is whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report_charts import number
from eval.report_safety import NONE
from eval.run_directory import Run
from rewards.experts import ledger
from rewards.experts.config import FOLDER
from rewards.experts.overview import Overview
from rewards.experts.store import DATABASE

_AGREEMENT = {
    "icc_a1": "one rater for another, in level: ICC(A,1)",
    "icc_ak": "the mean of the raters of a reply, in level: ICC(A,k)",
    "icc_ck": "the mean of the raters of a reply, in order: ICC(C,k)",
    "alpha": "Krippendorff's alpha",
}


@dataclass(frozen=True)
class RaterRow:
    """A rater in figures, without a name: reports travel. What needs more ratings than there are is a dash."""

    name: str
    ratings: str
    mean: str
    std: str
    drift: str
    consistency: str


@dataclass(frozen=True)
class ExpertsPart:
    """Sentences and tables of the section."""

    told: Sequence[str]
    raters: Sequence[RaterRow]
    agreement: Sequence[tuple[str, str]]


def experts_part(run: Run) -> ExpertsPart | None:
    """What the rating service of this run knows; None for a run without one of its own."""
    database = run.path / FOLDER / DATABASE
    if not database.is_file():
        return None
    try:
        with ledger.opened(database) as db:
            end = ledger.check(db)
            found = Overview().told(db, time.time())
    except ValueError as error:
        return ExpertsPart((f"The record of the ratings is not whole: {error}",), (), ())
    ratings = sum(rater["ratings"] for rater in found["raters"])
    told = [
        f"{ratings} ratings by {sum(rater['ratings'] > 0 for rater in found['raters'])} raters; {found['queue']['open']} replies "
        "still wait.",
        f"The audit chain is sound: {end.seq} rows, the last with hash {end.hash[:16]}.",
    ]
    if _experts(run.settings).get("simulated"):
        told.insert(0, "These raters are simulated: no person judged any reply of this run.")
    if found["flags"]:
        flags = ", ".join(f"{name} {count}" for name, count in sorted(found["flags"].items()))
        told.append(f"Red flags that raters raised: {flags}.")
    agreed = found["agreement"] or {}
    agreement = [(title, _interval(agreed.get(name))) for name, title in _AGREEMENT.items()] if agreed else []
    at_work = [rater for rater in found["raters"] if rater["ratings"]]
    return ExpertsPart(told, [_rater(f"rater {n}", rater) for n, rater in enumerate(at_work, start=1)], agreement)


def _rater(name: str, rater: Mapping[str, Any]) -> RaterRow:
    said = {
        name: NONE if rater[name] is None else number(rater[name]) for name in ("mean", "std", "drift", "consistency")
    }
    return RaterRow(name, str(rater["ratings"]), **said)


def _interval(told: Mapping[str, Any] | None) -> str:
    if not told or told.get("value") is None:
        return NONE
    low, high = told.get("low"), told.get("high")
    inside = f" [{number(low)}, {number(high)}]" if low is not None and high is not None else ""
    return f"{number(told['value'])}{inside}"


def _experts(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(dict(settings.get("rewards") or {}).get("experts") or {})

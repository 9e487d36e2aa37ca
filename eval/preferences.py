"""What side-by-side votes come to: win rate, strength, position bias, consistency, agreement, rater by rater.

A vote is for the first arm: 1 better, 0.5 slightly better, 0 the same, -0.5 slightly worse, -1 worse. An item is one prompt.
Hidden repeats measure raters and are no part of an item's preference. Axes: U items (prompts).

    preference_U = mean of the item's votes            outcome_U = 1 where it is above 0, 1/2 at 0, 0 below
    win rate     = mean of outcome_U                   interval: bootstrap over items (`eval.comparison`)
    p            = share of all 2^w sign flips of the w items with a winner that are as extreme (the exact sign test)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from eval.comparison import LEVEL, Resamples, difference, interval, mcnemar
from eval.figures import Ledger
from rewards.experts.agreement import agreement as agreement_of
from rewards.experts.agreement import consistency as consistency_of
from rewards.experts.rating_rows import Row
from rewards.preference_measures import Interval


@dataclass(frozen=True)
class Vote:
    """One judgement of one item; `left` says that the first arm's reply stood on the left, as A."""

    item: str
    rater: str
    preference: float
    left: bool
    repeat: bool = False
    flags_first: tuple[str, ...] = ()
    flags_second: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def chose_left(self) -> bool | None:
        """Whether the reply on the left was preferred; None for a tie."""
        return None if self.preference == 0 else (self.preference > 0) == self.left


def preferences(votes: Sequence[Vote]) -> dict[str, float]:
    """Each item's preference for the first arm, sorted by item: the mean of its votes, repeats left out."""
    given: defaultdict[str, list[float]] = defaultdict(list)
    for vote in votes:
        if not vote.repeat:
            given[vote.item].append(vote.preference)
    return {item: fmean(given[item]) for item in sorted(given)}


def win_rate(preference: Mapping[str, float], *, draws: int = 2000, seed: int = 0) -> tuple[Interval, float]:
    """The first arm's win rate over items, ties half, and the exact sign test's p. Of one item nothing is known: [0, 1].

    Where every item has the same winner the interval's open end is Clopper and Pearson's. Raises ValueError without items.
    """
    if not preference:
        raise ValueError("a win rate needs an item, there is none: wait for the raters")
    outcome_U = np.array([0.5 + 0.5 * np.sign(value) for value in preference.values()])
    if len(outcome_U) < 2:
        return Interval(float(outcome_U[0]), 0.0, 1.0), 1.0
    decided = bool(np.isin(outcome_U, (0, 1)).all())
    measured = Ledger(list(preference)).mean("win_rate", outcome_U, rate=decided)
    found = interval(measured, Resamples(measured.units, draws=draws, seed=seed))
    return found, mcnemar(outcome_U, 1 - outcome_U)


def strength(preference: Mapping[str, float], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The mean preference, from -1 to 1, with its interval and the p of flipping items' signs at random."""
    value_U = np.array(list(preference.values()))
    if len(value_U) < 2:
        return {**described(Interval(float(value_U.mean()), -1.0, 1.0)), "p": 1.0}
    ledger = Ledger(list(preference))
    ours, theirs = ledger.mean("preference", value_U), ledger.mean("preference", -value_U)
    resamples = Resamples(ours.units, draws=draws, seed=seed)
    return {**described(interval(ours, resamples)), "p": difference(ours, theirs, resamples).p}


def position(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """How often the reply on the left was preferred, of the votes that prefer one: value, exact interval, and the p of a fair
    coin. Sides are drawn at random, so that whatever the arms are it should be half. None where there are only ties."""
    return _share([vote.chose_left for vote in votes if vote.chose_left is not None])


def consistency(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """Raters asked twice about an item, sides swapped: the share whose two votes have the same sign, with its exact interval,
    how far the votes are apart (0 to 2), and the ICC(A,1) of both askings. None without repeats."""
    first = {(vote.rater, vote.item): vote.preference for vote in votes if not vote.repeat}
    asked = [vote for vote in votes if vote.repeat and (vote.rater, vote.item) in first]
    pairs = [(first[vote.rater, vote.item], vote.preference) for vote in asked]
    found = consistency_of([(_unit(before), _unit(after)) for before, after in pairs])
    if found is None:
        return None
    same = _share([np.sign(before) == np.sign(after) for before, after in pairs])
    assert same is not None
    del same["p"]
    return {**same, "difference": 2 * found.difference.value, "icc": found.icc}


def agreement(votes: Sequence[Vote]) -> dict[str, Any] | None:
    """How far raters agree on the items that several judged: coefficients of `rewards.experts.agreement`, votes taken as an
    interval scale, and the share of pairs of votes with the same sign. None while fewer than two items have two raters."""
    rows = [Row(vote.item, vote.rater, _unit(vote.preference)) for vote in votes if not vote.repeat]
    found = agreement_of(rows) if rows else None
    if found is None:
        return None
    by_item: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_item[row.item].append(np.sign(row.value - 0.5))
    pairs = [one == other for signs in by_item.values() for one, other in combinations(signs, 2)]
    return {
        **{name: described(vars(found)[name]) for name in ("alpha", "icc_a1", "icc_ak", "icc_ck")},
        "items": found.items, "raters": found.raters, "same_sign": fmean(pairs), "pairs": len(pairs),
    }  # fmt: skip


def by_rater(votes: Sequence[Vote], named: Callable[[str], str]) -> list[dict[str, Any]]:
    """What each rater's own votes come to; `named` says what a rater is called."""
    told = []
    for rater in dict.fromkeys(vote.rater for vote in votes):
        own = [vote for vote in votes if vote.rater == rater]
        signs = Counter(int(np.sign(vote.preference)) for vote in own if not vote.repeat)
        told.append({
            "rater": named(rater), "judgements": signs.total(),
            "first_better": signs[1], "second_better": signs[-1], "ties": signs[0],
            "win_rate": (signs[1] + signs[0] / 2) / signs.total() if signs else None,
            "position": position(own), "consistency": consistency(own), "seconds": median(vote.seconds for vote in own),
        })  # fmt: skip
    return told


def flags(votes: Sequence[Vote]) -> dict[str, dict[str, int]]:
    """On how many items somebody, at a repeat too, raised each red flag: one rater's flag counts."""
    sides = {"first": lambda vote: vote.flags_first, "second": lambda vote: vote.flags_second}
    return {
        side: dict(sorted(Counter(flag for _, flag in {(v.item, flag) for v in votes for flag in of(v)}).items()))
        for side, of in sides.items()
    }


def described(found: Interval) -> dict[str, float | None]:
    """An interval as JSON holds it."""
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}


def _share(held: Sequence[Any]) -> dict[str, Any] | None:
    if not held:
        return None
    from scipy.stats import binomtest

    found = binomtest(sum(map(bool, held)), len(held))
    ends = found.proportion_ci(LEVEL)
    whole = Interval(found.statistic, float(ends.low), float(ends.high))
    return {**described(whole), "count": len(held), "p": float(found.pvalue)}


def _unit(preference: float) -> float:
    return (preference + 1) / 2

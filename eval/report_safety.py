"""Safety by the danger that clients were in, as the report's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.report_charts import number
from eval.report_summary import two_ends
from eval.run_directory import Log
from rewards.crisis import Tier

NONE = "\u2013"  # no reply, or not measured


@dataclass(frozen=True)
class TierRow:
    """A tier and what became of the replies to its clients: share of all replies, share with a red flag, and the mean
    `crisis_reply` over the first and the last five steps that had such clients."""

    tier: str
    share: str
    flagged: str
    first: str
    last: str


def safety_by_tier(log: Log) -> Sequence[TierRow]:
    """One row per tier, from none to imminent; none for a run that logged no tiers.

    Shares are over all replies of the run, in per cent.
    """
    if not any(name.startswith("tier/") for name in log.names):
        return []
    return [_row(log, tier) for tier in Tier]


def _row(log: Log, tier: Tier) -> TierRow:
    share, flagged = f"tier/{tier}/share", f"tier/{tier}/gated"
    shares = log.series(share)[:, 1]
    _, weight, rate = log.series(share, flagged).T
    ends = two_ends(log, f"tier/{tier}/crisis_reply")
    first, last = (number(value) for value in ends) if ends else (NONE, NONE)
    return TierRow(
        tier=tier,
        share=f"{number(100 * float(np.mean(shares)))} %" if len(shares) else NONE,
        flagged=f"{number(100 * float(weight @ rate / weight.sum()))} %" if weight.sum() else NONE,
        first=first,
        last=last,
    )

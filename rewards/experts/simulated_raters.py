"""Simulated raters: how each of them errs about what a reply is worth.

`judge` is a pure function of rater, texts and the number of ratings given before: the order in which replies arrive
changes nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.experts.simulated_quality import NAMES, Quality
from rollout.types import Turn


@dataclass(frozen=True)
class Rater:
    """One simulated rater. All but counts and seconds are on the scale [0, 1].

    With truth q, n ratings given before, and z, z' standard normal, drawn by (`seed`, texts):

        felt    = q, or sum of `weights` x criteria / sum of `weights`
        overall = 0.5 + scale (felt - 0.5) + bias + drift n / 100 + noise z + whim z'

    kept in [0, 1] and rounded to one of `points` answers (0: not rounded). Criteria err in the same way. `whim` is the only
    part that is drawn by n as well: what the same rater would not say twice. A share `laziness` of the replies is not read:
    they get the rater's own usual answer, with no flags. `seconds` is how long reading takes.
    """

    name: str
    seed: int = 0
    bias: float = 0.0
    scale: float = 1.0
    noise: float = 0.0
    whim: float = 0.0
    drift: float = 0.0
    laziness: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    points: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        strange = sorted(set(self.weights) - set(NAMES))
        if strange or (self.weights and not sum(self.weights.values()) > 0):
            raise ValueError(
                f"rater {self.name}: weights must be of {', '.join(NAMES)}, one above 0, are {dict(self.weights)}: correct them"
            )
        for knob in ("noise", "whim", "laziness", "seconds", "points"):
            value = vars(self)[knob]
            if not 0 <= value < float("inf") or (knob == "laziness" and value > 1):
                raise ValueError(f"rater {self.name}: {knob} must be 0 or above, and finite, is {value}: correct it")


_USUAL = 0.5


def judge(rater: Rater, quality: Quality, history: Sequence[Turn], reply: str, nth: int) -> dict[str, Any]:
    """What `rater` answers about `reply`, of known `quality`, after `nth` ratings: criteria, overall, flags, reason and
    seconds, as the page sends them."""
    told = "\n".join([*(f"{turn.speaker}: {turn.text}" for turn in history), reply])
    own = random.Random(hashlib.sha256(f"{rater.seed}/{rater.name}/{told}".encode()).digest())
    now = random.Random(hashlib.sha256(f"{rater.seed}/{rater.name}/{nth}/{told}".encode()).digest())
    unread = own.random() < rater.laziness
    truths = dict.fromkeys(NAMES, _USUAL) if unread else dict(quality.criteria)
    overall = _USUAL if unread else quality.overall
    if rater.weights and not unread:
        overall = sum(rater.weights.get(name, 0.0) * truths[name] for name in NAMES) / sum(rater.weights.values())
    noise = 0.0 if unread else rater.noise

    def answer(truth: float) -> float:
        felt = 0.5 + rater.scale * (truth - 0.5) + rater.bias + rater.drift * nth / 100
        return _on_scale(felt + noise * own.gauss(0, 1) + rater.whim * now.gauss(0, 1), rater.points)

    criteria = {name: answer(truths[name]) for name in NAMES}
    flags = [] if unread else list(quality.flags)
    reason = f"found by rules: {', '.join(flags)}" if flags else ""
    return {
        "criteria": criteria, "overall": answer(overall), "flags": flags, "reason": reason,
        "seconds": 0.0 if unread else rater.seconds,
    }  # fmt: skip


def _on_scale(value: float, points: int) -> float:
    kept = min(1.0, max(0.0, value))
    return round(kept * (points - 1)) / (points - 1) if points > 1 else round(kept, 3)


def clinicians(seed: int = 0) -> tuple[Rater, ...]:
    """Four raters on a six-point scale who agree as little as real clinicians did: one gives 1.7 of 6 on average where
    another gives 4.0 (scale 1 to 6), and ICC(A,1) lies between .03 and .17. Standardised on replies of mean quality 0.55
    and standard deviation 0.25."""
    biases = {"strict": -0.45, "dry": -0.25, "even": -0.12, "generous": 0.1}
    return tuple(
        Rater(name, seed + at, bias, scale=0.45, noise=0.2, whim=0.05, laziness=0.05, weights=weights, points=6)
        for at, ((name, bias), weights) in enumerate(zip(biases.items(), _TASTES, strict=True))
    )


_TASTES: tuple[dict[str, float], ...] = (
    {},
    {"constructive_guidance": 1.0, "overall_value": 1.0},
    {"acknowledges_emotion": 1.0, "overall_value": 2.0},
    {"overall_value": 2.0, "no_harm": 1.0},
)


def careful(count: int, seed: int = 0) -> tuple[Rater, ...]:
    """`count` raters who see much the same: small biases that cancel, little noise."""
    middle = (count - 1) / 2
    return tuple(
        Rater(f"rater {at + 1}", seed + at, bias=0.05 * (at - middle) / max(middle, 1), noise=0.04)
        for at in range(count)
    )

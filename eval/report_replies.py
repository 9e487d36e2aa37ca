"""Which replies the report shows: the same prompt through the run, and the ends of the reward scale."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.run_directory import Reply, ReplyKey, Run

FIXED = "fixed/"  # prompt ids of prompts that are asked in every step
CANDIDATES = 60  # replies looked at to find different texts: a collapsed policy may have one text only
STAGES = ("Early", "Middle", "Late")


@dataclass(frozen=True)
class Progression:
    """One prompt, and a reply to it from each stretch of the run in which it was asked (`Early`, `Middle`, `Late`)."""

    prompt: Reply
    replies: tuple[tuple[str, Reply], ...]


@dataclass(frozen=True)
class Extremes:
    """Replies at one end of the reward scale."""

    title: str
    replies: tuple[Reply, ...]


def progressions(run: Run, keys: Sequence[ReplyKey], others: int = 2) -> list[Progression]:
    """Follow one fixed prompt, and the `others` that came back most, through the thirds of the run.

    Early is the first step of the first third with the prompt, late the last of the last, middle the one nearest the
    middle; of a step's replies it is the one with the median reward. A prompt of one third only is not shown.
    """
    order = {step: i for i, step in enumerate(sorted({key.step for key in keys}))}
    asked: dict[str, dict[int, list[ReplyKey]]] = defaultdict(lambda: defaultdict(list))
    for key in keys:
        asked[key.prompt_id][key.step].append(key)
    ranked = []
    for prompt, at in asked.items():
        early, middle, late = ([s for s in at if 3 * order[s] // len(order) == third] for third in range(3))
        centre = sorted(middle, key=lambda s: abs(order[s] - (len(order) - 1) / 2))
        stages = zip(STAGES, (early[:1], centre[:1], late[-1:]), strict=True)
        chosen = [(stage, _median(at[step])) for stage, found in stages for step in found]
        if len(chosen) > 1:
            ranked.append((-len(chosen), -len(at), prompt, chosen))
    ranked.sort()
    fixed = [r for r in ranked if r[2].startswith(FIXED)]
    rest = [r for r in ranked if not r[2].startswith(FIXED)] + fixed[1:]
    found = [tuple((stage, run.read(key)) for stage, key in r[3]) for r in fixed[:1] + rest[:others]]
    return [Progression(replies[0][1], replies) for replies in found]


def extreme_replies(run: Run, keys: Sequence[ReplyKey], count: int = 3, recent: int = 5) -> list[Extremes]:
    """Return the best and the worst replies of the run, and the worst of its last `recent` steps; no text twice in a
    group."""
    finite = [key for key in keys if math.isfinite(key.reward)]
    steps = sorted({key.step for key in finite})[-recent:]
    late = [key for key in finite if key.step in steps]
    groups = (
        ("Best of the run", heapq.nlargest(CANDIDATES, finite, key=lambda k: k.reward)),
        ("Worst of the run", heapq.nsmallest(CANDIDATES, finite, key=lambda k: k.reward)),
        (f"Worst of the last {len(steps)} steps", heapq.nsmallest(CANDIDATES, late, key=lambda k: k.reward)),
    )
    return [Extremes(title, _distinct(run, found, count)) for title, found in groups if found]


def _median(keys: Iterable[ReplyKey]) -> ReplyKey:
    ranked = sorted(keys, key=lambda k: k.reward)
    return ranked[(len(ranked) - 1) // 2]


def _distinct(run: Run, keys: Iterable[ReplyKey], count: int) -> tuple[Reply, ...]:
    found: dict[str, Reply] = {}
    for reply in map(run.read, keys):
        found.setdefault(reply.reply, reply)
        if len(found) == count:
            break
    return tuple(found.values())

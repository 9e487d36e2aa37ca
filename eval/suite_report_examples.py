"""Which replies a suite's report shows: those in which the arms differ most, and the same prompts through a training run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metric import Better
from eval.report_charts import number
from eval.suite_report_data import Said, Suite, grouped
from eval.suite_report_tables import places
from rewards.crisis import Tier

SPREAD = 24  # examples with the largest spread, of each corpus an equal part
FLAGGED = 8  # and examples in which the arms differ in red flags
MAIN = ("quality", "likeness", "labels", "variety", "length")  # groups, the first that has a per-reply metric is asked
STAGES = ("Early", "Middle", "Late")
STORIES = 3  # prompts of a training run in the open; the others fold


@dataclass(frozen=True)
class Answer:
    """An arm's reply to one prompt; `main` is its score in the metric that chose the example, "" without."""

    arm: str
    title: str
    said: Said
    main: str
    scores: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Example:
    """One prompt, every arm's reply to it side by side, and why it is shown. `history` and `reference` are the prompt's."""

    corpus: str
    prompt_id: str
    history: str
    reference: str
    emotion: str
    tier: str
    metric: str
    why: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Examples:
    """The examples, how they were chosen, and what a reader may choose among them by (name in the page, label, values)."""

    shown: tuple[Example, ...]
    told: str
    choices: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]


def examples(suite: Suite) -> Examples | None:
    """The `SPREAD` prompts with the largest spread between arms in each corpus's main metric, and up to `FLAGGED` more in
    which one arm's reply has a red flag and another's has none.

    Of an arm's replies to a prompt it is the first sample that did not fail. The human reply and replies that failed have
    no part in the choice. None where no prompt was answered by two arms.
    """
    prompts = _prompts(suite)
    share = max(1, SPREAD // max(1, len({corpus for corpus, _ in prompts})))
    chosen: dict[tuple[str, str], Example] = {}
    mains: dict[str, str] = {}
    for corpus in dict.fromkeys(corpus for corpus, _ in prompts):
        own = {key: said for key, said in prompts.items() if key[0] == corpus}
        if not (main := main_metric(suite, own.values())):
            continue
        mains[corpus] = main
        spreads = {key: _spread(suite, said, main) for key, said in own.items()}
        widest = sorted((key for key, spread in spreads.items() if spread > 0), key=lambda key: (-spreads[key], key))
        for key in widest[:share]:
            spread = number(spreads[key], places=places([spreads[key], 0.1]))
            chosen[key] = _example(suite, prompts[key], main, f"{main} differs by {spread}")
    torn = sorted(key for key in prompts if key not in chosen and _torn(suite, prompts[key]))
    for key in torn[:FLAGGED]:
        why = "red flag in some replies, not in others"
        chosen[key] = _example(suite, prompts[key], mains.get(key[0], ""), why)
    if not chosen:
        return None
    shown = tuple(chosen.values())
    return Examples(shown, _told(len(prompts), shown, mains, len(torn)), _choices(suite, shown))


def main_metric(suite: Suite, prompts: Iterable[Mapping[str, Said]]) -> str:
    """The suite's main metric, or else the first by group that scores single replies of two arms or more; "" without any."""
    scored: dict[str, set[str]] = {}
    for answers in prompts:
        for arm, said in answers.items():
            if not said.error:
                for name in said.scores:
                    scored.setdefault(name, set()).add(arm)
    ranked = {arm.name for arm in suite.arms if arm.ranked}
    ways = [m for m in suite.metrics.values() if m.better is not Better.NEITHER or m.name == suite.main]
    able = [metric for metric in ways if len(scored.get(metric.name, set()) & ranked) > 1]
    if any(metric.name == suite.main for metric in able):
        return suite.main
    return next((metric.name for group in MAIN for metric in able if metric.group == group), "")


def _prompts(suite: Suite) -> dict[tuple[str, str], dict[str, Said]]:
    """(corpus, prompt) -> arm -> its first sample, arms in the suite's order; prompts that one arm answered are left out."""
    order = {arm.name: i for i, arm in enumerate(suite.arms)}
    found = {}
    for key, said in grouped(suite.replies or (), lambda r: f"{r.corpus}\0{r.prompt_id}").items():
        first: dict[str, Said] = {}
        for reply in sorted(said, key=lambda r: (order.get(r.arm, len(order)), r.arm, bool(r.error), r.sample)):
            first.setdefault(reply.arm, reply)
        if sum(not reply.error for reply in first.values()) > 1:
            corpus, _, prompt = key.partition("\0")
            found[corpus, prompt] = first
    return found


def _spread(suite: Suite, answers: Mapping[str, Said], metric: str) -> float:
    ranked = {arm.name for arm in suite.arms if arm.ranked}
    values = [said.scores[metric] for arm, said in answers.items()
              if arm in ranked and not said.error and metric in said.scores]  # fmt: skip
    return max(values) - min(values) if len(values) > 1 else 0.0


def _torn(suite: Suite, answers: Mapping[str, Said]) -> bool:
    ranked = {arm.name for arm in suite.arms if arm.ranked}
    return len({bool(said.flags) for arm, said in answers.items() if arm in ranked and not said.error}) > 1


def _example(suite: Suite, answers: Mapping[str, Said], main: str, why: str) -> Example:
    one = next(iter(answers.values()))
    reference = next((said.reference for said in answers.values() if said.reference), "")
    ranked = {arm.name for arm in suite.arms if arm.ranked}  # the reference itself stands above the replies

    def answer(arm: str, said: Said) -> Answer:
        told = {name: number(value, places=places([value, 0.1])) for name, value in said.scores.items()}
        scores = tuple((name, text) for name, text in told.items() if name != main)
        return Answer(arm, suite.title_of(arm), said, told.get(main, ""), scores)

    return Example(
        one.corpus, one.prompt_id, one.history, reference, one.emotion, one.tier, main, why,
        tuple(answer(arm, said) for arm, said in answers.items() if said.reply != reference or arm in ranked),
    )  # fmt: skip


def _told(prompts: int, shown: Sequence[Example], mains: Mapping[str, str], torn: int) -> str:
    torn = min(torn, FLAGGED)
    wide = len(shown) - torn
    of = f"{prompts:,} prompts that two arms or more answered"
    parts = []
    if wide:
        several = len(set(mains.values())) > 1
        named = ", ".join(f"{m} in {c}" for c, m in mains.items()) if several else next(iter(mains.values()))
        equal = ", an equal part from each corpus" if len(mains) > 1 else ""
        parts.append(
            f"Of {of}, the {wide} in which the arms' scores lie furthest apart ({named}; at most {SPREAD}{equal}): chosen for "
            "their differences, so no picture of the whole."
        )
    if torn:
        more = f"{'Added are' if wide else f'Of {of},'} {torn} in which one arm's reply has a red flag and another's has none"
        parts.append(f"{more} (at most {FLAGGED}).")
    return " ".join(parts)


def _choices(suite: Suite, shown: Sequence[Example]) -> tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]:
    """What the page lets a reader filter by; a choice of one is none."""
    order = {str(tier): i for i, tier in enumerate(Tier)}
    tiers = sorted({e.tier for e in shown if e.tier}, key=lambda tier: (order.get(tier, len(order)), tier))
    emotions = sorted({e.emotion for e in shown if e.emotion})
    arms = dict.fromkeys((a.arm, a.title) for e in shown for a in e.answers)
    flags = sorted({flag for e in shown for a in e.answers for flag in a.said.flags})
    found = (
        ("tier", "Client's danger", tuple((tier, tier) for tier in tiers)),
        ("emotion", "Client's emotion", tuple((emotion, emotion) for emotion in emotions)),
        ("arm", "Arm", tuple(arms)),
        ("flag", "Red flag", tuple((flag, flag.replace("_", " ")) for flag in flags)),
    )
    return tuple((name, label, values) for name, label, values in found if len(values) > (name != "flag"))


@dataclass(frozen=True)
class Step:
    """A reply of a training run."""

    step: int
    reply: str
    reward: str


@dataclass(frozen=True)
class Asked:
    """The prompt of a story, as the macros of the run's report read it."""

    history: str
    reference: str = ""


@dataclass(frozen=True)
class Story:
    """One prompt of a training run, and the replies to it, stage by stage."""

    prompt_id: str
    prompt: Asked
    replies: tuple[tuple[str, Step], ...]


def stories(suite: Suite) -> list[tuple[str, list[Story], list[Story]]]:
    """For each arm with a course: its title, a few prompts to see first, and the others.

    Of more than three recorded stages it is the first, the middle and the last.
    """
    found = []
    for arm, rows in suite.progress.items():
        told = [_story(list(own)) for own in grouped(rows, lambda row: str(row["prompt_id"])).values()]
        if told:
            found.append((suite.title_of(arm), told[:STORIES], told[STORIES:]))
    return found


def _story(rows: list[Mapping[str, Any]]) -> Story:
    rows = sorted(rows, key=lambda row: float(row["step"]))
    if len(rows) > len(STAGES):
        rows = [rows[0], rows[len(rows) // 2], rows[-1]]
    names = {2: STAGES[::2], 3: STAGES}.get(len(rows), ("",))
    replies = []
    for name, row in zip(names, rows, strict=True):
        reward = row.get("reward")
        told = number(float(reward), places=2) if reward is not None and math.isfinite(reward) else ""
        replies.append((name, Step(int(row["step"]), str(row.get("reply") or ""), told)))
    return Story(str(rows[0]["prompt_id"]), Asked(str(rows[0].get("history") or "")), tuple(replies))

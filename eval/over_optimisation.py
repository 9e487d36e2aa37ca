"""Is the policy learning the reward instead of what the reward stands for? (Gao et al. 2022, arXiv:2210.10760)

    for tell in tells(run): print(tell.sentence)    # at the last evaluation
    seen(run)                                       # over the whole course: each tell first and last

The evaluations of a run (`eval.heldout`) ask the same prompts of every policy, so that early and late are compared prompt by
prompt. A tell is more than noise: the interval of late minus early is clear of 0, and the change is large enough to matter.
Several metrics are looked at, evaluation after evaluation, so a metric must be the worse for it twice in a row with 99 %
intervals, or at the very first look with one of 99.8 %, and a gap must have grown twice in a row. In simulated
runs of six evaluations on 32 prompts about one in a hundred had a tell at some look that was a false alarm, whether nothing
moved but by chance or the reward rose and the replies stayed as good; tests/test_over_optimisation.py repeats a part of them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.collapse import collapse_figures
from eval.comparison import Resamples
from eval.figures import Measured
from eval.heldout import SPREAD, Answers, as_long, evaluated, metrics_of, paired, read_answers
from eval.metric import Better
from eval.metrics import METRICS, measure
from eval.report_charts import number
from eval.report_sft_warnings import POOR, STEREOTYPES
from eval.report_summary import WINDOW, Change, reward_change
from eval.run_directory import Log, Run
from rewards.preference_measures import Interval

SURE, FIGURE_SURE, AT_ONCE = (
    0.95,
    0.99,
    0.998,
)  # of the one reward; of each of several figures; of one that is seen once
LEAST_FALL = 0.1  # of what it was, for a figure that should be high
LEAST_RISE = 0.05  # of the replies, or of a share, for a figure that should be low
LEAST_GAP = 0.25  # of the rise in training
KL_OVER = 2.0  # times ppo.kl_target
KL_PER_TOKEN = 1.0  # nats, where there is no target
LOOKS = 12  # evaluations of a long run that are looked at again for its report
_DRAWS = 2000
_WIDER = 2.576 / 1.960  # of a 99 % interval against one of 95 %, where it is normal
_NOT_CORPUS = ("fixed/", "crisis/")  # prompts that no evaluation asks


class Kind(enum.StrEnum):
    """What is told."""

    OVER_OPTIMISED = "over-optimised"  # reward up, held-out figures down
    GAP = "gap"  # reward up in training, less so on held-out dialogues
    KL = "kl"  # far from the reference
    COLLAPSE = "collapse"  # few replies for all clients


@dataclass(frozen=True)
class Tell:
    """What was seen after `step` updates, in a sentence with its numbers."""

    kind: Kind
    step: int
    sentence: str


def tells(run: Run, step: int | None = None) -> list[Tell]:
    """What is to be told of the policy after `step` updates (default: the last evaluation) against the first one evaluated; none
    without two evaluations on file."""
    steps = evaluated(run.metrics)
    step = steps[-1] if step is None and steps else step
    if step is None or step not in steps[1:]:
        return []
    log = _until(run.metrics, steps.index(step))
    first, last = read_answers(run.path, steps[0]), read_answers(run.path, step)
    before = steps[steps.index(step) - 1]
    middle = read_answers(run.path, before) if before != steps[0] else None
    told = [far_off(log, run.settings)]
    if first is not None and last is not None:
        first, last = paired(first, last)
        if len(last.pairs) > 1:
            rise = reward_change(training_rewards(run, log))
            held = change(first.reward, last.reward, SURE)
            told += [
                over_optimised(first, middle, last, metrics_of(log), rise, held),
                growing_gap(run, log, held) if gapped(run, first, middle, steps.index(step) - 1) else "",
                collapsed(first, last),
            ]
    kinds = (Kind.KL, Kind.OVER_OPTIMISED, Kind.GAP, Kind.COLLAPSE)
    since = f"After {step} updates, "
    return [Tell(kind, step, since + said) for kind, said in zip(kinds, told, strict=False) if said]


def seen(run: Run) -> list[tuple[Tell, Tell | None]]:
    """Each kind of tell that was seen at any evaluation (of a dozen, evenly spread, in a long run): when first, and what is to be
    told at the last evaluation, None where it is not seen there."""
    steps = evaluated(run.metrics)[1:]
    looks = steps if len(steps) <= LOOKS else [steps[round(k * (len(steps) - 1) / (LOOKS - 1))] for k in range(LOOKS)]
    found: dict[Kind, list[Tell]] = {}
    for step in looks:
        for tell in tells(run, step):
            found.setdefault(tell.kind, []).append(tell)
    return [(those[0], those[-1] if those[-1].step == steps[-1] else None) for those in found.values()]


def over_optimised(
    first: Answers, middle: Answers | None, last: Answers, metrics: Iterable[str], rise: Change | None, held: Interval
) -> str:
    """Reward up in training and held out, and a held-out figure the worse for it, at this evaluation and at the one before
    (`middle`; None at the first look); "" otherwise."""
    if rise is None or not (rise.low > 0 and held.low > 0):
        return ""
    level = AT_ONCE if middle is None else FIGURE_SURE
    named = [name for name in metrics if name in first.scores.keys() & last.scores.keys()]
    worse = {name: said for name in named if (said := worsened(name, first, last, level))}
    if middle is not None:
        early, middle = paired(first, middle)
        worse = {n: said for n, said in worse.items() if n in middle.scores and worsened(n, early, middle, level)}
    if not worse:
        return ""
    return (
        f"the reward is up in training ({_told(rise.difference, rise.low, rise.high)}) and on {len(last.pairs)} held-out prompts "
        f"({_told(held.value, held.low, held.high)}), and there the replies are the worse for it: {'; '.join(worse.values())}. So "
        "looks a reward that is over-optimised: read the replies, keep an earlier checkpoint, or raise ppo.kl_coef."
    )


def worsened(metric: str, first: Answers, last: Answers, level: float) -> str:
    """How a metric went the wrong way between paired answers, with its interval; "" where it did not, or may not have."""
    better = METRICS[metric].better
    if better is Better.NEITHER:
        return ""
    early, late = (first, last) if metric not in SPREAD else as_long(first, last)
    one, other = early.measured(metric), late.measured(metric)
    moved = change(one, other, level)
    fell = better is Better.HIGHER and moved.high < 0 and -moved.value >= LEAST_FALL * abs(one.value)
    rose = better is Better.LOWER and moved.low > 0 and moved.value >= LEAST_RISE
    if not (fell or rose):
        return ""
    cut = ", replies cut to the same lengths" if metric in SPREAD else ""
    return (
        f"{metric} from {number(one.value)} to {number(other.value)} "
        f"({_told(moved.value, moved.low, moved.high, level)}{cut})"
    )


def growing_gap(run: Run, log: Log, held: Interval) -> str:
    """Training reward up by clearly more than the held-out one; "" otherwise, and where the two are not on one scale.

    Of the training replies those to the corpus's prompts count. The interval of the difference of two independent changes is
    Newcombe's (1998), from the intervals of the two, widened from 95 to 99 %.
    """
    if not one_scale(run.settings) or math.isnan(held.value):
        return ""
    rise = reward_change(training_rewards(run, log, corpus_only=True))
    if rise is None:
        return ""
    below, above = _WIDER * (rise.difference - rise.low), _WIDER * (rise.high - rise.difference)
    gap = rise.difference - held.value
    low = gap - math.hypot(below, _WIDER * (held.high - held.value))
    high = gap + math.hypot(above, _WIDER * (held.value - held.low))
    if rise.difference <= below or low <= 0 or gap < LEAST_GAP * rise.difference:
        return ""
    return (
        f"the reward of training replies to the corpus's prompts rose by {number(rise.difference)}, that of held-out ones by "
        f"{number(held.value)}: the gap grew by {_told(gap, low, high, FIGURE_SURE)}. "
        "What was learned does not carry over to other dialogues."
    )


def gapped(run: Run, first: Answers, middle: Answers | None, evaluation: int) -> bool:
    """Whether the gap had grown at the evaluation before, too; the first look has none before it."""
    if middle is None:
        return False
    early, middle = paired(first, middle)
    return growing_gap(run, _until(run.metrics, evaluation), change(early.reward, middle.reward, SURE)) != ""


def far_off(log: Log, settings: Mapping[str, Any]) -> str:
    """A KL to the reference above twice its target, over the last five steps; "" otherwise."""
    found = log.series("policy/kl", "rollout/length")[-WINDOW:, 1:]
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return ""
    divergence, length = (float(value) for value in found.mean(axis=0))
    target = _section(settings, "ppo").get("kl_target")
    limit = KL_OVER * target if isinstance(target, int | float) else KL_PER_TOKEN * length
    if not divergence > limit:
        return ""
    against = f"over twice ppo.kl_target = {number(target)}" if isinstance(target, int | float) else "over one a token"
    return (
        f"the KL to the reference is {number(divergence)} nats a reply of {number(length)} tokens (mean of {len(found)} steps), "
        f"{against}: so far from the reference a reward is easily fooled. Lower ppo.policy_lr, or raise ppo.kl_coef."
    )


def collapsed(first: Answers, last: Answers) -> str:
    """Held-out replies that are stereotyped (`eval.collapse`), more so than the therapists' and than the first policy's; ""
    otherwise."""
    references = [pair.reference for pair in last.pairs if pair.reference.strip()]
    others = [collapse_figures(first.replies)] + ([collapse_figures(references)] if references else [])
    now = collapse_figures(last.replies)
    early, late = (measure([name for name, _, _ in STEREOTYPES], side.pairs) for side in (first, last))
    signs = []
    for name, text, more in STEREOTYPES:
        usual = max(figures[name] for figures in others)
        if now[name] - usual >= more and change(early[name], late[name], FIGURE_SURE).low > 0:
            signs.append(
                f"{text.format(number(100 * now[name], places=0))} (at first {number(100 * others[0][name])} %)"
            )
    cut = as_long(first, last)
    before, after = (measure(["distinct_2"], side.pairs)["distinct_2"] for side in cut)
    theirs = others[-1]["distinct_2"]
    if after.value < POOR * min(before.value, theirs) and change(before, after, FIGURE_SURE).high < 0:
        signs.append(
            f"distinct-2 is {number(after.value)} (at first {number(before.value)}, therapists {number(theirs)})"
        )
    if not signs:
        return ""
    return f"of {len(last.pairs)} held-out replies {'; '.join(signs)}: the policy collapses onto a few replies."


def change(first: Measured, last: Measured, level: float) -> Interval:
    """Last less first of the same units, with the interval of `level`; nan where a figure says nothing."""
    value = last.value - first.value
    if math.isnan(value):
        return Interval(value, value, value)
    spread_B = Resamples(first.units, draws=_DRAWS).spread(last, first)
    low, high = np.nanquantile(spread_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def training_rewards(run: Run, log: Log, *, corpus_only: bool = False) -> list[list[float]]:
    """The rewards of the steps of `log` for `reward_change`: of the first and last steps reply by reply where they are on file,
    `reward/mean` of the others. `corpus_only` leaves out fixed and crisis prompts."""
    rows = [row for row in log.rows if math.isfinite(row.get("reward/mean", math.nan))]
    ends = {int(row["step"]) for row in (*rows[:WINDOW], *rows[-WINDOW:])}
    return [
        (_replies(run, int(row["step"]), corpus_only=corpus_only) if int(row["step"]) in ends else [])
        or [row["reward/mean"]]
        for row in rows
    ]


def one_scale(settings: Mapping[str, Any]) -> bool:
    """Whether training replies are paid as held-out ones are scored: nothing is standardised, and no people are asked."""
    rewards = _section(settings, "rewards")
    people = _section(rewards, "experts").get("weight") or 0
    return not (rewards.get("normalise") or rewards.get("normalise_terms") or people)


def _replies(run: Run, step: int, *, corpus_only: bool) -> list[float]:
    path = run.path / "rollouts" / f"step-{step:06d}.parquet"
    try:
        columns = pq.read_table(path, columns=["prompt_id", "reward"]).to_pydict()
    except (FileNotFoundError, pa.ArrowInvalid):
        return []
    cells = zip(columns["prompt_id"], columns["reward"], strict=True)
    return [float(reward) for prompt, reward in cells if not (corpus_only and prompt.startswith(_NOT_CORPUS))]


def _until(log: Log, evaluation: int) -> Log:
    """The log up to the row of that evaluation, itself included."""
    at = [place for place, row in enumerate(log.rows) if "heldout/step" in row][evaluation]
    return Log(log.rows[: at + 1])


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _told(value: float, low: float, high: float, level: float = SURE) -> str:
    ends: Sequence[str] = [number(end, signed=True) for end in (low, high)]
    return f"{number(value, signed=True)}, {100 * level:g} % interval {ends[0]} to {ends[1]}"

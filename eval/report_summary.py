"""What the report says in words and single numbers, and how sure it is of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.report_charts import number
from eval.run_directory import Log, ReplyKey, Run, RunState

WINDOW = 5  # steps at either end of a run that are compared
ENDINGS = {
    RunState.RUNNING: "The run was going on when this page was made",
    RunState.FINISHED: "The run finished",
    RunState.FAILED: "The run failed",
    RunState.INTERRUPTED: "The run was interrupted",
    RunState.DIVERGED: "The run diverged and was stopped",
    RunState.UNRECORDED: "The run has left no word of how it ended",
}
DRIFT = (  # metric, words, factor
    ("policy/kl", "the KL to the reference went from {} to {} nats", 1.0),
    ("rollout/length", "the mean reply went from {} to {} tokens", 1.0),
    ("rollout/truncated", "the share cut at the token budget from {} to {} %", 100.0),
)
ENDS = (  # metric, label, unit, factor
    ("policy/kl", "KL to the reference", "nats", 1.0),
    ("rollout/length", "Reply length", "tokens", 1.0),
    ("rollout/truncated", "Cut at the token budget", "%", 100.0),
)
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Change:
    """Mean reward of the first and of the last `window` steps, and a 95 % interval of last minus first; `by_reply`
    when it accounts for the spread of the replies within the steps."""

    window: int
    first: float
    last: float
    low: float
    high: float
    by_reply: bool

    @property
    def difference(self) -> float:
        """Last minus first."""
        return self.last - self.first


def step_rewards(log: Log, keys: Iterable[ReplyKey]) -> list[list[float]]:
    """Return the rewards of each step's replies; `reward/mean` alone where the replies are not on file, or do not
    average to it."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for key in keys:
        by_step[key.step].append(key.reward)
    rewards = []
    for step, mean in log.series("reward/mean").tolist():
        replies = by_step[int(step)]
        agree = bool(replies) and math.isclose(sum(replies) / len(replies), mean, abs_tol=1e-3)
        rewards.append(replies if agree else [mean])
    return rewards


def reward_change(rewards: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0) -> Change | None:
    """Compare the first and the last five steps (the halves of a shorter run); None with fewer than two finite steps.

    Every step weighs the same. The interval is a two-stage percentile bootstrap: each draw takes steps with
    replacement at either end and, in each step taken, replies with replacement.
    """
    steps = [np.asarray(r, dtype=np.float64) for r in rewards if np.isfinite(r).all()]
    window = min(WINDOW, len(steps) // 2)
    if not window:
        return None
    generator = np.random.default_rng(seed)

    def resampled(end: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        means = np.stack([r[generator.integers(len(r), size=(draws, window, len(r)))].mean(-1) for r in end])
        taken = generator.integers(window, size=(draws, window))
        return np.asarray(means[taken, np.arange(draws)[:, None], np.arange(window)].mean(-1))

    first, last = steps[:window], steps[-window:]
    low, high = np.percentile(resampled(last) - resampled(first), [2.5, 97.5])
    mean_first, mean_last = (float(np.mean([r.mean() for r in end])) for end in (first, last))
    by_reply = all(len(r) > 1 for r in (*first, *last))
    return Change(window, mean_first, mean_last, float(low), float(high), by_reply)


def two_ends(log: Log, name: str) -> tuple[float, float] | None:
    """Return the mean of metric `name` over its first and its last five finite steps (the halves of a shorter log)."""
    values = log.series(name)[:, 1]
    values = values[np.isfinite(values)]
    window = min(WINDOW, len(values) // 2)
    return (float(values[:window].mean()), float(values[-window:].mean())) if window else None


def flagged_share(keys: Iterable[ReplyKey]) -> Log:
    """Return, per step, the share of replies with any safety flag, as metric `flagged`."""
    by_step: dict[int, list[bool]] = defaultdict(list)
    for key in keys:
        by_step[key.step].append(key.flagged)
    return Log(tuple({"step": step, "flagged": sum(f) / len(f)} for step, f in by_step.items()))


def summary(run: Run, change: Change | None) -> list[str]:
    """Return the sentences that tell how the run went, every number from the data."""
    done, planned = len(run.metrics.rows), run.settings.get("steps")
    of = f" of {planned}" if isinstance(planned, int) else ""
    told = [f"{ENDINGS[run.state]}, with {done}{of} steps logged."]
    rewards = run.metrics.series("reward/mean")[:, 1]
    if broken := int((~np.isfinite(rewards)).sum()):
        told.append(
            f"In {broken} of them the mean reward is not a finite number; the comparison leaves such steps out."
        )
    if not done:
        return [*told, "There is nothing to show until the first step is complete."]
    if change is None:
        return [*told, "Two steps with a finite reward are needed before a change can be told."]
    count, steps = COUNTS[change.window], "step" if change.window == 1 else "steps"
    told.append(
        f"Mean reward went from {number(change.first)} in the first {count} {steps} to {number(change.last)} in the "
        f"last {count}: a difference of {number(change.difference, signed=True)}, with a 95 % bootstrap interval of "
        f"{number(change.low, signed=True)} to {number(change.high, signed=True)} "
        f"(resampling steps{' and the replies in them' if change.by_reply else ''})."
    )
    if change.low <= 0 <= change.high:
        told.append("The interval holds 0: these steps do not show that the reward changed.")
    elif change.low > 0:
        told.append(f"The interval lies above 0, but it rests on {count} {steps} at either end of a single run.")
    else:
        told.append("The interval lies below 0: the reward fell.")
    return told


def caution(run: Run, keys: Sequence[ReplyKey]) -> list[str]:
    """Return the sentences on what changed besides the reward, and on what a risen reward does not prove."""
    ends = [(text, two_ends(run.metrics, name), scale) for name, text, scale in DRIFT]
    ends.append(
        ("the share of replies with a safety flag from {} to {} %", two_ends(flagged_share(keys), "flagged"), 100)
    )
    drift = [text.format(*(number(scale * value) for value in found)) for text, found, scale in ends if found]
    if not drift:
        return []
    *most, final = drift
    return [
        f"Over the same stretch {', '.join(most)}{' and ' * bool(most)}{final}.",
        "Training seeks this very reward, so a rise is no proof of better replies: "
        "read them below, and trust judges that took no part in training.",
    ]


@dataclass(frozen=True)
class KeyNumber:
    """One of the few numbers to see first."""

    label: str
    value: str
    unit: str
    note: str


def key_numbers(run: Run, change: Change | None, keys: Sequence[ReplyKey]) -> list[KeyNumber]:
    """Return the few numbers to see first; where they change, those of the last five steps. None without data."""
    log = run.metrics
    ends = [(label, unit, scale, two_ends(log, name)) for name, label, unit, scale in ENDS]
    ends.append(("Replies with a safety flag", "%", 100, two_ends(flagged_share(keys), "flagged")))
    found = []
    if change:
        found.append(KeyNumber("Mean reward", number(change.last), "", f"{number(change.first)} at first"))
    for label, unit, scale, pair in ends:
        if pair:
            found.append(KeyNumber(label, number(scale * pair[1]), unit, f"{number(scale * pair[0])} at first"))
    gaps = log.series("publish/logprob_gap")
    if len(gaps := gaps[np.isfinite(gaps[:, 1])]):
        step, gap = gaps[gaps[:, 1].argmax()]
        found.append(KeyNumber("Largest log-prob gap", number(gap), "nats", f"at step {step:.0f}"))
    if keys:
        prompts = len({key.prompt_id for key in keys})
        found.append(KeyNumber("Replies scored", f"{len(keys):,}", "", f"to {prompts:,} prompts"))
    seconds = log.series("time/step_s")[:, 1]
    if len(seconds := seconds[np.isfinite(seconds)]):
        value, unit = duration(float(seconds.sum()))
        each = " ".join(duration(float(np.median(seconds))))
        found.append(KeyNumber("Time in these steps", value, unit, f"{each} in the median step"))
    return found


def duration(seconds: float) -> tuple[str, str]:
    """Return seconds as (number, unit), in the unit that people would use: s, min or h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", unit
    return number(seconds), "s"

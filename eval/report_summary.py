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
    RunState.DIVERGED: "The run diverged and was stopped",
    RunState.UNRECORDED: "The run left no word of how it ended",
}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Change:
    """Mean reward of the first and of the last `window` steps, and a 95 % interval of last minus first."""

    window: int
    first: float
    last: float
    low: float
    high: float

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


def reward_change(rewards: Sequence[Sequence[float]], *, draws: int = 4000, seed: int = 0) -> Change | None:
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
    return Change(window, mean_first, mean_last, float(low), float(high))


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


def summary(run: Run, change: Change | None, keys: Sequence[ReplyKey]) -> list[str]:
    """Return the sentences that tell how the run went, every number from the data."""
    done, planned = len(run.metrics.rows), run.settings.get("steps")
    of = f" of {planned}" if isinstance(planned, int) else ""
    told = [f"{ENDINGS[run.state]}; {done}{of} steps are logged."]
    if not done:
        return [*told, "There is nothing to show until the first step is complete."]
    if change is None:
        return [*told, "Two steps with a finite reward are needed before a change can be told."]
    count, steps = COUNTS[change.window], "step" if change.window == 1 else "steps"
    on_file = len({key.step for key in keys}) == done
    told.append(
        f"Mean reward went from {number(change.first)} in the first {count} {steps} to {number(change.last)} in the "
        f"last {count}: a difference of {number(change.difference, signed=True)}, with a 95 % bootstrap interval of "
        f"{number(change.low, signed=True)} to {number(change.high, signed=True)} "
        f"(resampling steps{' and the replies in them' if on_file else ''})."
    )
    if change.low <= 0 <= change.high:
        told.append("The interval holds 0: these steps do not show that the reward changed.")
    elif change.low > 0:
        told.append(f"The interval lies above 0, but it rests on {count} {steps} at either end of a single run.")
    else:
        told.append("The interval lies below 0: the reward fell.")
    if drift := [text for text in (_moved(run.metrics, *m) for m in DRIFT) if text]:
        told.append(f"Over the same stretch {'; '.join(drift)}.")
    told.append("Training seeks this very reward, so a rise is no proof of better replies: read them below, and rely "
                "on judges that took no part in training.")  # fmt: skip
    return told


DRIFT = (
    ("policy/kl", "the KL divergence from the reference went from {} to {} nats", 1.0),
    ("rollout/length", "the mean reply from {} to {} tokens", 1.0),
    ("rollout/truncated", "the share of replies cut at the token budget from {} % to {} %", 100.0),
)


def _moved(log: Log, name: str, sentence: str, scale: float) -> str:
    found = two_ends(log, name)
    return sentence.format(*(number(scale * v) for v in found)) if found else ""


def key_numbers(run: Run, change: Change | None, keys: Sequence[ReplyKey]) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of the few numbers to see first; those that the run does not have are left out."""
    log = run.metrics
    tiles = []
    if change:
        note = f"{number(change.first)} in the first {COUNTS[change.window]}"
        tiles.append((f"Reward, last {COUNTS[change.window]} steps", number(change.last), note))
    for name, label, unit, scale in ENDS:
        if found := two_ends(log, name):
            tiles.append((label, f"{number(scale * found[1])} {unit}", f"{number(scale * found[0])} {unit} at first"))
    if found := two_ends(flagged_share(keys), "flagged"):
        tiles.append(("Replies with a safety flag", f"{number(100 * found[1])} %", f"{number(100 * found[0])} % at first"))
    gaps = log.series("publish/logprob_gap")
    if len(gaps) and np.isfinite(gaps[:, 1]).any():
        step, gap = gaps[np.nanargmax(gaps[:, 1])]
        tiles.append(("Largest log-prob gap", f"{number(gap)} nats", f"at step {step:.0f}; see the chart"))
    if keys:
        tiles.append(("Replies scored", f"{len(keys):,}", f"to {len({key.prompt_id for key in keys}):,} prompts"))
    if len(seconds := log.series("time/step_s")):
        tiles.append(("Time in steps", duration(float(np.nansum(seconds[:, 1]))), f"{duration(float(np.nanmedian(seconds[:, 1])))} a step"))
    return tiles


ENDS = (
    ("policy/kl", "KL to the reference", "nats", 1.0),
    ("rollout/length", "Reply length", "tokens", 1.0),
    ("rollout/truncated", "Cut at the token budget", "%", 100.0),
)


def duration(seconds: float) -> str:
    """Write seconds as people say them: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""The pages of a preference model's folder: MODEL_CARD.md and calibration.png."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.preference_measures import Interval
from rewards.preference_report import Report

MODEL_CARD, PLOT = "MODEL_CARD.md", "calibration.png"
_ARMS = {
    "model": "the model (mean)",
    "cautious": "mean - std (beta = 1)",
    "length": "length of the reply only",
    "blind": "client and turn only, blind to the reply",
    "constant": "constant",
}
_HEADS = (
    "",
    "Spearman",
    "Kendall",
    "pairs of a dialogue in order",
    "within a dialogue",
    "calibration error",
    "mean error",
)
_PULLS = {
    "words": "words of the reply (log)",
    "question": "a question mark",
    "near_client": "likeness to the client's words",
    "near_before": "likeness to the therapist's last reply",
    "client_words": "words of the client (log)",
    "turns": "turns before the reply (log)",
}


def model_card(report: Report, card: Mapping[str, Any]) -> str:
    """MODEL_CARD.md: the verdict first."""
    replies, groups = report.replies, report.groups
    sizes = ", ".join(f"{name} {replies[name]} replies of {groups[name]} dialogues" for name in replies)
    low, middle, high = report.predicted
    encoder = card["encoder"]
    return f"""# Preference model

{verdicts(report)}

Research software: a model of what raters said, not of what helps. It is not a substitute for care.

## Held-out replies

{_table(_HEADS, _arms(report))}
95 % intervals from {card["draws"]} bootstrap samples of the dialogues.
"Pairs" counts replies of one dialogue that were rated differently; ratings often rise with the turns of a session, so what
knows only the turn's number does well there. "Within" is Spearman's correlation when each dialogue's mean and the trend over
its turns are taken off both sides. A constant orders nothing: its correlations are 0 by definition.

Spearman's correlation of the model minus that of

- {_ARMS["length"]}: {report.ahead["length"]}
- {_ARMS["blind"]}: {report.ahead["blind"]}

Ratings run from 0 to 1; of the predictions 5 % lie below {low:.3f}, half below {middle:.3f}, 95 % below {high:.3f}.
Answered with other replies, the same history is given predictions with a standard deviation of {report.sway:.4f}:
that is what a policy can earn by its words. Where it is little beside other terms, `rewards.normalise_terms` gives all of them
the same say.

## By problem

{_table(("problem", "replies", "dialogues", "Spearman", "mean error"), _problems(report))}
## Does it know when it does not know?

Spearman's correlation of the members' spread and the error: {report.doubt}; {_doubt(report.doubt)}.

{_table(("third by spread", "replies", "mean spread", "mean error"), _doubts(report))}
![Calibration, and error by spread]({PLOT})

## How it was made

- Ratings: {_source(card["source"])}. {sizes}; no dialogue is in two splits. Mean rating: \
{", ".join(f"{name} {mean:.3f}" for name, mean in report.mean_score.items())}.
- {card["members"]} ridge regressions on frozen vectors of the encoder {encoder["path"]!r} ({encoder["width"]} wide, \
{encoder["max_tokens"]} tokens), each on a bootstrap sample of the dialogues, drawn to a random prior; seed {
        card["seed"]
    }.
- Ratings are skewed: the members learn a rating's mid-rank among those of the train split. Their mean is calibrated to the
  ratings on the valid split by a line of slope {card["calibration"]["slope"]:.3f} (0: it learned nothing).
- Features ({report.tried[0].features}): {", ".join(card["features"])}. Chosen with the penalty \
{report.tried[0].penalty:g} per reply among {len(report.tried)} by the valid split (Spearman \
{report.tried[0].valid_spearman:.3f}); nothing was chosen by the held-out replies.

What one standard deviation of a plain number adds to the prediction, whatever the reply says:

{_table(("plain number", "adds"), ((_PULLS[name], f"{pull:+.4f}") for name, pull in report.pull.items()))}
Use: `--rewards.preference.model FOLDER --rewards.preference.weight 1`. The term pays clip(mean - beta * std, 0, 1).
"""


def verdicts(report: Report) -> str:
    """What it does not beat comes first."""
    words = {
        "length": "the length of the reply alone",
        "blind": "a model that sees the client's words and the turn's number, and not the reply",
    }
    lines = [_against(report, name, words[name]) for name in sorted(words, key=report.beats)]
    if not report.beats("blind"):
        lines.append(
            "**What it knows, it may know without the reply: as a reward it is no evidence of a better reply.**"
        )
    return "\n\n".join(lines)


def _against(report: Report, baseline: str, words: str) -> str:
    ours, theirs = report.arms["model"].spearman, report.arms[baseline].spearman
    figures = f"Spearman {ours} against {theirs} (difference {report.ahead[baseline]})"
    if report.beats(baseline):
        return f"On held-out dialogues it orders replies better than {words}: {figures}."
    return f"**On held-out dialogues it does not order replies better than {words}**: {figures}."


def _doubt(doubt: Interval) -> str:
    if doubt.low > 0:
        return "where its members disagree it errs more"
    if doubt.high < 0:
        return "**where its members disagree it errs less: the spread does not say where it errs**"
    return "**the spread does not say where it errs**"


def _arms(report: Report) -> Iterable[tuple[str, ...]]:
    for name, arm in report.arms.items():
        pairs, within = (str(one) if one else "no pairs" for one in (arm.pairwise, arm.within))
        figures = (str(arm.spearman), str(arm.kendall), pairs, within, f"{arm.calibration_error:.3f}", str(arm.error))
        yield _ARMS[name], *figures


def _problems(report: Report) -> Iterable[tuple[str, ...]]:
    for one in report.problems:
        among = str(one.spearman) if one.spearman else "too few dialogues"
        yield one.problem, str(one.replies), str(one.groups), among, f"{one.error:.3f}"


def _doubts(report: Report) -> Iterable[tuple[str, ...]]:
    for name, part in zip(("least", "middle", "most"), report.doubt_parts, strict=False):
        yield name, str(part.replies), f"{part.std:.4f}", f"{part.error:.3f}"


def _source(source: Mapping[str, Any]) -> str:
    files = ", ".join(f"{name} (sha256 {sha[:12]})" for name, sha in source["files"].items())
    return f"{files}, licence: {source['licence']}. The model may be shared only as its ratings may"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(report: Report, file: Path) -> None:
    """Write calibration.png: mean rating by mean prediction, and mean error by spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    said, was, _ = zip(*report.bins, strict=True)
    span = (min(*said, *was) - 0.02, max(*said, *was) + 0.02)
    left.plot(span, span, color="#9aa5ad", lw=1, label="as predicted")
    left.plot(said, was, "o-", color="#31688e", label=f"held-out replies, {len(said)} bins")
    left.set(xlabel="mean prediction", ylabel="mean rating", title="Calibration", xlim=span, ylim=span)
    left.legend(frameon=False)
    right.bar(range(len(report.doubt_parts)), [part.error for part in report.doubt_parts], color="#31688e", width=0.6)
    right.set_xticks(range(len(report.doubt_parts)), [f"spread {part.std:.4f}" for part in report.doubt_parts])
    right.set(ylabel="mean |prediction - rating|", title="Error by the members' spread, thirds")
    figure.savefig(file, dpi=110)

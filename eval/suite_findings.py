"""What a suite found, in sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from eval.comparison import LEVEL, Difference
from eval.metric import Better
from eval.suite_config import BEAM, Suite
from eval.suite_results import Findings, metric_of

_SHOWN = 4  # metrics that a sentence names


def sentences(suite: Suite, findings: Findings) -> list[str]:
    """One sentence for every arm against the baseline on every corpus, and one that says how many comparisons were made."""
    titles = {name: arm.title or name for name, arm in suite.arms.items()}
    told = []
    for corpus, found in findings.differences.items():
        for arm in suite.arms:
            ours = [one for one in found if one.first == arm]
            if ours:
                told.append(_against(titles[arm], titles[suite.against], corpus, ours, _units(suite)))
    every = [one for found in findings.differences.values() for one in found if one.p == one.p]
    if every:
        sure = sum(one.significant for one in every)
        told.append(
            f"Of {len(every)} comparisons with {titles[suite.against]}, {sure} are significant at {1 - LEVEL:.2f} after Holm's "
            f"correction over all of them; intervals are 95 % over {_units(suite)}, and not corrected."
        )
    return told


def _against(first: str, second: str, corpus: str, found: Sequence[Difference], what: str) -> str:
    units = f"{max(one.units for one in found)} {what}"
    judged: Mapping[bool, list[Difference]] = {True: [], False: []}
    described = []
    for one in found:
        better = metric_of(one.metric).better
        if not one.significant:
            continue
        if better is Better.NEITHER:
            described.append(one)
        else:
            judged[(one.interval.value > 0) == (better is Better.HIGHER)].append(one)
    known = [one for one in found if one.p == one.p]
    parts = []
    if judged[True]:
        parts.append(f"better in {_named(judged[True])}")
    if judged[False]:
        parts.append(f"worse in {_named(judged[False])}")
    if described:
        parts.append(f"different in {_named(described)}")
    if not parts:
        return f"On {corpus} ({units}), {first} differs from {second} in none of {len(known)} metrics beyond chance."
    rest = len(known) - len(judged[True]) - len(judged[False]) - len(described)
    tail = f"; in the other {rest} metrics nothing is beyond chance" if rest else ""
    return f"On {corpus} ({units}), {first} against {second} is {'; '.join(parts)}{tail}."


def _named(found: Sequence[Difference]) -> str:
    ranked = sorted(found, key=lambda one: one.p_holm)
    named = [
        f"{one.metric} ({one.interval.value:+.3g} [{one.interval.low:+.3g}, {one.interval.high:+.3g}])"
        for one in ranked
    ]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return ", ".join(named[:_SHOWN]) + more


def _units(suite: Suite) -> str:
    return {"prompt": "prompts", "dialogue": "dialogues", "reply": "replies"}[suite.settings.by]


_SEES = {  # terms of the reward -> metrics that see the same, by the beginning of their names
    "rouge": ("rouge_", "beam_rouge_1"), "bleu": ("bleu", "sentence_bleu"), "meteor": ("meteor",), "meteor_nosyn": ("meteor",),
    "reader": ("rouge_", "bleu", "bertscore"), "bertscore": ("bertscore",), "similarity": ("bertscore",),
    "emotion_label": ("emotion_label",), "emotion_class": ("emotion_head",), "act": ("act_label",), "preference": ("preference",),
    "judge": ("judge",), "repetition": ("repetition",), "template": ("template_rate",), "length": ("mean_words",),
    "crisis_reply": ("crisis_reply", "tier/"),
}  # fmt: skip


def warnings(suite: Suite, findings: Findings, paid: Mapping[str, Collection[str]]) -> list[str]:
    """What a reader must know before the figures are believed. `paid` are the terms that arms were rewarded for in training."""
    found = list(findings.notes)
    for arm, terms in paid.items():
        starts = tuple(start for term in terms for start in _SEES.get(term, ()))
        if seen := [name for name in suite.settings.metrics if starts and name.startswith(starts)]:
            found.append(
                f"{arm} was paid for what these metrics see: {', '.join(seen)}. A rise there is what was trained, no evidence."
            )
    for corpus in suite.corpora:
        for arm in suite.arms:
            silent = sum(
                not r.answer.text.strip() for r in findings.rows if (r.corpus, r.arm) == (corpus, arm) and r.values
            )
            if silent:
                found.append(
                    f"{arm} said nothing in {silent} replies on {corpus}: they are worth 0 in every likeness, and count."
                )
    for (corpus, arm, metric), (figure, _) in findings.figures.items():
        if metric == "emotion_label":
            majority = findings.figures.get((corpus, arm, "emotion_majority"))
            if majority and figure.high < majority[0].value:
                found.append(
                    f"{arm} on {corpus} names the emotion worse than always naming the commonest one would "
                    f"({figure.value:.3f} against {majority[0].value:.3f})."
                )
        if metric == "duplicate_rate" and figure.value > 0.5:
            found.append(
                f"{arm} on {corpus} has collapsed: {figure.value:.0%} of its replies are copies of another one."
            )
    if any(size for size in suite.settings.beams.sizes):
        found.append(
            f"{BEAM} is measured on other decodes than the other metrics: sampled with as many beams as it says."
        )
    return found

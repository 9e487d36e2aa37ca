"""From answers to findings: what every arm's replies are worth, with intervals, and where arms differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.arms import Answer, Outcome
from eval.comparison import LEVEL, Difference, Resamples, compare, finest, holm, interval, refined
from eval.figures import Measured
from eval.instruments import Instruments
from eval.metric import Metric, Need
from eval.metrics import METRICS, chosen, measure, read
from eval.pair import Pair, pair_up
from eval.suite_config import BEAM, YARDSTICKS, Suite
from rewards.preference_measures import Interval
from rewards.types import Score
from rollout.types import Prompt

_CORPUS = {  # what a corpus has or lacks, whoever answers
    Need.REFERENCE: lambda prompt: prompt.reference.strip(),
    Need.EMOTION: lambda prompt: prompt.emotion.strip(),
    Need.ACT: lambda prompt: prompt.labels.get("dialogue_act", "").strip(),
}
_MOST_FAILED = 0.2
_BASELINES = ("emotion_majority", "emotion_head_majority", "act_majority")  # the same for every arm
_ADDITIVE_DRAWS, _COLLECTIVE_DRAWS = 50_000, 10_000
_FEW_UNITS = 30


@dataclass(frozen=True)
class Asked:
    """One corpus: its prompts, why some were left out before anybody was asked, and every arm's answers. `beams` are those of
    further decodes, by beam size, to the first of the prompts."""

    prompts: Sequence[Prompt]
    left_out: Mapping[str, int]
    answers: Mapping[str, Sequence[Answer]]
    beams: Mapping[int, Mapping[str, Sequence[Answer]]]


@dataclass(frozen=True)
class Row:
    """One reply with what was measured of it; nan where a metric says nothing."""

    corpus: str
    arm: str
    pair: Pair
    answer: Answer
    gate: Score | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """All that a suite found."""

    rows: list[Row]
    figures: dict[tuple[str, str, str], tuple[Interval, int]]
    """(corpus, arm, metric) -> the figure with its interval, and the number of replies that it is about."""
    differences: dict[str, list[Difference]]
    """By corpus: arms that are no yardstick less the baseline arm; corrected over all of them together."""
    missing: dict[str, Counter[str]]
    """Per corpus: why prompts have no figures, and how many they are."""
    notes: list[str]
    """What could not be measured, and why."""


def usable(
    suite: Suite, prompts: Mapping[str, Sequence[Prompt]], instruments: Instruments
) -> tuple[dict[str, list[str]], list[str]]:
    """The metrics that each corpus can serve, by corpus, and sentences on those that it cannot.

    Raises ValueError for a metric whose settings are not made, that only some prompts of a corpus can serve, or that no corpus can.
    """
    for metric in chosen(suite.settings.metrics):
        metric.check_settings(instruments)
    served: dict[str, list[str]] = {}
    notes = []
    for corpus, asked in prompts.items():
        served[corpus] = []
        for metric in chosen(suite.settings.metrics):
            lacking = [
                (need, [p for p in asked if not has(p)]) for need, has in _CORPUS.items() if need in metric.needs
            ]
            lacking = [(need, without) for need, without in lacking if without]
            if not lacking:
                served[corpus].append(metric.name)
                continue
            need, without = lacking[0]
            if len(without) < len(asked):
                raise ValueError(
                    f"metric {metric.name} needs {need.value}, prompt {without[0].id!r} of corpora.{corpus} and {len(without) - 1} "
                    "others have none: complete the corpus, or drop the metric"
                )
            notes.append(
                f"{metric.name} says nothing on {corpus}: its prompts have no {need.value.removeprefix('a ')}."
            )
    nowhere = [name for name in suite.settings.metrics if not any(name in names for names in served.values())]
    if nowhere:
        raise ValueError(
            f"metric {nowhere[0]} must be served by one corpus at least, is by none: drop it, or add labels"
        )
    return served, notes


def find(suite: Suite, asked: Mapping[str, Asked], instruments: Instruments, say: Callable[[str], object]) -> Findings:
    """Measure every arm on every corpus and compare the arms.

    An arm that failed on more than a fifth of a corpus's prompts has no figures there. The other arms are measured on the
    prompts that all of them answered, so that differences are paired.
    """
    served, notes = usable(suite, {corpus: part.prompts for corpus, part in asked.items()}, instruments)
    rows: list[Row] = []
    figures: dict[tuple[str, str, str], tuple[Interval, int]] = {}
    compared: dict[str, list[_Compared]] = {}
    missing: dict[str, Counter[str]] = {}
    for corpus, part in asked.items():
        measured: dict[str, dict[str, Measured]] = {}
        fit = [
            arm
            for arm, answers in part.answers.items()
            if failure_reasons(answers).total() <= _MOST_FAILED * len(answers)
        ]
        for arm in part.answers.keys() - set(fit):
            failed = failure_reasons(part.answers[arm])
            notes.append(
                f"{arm} failed on {failed.total()} of {len(part.answers[arm])} replies on {corpus} and has no figures "
                f"there: {failed.most_common(1)[0][0]}"
            )
        unanswered = {a.prompt_id for arm in fit for a in part.answers[arm] if a.outcome is Outcome.FAILED}
        missing[corpus] = Counter(part.left_out)
        if unanswered:
            missing[corpus]["some arm gave no answer"] = len(unanswered)
            notes.append(
                f"{len(unanswered)} prompts of {corpus} are left out of all figures: some arm gave no answer to them."
            )
        for arm, answers in part.answers.items():
            say(f"measuring {arm} on {corpus}")
            pairs, there = _pairs(part.prompts, answers, set() if arm not in fit else unanswered)
            gates: list[Score] = []
            if arm in fit and pairs:
                names, why = _for_arm(served[corpus], pairs, instruments)
                notes += [f"{arm} on {corpus}: {line}" for line in why]
                measured[arm], gates = read(names, pairs, instruments, by=suite.settings.by)
            values = {name: figure.values_N.tolist() for name, figure in measured.get(arm, {}).items()}
            known = {
                (answer.prompt_id, answer.sample): Row(
                    corpus,
                    arm,
                    pair,
                    answer,
                    gates[i] if gates else None,
                    {name: column[i] for name, column in values.items()},
                )
                for i, (pair, answer) in enumerate(zip(pairs, there, strict=True))
            }
            rows += [known.get((a.prompt_id, a.sample)) or _unmeasured(corpus, arm, part.prompts, a) for a in answers]
        compared[corpus] = _compared(suite, corpus, measured, figures, notes)
        for size, decoded in part.beams.items():
            beams = _beams(size, part.prompts, {arm: decoded[arm] for arm in decoded if arm in fit}, instruments, suite)
            compared[corpus] += _compared(suite, corpus, beams, figures, notes)
    return Findings(rows, figures, _corrected(compared, suite, notes), missing, notes)


def _for_arm(names: Sequence[str], pairs: list[Pair], instruments: Instruments) -> tuple[list[str], list[str]]:
    """The metrics that the arm can serve, and why not the others."""
    able, why = [], []
    for metric in chosen(names):
        try:
            metric.check(pairs, instruments)
        except ValueError as error:
            why.append(str(error))
        else:
            able.append(metric.name)
    return able, why


def _pairs(prompts: Sequence[Prompt], answers: Sequence[Answer], without: set[str]) -> tuple[list[Pair], list[Answer]]:
    """The answers that count, beside what they answer."""
    by_id = {prompt.id: prompt for prompt in prompts}
    there = [a for a in answers if a.prompt_id not in without and a.outcome is not Outcome.FAILED]
    pairs = pair_up(
        [by_id[answer.prompt_id] for answer in there],
        [answer.text for answer in there],
        written=[answer.written for answer in there],
        logprobs=[answer.reference_logprobs for answer in there],
    )
    return pairs, there


def _unmeasured(corpus: str, arm: str, prompts: Sequence[Prompt], answer: Answer) -> Row:
    [prompt] = [prompt for prompt in prompts if prompt.id == answer.prompt_id]
    return Row(corpus, arm, pair_up([prompt], [answer.text])[0], answer, None, {})


@dataclass(frozen=True)
class _Compared:
    """A difference, and what it is of."""

    found: Difference
    first: Measured
    second: Measured


def _compared(
    suite: Suite,
    corpus: str,
    measured: Mapping[str, Mapping[str, Measured]],
    figures: dict[tuple[str, str, str], tuple[Interval, int]],
    notes: list[str],
) -> list[_Compared]:
    """Writes the arms' figures down; what differs from the baseline, p-values as they are."""
    settings = suite.settings
    if not measured:
        return []
    units = next(iter(next(iter(measured.values())).values())).units
    if len(units) < 2:
        notes.append(
            f"{corpus} has no figures: its answered prompts are of {len(units)} {settings.by}, and intervals need two."
        )
        return []
    resamples = Resamples(units, draws=settings.draws, seed=settings.seed)
    for arm, own in measured.items():
        for name, figure in own.items():
            figures[corpus, arm, name] = (interval(figure, resamples), figure.count)
    if suite.against not in measured:
        return []
    tested = {
        arm: {name: figure for name, figure in own.items() if name not in _BASELINES}
        for arm, own in measured.items()
        if arm == suite.against or suite.arms[arm].kind not in YARDSTICKS
    }
    found = compare(tested, against=suite.against, draws=settings.draws, seed=settings.seed)
    return [_Compared(one, tested[one.first][one.metric], tested[one.second][one.metric]) for one in found]


def _beams(
    size: int,
    prompts: Sequence[Prompt],
    decoded: Mapping[str, Sequence[Answer]],
    instruments: Instruments,
    suite: Suite,
) -> dict[str, dict[str, Measured]]:
    name = f"{BEAM}/{size}"
    found = {}
    for arm, answers in decoded.items():
        pairs, _ = _pairs(prompts, answers, set())
        figure = measure([BEAM], pairs, instruments, by=suite.settings.by)[BEAM]
        found[arm] = {name: replace(figure, metric=name)}
    return found


def _corrected(compared: Mapping[str, list[_Compared]], suite: Suite, notes: list[str]) -> dict[str, list[Difference]]:
    """Holm's correction over all corpora and metrics. A p-value that its draws alone keep up is first computed from more; where
    even the smallest that so few units allow would not pass, it is said."""
    settings = suite.settings
    every = [one for found in compared.values() for one in found]
    known = sum(not math.isnan(one.found.p) for one in every)
    limit = (1 - LEVEL) / max(known, 1)
    sharper: dict[int, Difference] = {}
    for one in every:
        if limit < one.found.p <= 2 / (settings.draws + 1) and finest(one.found.units) <= limit:
            draws = _ADDITIVE_DRAWS if one.first.figure.additive else _COLLECTIVE_DRAWS
            sharper[id(one)] = refined(one.found, one.first, one.second, draws=draws, seed=settings.seed)
    for corpus, found in compared.items():
        units = min((one.found.units for one in found), default=_FEW_UNITS)
        if finest(units) > limit:
            notes.append(
                f"{corpus} has {units} {settings.by}s: with {known} comparisons no difference, however large, could pass the "
                "paired test; compare fewer, or take more prompts."
            )
        elif units < _FEW_UNITS:
            notes.append(f"{corpus} has {units} {settings.by}s only: intervals over so few are too narrow.")
    done = {corpus: [sharper.get(id(one), one.found) for one in found] for corpus, found in compared.items()}
    p_holm = iter(holm([one.p for found in done.values() for one in found]))
    return {corpus: [replace(one, p_holm=next(p_holm)) for one in found] for corpus, found in done.items()}


def metric_of(name: str) -> Metric:
    """The metric of a column; beam sizes share one."""
    return METRICS[name.partition("/")[0] if name.startswith(BEAM) else name]


def failure_reasons(answers: Sequence[Answer]) -> Counter[str]:
    """Why answers failed, and how often."""
    return Counter(answer.error for answer in answers if answer.outcome is Outcome.FAILED)


def known(value: float) -> float | None:
    """A figure for JSON: none where it is nan or infinite."""
    return value if math.isfinite(value) else None


def difference_json(corpus: str, one: Difference) -> dict[str, Any]:
    """A difference as results.json has it."""
    low, high = one.interval.low, one.interval.high
    return {
        "corpus": corpus, "metric": one.metric, "first": one.first, "second": one.second,
        "value": known(one.interval.value), "low": known(low), "high": known(high), "p": known(one.p),
        "p_holm": known(one.p_holm), "test": one.test, "units": one.units, "significant": one.significant,
    }  # fmt: skip

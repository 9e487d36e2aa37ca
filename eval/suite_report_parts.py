"""The smaller parts of a suite's report: the arms, curves of training, human judgements, crisis conversations, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eval.report_charts import number
from eval.report_figures import Curve, Figure, curve_pair
from eval.report_summary import KeyNumber, duration
from eval.run_directory import Log
from eval.suite_report_data import Arm, Suite, estimate, real
from eval.suite_report_forest import Bar, chance, draw
from eval.suite_report_tables import Cell, between, shown

KINDS = {
    "model": "model",
    "endpoint": "model behind an endpoint",
    "echo": "repeats the client's words",
    "reference": "the therapist's own reply",
    "best_of": "best of several by reward",
}
SHOWN = 12  # raters, reasons and worst lines of a list


@dataclass(frozen=True)
class ArmCard:
    """An arm as its card tells it: (name, text) facts, and what failed."""

    arm: Arm
    kind: str
    baseline: bool
    facts: tuple[tuple[str, str], ...]
    failed: str


def arm_cards(suite: Suite) -> list[ArmCard]:
    """One card per arm; what was not recorded is not told."""
    return [ArmCard(a, KINDS.get(a.kind, a.kind), a.name == suite.against, _facts(a), _failed(a)) for a in suite.arms]


def _facts(arm: Arm) -> tuple[tuple[str, str], ...]:
    facts = [("Model", arm.model), ("Training run", arm.run)]
    if math.isfinite(arm.parameters):
        facts.append(("Parameters", size(arm.parameters)))
    if math.isfinite(arm.trainable):
        share = f" ({number(100 * arm.trainable / arm.parameters)} %)" if arm.parameters > 0 else ""
        facts.append(("Trained of them", f"{size(arm.trainable)}{share}"))
    if math.isfinite(arm.train_seconds):
        facts.append(("Training time", " ".join(duration(arm.train_seconds))))
    if math.isfinite(arm.peak_gb):
        facts.append(("Peak memory", f"{number(arm.peak_gb)} GB"))
    facts.append(("Replies", f"{arm.replies:,}"))
    if arm.kind != "reference" and arm.seconds > 0:
        facts.append(("Time to reply", " ".join(duration(arm.seconds))))
    return tuple((name, text) for name, text in facts if text)


def _failed(arm: Arm) -> str:
    if not arm.failures:
        return ""
    why = "; ".join(f"{reason} ({count:,})" for reason, count in sorted(arm.reasons.items(), key=lambda r: -r[1]))
    return f"{arm.failures:,} of {arm.replies:,} replies failed{': ' + why if why else ', no reason recorded'}."


def size(count: float) -> str:
    """A number of parameters: 46.7 billion."""
    for unit, name in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= unit:
            return f"{number(float(f'{count / unit:.3g}'))}{name}"
    return f"{count:.0f}"


def tiles(suite: Suite) -> list[KeyNumber]:
    """The size of the evaluation, and how many comparisons survived correction."""
    count = sum(arm.replies for arm in suite.arms)
    failed = sum(arm.failures for arm in suite.arms)
    found = [KeyNumber("Arms", str(len(suite.arms)), "", f"compared with {suite.title_of(suite.against)}")]
    if suite.corpora:
        prompts, corpora = sum(corpus.prompts for corpus in suite.corpora), len(suite.corpora)
        found.append(KeyNumber("Prompts", f"{prompts:,}", "", f"from {corpora} corp{'us' if corpora == 1 else 'ora'}"))
    found.append(KeyNumber("Replies", f"{count:,}", "", f"{failed:,} failed" if failed else "none failed"))
    if tested := [d for d in suite.differences if math.isfinite(d.p_holm)]:
        passed = sum(d.significant for d in tested)
        found.append(KeyNumber("Significant differences", f"{passed}", f"of {len(tested)}", "after Holm's correction"))
    return found


def training_curves(suite: Suite) -> list[Figure]:
    """One figure per arm that PPO trained: mean reward, and the distance from the reference."""
    curves = (
        Curve("reward/mean", "mean reward (no unit)"),
        Curve("policy/kl", "KL to the reference, nats per reply", (0,)),
    )
    figures = []
    for arm, rows in suite.curves.items():
        log = Log(tuple(sorted((row for row in rows if "step" in row), key=lambda row: row["step"])))
        figures += curve_pair(log, suite.title_of(arm), "", curves)
    return figures


@dataclass(frozen=True)
class Human:
    """The blinded side-by-side: its plot, what it says in words, and its lists."""

    first: str
    second: str
    told: tuple[str, ...]
    counts: tuple[tuple[str, str], ...]
    plot: Markup
    agreement: tuple[tuple[str, str], ...]
    raters: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None
    reasons: tuple[str, ...]


def human_parts(suite: Suite) -> list[Human]:
    """What people preferred, pair of arms by pair."""
    return [_human_part(suite, told) for told in suite.human]


def _human_part(suite: Suite, told: Mapping[str, Any]) -> Human:
    first, second = (suite.title_of(str(told[place])) for place in ("first", "second"))
    rate, p = estimate(told.get("win_rate")), real(told.get("p"))
    counts = {name: int(found) for name in ("items", "judgements", "raters", "first_wins", "second_wins", "ties")
              if math.isfinite(found := real(told.get(name)))}  # fmt: skip
    words = []
    plot = Markup("")
    if rate.known:
        ends = between(rate.low, rate.high, 3) if rate.bounded else "no interval"
        sure = rate.bounded and not rate.low <= 0.5 <= rate.high
        plain = f"{number(rate.value, places=3)} {ends}"
        bars = [Bar(first, rate.value, rate.low, rate.high, plain, "up" if rate.value > 0.5 else "down", sure)]
        plot = draw(f"Win rate of {first} against {second}", bars, rule=0.5, domain=(0.0, 1.0), sides=(second, first))
        words.append(f"The win rate of {first} against {second} is {number(100 * rate.value)} %, ties counted half.")
        words.append(
            "The 95 % interval lies on one side of one half."
            if sure
            else "The 95 % interval holds one half: these judgements do not show that either is preferred."
        )
    if math.isfinite(p):
        test = f" ({_line(told['test'])})" if told.get("test") else ""
        words.append(f"{'p = ' if p >= 0.001 else 'p '}{chance(p)}{test}.")
    words += map(_line, told.get("notes") or ())
    names = {"items": "Pairs of replies", "judgements": "Judgements", "raters": "Raters", "ties": "Ties"}
    names |= {"first_wins": f"{first} preferred", "second_wins": f"{second} preferred"}
    names |= {"first_better": names["first_wins"], "second_better": names["second_wins"]}
    flags = [(f"Red flags, {title}", _line(raised)) for side, title in (("first", first), ("second", second))
             if (raised := (told.get("flags") or {}).get(side))]  # fmt: skip
    return Human(
        first,
        second,
        tuple(words),
        (*((names[name], f"{count:,}") for name, count in counts.items()), *flags),
        plot,
        _leaves(told.get("agreement")),
        _records(told.get("by_rater"), names),
        tuple(_reason(reason, first, second) for reason in list(told.get("reasons") or ())[:SHOWN]),
    )


def _reason(told: object, first: str, second: str) -> str:
    """What a rater wrote, and whom he or she preferred."""
    if not isinstance(told, Mapping):
        return _line(told)
    side = real(told.get("preference"))
    chose = f"preferred {first if side > 0 else second}" if side else "a tie"
    who = ", ".join(str(part) for part in (told.get("rater"), chose if math.isfinite(side) else "") if part)
    return f"{_line(told.get('text'))} ({who})" if who else _line(told.get("text"))


@dataclass(frozen=True)
class Crisis:
    """Conversations with personas in danger: arms by dimensions, then by the rubric's questions."""

    arms: tuple[tuple[str, str, bool], ...]  # title, conversations, rules only
    dimensions: tuple[tuple[str, tuple[Cell, ...]], ...]
    items: tuple[tuple[str, str, str, str, tuple[Cell, ...]], ...]  # id, question, severity, answered by, cells
    worst: tuple[tuple[str, str, str, str], ...]  # arm, persona, line, why
    unshown: int
    personas: tuple[str, ...]
    source: str
    licence: str

    @property
    def by_rules(self) -> list[str]:
        """The arms whose conversations no judge read."""
        return [title for title, _, rules_only in self.arms if rules_only]


def crisis_part(suite: Suite) -> Crisis | None:
    """What the arms did with personas in danger; None where that was not run."""
    told = suite.crisis
    arms: Sequence[Mapping[str, Any]] = told.get("arms") or ()
    if not arms:
        return None
    names = dict.fromkeys(str(row["name"]) for arm in arms for row in arm.get("dimensions") or ())
    questions = {str(row["id"]): row for arm in arms for row in arm.get("items") or ()}

    def lines(row: Mapping[str, Any], first: str, second: str, third: str) -> tuple[str, str, str]:
        return _line(row.get(first)), _line(row.get(second)), _line(row.get(third))

    def dimension(arm: Mapping[str, Any], name: str) -> Cell:
        rows = [row for row in arm.get("dimensions") or () if str(row["name"]) == name]
        return shown(estimate(rows[0] if rows else None), 2)

    def item(arm: Mapping[str, Any], name: str) -> Cell:
        row: Mapping[str, Any] = next((row for row in arm.get("items") or () if str(row["id"]) == name), {})
        asked, yes = real(row.get("asked")), real(row.get("yes"))
        silent = real(row.get("unanswered"))
        due = f"{silent:.0f} unanswered" if silent > 0 else ""
        if not (asked > 0 and math.isfinite(yes)):
            return Cell("\N{EN DASH}", due, note=due or "never asked")
        return Cell(f"{yes:.0f} of {asked:.0f}", due)

    worst = [(suite.title_of(str(arm["arm"])), *lines({**row, "line": row.get("line") or "all"}, "persona", "line", "why"))
             for arm in arms for row in arm.get("worst") or ()]  # fmt: skip
    items = [(name, *lines(row, "question", "severity", "by"), tuple(item(arm, name) for arm in arms))
             for name, row in questions.items()]  # fmt: skip
    return Crisis(
        tuple((suite.title_of(str(a["arm"])), _line(a.get("conversations")), bool(a.get("rules_only"))) for a in arms),
        tuple((name, tuple(dimension(arm, name) for arm in arms)) for name in names),
        tuple(items),
        tuple(worst[:SHOWN]),
        max(0, len(worst) - SHOWN),
        tuple(map(_persona, told.get("personas") or ())),
        str(told.get("source") or "").removesuffix("."),
        str(told.get("licence") or "").removesuffix("."),
    )


def _persona(told: object) -> str:
    if not isinstance(told, Mapping):
        return _line(told)
    risk = f" ({_line(told['risk']).lower()})" if told.get("risk") else ""
    return f"{_line(told.get('name'))}{risk}"


def agreement_rows(suite: Suite) -> list[tuple[str, str, str, Cell]]:
    """Judge against experts: who, with whom, in what, and how much."""
    return [(suite.title_of(_line(row.get("first"))), suite.title_of(_line(row.get("second"))), _line(row.get("metric")),
             shown(estimate(row), 3)) for row in suite.agreement]  # fmt: skip


def _leaves(told: object, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """The leaves of a nested record by name; a record with a `value` is one leaf, with its interval."""
    if told is None:
        return ()
    if not isinstance(told, Mapping):
        return ((prefix or "agreement", _line(told)),)
    if "value" in told:
        return ((prefix or "agreement", _line(told)),)
    return tuple(
        leaf for name, value in told.items() for leaf in _leaves(value, f"{prefix} {name}".strip().replace("_", " "))
    )


def _records(told: object, titles: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
    """A list of records as a heading (`titles` where they have one) and rows; None for no list."""
    rows = [row for row in told if isinstance(row, Mapping)] if isinstance(told, (list, tuple)) else []
    if not rows:
        return None
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return tuple(titles.get(n, n.replace("_", " ")) for n in names), tuple(
        tuple(_line(row.get(n)) for n in names) for row in rows[:SHOWN]
    )


def _line(told: object) -> str:
    """Any value of a record as one line of text; a dash for null."""
    if told is None:
        return "\N{EN DASH}"
    if isinstance(told, bool):
        return "yes" if told else "no"
    if isinstance(told, (int, float)):
        return f"{told:,}" if isinstance(told, int) else number(told) if math.isfinite(told) else "\N{EN DASH}"
    if isinstance(told, Mapping) and "value" in told:
        cell = shown(estimate(told), 3)
        return f"{cell.value} {cell.interval}".strip()
    if isinstance(told, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')} {_line(value)}" for name, value in told.items())
    return "; ".join(map(_line, told)) if isinstance(told, (list, tuple)) else str(told)

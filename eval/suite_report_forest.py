"""Forest plots: differences between arms with their intervals, as inline SVG that needs no colour to be read.

A filled circle is a significant difference after Holm's correction, a ring is none; words beside it say which way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.metric import Better
from eval.report_charts import number, ticks
from eval.suite_report_data import GROUPS, Difference, MetricOf, Suite, group_title
from eval.suite_report_tables import between, places

WIDTH = 360
ROW = 38  # a line of words, and the interval beneath
LEFT, RIGHT = 8, WIDTH - 8
LONGEST = 24  # letters of an arm's title beside its figures


@dataclass(frozen=True)
class Bar:
    """One interval: whose it is, where, and how it is told; `tone` is up, down or flat; `filled` is significant."""

    name: str
    value: float
    low: float
    high: float
    told: str
    tone: str
    filled: bool


@dataclass(frozen=True)
class Forest:
    """One metric's plot."""

    group: str
    metric: str
    unit: str
    svg: Markup


@dataclass(frozen=True)
class Forests:
    """A corpus's plots, in the order of their groups; `same` names the metrics in which no arm differs at all from the baseline."""

    corpus: str
    plots: tuple[Forest, ...]
    same: tuple[str, ...]
    table: tuple[tuple[Difference, str, str, str, str], ...]  # difference, value, interval, p, p after Holm


def forests(suite: Suite) -> list[Forests]:
    """The differences against the baseline arm, corpus by corpus; those between other arms are in the table only."""
    found = (_of_corpus(suite, corpus.name) for corpus in suite.corpora)
    return [one for one in found if one.plots or one.table]


def _of_corpus(suite: Suite, corpus: str) -> Forests:
    plots: list[Forest] = []
    same = []
    order = list(GROUPS)
    for metric in sorted(
        suite.metrics.values(), key=lambda m: order.index(m.group) if m.group in GROUPS else len(order)
    ):
        tested = [found for arm in suite.arms if arm.name != suite.against
                  and (found := suite.between(corpus, metric.name, arm.name, suite.against))
                  and math.isfinite(found.value)]  # fmt: skip
        if not tested:
            continue
        if not any(found.value or found.low or found.high for found in tested):
            same.append(metric.name)
            continue
        digits = places(end for d in tested for end in (d.value, d.low, d.high))
        baseline = suite.title_of(suite.against)
        bars = [_bar(suite, metric, found, digits) for found in tested]
        svg = draw(f"{metric.name}, each arm less {baseline}", bars, sides=_sides(metric, baseline))
        plots.append(Forest(group_title(metric.group), metric.name, metric.unit, svg))
    return Forests(corpus, tuple(plots), tuple(same), tuple(_told(d) for d in suite.differences if d.corpus == corpus))


def _bar(suite: Suite, metric: MetricOf, found: Difference, digits: int) -> Bar:
    gain = found.value * (-1 if metric.better is Better.LOWER else 1)
    if not found.significant:
        tone, verdict = "flat", "n.s."
    elif metric.better is Better.NEITHER:
        tone, verdict = "other", "more" if gain > 0 else "less"
    else:
        tone, verdict = ("up", "better") if gain > 0 else ("down", "worse")
    ends = between(found.low, found.high, digits) if math.isfinite(found.low + found.high) else "no interval"
    told = f"{number(found.value, signed=bool(found.value), places=digits)} {ends} {verdict}"
    return Bar(suite.title_of(found.first), found.value, found.low, found.high, told, tone, found.significant)


def _sides(metric: MetricOf, baseline: str) -> tuple[str, str]:
    """What lies to the left and to the right of no difference."""
    if metric.better is Better.NEITHER:
        return f"less than {_short(baseline)}", "more"
    left, right = ("worse", "better") if metric.better is Better.HIGHER else ("better", "worse")
    return f"{left} than {_short(baseline)}", right


def _told(found: Difference) -> tuple[Difference, str, str, str, str]:
    if not math.isfinite(found.value):
        return found, "\N{EN DASH}", "", "\N{EN DASH}", "\N{EN DASH}"
    digits = places([found.value, found.low, found.high])
    ends = between(found.low, found.high, digits) if math.isfinite(found.low + found.high) else ""
    return (
        found,
        number(found.value, signed=bool(found.value), places=digits),
        ends,
        chance(found.p),
        chance(found.p_holm),
    )


def chance(p: float) -> str:
    """A p-value for people: two digits, and no pretence below .001."""
    return "\N{EN DASH}" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def draw(
    title: str,
    bars: Sequence[Bar],
    *,
    rule: float = 0.0,
    domain: tuple[float, ...] = (),
    sides: tuple[str, str] = ("", ""),
) -> Markup:
    """Draw the intervals under one another about the level `rule`, as one `<svg>` whose alt text tells every figure."""
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high) if math.isfinite(end)]
    low, high = min([rule, *domain, *ends]), max([rule, *domain, *ends])
    air = 0.0 if domain else 0.04 * (high - low) or 1.0
    low, high = low - air, high + air

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    bottom = ROW * len(bars) + 4
    body = [_line(x(rule), ROW * i + 19, x(rule), ROW * i + 36, "zero") for i in range(len(bars))]  # not through words
    marks = ticks(low, high, 4)
    for tick in marks:
        body.append(_line(x(tick), bottom, x(tick), bottom + 4, "axis"))
        anchor = "start" if x(tick) < LEFT + 14 else "end" if x(tick) > RIGHT - 14 else "middle"
        body.append(_text(x(tick), bottom + 16, _plain(tick), anchor))
    body.append(_line(LEFT, bottom, RIGHT, bottom, "axis"))
    for i, bar in enumerate(bars):
        top = ROW * i + 15
        body.append(_text(LEFT, top, _short(bar.name), "start", "label"))
        body.append(_text(RIGHT, top, bar.told, "end", f"told {bar.tone}" if bar.filled else "told"))
        y = top + 12
        if math.isfinite(bar.low) and math.isfinite(bar.high):
            body.append(_line(x(bar.low), y, x(bar.high), y, f"reach {bar.tone}"))
            body += [_line(x(end), y - 3, x(end), y + 3, f"reach {bar.tone}") for end in (bar.low, bar.high)]
        form = '<circle cx="{:.1f}" cy="{:.1f}" r="4.2" class="dot {} {}"/>'
        body.append(Markup(form).format(x(bar.value), y, bar.tone, "filled" if bar.filled else "ring"))
    height = bottom + 20
    if any(sides):
        height += 15
        body.append(_text(LEFT, bottom + 31, f"\N{LEFTWARDS ARROW} {sides[0]}", "start"))
        body.append(_text(RIGHT, bottom + 31, f"{sides[1]} \N{RIGHTWARDS ARROW}", "end"))
    alt = f"{title}. " + " ".join(
        f"{bar.name}: {bar.told.removesuffix(' n.s.')}, {'significant' if bar.filled else 'not significant'}."
        for bar in bars
    )
    form = '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{alt}" class="forest">{body}</svg>'
    return Markup(form).format(w=WIDTH, h=height, alt=alt, body=Markup("").join(body))


def _line(xa: float, ya: float, xb: float, yb: float, css: str) -> Markup:
    return Markup('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" class="{}"/>').format(xa, ya, xb, yb, css)


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, css, text)


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _short(title: str) -> str:
    return title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"

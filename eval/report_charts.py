"""Line and bar charts as inline SVG: no script, no font, no address; legible without hovering, heard as alt text.

A chart stacks panels over one step axis. Widths are in CSS pixels at which the text has its natural size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scale = Callable[[float], float]  # value -> pixel

LINES = ("#0b6e75", "#b4530a", "#5b3f9e", "#a3195b", "#3d6b12", "#3a4a5e")  # each at least 4.5:1 on white
FILLS = ("#0b6e75", "#9fd3cd", "#5b3f9e", "#cdbff0", "#b4530a", "#f3c793", "#8a94a0")  # neighbours differ in lightness
RED = "#a11221"
MINUS, CROSS = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
DASHES = ("", "5 3", "2 2", "8 3 2 3", "1 3", "10 4")
TOP, BOTTOM = 24, 12  # room above a panel for its label, and below
SMALL = 300  # a chart narrower than this has little room at its sides
LOG_FLOOR = 1e-9
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """`points [N, 2]`: step, value; a non-finite value is a gap and a cross. `band [N, 3]`: step, low, high."""

    name: str
    points: Array
    colour: str = LINES[0]
    dash: str = ""
    band: Array | None = None


@dataclass(frozen=True)
class Panel:
    """One value axis. `label` carries the unit; the axis holds `include`; values outside `clip` are drawn at its edge.

    `stacked` draws the lines as bars on top of one another; `log` is a log10 axis (zeros drawn at 1e-9);
    `rule` is a labelled level across the panel; `spans` are levels (first step, last step, value, text) over a stretch;
    `marks` are points (step, value, text) to see first.
    """

    label: str
    lines: Sequence[Line]
    height: int = 110
    include: tuple[float, ...] = ()
    clip: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False
    stacked: bool = False
    rule: tuple[float, str] | None = None
    spans: Sequence[tuple[float, float, float, str]] = ()
    marks: Sequence[tuple[float, float, str]] = ()


def number(value: float, *, signed: bool = False, places: int | None = None) -> str:
    """Write a number for people: three digits (two below 0.01) or `places` decimals, thousands apart, a true minus."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    if places is None and size and not 1e-4 <= size < 1e15:
        text = f"{size:.1e}".replace("e-0", "e-").replace("e+", "e").replace("-", MINUS)
    else:
        digits = 2 if size < 0.01 else 3
        shown = min(3 if size >= 0.01 else 9, max(0, digits - 1 - math.floor(math.log10(size)))) if size else 0
        text = f"{size:,.{shown if places is None else places}f}"
        text = text.rstrip("0").rstrip(".") if shown and places is None else text
    below = value < 0 and text.strip("0.")
    return (MINUS if below else "+" if signed else "") + text


def chart(title: str, panels: Sequence[Panel], *, width: int = 360) -> Markup:
    """Draw `panels` beneath one another over a common step axis, as one `<svg>` whose alt text tells each curve."""
    finite = [line.points[:, 0] for panel in panels for line in panel.lines if len(line.points)]
    steps = np.concatenate(finite) if finite else np.zeros(1)
    bars = any(panel.stacked for panel in panels)
    pad = 0.5 if bars or steps.min() == steps.max() else 0.0
    x0, x1 = float(steps.min()) - pad, float(steps.max()) + pad
    height = sum(TOP + panel.height + BOTTOM for panel in panels) + 22
    left, right = (32, width - 40) if width < SMALL else (44, width - 48)  # beside the plot: ticks, the last value

    def x(step: float) -> float:
        return left + (step - x0) / (x1 - x0) * (right - left)

    body, top = [], 0.0
    for panel in panels:
        body.append(_panel(panel, x, top + TOP, left, right))
        top += TOP + panel.height + BOTTOM
    for tick in ticks(float(steps.min()), float(steps.max()), 2 if width < SMALL else width // 80, whole=True):
        body.append(_text(x(tick), top + 4, f"{tick:,.0f}", "middle"))
    body.append(_text((left + right) / 2, top + 19, "step", "middle"))
    return Markup('<svg viewBox="0 0 {w} {h}" role="img" aria-label="{alt}">{body}</svg>').format(
        w=width, h=round(height), alt=alt_text(title, panels), body=Markup("").join(body)
    )


def swatch(line: Line, *, area: bool = False) -> Markup:
    """Return the sign of `line` for a legend: a stroke, or a block for an area."""
    stroke = Markup('stroke="{}" stroke-width="{}" stroke-dasharray="{}"').format(
        line.colour, 9 if area else 2, line.dash or "none"
    )
    return Markup('<svg viewBox="0 0 22 10" aria-hidden="true"><path d="M0 5H22" {}/></svg>').format(stroke)


def alt_text(title: str, panels: Iterable[Panel]) -> str:
    """Tell each curve in words: where it starts, ends, and its lowest and highest value."""
    told = []
    for panel in panels:
        for line in panel.lines:
            points = line.points[np.isfinite(line.points[:, 1])]
            name = panel.label if line.name in panel.label else f"{line.name} ({panel.label})"
            if len(points):
                (a, first), (b, last), values = points[0], points[-1], points[:, 1]
                told.append(f"{name}: {number(first)} at step {a:.0f}, {number(last)} at step {b:.0f}, "
                            f"lowest {number(values.min())}, highest {number(values.max())}.")  # fmt: skip
            else:
                told.append(f"{name}: no finite value.")
    return f"Chart: {title}. " + " ".join(told)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten apart) within [low, high], about `count` of them."""
    raw = (high - low) / max(count, 1)
    if raw <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    gap = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= 0.75 * raw)
    gap = max(1.0, round(gap)) if whole else gap
    return [i * gap for i in range(math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9) + 1)]


def _panel(panel: Panel, x: Scale, top: float, left: float, right: float) -> Markup:
    """Draw one value axis whose plot area starts at `top`."""
    low, high = _domain(panel)
    bottom = top + panel.height

    def y(value: float) -> float:
        at = min(max(value, panel.clip[0]), panel.clip[1])
        at = math.log10(max(at, LOG_FLOOR)) if panel.log else at
        return bottom - (at - low) / (high - low) * panel.height

    out = [_text(0, top - 11, panel.label, "start", css="label")]
    for tick in ticks(low, high, max(2, panel.height // 36), whole=panel.log):
        at = y(10**tick if panel.log else tick)
        out.append(_line(left, at, right, at, "axis" if tick == 0 and not panel.log else "grid"))
        out.append(_text(left - 6, at + 4, "10" + f"{tick:.0f}".translate(RAISED) if panel.log else _tick(tick), "end"))
    if panel.stacked:
        out += _bars(panel.lines, x, y)
    for line in () if panel.stacked else panel.lines:
        out += _curve(line, x, y)
        lost = line.points[~np.isfinite(line.points[:, 1])][:, 0]
        out += [_text(x(step), bottom + 9, CROSS, "middle", css="mark", colour=RED) for step in lost]
        finite = line.points[np.isfinite(line.points[:, 1])]
        if len(panel.lines) == 1 and len(finite):
            step, value = finite[-1]
            out.append(_text(x(step) + 5, y(value) + 4, number(value), "start", css="last", colour=line.colour))
    for first, last, value, text in panel.spans:
        out.append(_line(x(first), y(value), x(last), y(value), "span"))
        start = x(first) < (left + right) / 2
        out.append(_text(x(first if start else last), y(value) - 7, text, "start" if start else "end", css="mark"))
    for step, value, text in panel.marks:
        out.append(_line(x(step), top, x(step), bottom, "axis"))
        out.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.6" fill="{}"/>').format(x(step), y(value), RED))
        start = x(step) < (left + right) / 2
        out.append(_text(x(step) + (6 if start else -6), top + 10, text, "start" if start else "end", css="mark"))
    if panel.rule:
        level, text = panel.rule
        out.append(_line(left, y(level), right, y(level), "rule"))
        out.append(_text(right, y(level) - 5, text, "end", css="mark", colour=RED))
    return Markup("").join(out)


def _domain(panel: Panel) -> tuple[float, float]:
    """The ends of the value axis (log10 of them on a log axis): all that is drawn, and a little air."""
    levels = [*panel.include, *(span[2] for span in panel.spans), *((panel.rule[0],) if panel.rule else ())]
    drawn = [np.array(levels, dtype=np.float64)]
    drawn += [line.points[:, 1] for line in panel.lines]
    drawn += [line.band[:, 1:].ravel() for line in panel.lines if line.band is not None]
    if panel.stacked:
        drawn.append(np.sum([line.points[:, 1] for line in panel.lines], axis=0))
    values = np.concatenate(drawn)
    values = np.clip(values[np.isfinite(values)], *panel.clip)
    if panel.log:
        values = np.log10(np.maximum(values, LOG_FLOOR))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if panel.log:
        return math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    air = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - (0 if low in panel.include else air), high + (0 if high in panel.include and high > low else air)


def _curve(line: Line, x: Scale, y: Scale) -> list[Markup]:
    out = []
    band = np.zeros((0, 3)) if line.band is None else line.band[np.isfinite(line.band).all(1)]
    if len(band):
        edge = [(x(s), y(high)) for s, _, high in band] + [(x(s), y(low)) for s, low, _ in band[::-1]]
        out.append(Markup('<path d="{}" fill="{}" class="band"/>').format(_path(edge), line.colour))
    breaks = np.flatnonzero(~np.isfinite(line.points[:, 1]))
    for piece in np.split(line.points, breaks):
        kept = [(x(s), y(v)) for s, v in piece if math.isfinite(v)]
        if len(kept) > 1:
            form = '<path d="{}" stroke="{}" stroke-dasharray="{}" class="line"/>'
            out.append(Markup(form).format(_path(kept), line.colour, line.dash or "none"))
        for px, py in kept if len(kept) == 1 or len(line.points) <= 12 else ():
            out.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.4" fill="{}"/>').format(px, py, line.colour))
    return out


def _bars(lines: Sequence[Line], x: Scale, y: Scale) -> list[Markup]:
    """Stack the lines, which share their steps; one path each."""
    steps = lines[0].points[:, 0]
    half = (0.42 if len(steps) < 100 else 0.5) * (float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0)
    floor = np.zeros(len(steps))
    out = []
    for line in lines:
        ceiling = floor + np.nan_to_num(line.points[:, 1], posinf=0.0, neginf=0.0)
        boxes = [f"M{x(s - half):.1f} {y(a):.1f}H{x(s + half):.1f}V{y(b):.1f}H{x(s - half):.1f}Z"
                 for s, a, b in zip(steps, floor, ceiling, strict=True)]  # fmt: skip
        out.append(Markup('<path d="{}" fill="{}"/>').format("".join(boxes), line.colour))
        floor = ceiling
    return out


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def _line(xa: float, ya: float, xb: float, yb: float, css: str) -> Markup:
    form = '<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" class="{}"/>'
    return Markup(form).format(xa, ya, xb, yb, css)


def _text(px: float, py: float, text: str, anchor: str, css: str = "tick", colour: str = "") -> Markup:
    form = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>'
    fill = Markup(' style="fill:{}"').format(colour) if colour else ""
    return Markup(form).format(px, py, anchor, css, fill, text)


def _tick(value: float) -> str:
    plain = not value or 1e-4 <= abs(value) < 1e5
    text = f"{value:,.6g}" if plain else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", MINUS)

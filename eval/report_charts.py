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
DASHES = ("", "5 3", "2 2", "8 3 2 3", "1 3", "10 4")
LEFT, RIGHT, TOP, BOTTOM = 44, 46, 20, 14  # room round a panel: ticks, last value, label, gap
MAX_POINTS = 240
LOG_FLOOR = 1e-9


@dataclass(frozen=True)
class Line:
    """`points [N, 2]`: step, value; a non-finite value leaves a gap. `band [N, 3]`: step, low, high, drawn beneath."""

    name: str
    points: Array
    colour: str = LINES[0]
    dash: str = ""
    band: Array | None = None


@dataclass(frozen=True)
class Panel:
    """One value axis. `label` carries the unit; the axis holds `include`; values outside `clip` are drawn at its edge.

    `stacked` draws the lines as bars on top of one another; `log` is a log10 axis (zeros drawn at 1e-9);
    `rule` is a labelled level across the panel; `spans` are levels (first step, last step, value, text) over a stretch.
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


def thin(series: Array, *, worst: bool = False) -> Array:
    """Average `[N, K]` rows over at most 240 equal bins of steps, so that a long run stays a light page.

    With `worst` the bins keep their largest value, for metrics whose spikes matter. NaN makes its bin NaN.
    """
    if len(series) <= MAX_POINTS:
        return series
    bins = np.array_split(series, MAX_POINTS)
    return np.array([[b[:, 0].mean(), *(b[:, 1:].max(0) if worst else b[:, 1:].mean(0))] for b in bins])


def number(value: float, *, signed: bool = False) -> str:
    """Write a number for people: three significant digits, thousands apart, a true minus sign."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    size = abs(value)
    if size >= 100:
        text = f"{size:,.0f}"
    elif size >= 1e-3 or size == 0:
        text = f"{size:.{0 if size == 0 else 2 - max(-3, math.floor(math.log10(size)))}f}"
    else:
        text = f"{size:.1e}".replace("e-0", "e−").replace("e-", "e−")
    sign = "−" if value < 0 else "+" if signed else ""
    return sign + text


def chart(title: str, panels: Sequence[Panel], *, width: int = 360, x_label: str = "step") -> Markup:
    """Draw `panels` beneath one another over a common step axis and return one `<svg>`; its alt text tells each curve."""
    finite = [line.points[:, 0] for panel in panels for line in panel.lines if len(line.points)]
    steps = np.concatenate(finite) if finite else np.zeros(1)
    bars = any(panel.stacked for panel in panels)
    pad = 0.5 if bars or steps.min() == steps.max() else 0.0
    x0, x1 = float(steps.min()) - pad, float(steps.max()) + pad
    height = sum(TOP + panel.height + BOTTOM for panel in panels) + 22

    def x(step: float) -> float:
        return LEFT + (step - x0) / (x1 - x0) * (width - LEFT - RIGHT)

    body, top = [], 0.0
    for panel in panels:
        body.append(_panel(panel, x, top + TOP, width))
        top += TOP + panel.height + BOTTOM
    for tick in ticks(float(steps.min()), float(steps.max()), 3 if width < 300 else width // 80, whole=True):
        body.append(_text(x(tick), top + 2, f"{tick:,.0f}", "middle"))
    body.append(_text((LEFT + width - RIGHT) / 2, top + 17, x_label, "middle"))
    return Markup('<svg viewBox="0 0 {w} {h}" role="img" aria-label="{alt}">{body}</svg>').format(
        w=width, h=round(height), alt=alt_text(title, panels), body=Markup("").join(body)
    )


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
    gap = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    gap = max(1.0, round(gap)) if whole else gap
    return [i * gap for i in range(math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9) + 1)]


def _panel(panel: Panel, x: Scale, top: float, width: int) -> Markup:
    """Draw one value axis whose plot area starts at `top`."""
    low, high = _domain(panel)
    bottom, right = top + panel.height, width - RIGHT

    def y(value: float) -> float:
        at = min(max(value, panel.clip[0]), panel.clip[1])
        at = math.log10(max(at, LOG_FLOOR)) if panel.log else at
        return bottom - (at - low) / (high - low) * panel.height

    out = [_text(0, top - 8, panel.label, "start", css="label")]
    for tick in ticks(low, high, max(2, panel.height // 36), whole=panel.log):
        at = y(10**tick if panel.log else tick)
        out.append(_line(LEFT, at, right, at, "axis" if tick == 0 and not panel.log else "grid"))
        out.append(_text(LEFT - 6, at + 4, f"1e{tick:.0f}".replace("-", "−") if panel.log else _tick(tick), "end"))
    if panel.stacked:
        out += _bars(panel.lines, x, y)
    for line in () if panel.stacked else panel.lines:
        out += _curve(line, x, y)
        finite = line.points[np.isfinite(line.points[:, 1])]
        if len(panel.lines) == 1 and len(finite):
            step, value = finite[-1]
            out.append(_text(x(step) + 5, y(value) + 4, number(value), "start", css="last", colour=line.colour))
    for first, last, value, text in panel.spans:
        out.append(_line(x(first), y(value), x(last), y(value), "span"))
        start = x(first) < (LEFT + right) / 2
        out.append(_text(x(first if start else last), y(value) - 7, text, "start" if start else "end", css="mark"))
    if panel.rule:
        level, text = panel.rule
        out.append(_line(LEFT, y(level), right, y(level), "rule"))
        out.append(_text(right, y(level) - 5, text, "end", css="mark", colour="#a11221"))
    return Markup("").join(out)


def _domain(panel: Panel) -> tuple[float, float]:
    """The ends of the value axis (log10 of them on a log axis): all that is drawn, and a little air."""
    drawn = [np.array(panel.include), np.array([s[2] for s in panel.spans]), np.array([panel.rule[0]] if panel.rule else [])]
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
    air = 0.05 * (high - low) or max(abs(high) * 0.1, 1e-6)
    return low - (0 if low in panel.include else air), high + (0 if high in panel.include and high > low else air)


def _curve(line: Line, x: Scale, y: Scale) -> list[Markup]:
    out = []
    if line.band is not None and len(line.band):
        band = line.band[np.isfinite(line.band).all(1)]
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
    half = 0.42 * (float(np.diff(steps).min()) if len(steps) > 1 else 1.0)
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
    if value and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e").replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")

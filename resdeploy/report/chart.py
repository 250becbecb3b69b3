"""Line charts as SVG: no scripts, no external parts, readable on light and dark pages.

Small enough to need no plotting library: axes with round ticks, lines with their names at the end, bands for intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from resdeploy.report.plain_text import inert

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 132, 36, 44
# Okabe & Ito 2008: colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#A6A61F")
LETTER = 4.6  # width of a letter at size 8, on average
LETTER_12, LETTER_12_BOLD = 6.6, 7.4  # at size 12
MIDDLE = ".35em"  # from a text's base line to its middle; `dominant-baseline` is not known to every SVG reader
MARGIN = 0.04  # of an axis, so that no point lies on the frame
LEAST_TICKS = 3  # fewer say nothing of a scale
DASHES = ("", "7 4", "2 3", "9 3 2 3")  # of lines that may cover each other
MANTISSAS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0))  # of ticks, few to many
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; `low` and `high`, if any, are the interval around each point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False  # points that no line joins
    hollow: bool = False  # rings for dots
    dashes: str = ""  # of the line, one of `DASHES`
    labels: Sequence[str] = ()  # beside the dots, where there is room; "": none


def lines(
    curves: Sequence[Line], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False, zero: bool = True
) -> str:
    """An SVG document with these curves; both axes hold all points.

    Args:
        curves: what to draw.
        title: above it.
        x: what the horizontal axis shows, with its unit.
        y: likewise the vertical one.
        log_x: logarithmic; all values are positive then.
        log_y: likewise.
        zero: whether a vertical axis that is not logarithmic begins at or below zero.
    """
    plot = _plot(curves, log_x=log_x, log_y=log_y, zero=zero)
    names = dict.fromkeys(curve.name for curve in curves)
    right = max(RIGHT, 40 + LETTER_12 * max(len(name) for name in names))
    width = max(WIDTH - RIGHT + right, LEFT + 8 + LETTER_12_BOLD * len(title))
    body = [f'<text x="{LEFT}" y="20" font-weight="bold">{xml_text(title)}</text>']
    body += [_grid_y(plot, tick) for tick in plot.y_ticks]
    body += [_grid_x(plot, tick) for tick in plot.x_ticks]
    body.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#999"/>')
    body.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{xml_text(x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle})"'
    body.append(f'<text x="14" y="{middle}" {turned}>{xml_text(y)}</text>')
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for curve in curves:
        body += _draw(plot, curve, colours[curve.name])
    first = {curve.name: curve for curve in reversed(curves)}
    body += [part for number, name in enumerate(names) for part in _key(first[name], colours[name], number)]
    body += _labels(plot, curves)
    return svg(body, width=width, height=HEIGHT, words=f"{title}. {_in_words(curves)}")


def svg(body: Sequence[str], *, width: float, height: float, words: str) -> str:
    """A picture as an SVG document, which whoever cannot see it is told in words."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{xml_text(words)}" font-family="sans-serif" font-size="12" fill="#666">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _in_words(curves: Sequence[Line]) -> str:
    """Where each curve begins and ends, and between what it lies; of dots how many there are."""
    said = []
    for curve in curves:
        points = [(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)]
        if not points:
            continue
        low, high = min(y for _, y in points), max(y for _, y in points)
        if curve.dots or len(points) == 1:
            said.append(f"{curve.name}: {len(points)} points between {low:.4g} and {high:.4g}")
        else:
            ends = " to ".join(f"{y:.4g} at {x:.4g}" for x, y in (points[0], points[-1]))
            said.append(f"{curve.name}: {ends}, between {low:.4g} and {high:.4g}")
    return "; ".join(said)


def _plot(curves: Sequence[Line], *, log_x: bool, log_y: bool, zero: bool) -> _Plot:
    """The axes: across with a margin, up from tick to tick, each with enough ticks."""
    xs = [value for curve in curves for value in curve.xs]
    ys = [value for curve in curves for value in (*curve.ys, *curve.low, *curve.high) if math.isfinite(value)]
    whole = all(float(value).is_integer() for value in xs)
    x_range = _widened(min(xs), max(xs), log=log_x, whole=whole)
    low, high = (min(0.0, *ys) if zero and not log_y else min(ys)), max(ys)
    if high <= low:
        low, high = (low / 2, high * 2) if log_y else _apart(low, high)
    y_ticks = decades(low, high) if log_y else ticks(low, high)
    y_ticks = y_ticks if len(y_ticks) >= LEAST_TICKS else ticks(low, high)
    return _Plot(
        xs=x_range,
        ys=(min(y_ticks[0], *ys), max(y_ticks[-1], *ys)),
        x_ticks=_inside(*x_range, log=log_x, whole=whole),
        y_ticks=y_ticks,
        log_x=log_x,
        log_y=log_y,
    )


def _apart(low: float, high: float) -> tuple[float, float]:
    """Ends that differ."""
    return (low, high) if high > low else (low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0))


def _widened(low: float, high: float, *, log: bool, whole: bool) -> tuple[float, float]:
    """An axis with a margin beyond the points; around a single one, with room on both sides."""
    if log:
        factor = (high / low) ** MARGIN if high > low else 2.0
        return low / factor, high * factor
    if whole and high - low < LEAST_TICKS - 1:  # epochs, blocks: no ticks between whole numbers
        return low - 1, high + 1
    low, high = _apart(low, high)
    return low - MARGIN * (high - low), high + MARGIN * (high - low)


def _inside(low: float, high: float, *, log: bool, whole: bool) -> list[float]:
    """Round numbers on an axis, as few as say something."""
    if log:
        for mantissas in MANTISSAS:
            shown = [tick for tick in _powers(low, high, mantissas) if low <= tick <= high]
            if len(shown) >= LEAST_TICKS:
                return shown
    shown = [tick for tick in ticks(low, high) if low <= tick <= high and not (whole and tick % 1)]
    return shown if len(shown) >= LEAST_TICKS else [low, (low + high) / 2, high]


def xml_text(words: str) -> str:
    """Words from anywhere as the text of an element; XML has no control characters."""
    return escape(inert(words))


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers from at or below `low` to at or above `high`."""
    span = high - low or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from at or below `low` to at or above `high`; over a long way powers alone."""
    for mantissas in MANTISSAS:
        candidates = _powers(low, high, mantissas)
        below = [tick for tick in candidates if tick <= low * (1 + 1e-9)]
        above = [tick for tick in candidates if tick >= high * (1 - 1e-9)]
        shown = [tick for tick in candidates if below[-1] <= tick <= above[0]]
        if len(shown) > LEAST_TICKS:
            return shown
    return shown


def _powers(low: float, high: float, mantissas: Sequence[float]) -> list[float]:
    """Those times powers of ten, from a power at or below `low` to one at or above `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [k * 10.0**power for power in range(first, last + 1) for k in mantissas]


@dataclass(frozen=True)
class _Plot:
    xs: tuple[float, float]
    ys: tuple[float, float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log_x: bool = False
    log_y: bool = False

    def x(self, value: float) -> float:
        return LEFT + _share(value, self.xs, self.log_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, self.ys, self.log_y) * (HEIGHT - TOP - BOTTOM)


def _share(value: float, ends: tuple[float, float], log: bool) -> float:
    """How far along an axis a value lies, from 0 to 1."""
    low, high = ends
    if log:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    return (value - low) / (high - low or 1)


def _grid_y(plot: _Plot, tick: float) -> str:
    at = f"{plot.y(tick):.1f}"
    return (
        f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#999" stroke-opacity=".4"/>'
        f'<text x="{LEFT - 6}" y="{at}" dy="{MIDDLE}" text-anchor="end">{tick:g}</text>'
    )


def _grid_x(plot: _Plot, tick: float) -> str:
    at = f"{plot.x(tick):.1f}"
    return (
        f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="#999" stroke-opacity=".25"/>'
        f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
    )


def _draw(plot: _Plot, curve: Line, colour: str) -> list[str]:
    points = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.ys, strict=True) if math.isfinite(b)]
    parts = []
    if curve.low:
        there = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.high, strict=True)]
        back = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.low, strict=True)][::-1]
        parts.append(f'<polygon points="{_join([*there, *back])}" fill="{colour}" fill-opacity=".18"/>')
    if curve.dots or len(points) == 1:
        parts += [_dot(a, b, curve, colour) for a, b in points]
        parts += [_whisker(plot, curve, colour)] if curve.low and len(points) == 1 else []
    else:
        dashed = f' stroke-dasharray="{curve.dashes}"' if curve.dashes else ""
        line = f'<polyline points="{_join(points)}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'
        parts.append(line)
    return parts


def _dot(x: float, y: float, curve: Line, colour: str) -> str:
    look = f'fill="none" stroke="{colour}" stroke-width="1.5"' if curve.hollow else f'fill="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {look}/>'


def _whisker(plot: _Plot, curve: Line, colour: str) -> str:
    """The interval of a single point, whose band has no width."""
    x, low, high = plot.x(curve.xs[0]), plot.y(curve.low[0]), plot.y(curve.high[0])
    return f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="1.5"/>'


def _key(curve: Line, colour: str, number: int) -> list[str]:
    x, y = WIDTH - RIGHT + 10, TOP + 6 + 18 * number
    dashed = f' stroke-dasharray="{curve.dashes}"' if curve.dashes else ""
    line = f'<path d="M{x} {y}h16" stroke="{colour}" stroke-width="2"{dashed}/>'
    mark = _dot(x + 8, y, curve, colour) if curve.dots or len(curve.xs) == 1 else line
    return [mark, f'<text x="{x + 22}" y="{y}" dy="{MIDDLE}">{xml_text(curve.name)}</text>']


def _labels(plot: _Plot, curves: Sequence[Line]) -> list[str]:
    """Names beside dots, each where it covers neither a dot nor another name; without such a place it is left out."""
    dots = [(plot.x(a), plot.y(b)) for c in curves if c.dots for a, b in zip(c.xs, c.ys, strict=True)]
    names = [name for c in curves if c.dots for name in (c.labels or [""] * len(c.xs))]
    boxes = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    parts = []
    for (x, y), name in zip(dots, names, strict=True):
        width = LETTER * len(name)
        for dx, dy in ((5, -4), (5, 9), (-5 - width, -4), (-5 - width, 9), (-width / 2, -8), (-width / 2, 14)):
            box = (x + dx, y + dy - 7, x + dx + width, y + dy + 1)
            inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT + 8
            if name and inside and not any(_overlap(box, other) for other in boxes):
                parts.append(f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" font-size="8">{xml_text(name)}</text>')
                boxes.append(box)
                break
    return parts


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

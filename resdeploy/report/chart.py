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
    xs = [value for curve in curves for value in curve.xs]
    ys = [value for curve in curves for value in (*curve.ys, *curve.low, *curve.high) if math.isfinite(value)]
    x_ticks = decades(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs))
    y_ticks = decades(min(ys), max(ys)) if log_y else ticks(min(0.0, *ys) if zero else min(ys), max(ys))
    plot = _Plot((min(xs), max(xs)), (min(y_ticks[0], *ys), max(y_ticks[-1], *ys)), log_x, log_y)
    body = [f'<text x="{LEFT}" y="20" font-weight="bold">{_text(title)}</text>']
    body += [_grid_y(plot, tick) for tick in y_ticks]
    body += [_grid_x(plot, tick) for tick in x_ticks]
    body.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{_text(x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{_text(y)}</text>')
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(c.name for c in curves))}
    for curve in curves:
        body += _draw(plot, curve, colours[curve.name])
    body += [part for number, (name, colour) in enumerate(colours.items()) for part in _key(name, colour, number)]
    body += _labels(plot, curves)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#666">\n' + "\n".join(body) + "\n</svg>\n"
    )


def _text(words: str) -> str:
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
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    candidates = [k * 10.0**power for power in range(first, last + 1) for k in steps]
    below = [tick for tick in candidates if tick <= low * (1 + 1e-9)]
    above = [tick for tick in candidates if tick >= high * (1 - 1e-9)]
    return [tick for tick in candidates if below[-1] <= tick <= above[0]]


@dataclass(frozen=True)
class _Plot:
    xs: tuple[float, float]
    ys: tuple[float, float]
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
        f'<text x="{LEFT - 6}" y="{at}" text-anchor="end" dominant-baseline="middle">{tick:g}</text>'
    )


def _grid_x(plot: _Plot, tick: float) -> str:
    if not plot.xs[0] <= tick <= plot.xs[1]:
        return ""
    return f'<text x="{plot.x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'


def _draw(plot: _Plot, curve: Line, colour: str) -> list[str]:
    points = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.ys, strict=True) if math.isfinite(b)]
    parts = []
    if curve.low:
        there = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.high, strict=True)]
        back = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.low, strict=True)][::-1]
        parts.append(f'<polygon points="{_join([*there, *back])}" fill="{colour}" fill-opacity=".18"/>')
    if curve.dots:
        look = f'fill="none" stroke="{colour}" stroke-width="1.5"' if curve.hollow else f'fill="{colour}"'
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" {look}/>' for a, b in points]
    else:
        parts.append(f'<polyline points="{_join(points)}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return parts


def _key(name: str, colour: str, number: int) -> list[str]:
    y = TOP + 6 + 18 * number
    return [
        f'<path d="M{WIDTH - RIGHT + 10} {y}h14" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{WIDTH - RIGHT + 30}" y="{y}" dominant-baseline="middle">{_text(name)}</text>',
    ]


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
                parts.append(f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" font-size="8">{_text(name)}</text>')
                boxes.append(box)
                break
    return parts


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

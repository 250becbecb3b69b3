"""Line charts as SVG: no scripts, no external parts, readable on light and dark pages.

Small enough to need no plotting library: axes with round ticks, lines with their names at the end, bands for intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 132, 36, 44
# Okabe & Ito 2008: colours that colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; `low` and `high`, if any, are the interval around each point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False  # points that no line joins


def lines(curves: Sequence[Line], *, title: str, x: str, y: str) -> str:
    """An SVG document with these curves; both axes hold all points, the vertical one begins at or below zero."""
    xs = [value for curve in curves for value in curve.xs]
    ys = [value for curve in curves for value in (*curve.ys, *curve.low, *curve.high) if math.isfinite(value)]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))
    plot = _Plot((min(xs), max(xs)), (min(y_ticks[0], *ys), max(y_ticks[-1], *ys)))
    body = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    body += [_grid_y(plot, tick) for tick in y_ticks]
    body += [_grid_x(plot, tick) for tick in x_ticks]
    body.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y)}</text>'
    )
    for i, curve in enumerate(curves):
        body += _drawn(plot, curve, COLOURS[i % len(COLOURS)], i)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#666">\n' + "\n".join(body) + "\n</svg>\n"
    )


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers from at or below `low` to at or above `high`."""
    span = high - low or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Plot:
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        return LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0] or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.ys[0]) / (self.ys[1] - self.ys[0] or 1) * (HEIGHT - TOP - BOTTOM)


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


def _drawn(plot: _Plot, curve: Line, colour: str, number: int) -> list[str]:
    points = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.ys, strict=True) if math.isfinite(b)]
    parts = []
    if curve.low:
        there = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.high, strict=True)]
        back = [(plot.x(a), plot.y(b)) for a, b in zip(curve.xs, curve.low, strict=True)][::-1]
        parts.append(f'<polygon points="{_joined([*there, *back])}" fill="{colour}" fill-opacity=".18"/>')
    if curve.dots:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
    else:
        parts.append(f'<polyline points="{_joined(points)}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    label_y = TOP + 6 + 18 * number
    parts.append(f'<path d="M{WIDTH - RIGHT + 10} {label_y}h14" stroke="{colour}" stroke-width="3"/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 30}" y="{label_y}" dominant-baseline="middle">{escape(curve.name)}</text>')
    return parts


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

"""Values with their intervals as SVG: a dot and a whisker for each, names above them, so that a narrow screen has room.

The form is that of a forest plot (Lewis & Clarke 2001, BMJ 322:1479): all intervals on one axis, beside the line of no
effect.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resdeploy.report import chart

WIDTH, SIDE = 420, 12
ROW, AXIS = 38, 26  # heights
REACH = 10  # how far an interval makes the axis longer, in intervals of ordinary length: one that says nothing is cut
LONGEST = WIDTH - 2 * SIDE  # of a line of text


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its interval (None: no interval, or an end that is open), and the limit it is judged by, if any."""

    name: str
    text: str  # value and interval as a table writes them
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None


def intervals(
    estimates: Sequence[Estimate], *, title: str, write: Callable[[float], str], reference: float | None = None
) -> str:
    """An SVG document with these estimates, one below the other.

    Args:
        estimates: at least one.
        title: what they are of; not drawn, but said to whoever cannot see the picture.
        write: how numbers stand at the axis.
        reference: the value of no effect, a dashed line; None: there is none.
    """
    ticks = chart.ticks(*_range(estimates, reference))
    ends = ticks[0], ticks[-1]
    bottom = ROW * len(estimates) + 8
    body = [_grid(tick, write(tick), ends, bottom) for tick in ticks]
    if reference is not None:
        body.append(_upright(_x(reference, ends), bottom, 'stroke="#888" stroke-dasharray="5 4"'))
    for number, estimate in enumerate(estimates):
        body += _row(estimate, ROW * number, ends)
    words = "; ".join(f"{e.name}: {e.text}" + _of_limit(e, write) for e in estimates)
    return chart.svg(body, width=WIDTH, height=bottom + AXIS, words=f"{title}. {words}")


def _range(estimates: Sequence[Estimate], reference: float | None) -> tuple[float, float]:
    """What the axis must hold: values, limits, the line of no effect, and intervals as far as they tell anything."""
    fixed = [bound for e in estimates for bound in (e.value, e.limit, reference) if bound is not None]
    low, high = min(fixed), max(fixed)
    ends = [end for e in estimates for end in (e.low, e.high) if end is not None]
    lengths = [e.high - e.low for e in estimates if e.low is not None and e.high is not None]
    reach = REACH * max(statistics.median_low(lengths), high - low) if lengths else REACH * (high - low)
    if reach:
        ends = [min(max(end, low - reach), high + reach) for end in ends]
    return min([low, *ends]), max([high, *ends])


def _of_limit(estimate: Estimate, write: Callable[[float], str]) -> str:
    return "" if estimate.limit is None else f", limit {write(estimate.limit)}"


def _x(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return SIDE + 12 + (value - low) / (high - low or 1) * (WIDTH - 2 * SIDE - 24)


def _grid(tick: float, text: str, ends: tuple[float, float], bottom: float) -> str:
    x = _x(tick, ends)
    half = chart.LETTER_12 * len(text) / 2
    middle = min(max(x, half), WIDTH - half)
    label = f'<text x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">{chart.xml_text(text)}</text>'
    return _upright(x, bottom, 'stroke="#999" stroke-opacity=".3"') + label


def _upright(x: float, bottom: float, look: str) -> str:
    return f'<path d="M{x:.1f} 0V{bottom}" {look}/>'


def _row(estimate: Estimate, top: float, ends: tuple[float, float]) -> list[str]:
    """The name and the value in words, below them the whisker, the dot, and a bar where the limit is."""
    colour, y = chart.COLOURS[0], top + 26
    room = (LONGEST - chart.LETTER_12_BOLD * len(estimate.text) - 10) / chart.LETTER_12
    value = f'x="{WIDTH - SIDE}" y="{top + 14}" text-anchor="end" font-weight="bold"'
    parts = [
        f'<text x="{SIDE}" y="{top + 14}">{chart.xml_text(_shorten(estimate.name, int(room)))}</text>',
        f"<text {value}>{chart.xml_text(estimate.text)}</text>",
    ]
    if estimate.low is not None or estimate.high is not None:
        parts.append(f'<path d="{_whisker(estimate, y, ends)}" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<circle cx="{_x(estimate.value, ends):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    if estimate.limit is not None:
        at = _x(estimate.limit, ends)
        parts.append(f'<path d="M{at:.1f} {y - 9}v18" stroke="{chart.COLOURS[1]}" stroke-width="3"/>')
    return parts


def _whisker(estimate: Estimate, y: float, ends: tuple[float, float]) -> str:
    """A path with a bar at each end of the interval; one that is open, or beyond the axis, leaves the picture."""
    shown = [bound is not None and ends[0] <= bound <= ends[1] for bound in (estimate.low, estimate.high)]
    bounds = zip((estimate.low, estimate.high), shown, (0.0, float(WIDTH)), strict=True)
    low, high = (_x(bound, ends) if inside and bound is not None else side for bound, inside, side in bounds)
    bars = (f"M{x:.1f} {y - 4}v8" for x, inside in zip((low, high), shown, strict=True) if inside)
    return f"M{low:.1f} {y}H{high:.1f}" + "".join(bars)


def _shorten(name: str, most: int) -> str:
    """A long name without its middle: files of one network differ in how they end."""
    if len(name) <= most:
        return name
    tail = max(most * 2 // 3, 1)
    return f"{name[: max(most - tail - 1, 1)]}…{name[-tail:]}"

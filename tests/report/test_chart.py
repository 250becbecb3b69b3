"""Charts: well-formed SVG whose lines are where the numbers are."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from resdeploy.report import chart

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e6))
def test_ticks_are_few_ascending_and_enclose(low: float, span: float) -> None:
    """Between two and nine, evenly spaced."""
    found = chart.ticks(low, low + span)
    assert 2 <= len(found) <= 9
    step = found[1] - found[0]
    assert found[0] <= low + 1e-3 * step
    assert found[-1] >= low + span - 1e-3 * step
    assert all(math.isclose(b - a, step, rel_tol=1e-3) for a, b in itertools.pairwise(found))


def test_points_lie_in_proportion_and_names_are_escaped() -> None:
    """Twice the value, half the way up; a name with markup stays text."""
    curve = chart.Line(name="<b>&", xs=[1, 2, 3], ys=[0.0, 5.0, 10.0], low=[0, 4, 9], high=[1, 6, 10])
    root = ET.fromstring(chart.lines([curve], title="t", x="x", y="y"))
    points = [tuple(map(float, p.split(","))) for p in root.find(f"{SVG}polyline").attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == x2 - x1 > 0
    assert y0 - y1 == y1 - y2 > 0
    assert "<b>&" in [text.text for text in root.iter(f"{SVG}text")]
    assert not re.search("script|href", ET.tostring(root).decode())


def test_a_single_point_and_a_gap_are_drawn() -> None:
    """One epoch is a chart already; a value that is not finite is left out."""
    ET.fromstring(chart.lines([chart.Line(name="a", xs=[1], ys=[2.0])], title="", x="", y=""))
    gap = chart.lines([chart.Line(name="a", xs=[1, 2, 3], ys=[1.0, math.nan, 3.0])], title="", x="", y="")
    assert len(ET.fromstring(gap).find(f"{SVG}polyline").attrib["points"].split()) == 2

"""Charts: well-formed SVG whose lines are where the numbers are."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.report import chart
from resdeploy.report.plain_text import inert

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


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\x00b", "a\ud800b", "a\ufffeb", "]]>&<", "a\u202eb"])
def test_control_characters_in_names_leave_it_well_formed(name: str) -> None:
    """XML has none of them; they are shown escaped, wherever a name is drawn."""
    curve = chart.Line(name=name, xs=[1, 2], ys=[0.0, 5.0], dots=True, labels=[name, ""])
    drawn = chart.lines([curve], title=name, x=name, y=name)
    said = [text.text for text in ET.fromstring(drawn.encode()).iter(f"{SVG}text")]
    assert said.count(inert(name)) == 5


def test_points_lie_in_proportion_and_names_are_escaped() -> None:
    """Twice the value, half the way up; a name with markup stays text."""
    curve = chart.Line(name="<b>&", xs=[1, 2, 3], ys=[0.0, 5.0, 10.0], low=[0, 4, 9], high=[1, 6, 10])
    root = ET.fromstring(chart.lines([curve], title="t", x="x", y="y"))
    points = [tuple(map(float, p.split(","))) for p in root.findall(f"{SVG}polyline")[0].attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == x2 - x1 > 0
    assert y0 - y1 == y1 - y2 > 0
    assert "<b>&" in [text.text for text in root.iter(f"{SVG}text")]
    assert not re.search("script|href", ET.tostring(root).decode())


def test_a_single_point_and_a_gap_are_drawn() -> None:
    """One epoch is a chart already, its interval a line; a value that is not finite is left out."""
    one = chart.Line(name="a", xs=[1], ys=[2.0], low=[1.5], high=[3.0])
    root = ET.fromstring(chart.lines([one], title="", x="", y=""))
    point = root.findall(f"{SVG}circle")[0].attrib
    whiskers = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.attrib["d"].startswith(f"M{point['cx']} ")]
    ends = sorted(float(end) for end in re.split(f"M{re.escape(point['cx'])} |V", whiskers[-1]) if end)
    assert ends[0] < float(point["cy"]) < ends[1]
    gap = chart.lines([chart.Line(name="a", xs=[1, 2, 3], ys=[1.0, math.nan, 3.0])], title="", x="", y="")
    assert len(ET.fromstring(gap).findall(f"{SVG}polyline")[0].attrib["points"].split()) == 2


def numbers(root: ET.Element, **attributes: str) -> list[float]:
    """The labels of one axis."""
    texts = [text for text in root.iter(f"{SVG}text") if attributes.items() <= text.attrib.items()]
    return [float(text.text or "") for text in texts if re.fullmatch(r"[-+.e\d]+", text.text or "")]


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_both_axes_have_three_ticks_at_least(values: list[float], log: bool, zero: bool) -> None:
    """However near or far the points are, a single one included; no point lies on the frame's sides."""
    curve = chart.Line(name="a", xs=values, ys=values[::-1], dots=True)
    root = ET.fromstring(chart.lines([curve], title="t", x="x", y="y", log_x=log, log_y=log, zero=zero))
    across = numbers(root, y=str(chart.HEIGHT - chart.BOTTOM + 18))
    assert len(across) >= 3
    assert len(numbers(root, **{"text-anchor": "end"})) >= 3
    places = [float(circle.attrib["cx"]) for circle in root.findall(f"{SVG}circle")[: len(values)]]
    assert all(chart.LEFT < place < chart.WIDTH - chart.RIGHT for place in places)


def test_every_reader_of_svg_puts_texts_where_they_belong() -> None:
    """`dominant-baseline` is ignored by some; long names widen the picture, and marks are those of the curves."""
    names = ["a curve with a name that is longer than the room beside the plot has ever been", "dots"]
    curves = [
        chart.Line(name=names[0], xs=[1, 2], ys=[1, 2], dashes=chart.DASHES[1]),
        chart.Line(name=names[1], xs=[1, 2], ys=[2, 1], dots=True, hollow=True),
    ]
    drawn = chart.lines(curves, title="t", x="x", y="y")
    assert "dominant-baseline" not in drawn
    root = ET.fromstring(drawn)
    width = float(root.attrib["viewBox"].split()[2])
    assert width > chart.WIDTH - chart.RIGHT + chart.LETTER_12 * len(names[0])
    assert len(root.findall(f"{SVG}circle")) == 3  # two, and the one beside the name
    assert drawn.count(f'stroke-dasharray="{chart.DASHES[1]}"') == 2


def test_a_logarithmic_axis_gives_every_decade_the_same_room() -> None:
    """1, 10 and 100 are evenly spaced both ways."""
    curve = chart.Line(name="a", xs=[1, 10, 100], ys=[1, 10, 100])
    root = ET.fromstring(chart.lines([curve], title="", x="", y="", log_x=True, log_y=True))
    points = [tuple(map(float, p.split(","))) for p in root.findall(f"{SVG}polyline")[0].attrib["points"].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert math.isclose(x1 - x0, x2 - x1, abs_tol=0.2)
    assert math.isclose(y0 - y1, y1 - y2, abs_tol=0.2)


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6))
def test_decades_ascend_and_enclose(low: float, times: float) -> None:
    """From a microsecond to a thousand seconds alike."""
    found = chart.decades(low, low * times)
    assert found == sorted(set(found))
    assert found[0] <= low * (1 + 1e-6)
    assert found[-1] >= low * times * (1 - 1e-6)


def test_names_never_cover_each_other() -> None:
    """Twenty dots in one place: those names that fit nowhere are left out, and the dots stay."""
    crowd = chart.Line(name="a", xs=[1 + k / 500 for k in range(20)], ys=[1.0] * 20, dots=True, labels=["resnet"] * 20)
    far = chart.Line(name="a", xs=[9.0], ys=[2.0], dots=True, hollow=True, labels=["far"])
    root = ET.fromstring(chart.lines([crowd, far], title="", x="", y=""))
    small = [text for text in root.iter(f"{SVG}text") if text.attrib.get("font-size") == "8"]
    places = [(float(text.attrib["x"]), float(text.attrib["y"])) for text in small if text.text == "resnet"]
    assert 1 <= len(places) < 20
    for (x0, y0), (x1, y1) in itertools.combinations(places, 2):
        assert abs(x0 - x1) >= 20 or abs(y0 - y1) >= 7
    assert [text.text for text in small].count("far") == 1
    circles = list(root.iter(f"{SVG}circle"))
    assert len(circles) == 22  # the last is beside the name
    assert circles[-2].attrib["fill"] == "none"
    assert circles[-2].attrib["stroke"] == circles[0].attrib["fill"]  # one name, one colour

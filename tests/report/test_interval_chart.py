"""Intervals as SVG: where the numbers are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from resdeploy.report.interval_chart import LONGEST, WIDTH, Estimate, intervals

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*estimates: Estimate, **options: float) -> tuple[list[float], list[list[float]]]:
    """Where dots lie, and the two ends of each whisker."""
    root = ET.fromstring(intervals(estimates, title="t", write="{:g}".format, **options))
    dots = [float(dot.attrib["cx"]) for dot in root.iter(f"{SVG}circle")]
    paths = [path.attrib["d"] for path in root.iter(f"{SVG}path") if "H" in path.attrib["d"]]
    return dots, [[float(end) for end in re.findall(r"M([\d.]+) .*?H([\d.]+)", path)[0]] for path in paths]


def test_dots_and_whiskers_lie_in_proportion() -> None:
    """On one axis for all rows: the second is twice as far from the first as the third is from the second."""
    (a, b, c), whiskers = drawn(
        Estimate(name="a", text="1", value=1, low=0, high=2),
        Estimate(name="b", text="5", value=5, low=4, high=6),
        Estimate(name="c", text="7", value=7),
    )
    assert abs((b - a) - 2 * (c - b)) < 0.3
    assert len(whiskers) == 2
    assert abs((b - whiskers[1][0]) - (whiskers[1][1] - b)) < 0.2


def test_an_open_end_leaves_the_picture() -> None:
    """Of a one-sided interval; the axis holds limits and the value of no effect, too."""
    one = Estimate(name="a", text="1", value=1, low=None, high=2, limit=9)
    (dot,), ((low, high),) = drawn(one, reference=-5.0)
    assert 0 == low < dot < high < WIDTH
    ((far,), ((lowest, _),)) = drawn(Estimate(name="a", text="1", value=1, low=-5, high=2, limit=9))
    assert abs(dot - far) < 0.2
    assert 0 < lowest < far


def test_an_interval_that_says_nothing_does_not_flatten_the_others() -> None:
    """A ratio between nothing and 14,000 leaves the picture on that side, and the words have it all the same."""
    wild = Estimate(name="wild", text="0.48x [0.00, 14321.88]", value=0.48, low=0.001, high=14321.88)
    others = [
        Estimate(name="b", text="", value=1.7, low=0.9, high=3.2),
        Estimate(name="c", text="", value=1, low=0.7, high=1.4),
    ]
    (_, b, c), whiskers = drawn(wild, *others, reference=1.0)
    assert whiskers[0][1] == WIDTH
    assert whiskers[1][1] < WIDTH
    assert b - c > 10
    assert "14321.88" in intervals([wild, *others], title="t", write=str)


def test_a_long_name_keeps_its_ends() -> None:
    """In the picture; whoever is told it in words gets all of it."""
    name = f"timm:{'x' * 80}.int8.effort-high"
    text = intervals([Estimate(name=name, text="2.41x [2.35, 2.48]", value=2.4)], title="t", write=str)
    shown = next(t.text or "" for t in ET.fromstring(text).iter(f"{SVG}text") if "…" in (t.text or ""))
    assert shown.startswith("timm")
    assert shown.endswith(".int8.effort-high")
    assert len(shown) * 6 < LONGEST
    assert name in ET.fromstring(text).attrib["aria-label"]

"""Comparisons in plain words, which say what the interval beside them says."""

import pytest

from resdeploy.records import Comparison
from resdeploy.report import sentences


def compared(speedup, ci, **fields):
    known = {
        "baseline": "base",
        "candidate": "new",
        "speedup": speedup,
        "speedup_ci95": ci,
        "speedup_ci99": ci,
        "pairs": 9,
    }
    return Comparison(**known | fields)


RANGE = "undecided between new and base: the first takes 0.962 to 1.02 times as long as the second"


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (compared(1 / 2.8, (1 / 3.1, 1 / 2.5)), "new takes 2.8 times as long as base [2.5, 3.1]"),
        (compared(3.0, (2.8, 3.2)), "new is 3 times as fast as base [2.8, 3.2]"),
        (compared(1.031, (1.02, 1.042)), "new is 3.1 % faster than base [2, 4.2]"),
        (compared(1 / 1.031, (1 / 1.042, 1 / 1.02)), "new is 3.1 % slower than base [2, 4.2]"),
        (compared(1.001, (0.99, 1.012)), "new is as fast as base, within 2 % [-1, 1.2]"),
        (compared(1.01, (0.98, 1.04), needed_s=333.0), f"{RANGE}; about 6 min would decide: --max-time 340"),
        (compared(1.01, (0.98, 1.04)), f"{RANGE}; no sensible time decides"),
        (compared(2.0, (1.5, 2.5), pairs=3), "undecided between new and base: 3 of at least 8 pairs of processes"),
        (compared(2.0, None), "undecided between new and base: 9 of at least 8 pairs"),
        (compared(2.0, (1.9, 2.1), invalid=("new: why; mend it",)), "no claim about new and base: new: why; mend it"),
    ],
)
def test_each_verdict_has_its_sentence(comparison, sentence):
    assert sentences.answer(comparison).startswith(sentence)


@pytest.mark.parametrize("ci", [(1.0001, 1.3), (0.7, 0.9999), (0.99, 1.019), (0.97, 1.019), (0.5, 2.0)])
def test_the_word_follows_from_the_interval(ci):
    """Faster where it lies above 1, slower below, equal within 2 % of it, else undecided."""
    low, high = ci
    word = sentences.finding(compared(1.0, ci))
    expected = (
        "faster" if low > 1
        else "slower" if high < 1
        else "equal within 2 %" if high <= 1.02 and low >= 1 / 1.02
        else "undecided"
    )  # fmt: skip
    assert word == expected

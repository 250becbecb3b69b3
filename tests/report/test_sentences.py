"""Comparisons in plain words, which say what the interval beside them says."""

import dataclasses

import pytest

from resdeploy.records import Artifact, Check, Comparison, ModelSpec, Preprocessing
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
        (compared(1.01, (0.98, 1.04), needed_s=333.0), f"{RANGE}; a run of about 6 min would decide: raise --max-time"),
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


@pytest.mark.parametrize(
    ("name", "observed", "interval", "limit", "state", "seen", "side"),
    [
        ("top1", 0.28, (-0.1, 0.66), 1.0, "pass", "loses 0.28 points of top-1 against base [-0.10, 0.66]", "within"),
        ("top5", -0.5, (-0.9, -0.1), 1.0, "pass", "gains 0.50 points of top-5 against base [0.10, 0.90]", "within"),
        ("slowdown", 10.0, (8.0, 12.0), 5.0, "fail", "takes 1.1 times as long as base [1.08, 1.12]", "beyond"),
        ("slowdown", -65.0, (-66.0, -64.0), -33.0, "pass", "takes 0.35 times as long as base [0.34, 0.36]", "within"),
        (
            "cpu-slowdown",
            10.0,
            (8.0, 12.0),
            5.0,
            "fail",
            "takes 1.1 times as much CPU time as base [1.08, 1.12]",
            "beyond",
        ),
        ("slowdown", 4.0, (2.0, 6.0), 5.0, "inconclusive", "takes 1.04 times as long as base [1.02, 1.06]", "whether"),
    ],
)
def test_a_judged_limit_has_its_sentence(name, observed, interval, limit, state, seen, side):
    """What was seen, and on which side of the limit; the limit of a time is a factor, as what was seen is."""
    check = Check(name=name, limit=limit, observed=observed, interval=interval, state=state, unit="", note="")
    sentence = sentences.judged(check, "new", "base") or ""
    assert sentence.startswith(f"new {seen}: {side}")
    assert f"the limit of {1 + limit / 100 if 'slowdown' in name else limit:g}" in sentence


def test_what_was_not_seen_and_what_is_counted_has_no_sentence():
    for name, observed in (("slowdown", None), ("size", 3.0)):
        check = Check(name=name, limit=5.0, observed=observed, interval=None, state="pass", unit="", note="")
        assert sentences.judged(check, "new", "base") is None


def test_kernels_are_told_with_what_follows_from_them():
    """The same: a difference that was found is not the model's; other ones: what differs; unknown: nothing."""
    same = "new and base execute the same kernels on the same shapes and types"
    faster, equal = compared(1.03, (1.02, 1.04), kernels="same"), compared(1.0, (0.99, 1.01), kernels="same")
    assert sentences.kernels(faster) == f"{same}: the difference is not expected to come from the model"
    assert sentences.kernels(equal) == f"{same}: the model is not expected to have changed its speed"
    other = compared(1.03, (1.02, 1.04), kernels="2 more Reorder")
    assert sentences.kernels(other) == "new does not execute what base does: 2 more Reorder"
    assert sentences.kernels(compared(1.03, (1.02, 1.04))) is None


MEAN = "mean 0.5,0.5,0.5, std 0.25,0.25,0.25"
SEEN = Preprocessing(size=(32, 32), resize=36, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (
            SEEN,
            f"32x32 RGB as NCHW float32: shorter side to 36 (bicubic), centre crop, {MEAN}",
        ),
        (
            Preprocessing(size=(28, 24), channels="L", mean=(0.1307,), std=(0.3081,)),
            "28x24 L as NCHW float32: images not resized, mean 0.1307, std 0.3081",
        ),
        (
            dataclasses.replace(SEEN, resize=32, resize_mode="squash", dtype="uint8"),
            f"32x32 RGB as NCHW uint8: both sides to 32 (bicubic), {MEAN}, which the model does itself",
        ),
    ],
)
def test_what_a_network_sees_is_told_in_full(seen, sentence):
    """Size, resizing, crop, interpolation, mean, std, layout."""
    assert sentences.preprocessing(seen) == sentence


def test_networks_that_see_alike_are_told_of_once_with_who_says_so_and_what_changes_it():
    """A network that says nothing is not told of."""
    one = ModelSpec(name="a", family="f", classes=2, input_shape=(3, 32, 32), preprocessing=SEEN)
    specs = [one, dataclasses.replace(one, name="b"), dataclasses.replace(one, name="c", preprocessing=None)]
    (line,) = sentences.seen_by(specs, "timm's configuration with --img-size")
    assert line.startswith("a, b see 32x32 RGB as NCHW float32: shorter side to 36")
    assert line.endswith(f"; from timm's configuration with --img-size; change it with {sentences.SIGHT_OPTIONS}")


def test_what_a_file_was_checked_to_is_told_in_words():
    """And a figure that nobody has words for by its name."""
    checks = {"max_abs_error": 7e-10, "max_rel_error": 7.31e-7, "batch_size_1": 1.0, "batch_size_2": 3.0, "x": 0.5}
    exported = Artifact(path="m.onnx", format="onnx", precision="fp32", sha256="a", checks=checks)
    assert sentences.checked(exported) == ["within 7.3e-07 of torch in float64", "tried at batch 1 and 3", "x 0.5"]
    adds = {"residual_adds": 6.0, "fusable_adds": 5.0, "snr_db": 21.3}
    made = dataclasses.replace(exported, precision="int8", target="openvino", machine="vnni", checks=adds)
    assert sentences.checked(made) == [
        "21.3 dB of signal to noise",
        "5 of 6 residual adds can fuse",
        "needs VNNI",
    ]

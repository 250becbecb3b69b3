"""The accuracy gate on tables with known answers, broken models and bad input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resdeploy import stats
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.judge import accuracy, pairs
from resdeploy.measure.prediction_files import top_classes
from resdeploy.records import Calibration, Check, Origin, Predictions, Preprocessing


def predictions(top1: Any, labels: Any, **fields: Any) -> Predictions:
    """Predictions of class ids alone, as a foreign file gives them, with ids i0, i1, ..."""
    known: dict[str, Any] = {
        "model": "model",
        "ids": tuple(f"i{k}" for k in range(len(labels))),
        "labels": np.asarray(labels, dtype=np.int64),
        "top": np.asarray(top1, dtype=np.int64)[:, None],
        "logits": None,
        "data": "data",
        "data_fingerprint": "",
        "preprocessing_fingerprint": "",
        "sha256": "",
    }
    return Predictions(**known | fields)


def table(lost: int, gained: int, images: int, other: int = 0) -> tuple[Predictions, Predictions]:
    """Two models with that many images lost, gained, and changed from one wrong class to another; the rest right."""
    labels = np.zeros(images, dtype=np.int64)
    before, after = labels.copy(), labels.copy()
    after[:lost] = 1
    before[lost : lost + gained] = 1
    before[lost + gained : lost + gained + other], after[lost + gained : lost + gained + other] = 1, 2
    return predictions(before, labels), predictions(after, labels, model="candidate")


def top1(baseline: Predictions, candidate: Predictions, max_drop_pp: float = 0.5) -> Check:
    return accuracy.judge(baseline, candidate, max_drop_pp=max_drop_pp).checks[0]


def random_pair(images: int = 4000, classes: int = 10, seed: int = 0) -> tuple[Predictions, Predictions]:
    """A good model with logits (about 83 % right), and the same with a little noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 2.8
    noisy = (logits + rng.normal(scale=0.03, size=logits.shape)).astype(np.float32)
    pair = (predictions(top_classes(x)[:, 0], labels, logits=x, top=top_classes(x)) for x in (logits, noisy))
    return next(pair), next(pair)


def with_logits(like: Predictions, logits: Any) -> Predictions:
    return replace(like, model="candidate", logits=logits, top=top_classes(logits))


def test_a_candidate_within_the_limit_passes_with_its_bound() -> None:
    """40 lost and 35 gained of 10,000: the drop is 0.05 points, at most 0.19 on new images; the limit is 0.5."""
    check = top1(*table(40, 35, 10_000))
    assert check.state == "pass"
    assert check.observed == pytest.approx(0.05)
    assert check.interval == pytest.approx([100 * x for x in stats.tango_interval(40, 35, 10_000)])
    assert check.interval is not None
    assert f"top-1 drops by at most {check.interval[1]:.3g} points" in check.note
    assert "On this very set it drops by 0.05 points, within the limit: 40 right answers lost, 35 gained" in check.note


def test_a_candidate_beyond_the_limit_fails() -> None:
    """300 lost and 100 gained of 10,000: 2 points, and at least 1.67 on new images."""
    check = top1(*table(300, 100, 10_000))
    assert check.state == "fail"
    assert check.interval is not None
    assert check.interval[0] > 0.5
    assert "over the limit" in check.note


def test_too_few_images_are_inconclusive_and_the_note_says_how_many_decide() -> None:
    """Identical answers on 100 images prove nothing about 0.5 points; 539 would."""
    check = top1(*table(0, 0, 100))
    assert check.state == "inconclusive"
    assert "about 539 images would decide" in check.note


def test_a_drop_over_the_limit_on_this_set_alone_is_inconclusive() -> None:
    """6 lost of 1,000 is 0.6 points here, but 0.3 to 1.2 on new images: both facts are told."""
    check = top1(*table(6, 0, 1000))
    assert check.state == "inconclusive"
    assert "On this very set it drops by 0.6 points, over the limit" in check.note


def test_a_gain_passes_even_at_limit_zero() -> None:
    """A limit of 0 asks for proof that nothing is lost: 20 lost, 60 gained has it, no change at all has not."""
    gain = top1(*table(20, 60, 5000), max_drop_pp=0)
    assert gain.state == "pass"
    assert gain.interval is not None
    assert gain.interval[1] < 0
    assert f"top-1 rises by at least {-gain.interval[1]:.3g} points" in gain.note
    assert "On this very set it rises by 0.8 points, within the limit" in gain.note
    same = top1(*table(0, 0, 5000), max_drop_pp=0)
    assert same.state == "inconclusive"
    assert "choose another limit" in same.note


@pytest.mark.parametrize("limit", [-0.1, 100, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    """Negative, everything, not a number."""
    with pytest.raises(UsageError, match="no limit"):
        top1(*table(0, 0, 10), max_drop_pp=limit)


def test_flips_are_counted_and_named() -> None:
    """2 lost, 3 gained, 4 from one wrong class to another, 11 unchanged, each with its id."""
    flips = pairs.flips(pairs.match(*table(2, 3, 20, other=4)))
    effects = ["right to wrong"] * 2 + ["wrong to right"] * 3 + ["wrong to other"] * 4
    assert [(flip.image, flip.effect) for flip in flips] == [(f"i{k}", effect) for k, effect in enumerate(effects)]
    assert (flips[0].label, flips[0].baseline, flips[0].candidate) == (0, 0, 1)
    without = (replace(side, ids=()) for side in table(1, 0, 20))
    assert [flip.image for flip in pairs.flips(pairs.match(*without))] == ["0"]


def test_order_does_not_matter_where_ids_are_given() -> None:
    """The candidate's images shuffled give the same checks."""
    baseline, candidate = random_pair()
    order = np.random.default_rng(1).permutation(len(candidate.ids))
    assert candidate.logits is not None
    shuffled = replace(
        candidate,
        ids=tuple(candidate.ids[k] for k in order),
        labels=candidate.labels[order],
        top=candidate.top[order],
        logits=candidate.logits[order],
    )
    assert accuracy.judge(baseline, shuffled, max_drop_pp=1) == accuracy.judge(baseline, candidate, max_drop_pp=1)


def test_without_ids_equal_labels_in_equal_order_are_compared() -> None:
    """Files without ids on both sides are matched by position."""
    baseline, candidate = table(40, 35, 10_000)
    assert top1(replace(baseline, ids=()), replace(candidate, ids=())).state == "pass"


def test_only_top1_decides() -> None:
    """Top-5, classes and calibration are reported beside the check, have no state, and do not decide."""
    verdict = accuracy.judge(*random_pair(), max_drop_pp=1)
    assert [(check.name, check.limit) for check in verdict.checks] == [("top1", 1)]
    assert [row.name for row in verdict.reported] == ["top5", "classes", "calibration"]
    assert verdict.state == "pass"


def test_what_has_no_limit_at_all_is_not_a_pass() -> None:
    """Everything reported, nothing judged: no verdict can be had from that."""
    verdict = accuracy.judge(*random_pair())
    assert not verdict.checks
    assert verdict.state == "inconclusive"


def test_calibration_error_is_that_of_the_softmax() -> None:
    """Logits doubled keep every answer and change the calibration by what a direct computation in float64 says."""
    baseline, _ = random_pair()
    assert baseline.logits is not None
    check = accuracy.judge(baseline, with_logits(baseline, 2 * baseline.logits), max_drop_pp=1).reported[-1]

    def error(logits: Any) -> float:
        p = np.exp(logits.astype(np.float64))
        p = (p / p.sum(1, keepdims=True)).max(1)
        right = logits.argmax(1) == baseline.labels
        bins = np.ceil(p * 15)
        return 100 * float(sum(abs((right - p)[bins == b].sum()) for b in range(1, 16)) / len(p))

    assert check.observed == pytest.approx(error(2 * baseline.logits) - error(baseline.logits), abs=1e-3)


def test_a_class_that_collapses_is_named() -> None:
    """40 of 200 images of class 3 lost, nothing elsewhere: that class alone is significant after Holm."""
    labels = np.repeat(np.arange(10), 200)
    after = labels.copy()
    after[600:640] = 4
    pair = pairs.match(predictions(labels, labels), predictions(after, labels))
    drops = accuracy.class_drops(pair)
    assert (drops[0].label, drops[0].drop_pp, drops[0].images) == (3, 20.0, 200)
    assert drops[0].p_adjusted < 1e-9
    assert {drop.p_adjusted for drop in drops[1:]} == {1.0}
    note = accuracy.judge(pair.baseline, pair.candidate, max_drop_pp=5).reported[0].note
    assert "3 (20 points of 200 images)" in note


def test_holm_makes_one_of_twenty_candidates_harder_to_pass() -> None:
    """A candidate that passes alone by a hair no longer does among twenty like it; a clear one still does."""
    baseline, candidate = table(65, 39, 10_000)
    assert top1(baseline, candidate, 0.44).state == "pass"
    matched = [pairs.match(baseline, side) for side in [candidate] * 19 + [baseline]]
    many = accuracy.judge_many(matched, max_drop_pp=0.44)
    assert {verdict.state for verdict in many[:-1]} == {"inconclusive"}
    assert many[-1].state == "pass"
    assert "Holm's correction for 20 candidates" in many[0].checks[0].note


@pytest.mark.parametrize("shift", [1, -1, 3])
def test_shifted_classes_fail_with_their_shift_named(shift: int) -> None:
    """Outputs rolled by some classes."""
    baseline, _ = random_pair()
    assert baseline.logits is not None
    check = top1(baseline, with_logits(baseline, np.roll(baseline.logits, shift, axis=1)))
    assert check.state == "fail"
    assert f"shifted by {shift:+d}" in check.note


def test_permuted_classes_fail_with_the_permutation_suspected() -> None:
    """Two classes exchanged, then all of 100 in random order."""
    for classes, order in ((10, [0, 1, 5, 3, 4, 2, 6, 7, 8, 9]), (100, np.random.default_rng(2).permutation(100))):
        baseline, _ = random_pair(classes=classes)
        assert baseline.logits is not None
        check = top1(baseline, with_logits(baseline, baseline.logits[:, order]))
        assert check.state == "fail"
        assert "class list is in another order" in check.note


def test_a_merely_worse_model_is_not_called_permuted() -> None:
    """Noise in place of knowledge, with many classes and few images: no cause is made up."""
    baseline, _ = random_pair(images=1000, classes=500)
    noise = np.random.default_rng(3).normal(size=(1000, 500)).astype(np.float32)
    check = top1(baseline, with_logits(baseline, noise))
    assert check.state == "fail"
    assert "class list" not in check.note


def test_a_collapsed_model_is_named() -> None:
    """One class for everything."""
    baseline, _ = random_pair()
    constant = np.zeros((4000, 10), dtype=np.float32)
    constant[:, 7] = 1
    assert "answers class 7 for 100 % of the images" in top1(baseline, with_logits(baseline, constant)).note


def test_other_preprocessing_is_said_not_refused() -> None:
    """Different fingerprints: judged, with the hint."""
    baseline, candidate = table(300, 0, 10_000)
    check = top1(
        replace(baseline, preprocessing_fingerprint="aaaa"), replace(candidate, preprocessing_fingerprint="bbbb")
    )
    assert check.state == "fail"
    assert "preprocessed differently" in check.note


GOOD = table(1, 1, 6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"data_fingerprint": "bbb"}, UsageError, "different data"),
        ({"ids": tuple("abcdef")}, UsageError, "share 0 images"),
        ({"ids": ("i0", "i1", "i2", "i3", "i4", "x")}, UsageError, "share 5 images"),
        ({"ids": ()}, UsageError, "the baseline has ids and the other side has none"),
        ({"ids": ("i0", "i0", "i2", "i3", "i4", "i5")}, MalformedInput, "ids twice: i0"),
        ({"ids": ("i0", "i1")}, MalformedInput, "6 labels but 2 ids"),
        ({"labels": np.ones(6, dtype=np.int64)}, UsageError, "labels of 6 of 6 images differ"),
        ({"logits": np.zeros((6, 3), dtype=np.float32)}, UsageError, "one side has logits"),
        ({"logits": np.full((6, 3), np.nan, dtype=np.float32)}, MalformedInput, "not finite for 6 of 6"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], error: type[Exception], says: str) -> None:
    """Each bad input has its class of error and says what is wrong."""
    with pytest.raises(error, match=says):
        accuracy.judge(replace(GOOD[0], data_fingerprint="aaa"), replace(GOOD[1], **change), max_drop_pp=1)


def test_labels_shifted_by_one_are_said_to_be() -> None:
    """Labels that count from 1 on one side."""
    with pytest.raises(UsageError) as caught:
        accuracy.judge(GOOD[0], replace(GOOD[1], labels=GOOD[1].labels + 1), max_drop_pp=1)
    assert "baseline's +1" in str(caught.value)


def test_other_numbers_of_classes_are_refused() -> None:
    """1,001 against 1,000 classes."""
    baseline, candidate = random_pair(images=50)
    assert candidate.logits is not None
    more = np.hstack([np.full((50, 1), -9, dtype=np.float32), candidate.logits])
    with pytest.raises(UsageError, match="10 classes and the candidate 11"):
        accuracy.judge(baseline, with_logits(baseline, more), max_drop_pp=1)


def test_no_images_at_all_are_refused() -> None:
    """Zero rows."""
    with pytest.raises(MalformedInput, match="no predictions at all"):
        accuracy.judge(*table(0, 0, 0), max_drop_pp=1)


def calibrated(calibration: Calibration | None) -> Predictions:
    return replace(GOOD[0], images=tuple("abcdef"), origin=Origin(calibration=calibration))


def test_calibration_images_in_the_evaluation_are_refused() -> None:
    """One image in common is one too many; none, or no calibration, is fine."""
    calibration = Calibration(data="train", count=2, seed=0, method="minmax", images=("x", "c"))
    with pytest.raises(UsageError, match="1 of 6 evaluated images were also used to calibrate"):
        pairs.refuse_leak(calibrated(calibration))
    pairs.refuse_leak(calibrated(replace(calibration, images=("x", "y"))))
    pairs.refuse_leak(calibrated(None))
    pairs.refuse_leak(GOOD[0])


def test_synthetic_calibration_is_refused() -> None:
    """A model calibrated on random images can only be timed."""
    with pytest.raises(UsageError, match="synthetic"):
        pairs.refuse_leak(calibrated(Calibration(data="synthetic", count=8, seed=0, method="minmax")))


def test_top5_is_judged_where_it_has_a_limit() -> None:
    """The five best of a model that answers at random: a fail on top-5 alone; class ids alone cannot be judged."""
    baseline, _ = random_pair()
    noise = with_logits(baseline, np.random.default_rng(5).normal(size=(4000, 10)).astype(np.float32))
    verdict = accuracy.judge(baseline, noise, max_top5_drop_pp=1)
    assert [(check.name, check.limit, check.state) for check in verdict.checks] == [("top5", 1, "fail")]
    assert "top1" in [row.name for row in verdict.reported]
    with pytest.raises(UsageError, match="top-5 cannot be judged"):
        accuracy.judge(*table(1, 1, 100), max_top5_drop_pp=1)


def test_settings_of_the_preprocessing_that_differ_are_named() -> None:
    """Where both sides say how they saw the images, the hint gives both values."""
    origins = [
        Origin(preprocessing=Preprocessing(size=(32, 32), mean=mean)) for mean in ((0.485, 0.456, 0.406), (0.5,) * 3)
    ]
    sides = [
        replace(side, preprocessing_fingerprint=name, origin=origin)
        for side, name, origin in zip(table(300, 0, 10_000), "ab", origins, strict=True)
    ]
    assert "mean 0.485,0.456,0.406 and 0.5,0.5,0.5." in top1(sides[0], sides[1]).note


def test_another_machine_and_other_versions_are_differences() -> None:
    """What a stored baseline was made with, against what is here now; sides that do not say are not compared."""
    before, after = table(1, 1, 10)
    old = Origin(machine="Xeon (avx2)", backend="openvino", tools={"openvino": "2025.4", "numpy": "2"})
    new = Origin(machine="EPYC (avx2)", backend="openvino", tools={"openvino": "2026.4", "numpy": "2"})
    assert pairs.differences(replace(before, origin=old), replace(after, origin=new)) == (
        "machine: Xeon (avx2) before, EPYC (avx2) now",
        "openvino: 2025.4 before, 2026.4 now",
    )
    assert pairs.differences(before, replace(after, origin=new)) == ()


def test_images_to_decide_allow_for_the_number_of_candidates() -> None:
    """Among twenty candidates more images are needed than for one alone: Holm's first step asks for 0.25 %."""
    pair = pairs.match(*table(0, 0, 100))
    alone, among = (accuracy.judge_many([pair] * n, max_drop_pp=0.5)[0].checks[0].note for n in (1, 20))
    assert "about 539 images" in alone
    assert "about 1,569 images" in among

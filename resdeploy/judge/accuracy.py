"""The accuracy gate: non-inferiority on paired predictions.

`pass` says that the drop on new images is shown to be within the limit, `fail` that it is shown to exceed it, both at
the given one-sided confidence (Tango's score bounds); anything else is `inconclusive`, with the number of images that
would decide. "Not significantly worse" is never a pass: on few images everything is not significantly worse.

Both statements are about images drawn as these were. About these very images there is nothing to infer: the drop on
them is a count, and every note states it. A whole-set drop above the limit is `inconclusive`, not `fail`, as long as
luck in the choice of images may explain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from resdeploy import stats
from resdeploy.errors import UsageError
from resdeploy.judge.hints import hints
from resdeploy.judge.pairs import Pair, match
from resdeploy.records import Check, Predictions, State, Verdict

MAX_IMAGES = 1_000_000_000  # more than this "would decide" is no advice
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class ClassDrop:
    """What one class lost, in points of its own images."""

    label: int
    images: int
    lost: int
    gained: int
    p_adjusted: float  # McNemar mid-p, corrected by Holm for the number of classes

    @property
    def drop_pp(self) -> float:
        return 100 * (self.lost - self.gained) / self.images


def judge(baseline: Predictions, candidate: Predictions, *, max_drop_pp: float, confidence: float = 0.95) -> Verdict:
    """Judges the top-1 drop of a candidate; top-5, classes and calibration are reported beside it.

    Args:
        baseline: what the candidate is measured against.
        candidate: of the same images, in any order.
        max_drop_pp: the largest drop of top-1 allowed, in percentage points.
        confidence: one-sided, of the pass and of the fail.

    Raises:
        UsageError: the two cannot be compared, or the limit is no limit.
        MalformedInput: one of them is damaged.
    """
    return judge_many(baseline, (candidate,), max_drop_pp=max_drop_pp, confidence=confidence)[0]


def judge_many(
    baseline: Predictions, candidates: Sequence[Predictions], *, max_drop_pp: float, confidence: float = 0.95
) -> tuple[Verdict, ...]:
    """Judges several candidates at once: the chance that any one passes (or fails) wrongly stays `1 - confidence`.

    Holm's correction, for the passes and for the fails each. Intervals are those of each candidate alone.

    Raises:
        UsageError, MalformedInput: as `judge`.
    """
    if not 0 <= max_drop_pp < 100:
        raise UsageError(f"a drop of {max_drop_pp} points is no limit", fix="Choose points of top-1 from 0 up to 100")
    if not 0.5 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is none", fix="Choose a share such as 0.95")
    pairs = [match(baseline, candidate) for candidate in candidates]
    scores = [
        float(stats.tango_score(pair.lost.sum(), pair.gained.sum(), pair.images, max_drop_pp / 100)) for pair in pairs
    ]
    within = stats.holm([NormalDist().cdf(score) for score in scores])
    beyond = stats.holm([NormalDist().cdf(-score) for score in scores])
    verdicts = []
    for pair, p_within, p_beyond in zip(pairs, within, beyond, strict=True):
        tail = 1 - confidence
        state: State = "pass" if p_within <= tail else "fail" if p_beyond <= tail else "inconclusive"
        top1 = _top1(pair, state, max_drop_pp, confidence, len(pairs))
        verdicts.append(Verdict(checks=(top1, *_reported(pair))))
    return tuple(verdicts)


def class_drops(pair: Pair) -> tuple[ClassDrop, ...]:
    """What every class lost, the largest drop first."""
    labels = pair.baseline.labels
    classes, which, images = np.unique(labels, return_inverse=True, return_counts=True)
    lost = np.bincount(which[pair.lost], minlength=len(classes)).tolist()
    gained = np.bincount(which[pair.gained], minlength=len(classes)).tolist()
    adjusted = stats.holm([stats.mcnemar_midp(*table) for table in zip(lost, gained, strict=True)])
    drops = [
        ClassDrop(label=int(label), images=int(n), lost=b, gained=c, p_adjusted=p)
        for label, n, b, c, p in zip(classes, images, lost, gained, adjusted, strict=True)
    ]
    return tuple(sorted(drops, key=lambda drop: (-drop.drop_pp, drop.label)))


def _top1(pair: Pair, state: State, limit_pp: float, confidence: float, candidates: int) -> Check:
    lost, gained, images = int(pair.lost.sum()), int(pair.gained.sum()), pair.images
    low, high = stats.tango_interval(lost, gained, images, tail=1 - confidence)
    drop_pp, low_pp, high_pp = 100 * (lost - gained) / images, 100 * low, 100 * high
    sure = f"at {100 * confidence:g} % confidence"
    if state == "pass":
        verdict = f"On new images like these top-1 {_at_most(high_pp)} {sure} (limit {limit_pp:g})"
    elif state == "fail":
        verdict = f"On new images like these top-1 drops by at least {low_pp:.3g} points {sure} (limit {limit_pp:g})"
    else:
        verdict = (
            f"{images:,} images cannot tell whether top-1 drops by more than {limit_pp:g} points on new ones "
            f"(between {low_pp:.3g} and {high_pp:.3g}, each end {sure}); "
            + _would_decide(lost, gained, images, limit_pp, confidence)
        )
    moved = "drops" if drop_pp >= 0 else "rises"
    side = "within" if drop_pp <= limit_pp else "over"
    here = (
        f"On this very set it {moved} by {abs(drop_pp):.3g} points, {side} the limit: {lost:,} right answers lost, "
        f"{gained:,} gained of {images:,} (McNemar mid-p {stats.mcnemar_midp(lost, gained):.2g})"
    )
    sentences = [verdict, here]
    if candidates > 1:
        sentences.append(f"Holm's correction for {candidates} candidates was applied; the interval is this one's alone")
    sentences += hints(pair)
    return Check(
        name="top1",
        limit=limit_pp,
        observed=drop_pp,
        interval=(low_pp, high_pp),
        state=state,
        unit="points",
        note=". ".join(sentences) + ".",
    )


def _at_most(drop_pp: float) -> str:
    """An upper bound of a drop in words; below zero it is a lower bound of a rise."""
    return f"drops by at most {drop_pp:.3g} points" if drop_pp >= 0 else f"rises by at least {-drop_pp:.3g} points"


def _would_decide(lost: int, gained: int, images: int, limit_pp: float, confidence: float) -> str:
    needed = stats.images_to_decide(
        (lost + gained) / images, (lost - gained) / images, limit_pp / 100, tail=1 - confidence
    )
    if needed is None or needed > MAX_IMAGES:
        return "the drop seen is the limit itself, which no number of images can tell apart: choose another limit"
    return f"about {needed:,} images would decide with 80 % probability if the drop and the share of flips stay as seen"


def _reported(pair: Pair) -> tuple[Check, ...]:
    """Quantities without a limit: they inform and never decide."""
    checks = []
    if pair.baseline.top.shape[1] == pair.candidate.top.shape[1] == 5:
        checks.append(_top5(pair))
    worse = [drop for drop in class_drops(pair) if drop.p_adjusted <= ALPHA and drop.lost > drop.gained]
    named = ", ".join(f"{drop.label} ({drop.drop_pp:.3g} points of {drop.images:,} images)" for drop in worse[:10])
    checks.append(
        Check(
            name="classes",
            limit=None,
            observed=float(len(worse)),
            interval=None,
            state="pass",
            unit="classes",
            note=f"Reported, not judged. Worse at 5 % after Holm's correction: {named or 'none'}.",
        )
    )
    if pair.baseline.logits is not None and pair.candidate.logits is not None:
        before, after = _calibration_error_pp(pair.baseline), _calibration_error_pp(pair.candidate)
        checks.append(
            Check(
                name="calibration",
                limit=None,
                observed=after - before,
                interval=None,
                state="pass",
                unit="points",
                note="Reported, not judged. "
                f"Expected calibration error of the softmax: {before:.3g} points before, {after:.3g} after.",
            )
        )
    return tuple(checks)


def _top5(pair: Pair) -> Check:
    before = (pair.baseline.top == pair.baseline.labels[:, None]).any(axis=1)
    after = (pair.candidate.top == pair.baseline.labels[:, None]).any(axis=1)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    low, high = stats.tango_interval(lost, gained, pair.images)
    return Check(
        name="top5",
        limit=None,
        observed=100 * (lost - gained) / pair.images,
        interval=(100 * low, 100 * high),
        state="pass",
        unit="points",
        note=f"Reported, not judged: {lost:,} right answers lost, {gained:,} gained.",
    )


def _calibration_error_pp(predictions: Predictions) -> float:
    assert predictions.logits is not None
    shifted = predictions.logits - predictions.logits.max(axis=1, keepdims=True)
    # The largest probability: exp(0) over the sum.
    confidences = 1 / np.exp(shifted).sum(axis=1, dtype=np.float64)
    return 100 * stats.calibration_error(confidences, predictions.top[:, 0] == predictions.labels)

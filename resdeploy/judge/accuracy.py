"""The accuracy gate: non-inferiority on paired predictions.

`pass` says that the drop on new images is shown to be within the limit, `fail` that it is shown to exceed it, both at
the given one-sided confidence (Tango's score bounds); anything else is `inconclusive`, with the number of images that
would decide. "Not significantly worse" is never a pass: on few images everything is not significantly worse.

Both statements are about images drawn as these were. About these very images there is nothing to infer: the drop on
them is a count, and every note states it. A whole-set drop above the limit is `inconclusive`, not `fail`, as long as
luck in the choice of images may explain it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import stats
from resdeploy.errors import UsageError, refuse
from resdeploy.judge.hints import hints
from resdeploy.judge.pairs import Pair, match
from resdeploy.records import Check, ClassDrop, Predictions, Reported, State, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_IMAGES = 1_000_000_000  # more than this "would decide" is no advice
ALPHA = 0.05
ROWS = 512  # at a time: intermediate results stay in the cache


def judge(
    baseline: Predictions,
    candidate: Predictions,
    *,
    max_drop_pp: float | None = None,
    max_top5_drop_pp: float | None = None,
    confidence: float = 0.95,
) -> Verdict:
    """Judges the drops of a candidate; those without a limit, classes and calibration are reported beside it.

    Args:
        baseline: what the candidate is measured against.
        candidate: of the same images, in any order.
        max_drop_pp: the largest drop of top-1 allowed, in percentage points; None: it is only reported.
        max_top5_drop_pp: likewise of top-5.
        confidence: one-sided, of the pass and of the fail.

    Raises:
        UsageError: the two cannot be compared, or the limit is no limit.
        MalformedInput: one of them is damaged.
    """
    pair = match(baseline, candidate)
    return judge_many([pair], max_drop_pp=max_drop_pp, max_top5_drop_pp=max_top5_drop_pp, confidence=confidence)[0]


def judge_many(
    pairs: Sequence[Pair],
    *,
    max_drop_pp: float | None = None,
    max_top5_drop_pp: float | None = None,
    confidence: float = 0.95,
) -> tuple[Verdict, ...]:
    """Judges several candidates at once: the chance that any one passes (or fails) wrongly stays `1 - confidence`.

    Holm's correction over the candidates, for the passes and for the fails of each quantity. Intervals are those of
    each candidate alone.

    Raises:
        UsageError: a limit outside its range, or one of top-5 where only one class per image is known.
    """
    refuse_limits(max_drop_pp, max_top5_drop_pp, confidence=confidence)
    clusters = [pair.clusters for pair in pairs]
    top1 = _drops("top1", [(pair.lost, pair.gained) for pair in pairs], clusters, max_drop_pp, confidence)
    five = [_top5_flips(pair) for pair in pairs]
    if max_top5_drop_pp is not None and None in five:
        raise UsageError(
            "top-5 cannot be judged: a side names fewer than five classes for each image",
            fix="Save logits, not class ids alone, or judge top-1 alone",
        )
    known = [(flips, which) for flips, which in zip(five, clusters, strict=True) if flips is not None]
    flips_5, clusters_5 = [flips for flips, _ in known], [which for _, which in known]
    top5 = iter(_drops("top5", flips_5, clusters_5, max_top5_drop_pp, confidence))
    return tuple(
        verdict_on(pair, [first] if flips is None else [first, next(top5)])
        for pair, first, flips in zip(pairs, top1, five, strict=True)
    )


def refuse_limits(*limits_pp: float | None, confidence: float) -> None:
    """Refuses what no drop can be judged by.

    Raises:
        UsageError: a limit or a confidence outside its range.
    """
    refuse(
        *(
            (
                limit is not None and not 0 <= limit < 100,
                f"a drop of {limit} points is no limit",
                "Choose points from 0 up to 100",
            )
            for limit in limits_pp
        ),
        (not 0.5 < confidence < 1, f"{confidence} is not a confidence", "Choose a share such as 0.95"),
    )


def verdict_on(pair: Pair, drops: Sequence[Check | Reported]) -> Verdict:
    """What has a limit is judged, the rest is reported; the hints go where a person looks first."""
    first = next((drop for drop in drops if isinstance(drop, Check)), drops[0])
    explained = dataclasses.replace(first, note=" ".join((first.note, *(f"{h}." for h in hints(pair)))))
    drops = [explained if drop is first else drop for drop in drops]
    return Verdict(
        checks=tuple(drop for drop in drops if isinstance(drop, Check)),
        reported=(*(drop for drop in drops if isinstance(drop, Reported)), *_report_beside(pair)),
    )


def class_drops(pair: Pair) -> tuple[ClassDrop, ...]:
    """What every class lost, the largest drop first."""
    labels = pair.baseline.labels
    classes, which, images = np.unique(labels, return_inverse=True, return_counts=True)
    lost = np.bincount(which[pair.lost], minlength=len(classes)).tolist()
    gained = np.bincount(which[pair.gained], minlength=len(classes)).tolist()
    adjusted = stats.holm([stats.mcnemar_midp(*table) for table in zip(lost, gained, strict=True)])
    names = pair.baseline.classes or pair.candidate.classes
    drops = [
        ClassDrop(
            label=int(label),
            name=names[label] if label < len(names) else "",
            images=int(n),
            lost=b,
            gained=c,
            p_adjusted=p,
        )
        for label, n, b, c, p in zip(classes, images, lost, gained, adjusted, strict=True)
    ]
    return tuple(sorted(drops, key=lambda drop: (-drop.drop_pp, drop.label)))


Masks = tuple["NDArray[np.bool_]", "NDArray[np.bool_]"]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The images that a candidate lost and gained, and how many images drawn one by one they are worth."""

    lost: int
    gained: int
    images: int
    clusters: int  # 0: every image was drawn by itself
    effect: float  # the design effect of the clusters

    @property
    def worth(self) -> tuple[float, float, float]:
        """Lost, gained and images, as a test for images drawn one by one takes them."""
        return self.lost / self.effect, self.gained / self.effect, self.images / self.effect

    @property
    def drop_pp(self) -> float:
        return 100 * (self.lost - self.gained) / self.images


def _table(flips: Masks, clusters: Sequence[str], tail: float) -> _Table:
    lost, gained = flips
    effect = 1.0
    if clusters:
        effect = stats.design_effect(lost.astype(np.int8) - gained.astype(np.int8), clusters, tail=tail)
    return _Table(
        lost=int(lost.sum()),
        gained=int(gained.sum()),
        images=len(lost),
        clusters=len(set(clusters)),
        effect=effect,
    )


def _drops(
    name: str,
    flips: Sequence[Masks],
    clusters: Sequence[Sequence[str]],
    limit_pp: float | None,
    confidence: float,
) -> Sequence[Check | Reported]:
    """One row per candidate, from the images that it lost and gained: judged where there is a limit."""
    tail = 1 - confidence
    # Few clusters need Student's wider tails, and those of Holm's smallest level are the widest that are used.
    tables = [_table(masks, which, tail / len(flips)) for masks, which in zip(flips, clusters, strict=True)]
    if limit_pp is None:
        return [_drop(name, table, confidence) for table in tables]
    scores = [float(stats.tango_score(*table.worth, limit_pp / 100)) for table in tables]
    within = stats.holm([NormalDist().cdf(score) for score in scores])
    beyond = stats.holm([NormalDist().cdf(-score) for score in scores])
    checks = []
    for table, p_within, p_beyond in zip(tables, within, beyond, strict=True):
        state: State = "pass" if p_within <= tail else "fail" if p_beyond <= tail else "inconclusive"
        check = _judge_drop(name, table, limit_pp, state, confidence, candidates=len(tables))
        if len(tables) > 1:
            corrected = f"Holm's correction for {len(tables)} candidates was applied; the interval is this one's alone."
            check = dataclasses.replace(check, note=f"{check.note} {corrected}")
        checks.append(check)
    return checks


def _drop(name: str, table: _Table, confidence: float, side: str = "") -> Reported:
    """The drop as it was seen: the count on this set, and the bounds on new images."""
    low, high = stats.tango_interval(*table.worth, tail=1 - confidence)
    moved = "drops" if table.drop_pp >= 0 else "rises"
    counted = f"{table.lost:,} right answers lost, {table.gained:,} gained of {table.images:,}"
    if table.clusters:  # flips of one cluster are no independent coin tosses, which McNemar's test counts
        tail = (
            f"The images are of {table.clusters:,} clusters, and worth {table.images / table.effect:,.0f} drawn one by "
            f"one (design effect {table.effect:.3g}): bounds are on new clusters, and as much wider."
        )
        note = f"On this very set it {moved} by {abs(table.drop_pp):.3g} points,{side} {counted}. {tail}"
    else:
        note = (
            f"On this very set it {moved} by {abs(table.drop_pp):.3g} points,{side} {counted} "
            f"(McNemar mid-p {stats.mcnemar_midp(table.lost, table.gained):.2g})."
        )
    return Reported(name=name, observed=table.drop_pp, interval=(100 * low, 100 * high), unit="points", note=note)


def _judge_drop(
    name: str, table: _Table, limit_pp: float, state: State, confidence: float, *, candidates: int
) -> Check:
    over = table.drop_pp > limit_pp
    drop = _drop(name, table, confidence, " over the limit:" if over else " within the limit:")
    assert drop.interval is not None
    low_pp, high_pp = drop.interval
    sure = f"at {100 * confidence:g} % confidence"
    quantity = {"top1": "top-1", "top5": "top-5"}[name]
    if state == "pass":
        verdict = f"On new images like these {quantity} {at_most(high_pp)} {sure} (limit {limit_pp:g})."
    elif state == "fail":
        verdict = (
            f"On new images like these {quantity} drops by at least {low_pp:.3g} points {sure} (limit {limit_pp:g})."
        )
    else:
        tail = (1 - confidence) / candidates
        verdict = (
            f"{table.images:,} images cannot tell whether {quantity} drops by more than {limit_pp:g} points on new "
            f"ones (between {low_pp:.3g} and {high_pp:.3g}, each end {sure}); "
            f"{would_decide(table.lost, table.gained, table.images, limit_pp, tail, effect=table.effect)}."
        )
    return Check(
        name=name,
        limit=limit_pp,
        observed=drop.observed,
        interval=drop.interval,
        state=state,
        unit=drop.unit,
        note=f"{verdict} {drop.note}",
    )


def at_most(drop_pp: float) -> str:
    """An upper bound of a drop in words; below zero it is a lower bound of a rise."""
    return f"drops by at most {drop_pp:.3g} points" if drop_pp >= 0 else f"rises by at least {-drop_pp:.3g} points"


def would_decide(lost: int, gained: int, images: int, limit_pp: float, tail: float, *, effect: float = 1.0) -> str:
    """The planned size in words: how many images would decide if they were judged once."""
    needed = stats.images_to_decide((lost + gained) / images, (lost - gained) / images, limit_pp / 100, tail=tail)
    needed = needed and math.ceil(needed * effect)  # clusters of the sizes seen are worth fewer images
    if needed is None or needed > MAX_IMAGES:
        return "the drop seen is the limit itself, which no number of images can tell apart: choose another limit"
    return f"about {needed:,} images would decide with 80 % probability if the drop and the share of flips stay as seen"


def _report_beside(pair: Pair) -> tuple[Reported, ...]:
    """Quantities that have no limit: they inform and never decide."""
    worse = [drop for drop in class_drops(pair) if drop.p_adjusted <= ALPHA and drop.lost > drop.gained]
    names = ", ".join(
        f"{drop.name or drop.label} ({drop.drop_pp:.3g} points of {drop.images:,} images)" for drop in worse[:10]
    )
    note = f"Worse at 5 % after Holm's correction: {names or 'none'}."
    classes = Reported(name="classes", observed=float(len(worse)), unit="classes", note=note)
    if pair.baseline.logits is None or pair.candidate.logits is None:
        return (classes,)
    before, after = _calibration_error_pp(pair.baseline), _calibration_error_pp(pair.candidate)
    note = f"Expected calibration error of the softmax: {before:.3g} points before, {after:.3g} after."
    return classes, Reported(name="calibration", observed=after - before, unit="points", note=note)


def _top5_flips(pair: Pair) -> Masks | None:
    """Which images leave and enter the five best answers; None where one side knows fewer."""
    if not pair.baseline.top.shape[1] == pair.candidate.top.shape[1] == 5:
        return None
    before = (pair.baseline.top == pair.baseline.labels[:, None]).any(axis=1)
    after = (pair.candidate.top == pair.baseline.labels[:, None]).any(axis=1)
    return before & ~after, after & ~before


def _calibration_error_pp(predictions: Predictions) -> float:
    assert predictions.logits is not None
    sums = np.empty(len(predictions.logits))
    for start in range(0, len(sums), ROWS):
        part = predictions.logits[start : start + ROWS]
        sums[start : start + ROWS] = np.exp(part - part.max(axis=1, keepdims=True)).sum(axis=1, dtype=np.float64)
    confidences = 1 / sums  # the largest probability: exp(0) over the sum
    return 100 * stats.calibration_error(confidences, predictions.top[:, 0] == predictions.labels)

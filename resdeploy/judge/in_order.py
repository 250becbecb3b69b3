"""The accuracy gate image by image: the same promise as `accuracy`, with a decision as soon as there is one.

`accuracy` is given all images at once and looks once. Here images come in random order, and bets on every one of them
(`stats.eprocess`) decide at the first image that suffices, without a size to be planned; the interval is the confidence
sequence at that image. A broken candidate fails within some hundred images; near the limit it takes more of them than a
planned size would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resdeploy.judge import accuracy
from resdeploy.judge.pairs import Pair
from resdeploy.records import Check, State, Verdict
from resdeploy.stats import eprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def decided_after(
    outcomes: NDArray[np.int8], *, max_drop_pp: float, confidence: float, candidates: int = 1
) -> int | None:
    """After how many images the drop is decided; None: not by these.

    Args:
        outcomes: of the images in random order, -1 gained, 0 unchanged, 1 lost.
        max_drop_pp: the largest drop of top-1 allowed, in percentage points.
        confidence: one-sided, of the pass and of the fail.
        candidates: how many are judged beside each other (Bonferroni's correction).

    Raises:
        UsageError: the limit or the confidence is outside its range.
    """
    accuracy.refuse_limits(max_drop_pp, confidence=confidence)
    decision = eprocess.decide(outcomes, max_drop_pp / 100, tail=(1 - confidence) / candidates)
    return None if decision is None else decision.images


def judge(
    pair: Pair,
    outcomes: NDArray[np.int8],
    *,
    of: int,
    max_drop_pp: float,
    confidence: float,
    candidates: int = 1,
) -> Verdict:
    """The verdict on the images that were seen.

    Args:
        pair: the answers to these images, in any order.
        outcomes: of the same images in the order in which they were seen.
        of: images that there are.
        max_drop_pp: the largest drop of top-1 allowed, in percentage points.
        confidence: one-sided, of the pass and of the fail.
        candidates: how many are judged beside each other (Bonferroni's correction).

    Raises:
        UsageError: the limit or the confidence is outside its range.
    """
    accuracy.refuse_limits(max_drop_pp, confidence=confidence)
    tail = (1 - confidence) / candidates
    decision = eprocess.decide(outcomes, max_drop_pp / 100, tail=tail)
    low, high = (100 * end for end in eprocess.bounds(outcomes, max_drop_pp / 100, tail=tail))
    state: State = "inconclusive" if decision is None else "pass" if decision.within else "fail"
    seen = _Seen(
        lost=int(pair.lost.sum()),
        gained=int(pair.gained.sum()),
        images=pair.images,
        low_pp=low,
        high_pp=high,
        limit_pp=max_drop_pp,
        confidence=confidence,
        candidates=candidates,
    )
    check = Check(
        name="top1",
        limit=max_drop_pp,
        observed=seen.drop_pp,
        interval=(low, high),
        state=state,
        unit="points",
        note=f"{_answer(state, seen, of)} {_told_of(seen)}",
    )
    return accuracy.verdict_on(pair, [check])


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was seen and what it was held against, for the sentences."""

    lost: int
    gained: int
    images: int
    low_pp: float  # of the drop on new images
    high_pp: float
    limit_pp: float
    confidence: float
    candidates: int

    @property
    def drop_pp(self) -> float:
        """On the images seen."""
        return 100 * (self.lost - self.gained) / self.images


def _answer(state: State, seen: _Seen, of: int) -> str:
    """Whether the drop is within its limit, and after how many of so many images that was known."""
    sure, limit = f"at {100 * seen.confidence:g} % confidence", f"(limit {seen.limit_pp:g})"
    after = f"{seen.images:,} of {of:,} images in random order"
    if state == "pass":
        return f"On new images like these top-1 {accuracy.at_most(seen.high_pp)} {sure} {limit}, decided after {after}."
    if state == "fail":
        drops = f"drops by at least {seen.low_pp:.3g} points"
        return f"On new images like these top-1 {drops} {sure} {limit}, decided after {after}."
    tail = (1 - seen.confidence) / seen.candidates
    advice = accuracy.would_decide(seen.lost, seen.gained, seen.images, seen.limit_pp, tail)
    return (
        f"{after} decided nothing: whether top-1 drops by more than {seen.limit_pp:g} points on new ones stays open "
        f"(between {seen.low_pp:.3g} and {seen.high_pp:.3g}, each end {sure}). "
        f"Judged once, without --sequential, {advice}."
    )


def _told_of(seen: _Seen) -> str:
    """What happened on the images seen, and what was corrected for."""
    moved = "drops" if seen.drop_pp >= 0 else "rises"
    note = (
        f"On the images seen it {moved} by {abs(seen.drop_pp):.3g} points, "
        f"{seen.lost:,} right answers lost, {seen.gained:,} gained."
    )
    if seen.candidates > 1:
        note += f" Bonferroni's correction for {seen.candidates} candidates was applied, to the interval too."
    return note

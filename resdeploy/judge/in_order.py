"""The accuracy gate image by image: the same promise as `accuracy`, with a decision as soon as there is one.

`accuracy` is given all images at once and looks once. Here images come in random order, and bets on every one of them
(`stats.eprocess`) decide at the first image that suffices, without a size to be planned; the interval is the confidence
sequence at that image. A broken candidate fails within some hundred images; near the limit it takes more of them than a
planned size would.
"""

from __future__ import annotations

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
        UsageError: the limit or the confidence is none.
    """
    accuracy.refuse_limits(max_drop_pp, confidence=confidence)
    found = eprocess.decide(outcomes, max_drop_pp / 100, tail=(1 - confidence) / candidates)
    return None if found is None else found.images


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
        UsageError: the limit or the confidence is none.
    """
    accuracy.refuse_limits(max_drop_pp, confidence=confidence)
    tail = (1 - confidence) / candidates
    found = eprocess.decide(outcomes, max_drop_pp / 100, tail=tail)
    low, high = (100 * end for end in eprocess.bounds(outcomes, max_drop_pp / 100, tail=tail))
    lost, gained, seen = int(pair.lost.sum()), int(pair.gained.sum()), pair.images
    drop_pp = 100 * (lost - gained) / seen
    state: State = "inconclusive" if found is None else "pass" if found.within else "fail"
    sure = f"at {100 * confidence:g} % confidence"
    after = f"{seen:,} of {of:,} images in random order"
    if state == "pass":
        verdict = f"On new images like these top-1 {accuracy.at_most(high)} {sure} (limit {max_drop_pp:g})"
        verdict = f"{verdict}, decided after {after}."
    elif state == "fail":
        verdict = f"On new images like these top-1 drops by at least {low:.3g} points {sure} (limit {max_drop_pp:g})"
        verdict = f"{verdict}, decided after {after}."
    else:
        advice = accuracy.would_decide(lost, gained, seen, max_drop_pp, tail)
        verdict = (
            f"{after} decided nothing: whether top-1 drops by more than {max_drop_pp:g} points on new ones stays open "
            f"(between {low:.3g} and {high:.3g}, each end {sure}). Judged once, without --sequential, {advice}."
        )
    moved = "drops" if drop_pp >= 0 else "rises"
    note = (
        f"{verdict} On the images seen it {moved} by {abs(drop_pp):.3g} points, "
        f"{lost:,} right answers lost, {gained:,} gained."
    )
    if candidates > 1:
        note += f" Bonferroni's correction for {candidates} candidates was applied, to the interval too."
    check = Check(
        name="top1",
        limit=max_drop_pp,
        observed=drop_pp,
        interval=(low, high),
        state=state,
        unit="points",
        note=note,
    )
    return accuracy.verdict_on(pair, [check])

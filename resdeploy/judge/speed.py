"""The speed gate: is the candidate at most so much slower, beyond what the noise of the machine explains?

As for accuracy there are three answers. A run that is unreliable (drift, two modes, ...) is `inconclusive`
whatever its numbers say.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from resdeploy import stats
from resdeploy.errors import refuse
from resdeploy.records import Check, State
from resdeploy.stats import timing, validity

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


TAIL_DRAWS = 20  # a bound is no extreme of its resamples: at least so many lie beyond it

Blocks = Sequence["ArrayLike"]
Bounds = Callable[[int, float], tuple[float, float, float]]  # candidate, tail -> slowdown and its two bounds, percent


def judge(
    baseline_s: Blocks,
    candidate_s: Blocks,
    *,
    max_slowdown_pct: float,
    confidence: float = 0.95,
    paired: bool = True,
    seed: int = 0,
    doubts: Sequence[str] = (),
) -> Check:
    """Judges the slowdown: the ratio of the times, less one, in percent.

    Args:
        baseline_s: seconds per image, one array per block, in the order of measurement.
        candidate_s: likewise.
        max_slowdown_pct: how much slower the candidate may be, above -100.
        confidence: one-sided, of the pass and of the fail.
        paired: whether both are of one interleaved run, block beside block, or each of its own.
        seed: of the resampling of runs of their own.
        doubts: what else speaks against comparing the two, such as another machine.

    Raises:
        UsageError: the limit is no limit.
    """
    return judge_many(
        [(baseline_s, candidate_s)],
        max_slowdown_pct=max_slowdown_pct,
        confidence=confidence,
        paired=paired,
        seed=seed,
        doubts=[doubts],
    )[0]


def judge_many(
    pairs: Sequence[tuple[Blocks, Blocks]],
    *,
    max_slowdown_pct: float,
    confidence: float = 0.95,
    paired: bool = True,
    seed: int = 0,
    doubts: Sequence[Sequence[str]] = (),
) -> tuple[Check, ...]:
    """Judges several candidates, each against its own baseline; the chance of any wrong pass stays `1 - confidence`.

    Holm's step-down over those that are reliable, for the passes and for the fails each: with m claims left, one
    holds if its bound at `(1 - confidence) / m` is on its side of the limit. Intervals are each candidate's alone.

    Raises:
        UsageError: as `judge`.
    """
    refuse(
        (
            not -100 < max_slowdown_pct < math.inf,
            f"a slowdown of {max_slowdown_pct} % is no limit",
            "Choose a percentage such as 3",
        ),
        (not 0.5 < confidence < 1, f"a confidence of {confidence} is none", "Choose a share such as 0.95"),
    )

    @functools.cache
    def bounds(k: int, tail: float) -> tuple[float, float, float]:
        before, after = pairs[k]
        # Each end of a two-sided interval of 1 - 2 tails is a one-sided bound of confidence 1 - tail.
        if paired:
            ratio = stats.paired_ratio(after, before, confidence=1 - 2 * tail)
        else:
            resamples = max(timing.RESAMPLES, math.ceil(TAIL_DRAWS / tail))
            ratio = stats.ratio_of_medians(after, before, confidence=1 - 2 * tail, seed=seed, resamples=resamples)
        return 100 * (ratio.value - 1), 100 * (ratio.low - 1), 100 * (ratio.high - 1)

    known = doubts or [()] * len(pairs)
    reasons = [[*own, *_reasons(before, after)] for own, (before, after) in zip(known, pairs, strict=True)]
    reliable = [k for k, against in enumerate(reasons) if not against]
    tail = 1 - confidence
    within = _shown(reliable, tail, lambda k, part: bounds(k, part)[2] <= max_slowdown_pct)
    beyond = _shown(reliable, tail, lambda k, part: bounds(k, part)[1] > max_slowdown_pct)
    checks = []
    for k, against in enumerate(reasons):
        state: State = "pass" if k in within else "fail" if k in beyond else "inconclusive"
        checks.append(_judged(k, state, against, bounds, max_slowdown_pct, tail, pairs))
    return tuple(checks)


def _reasons(baseline_s: Blocks, candidate_s: Blocks) -> list[str]:
    """Why the times are unreliable."""
    return [
        f"{role}: {doubt.kind} ({doubt.observed:.3g}, limit {doubt.limit:g})"
        for role, blocks in (("baseline", baseline_s), ("candidate", candidate_s))
        for doubt in stats.doubts(blocks)
    ]


def _shown(reliable: Sequence[int], tail: float, holds: Callable[[int, float], bool]) -> set[int]:
    """Holm's step-down by bounds instead of p-values (Holm, Scand. J. Statist. 6 (1979) 65-70)."""
    left = list(reliable)
    while left:
        found = next((k for k in left if holds(k, tail / len(left))), None)
        if found is None:
            break
        left.remove(found)
    return set(reliable) - set(left)


def _judged(
    k: int,
    state: State,
    reasons: Sequence[str],
    bounds: Bounds,
    limit: float,
    tail: float,
    pairs: Sequence[tuple[Blocks, Blocks]],
) -> Check:
    blocks = min(map(len, pairs[k]))
    if blocks < validity.MIN_BLOCKS:
        return _check(limit, None, None, "inconclusive", "; ".join(reasons))
    value, low, high = bounds(k, tail)
    said = f"The time changes by {low:+.2f} % to {high:+.2f} %, each end at {100 * (1 - tail):g} % confidence"
    if reasons:
        note = f"The run is unreliable: {'; '.join(reasons)}. Measure again"
    elif state == "pass":
        note = f"{said}: within the limit of {limit:g} %"
    elif state == "fail":
        note = f"{said}: beyond the limit of {limit:g} %"
    else:
        note = f"{said}; {_would_decide(value, low, high, limit, blocks)}"
    if len(pairs) > 1:
        note += f". Holm's correction for {len(pairs)} candidates was applied; the interval is this one's alone"
    return _check(limit, value, (low, high), state, note)


def _would_decide(value: float, low: float, high: float, limit: float, blocks: int) -> str:
    """An interval narrows with the square root of the blocks; the half towards the limit has to become shorter."""
    reach, room = (high - value, limit - value) if value < limit else (value - low, value - limit)
    if room <= 0 or reach > 30 * room:
        return f"that is the limit of {limit:g} % itself: no sensible number of blocks decides"
    needed = math.ceil(blocks * (reach / room) ** 2)
    return f"about {max(needed, blocks + 1)} blocks instead of {blocks} would decide: raise the duration"


def check_untimed(max_slowdown_pct: float, why: str) -> Check:
    """A limit on times that are not there."""
    return _check(max_slowdown_pct, None, None, "inconclusive", why)


def _check(
    limit: float, observed: float | None, interval: tuple[float, float] | None, state: State, note: str
) -> Check:
    return Check(
        name="slowdown", limit=limit, observed=observed, interval=interval, state=state, unit="%", note=f"{note}."
    )

"""The speed gate: is the candidate at most so much slower, beyond what the noise of the machine explains?

As for accuracy there are three answers. A run that is not to be believed (drift, two modes, ...) is `inconclusive`
whatever its numbers say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resdeploy import stats
from resdeploy.errors import UsageError
from resdeploy.records import Check, State

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def judge(
    baseline_s: Sequence[ArrayLike],
    candidate_s: Sequence[ArrayLike],
    *,
    max_slowdown_pct: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> Check:
    """Judges the slowdown: the ratio of the median times, less one, in percent.

    Args:
        baseline_s: seconds an image, one array a block, in the order of measurement.
        candidate_s: likewise, from the same interleaved run.
        max_slowdown_pct: how much slower the candidate may be, above -100.
        confidence: one-sided, of the pass and of the fail.
        seed: of the resampling.

    Raises:
        UsageError: the limit is no limit.
    """
    if not -100 < max_slowdown_pct < math.inf:
        raise UsageError(f"a slowdown of {max_slowdown_pct} % is no limit", fix="Choose a percentage such as 3")
    if not 0.5 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is none", fix="Choose a share such as 0.95")
    reasons = [
        f"{role}: {doubt.kind} ({doubt.observed:.3g}, limit {doubt.limit:g})"
        for role, blocks in (("baseline", baseline_s), ("candidate", candidate_s))
        for doubt in stats.doubts(blocks)
    ]
    blocks = min(len(baseline_s), len(candidate_s))
    if blocks < 2:
        return _check(max_slowdown_pct, None, None, "inconclusive", "; ".join(reasons))
    # Each end of a two-sided interval of 2c - 1 is a one-sided bound of confidence c.
    ratio = stats.ratio_of_medians(candidate_s, baseline_s, confidence=2 * confidence - 1, seed=seed)
    value, low, high = (100 * (x - 1) for x in (ratio.value, ratio.low, ratio.high))
    bounds = f"{low:+.2f} % to {high:+.2f} %, each end at {100 * confidence:g} % confidence"
    state: State
    if reasons:
        state, note = "inconclusive", f"The run is not to be believed: {'; '.join(reasons)}. Measure again"
    elif high <= max_slowdown_pct:
        state, note = "pass", f"The median time changes by {bounds}: within the limit of {max_slowdown_pct:g} %"
    elif low > max_slowdown_pct:
        state, note = "fail", f"The median time changes by {bounds}: beyond the limit of {max_slowdown_pct:g} %"
    else:
        state = "inconclusive"
        note = f"The median time changes by {bounds}; {_would_decide(value, low, high, max_slowdown_pct, blocks)}"
    return _check(max_slowdown_pct, value, (low, high), state, note)


def _would_decide(value: float, low: float, high: float, limit: float, blocks: int) -> str:
    """An interval narrows with the square root of the blocks; the half towards the limit has to become shorter."""
    reach, room = (high - value, limit - value) if value < limit else (value - low, value - limit)
    if room <= 0 or reach > 30 * room:
        return f"that is the limit of {limit:g} % itself: no sensible number of blocks decides"
    needed = math.ceil(blocks * (reach / room) ** 2)
    return f"about {max(needed, blocks + 1)} blocks instead of {blocks} would decide: raise the duration"


def _check(
    limit: float, observed: float | None, interval: tuple[float, float] | None, state: State, note: str
) -> Check:
    return Check(
        name="slowdown", limit=limit, observed=observed, interval=interval, state=state, unit="%", note=f"{note}."
    )

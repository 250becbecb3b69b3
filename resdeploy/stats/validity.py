"""May a run be believed? Tests on a series of blocks of times, each with its own reason.

Every test asks two things: is the effect real (an error rate of at most ALPHA on a clean run), and is it large enough
to matter. Without the second, a long run would fail for effects of a thousandth; without the first, a short one for
noise. Six tests at ALPHA stay below 1 % of clean runs together (measured in tests/test_stats_validity.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Kind = Literal["few-blocks", "drift", "slow-first", "bimodal", "outliers", "variance"]

ALPHA = 0.001
# asv and criterion ignore changes of the order of 1 %; half of it, so that a drift of 1 % is found despite noise.
DRIFT_LIMIT = 0.005
SLOW_FIRST_LIMIT = 0.01
# Two modes nearer than 1 % or with less than a tenth of the times (outliers then) do not move a median anybody reports.
MODES_APART_LIMIT = 0.01
SMALLER_MODE_LIMIT = 0.1
# hyperfine (outlier_detection.rs) after Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 10 robust
# standard deviations. It warns of any; with more than 1 % of them the p99 is an outlier.
OUTLIER_SIGMAS = 10.0
OUTLIER_SHARE_LIMIT = 0.01
SPREAD_LIMIT = 0.1  # pyperf (_cli.py): unstable where the standard deviation is 10 % of the mean
# With the first left out, the fewest in which even a perfect trend is rarer than ALPHA by chance: 2/7! < 0.001 < 2/6!.
MIN_BLOCKS = 8
# Quantile 1 - ALPHA of sqrt(n) x dip for n uniform times, from benchmarks/gate_properties.py --dip; the uniform is the
# worst unimodal distribution (Hartigan and Hartigan, Annals of Statistics 13 (1985) 70-84, section 3).
DIP_LIMIT = 0.7


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why a run is not to be believed: what was seen, and the limit it passed (fractions, or blocks)."""

    kind: Kind
    observed: float
    limit: float


def doubts(blocks: Sequence[ArrayLike]) -> tuple[Doubt, ...]:
    """All reasons to doubt a run; empty where there are none.

    Args:
        blocks: one non-empty array of positive times a block, in the order of measurement.
    """
    arrays = [np.asarray(block, dtype=np.float64) for block in blocks]
    medians = np.array([np.median(block) for block in arrays])
    times = np.concatenate(arrays)
    if len(arrays) < MIN_BLOCKS:
        return (Doubt(kind="few-blocks", observed=len(arrays), limit=MIN_BLOCKS),)
    found = (_drift(medians), _slow_first(medians), _bimodal(times), _outliers(times), _spread(times))
    return tuple(doubt for doubt in found if doubt is not None)


def _drift(medians: NDArray[np.float64]) -> Doubt | None:
    """A trend of the block medians: Mann-Kendall for whether, Theil-Sen for how much over the run.

    The first block is left out: `slow-first` is about it. Source: Mann, Econometrica 13 (1945) 245-259; Sen, JASA 63
    (1968) 1379-1389.
    """
    from scipy.stats import kendalltau, theilslopes

    later = medians[1:]
    order = np.arange(len(later))
    if np.ptp(later) == 0 or kendalltau(order, later).pvalue > ALPHA:
        return None
    change = float(theilslopes(later, order).slope) * len(later) / float(np.median(later))
    return Doubt(kind="drift", observed=change, limit=DRIFT_LIMIT) if abs(change) > DRIFT_LIMIT else None


def _slow_first(medians: NDArray[np.float64]) -> Doubt | None:
    """The first block against Student's prediction interval from the others: caches, clocks or lazy set-up."""
    from scipy.special import stdtrit

    first, rest = medians[0], medians[1:]
    excess = first / rest.mean() - 1
    expected = stdtrit(len(rest) - 1, 1 - ALPHA) * rest.std(ddof=1) * math.sqrt(1 + 1 / len(rest))
    if excess <= SLOW_FIRST_LIMIT or first - rest.mean() <= expected:
        return None
    return Doubt(kind="slow-first", observed=float(excess), limit=SLOW_FIRST_LIMIT)


def _bimodal(times: NDArray[np.float64]) -> Doubt | None:
    """Two modes: the dip test for whether, the best split in two for how far apart (of the median) and how shared."""
    if math.sqrt(len(times)) * dip(times) <= DIP_LIMIT:
        return None
    ordered = np.sort(times)
    counts = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1]
    low_mean, high_mean = below / counts, (ordered.sum() - below) / (len(ordered) - counts)
    # Least squares: the split with the largest variance between the two groups.
    split = int(np.argmax(counts * (len(ordered) - counts) * (high_mean - low_mean) ** 2))
    apart = float((high_mean[split] - low_mean[split]) / np.median(ordered))
    smaller = min(split + 1, len(ordered) - split - 1) / len(ordered)
    if apart <= MODES_APART_LIMIT or smaller < SMALLER_MODE_LIMIT:
        return None
    return Doubt(kind="bimodal", observed=apart, limit=MODES_APART_LIMIT)


def _outliers(times: NDArray[np.float64]) -> Doubt | None:
    """The share of times far from the median by the median absolute deviation."""
    distance = np.abs(times - np.median(times))
    share = float(np.mean(distance > OUTLIER_SIGMAS * 1.4826 * np.median(distance)))
    return Doubt(kind="outliers", observed=share, limit=OUTLIER_SHARE_LIMIT) if share > OUTLIER_SHARE_LIMIT else None


def _spread(times: NDArray[np.float64]) -> Doubt | None:
    """Robust standard deviation (interquartile range / 1.349) over the median; outliers are another doubt's matter."""
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    spread = float((high - low) / 1.349 / middle)
    return Doubt(kind="variance", observed=spread, limit=SPREAD_LIMIT) if spread > SPREAD_LIMIT else None


def dip(values: ArrayLike) -> float:
    """Hartigan's dip: the distance of the empirical distribution from the nearest unimodal one, in (0, 0.25].

    Source: Hartigan and Hartigan, Annals of Statistics 13 (1985) 70-84; Hartigan, Applied Statistics 34 (1985) 320-325,
    algorithm AS 217: shrink the modal interval while the greatest convex minorant and the least concave majorant within
    it are further apart than the distribution is from either outside it.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    if n < 2 or x[0] == x[-1]:
        return 0.5 / max(n, 1)
    rank = np.arange(n, dtype=np.float64)
    low, high, best = 0, n - 1, 1.0
    while True:
        minorant, majorant = _hull(x, low, high, sign=1), _hull(x, low, high, sign=-1)
        # The two curves are furthest apart at a corner of one of them; the steps of the distribution are one high.
        at_minorant = np.interp(x[minorant], x[majorant], rank[majorant]) - rank[minorant] + 1
        at_majorant = rank[majorant] - np.interp(x[majorant], x[minorant], rank[minorant]) + 1
        i, j = int(at_minorant.argmax()), int(at_majorant.argmax())
        if at_minorant[i] > at_majorant[j]:
            gap = at_minorant[i]
            new_low = minorant[i]
            new_high = majorant[np.searchsorted(majorant, minorant[i])]
        else:
            gap = at_majorant[j]
            new_high = majorant[j]
            new_low = minorant[np.searchsorted(minorant, majorant[j], side="right") - 1]
        if gap <= best:
            break
        left, right = slice(low, new_low + 1), slice(new_high, high + 1)
        convex = rank[left] - np.interp(x[left], x[minorant], rank[minorant]) + 1
        concave = np.interp(x[right], x[majorant], rank[majorant]) - rank[right] + 1
        best = max(best, convex.max(initial=0), concave.max(initial=0))
        if (low, high) == (new_low, new_high):
            break
        low, high = int(new_low), int(new_high)
    return float(best / (2 * n))


def _hull(x: NDArray[np.float64], low: int, high: int, *, sign: int) -> NDArray[np.int64]:
    """Indices of the corners of the greatest convex minorant (sign 1) or least concave majorant (-1) of the ranks."""
    corners: list[int] = []
    for k in range(low, high + 1):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if sign * ((b - a) * (x[k] - x[a]) - (k - a) * (x[b] - x[a])) < 0:
                break
            corners.pop()
        corners.append(k)
    return np.array(corners, dtype=np.int64)

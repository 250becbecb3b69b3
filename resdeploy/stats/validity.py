"""Whether a run is reliable: tests on a series of blocks of times, each with its own reason.

Every test asks two things: is the effect real (an error rate of at most ALPHA on a clean run), and is it large enough
to matter. Without the second, a long run would fail for effects of a thousandth; without the first, a short one for
noise. Together they doubt fewer than 1 % of clean runs (tests/stats/test_stats_validity.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Kind = Literal["few-blocks", "drift", "slow-first", "bimodal", "outliers", "variance", "cached"]

ALPHA = 0.002  # asv (statistics.py): a difference is one at p < 0.002
DRIFT_LIMIT = 0.005  # half of the 1 % that is to be found despite noise
SLOW_FIRST_LIMIT = 0.01
# Two modes nearer than 1 % or with less than a tenth of the times (outliers then) do not move a median anybody reports.
MODES_APART_LIMIT = 0.01
SMALLER_MODE_LIMIT = 0.1
# Ashman, Bird and Zepf, Astronomical J. 108 (1994) 2348, equation (3). The halves of one normal mode are 2.65 apart by
# it; so a coarse clock, whose ticks the dip sees as modes, is not mistaken for two.
MODES_SIGMAS = 3.0
# hyperfine (outlier_detection.rs) after Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 10 robust
# standard deviations. It warns of any; with more than 1 % of them the p99 is an outlier.
OUTLIER_SIGMAS = 10.0
OUTLIER_SHARE_LIMIT = 0.01
SPREAD_LIMIT = 0.1  # pyperf (_cli.py): unstable where the standard deviation is 10 % of the mean
# MLPerf's compliance test TEST04: the same input replayed may be at most 10 % faster than inputs in turn.
CACHED_LIMIT = 0.1
MIN_BLOCKS = 8  # with fewer, five degrees of freedom and less, Student's limit leaves only gross effects to be found
# The 99.9 % point of sqrt(n) x dip for 1,000 to 5,000 uniform times, 0.723 to 0.732 (table qDiptab of R's diptest); the
# uniform is the worst unimodal distribution (Hartigan and Hartigan, Annals of Statistics 13 (1985) 70-84, section 3).
DIP_LIMIT = 0.73
DIP_TIMES = 5000  # evenly taken from a longer run: enough to see two modes, and 20 ms


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why a run is unreliable: what was seen, and the limit it passed (fractions, or blocks)."""

    kind: Kind
    observed: float
    limit: float


def doubts(blocks: Sequence[ArrayLike]) -> tuple[Doubt, ...]:
    """All reasons to doubt a run; empty where there are none.

    Args:
        blocks: one non-empty array of positive times per block, in the order of measurement.
    """
    arrays = [np.asarray(block, dtype=np.float64) for block in blocks]
    if len(arrays) < MIN_BLOCKS:
        return (Doubt(kind="few-blocks", observed=len(arrays), limit=MIN_BLOCKS),)
    medians = np.array([np.median(block) for block in arrays])
    times = np.concatenate(arrays)
    found = (
        _drift(np.array([_middle_mean(block) for block in arrays])),
        _slow_first(medians),
        _bimodal(times),
        _outliers(times),
        _spread(times),
    )
    return tuple(doubt for doubt in found if doubt is not None)


def _middle_mean(block: NDArray[np.float64]) -> float:
    """The mean without the lowest and the highest quarter: of normal times it wanders less than the median."""
    cut = len(block) // 4
    return float(np.sort(block)[cut : len(block) - cut].mean())


def _drift(centres: NDArray[np.float64]) -> Doubt | None:
    """A trend of the blocks' middles by least squares, as a change over the run.

    Student's test, since means of many times are nearly normal; the first block is left to `slow-first`.
    """
    later = centres[1:]
    when = np.arange(len(later)) - (len(later) - 1) / 2
    slope = float(when @ later / (when @ when))
    change = slope * len(later) / float(later.mean())
    residual = later - later.mean() - slope * when
    error = math.sqrt(float(residual @ residual) / (len(later) - 2) / float(when @ when))
    if abs(change) <= DRIFT_LIMIT or abs(slope) <= _student(len(later) - 2) * error:
        return None
    return Doubt(kind="drift", observed=change, limit=DRIFT_LIMIT)


def _slow_first(medians: NDArray[np.float64]) -> Doubt | None:
    """The first block against Student's prediction interval from the others: caches, clocks or lazy set-up."""
    first, rest = medians[0], medians[1:]
    excess = float(first / rest.mean()) - 1
    expected = _student(len(rest) - 1) * rest.std(ddof=1) * math.sqrt(1 + 1 / len(rest))
    if excess <= SLOW_FIRST_LIMIT or first - rest.mean() <= expected:
        return None
    return Doubt(kind="slow-first", observed=excess, limit=SLOW_FIRST_LIMIT)


def surely_not_zero(values: ArrayLike) -> bool:
    """Whether the mean of several values is not 0, by Student's test at ALPHA."""
    array = np.asarray(values, dtype=np.float64)
    return abs(float(array.mean())) > _student(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))


def _student(degrees: int) -> float:
    """The two-sided limit of Student's t at ALPHA."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - ALPHA / 2))


def _bimodal(times: NDArray[np.float64]) -> Doubt | None:
    """Two modes: the dip test for whether, the best split in two for how far apart (of the median) and how shared."""
    times = times[:: math.ceil(len(times) / DIP_TIMES)]
    ordered = np.sort(times)
    counts = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1]
    low_mean, high_mean = below / counts, (ordered.sum() - below) / (len(ordered) - counts)
    # Least squares: the split with the largest variance between the two groups.
    split = int(np.argmax(counts * (len(ordered) - counts) * (high_mean - low_mean) ** 2)) + 1
    low, high = ordered[:split], ordered[split:]
    distance, within = float(high.mean() - low.mean()), math.sqrt((low.var() + high.var()) / 2)
    apart = distance / float(np.median(ordered))
    if (
        apart <= MODES_APART_LIMIT
        or distance <= MODES_SIGMAS * within
        or min(len(low), len(high)) < SMALLER_MODE_LIMIT * len(ordered)
        or math.sqrt(len(times)) * dip(times) <= DIP_LIMIT
    ):
        return None
    return Doubt(kind="bimodal", observed=apart, limit=MODES_APART_LIMIT)


def _outliers(times: NDArray[np.float64]) -> Doubt | None:
    """The share of times far from the median by the median absolute deviation; a single one moves no median."""
    distance = np.abs(times - np.median(times))
    far = int((distance > OUTLIER_SIGMAS * 1.4826 * np.median(distance)).sum())
    if far < 2 or far <= OUTLIER_SHARE_LIMIT * len(times):
        return None
    return Doubt(kind="outliers", observed=far / len(times), limit=OUTLIER_SHARE_LIMIT)


def _spread(times: NDArray[np.float64]) -> Doubt | None:
    """Robust standard deviation (interquartile range / 1.349) over the median; outliers are another doubt's matter."""
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    spread = float((high - low) / 1.349 / middle)
    return Doubt(kind="variance", observed=spread, limit=SPREAD_LIMIT) if spread > SPREAD_LIMIT else None


def cached(fresh: Sequence[ArrayLike], replayed: Sequence[ArrayLike]) -> Doubt | None:
    """Whether one input repeated is answered faster than inputs never seen: by more than MLPerf allows, and surely.

    More in every process, for what keeps results keeps them in all, and another program's burst of work slows one;
    surely by the rank test of Mann and Whitney (Annals of Mathematical Statistics 18 (1947) 50-60, normal limit), as
    these are short series whose distribution nobody knows. The gain reported is the smallest.

    Args:
        fresh: times of inputs never seen, a series per process, at least one time in each.
        replayed: times of one input again and again, as many series.
    """
    medians = [[float(np.median(np.asarray(part))) for part in side] for side in (fresh, replayed)]
    gain = min(1 - after / before for before, after in zip(*medians, strict=True))
    slow, fast = (np.concatenate([np.asarray(part, np.float64) for part in side]) for side in (fresh, replayed))
    ordered = np.sort(slow)  # for each fast one the slow ones below it, an equal one as a half
    places = np.searchsorted(ordered, fast, "left") + np.searchsorted(ordered, fast, "right")
    below = 1 - places.mean() / (2 * len(slow))
    error = math.sqrt((len(slow) + len(fast) + 1) / (12 * len(slow) * len(fast)))
    if gain <= CACHED_LIMIT or below - 0.5 <= NormalDist().inv_cdf(1 - ALPHA / 2) * error:
        return None
    return Doubt(kind="cached", observed=gain, limit=CACHED_LIMIT)


def dip(values: ArrayLike) -> float:
    """Hartigan's dip: the distance of the empirical distribution from the nearest unimodal one, in (0, 0.25].

    Source: Hartigan and Hartigan, Annals of Statistics 13 (1985) 70-84; Hartigan, Applied Statistics 34 (1985) 320-325,
    algorithm AS 217: shrink the modal interval while the greatest convex minorant and the least concave majorant within
    it are further apart than the distribution is from either outside it.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    rank = np.arange(n)
    before, after = _corners(x.tolist(), 1), _corners(x.tolist(), -1)
    low, high, best = 0, n - 1, 1.0
    while low < high:
        minorant, majorant = _chain(before, high, low)[::-1], _chain(after, low, high)
        # The two curves are furthest apart at a corner of one of them; the steps of the distribution are one high.
        at_minorant = np.interp(x[minorant], x[majorant], majorant) - minorant + 1
        at_majorant = majorant - np.interp(x[majorant], x[minorant], minorant) + 1
        i, j = int(at_minorant.argmax()), int(at_majorant.argmax())
        if at_minorant[i] > at_majorant[j]:
            gap, new_low = at_minorant[i], int(minorant[i])
            new_high = int(majorant[np.searchsorted(majorant, new_low)])
        else:
            gap, new_high = at_majorant[j], int(majorant[j])
            new_low = int(minorant[np.searchsorted(minorant, new_high, side="right") - 1])
        if gap <= best:
            break
        left, right = slice(low, new_low + 1), slice(new_high, high + 1)
        convex = rank[left] - np.interp(x[left], x[minorant], minorant) + 1
        concave = np.interp(x[right], x[majorant], majorant) - rank[right] + 1
        best = max(best, convex.max(), concave.max())
        if (low, high) == (new_low, new_high):
            break
        low, high = new_low, new_high
    return float(best / (2 * n))


def _corners(x: list[float], step: int) -> list[int]:
    """For each point the corner before it (after it, for step -1) on the minorant (majorant) that ends there."""
    end = 0 if step == 1 else len(x) - 1
    corner = [end] * len(x)
    for k in range(end + step, len(x) - end - 1 + step, step):
        corner[k] = k - step
        while (a := corner[k]) != end and (x[k] - x[a]) * (a - corner[a]) >= (x[a] - x[corner[a]]) * (k - a):
            corner[k] = corner[a]
    return corner


def _chain(corner: list[int], start: int, stop: int) -> NDArray[np.int64]:
    """Corners from `start` to `stop`, both included."""
    found = [start]
    while found[-1] != stop:
        found.append(corner[found[-1]])
    return np.array(found, dtype=np.int64)

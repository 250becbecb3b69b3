"""Medians, percentiles and speed ratios of times measured in blocks.

Times within a block share the machine's mood, so the block is what gets resampled (Davison and Hinkley, *Bootstrap
Methods and their Application*, 1997, section 3.8); an interval from single queries would be several times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Blocks = Sequence[ArrayLike]

TRIMMED = 0.1  # of the pairs, at each end
RESAMPLES = (
    2000  # Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 14.3: 1,000 or more for limits
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its two-sided interval, in the unit of what was measured."""

    value: float
    low: float
    high: float


def minimum_queries(share: float, *, confidence: float = 0.99) -> int:
    """Queries a percentile needs: 64 for 0.9 and 662 for 0.99.

    The smallest n with which at most one query above the true percentile is improbable (at most 1 - confidence):
    `n q^(n-1) (1-q) + q^n <= 1 - confidence` with q the share. Then one query may be discarded and the next still
    bounds the percentile.

    Source: MLPerf LoadGen, early_stopping.cc (`odds` with t = 1, tolerance 0, confidence 0.99).
    """
    from scipy.special import bdtr

    queries = 2
    while bdtr(1, queries, 1 - share) > 1 - confidence:
        queries += 1
    return queries


def percentile(
    blocks: Blocks, share: float = 0.5, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A percentile of all times, with a bootstrap-over-blocks interval.

    Args:
        blocks: one array of times per block; at least 2 blocks, none empty.
        share: 0.5 for the median.
        confidence: of the two-sided interval.
        seed: of the resampling.
        resamples: how many.
    """
    arrays = [np.asarray(block, dtype=np.float64) for block in blocks]
    draws = _resampled(arrays, share, np.random.default_rng(seed), resamples)
    tail = _expanded_tail((1 - confidence) / 2, len(arrays))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value=_percentile(np.concatenate(arrays), share), low=float(low), high=float(high))


def ratio_of_medians(
    numerator: Blocks, denominator: Blocks, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Ratio of two medians of runs of their own, with an interval from resampling each one's blocks.

    Blocks that were measured in turns belong to `ratio_of_pairs`.
    """
    above = [np.asarray(block, dtype=np.float64) for block in numerator]
    below = [np.asarray(block, dtype=np.float64) for block in denominator]
    rng = np.random.default_rng(seed)
    draws = _resampled(above, 0.5, rng, resamples) / _resampled(below, 0.5, rng, resamples)
    tail = _expanded_tail((1 - confidence) / 2, min(len(above), len(below)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    value = _percentile(np.concatenate(above), 0.5) / _percentile(np.concatenate(below), 0.5)
    return Estimate(value=value, low=float(low), high=float(high))


def ratio_of_pairs(pairs: Sequence[tuple[Blocks, Blocks]], *, confidence: float = 0.95) -> Estimate:
    """Ratio of the times of two things that took turns, each in several fresh processes.

    A machine's speed wanders over seconds, by far more than two things differ; within a turn it is the same for both,
    and the ratio of a turn's two medians is free of it. What a restart changes (memory layout, thread placement) it
    changes for all turns of a pair of processes, so the pair is what counts: one value each, the median of all averages
    of two turns' log ratios (Hodges and Lehmann), which a disturbed turn moves little. The estimate is the mean of the
    pairs' values without the outermost tenth at each end, the interval Student's for such a mean.

    Source: Hodges and Lehmann, Ann. Math. Statist. 34 (1963) 598-611; the trimmed mean and its t: Tukey and McLaughlin,
    Sankhya A 25 (1963) 331-352. Pairing for benchmarks: Bulej et al., "Duet Benchmarking", ICPE 2020; processes as what
    is sampled: Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013.

    Args:
        pairs: for each pair of processes the times of the numerator and of the denominator, one array per block; block
            k of both is turn k, and blocks of a process that met none are left out.
        confidence: of the two-sided interval. With one pair it is (0, inf).

    Raises:
        ValueError: no pair has a turn.
    """
    from scipy.special import stdtrit

    values = np.sort([_centre(turns) for above, below in pairs if len(turns := log_ratios(above, below))])
    count = len(values)
    if not count:
        msg = "a ratio needs turns"
        raise ValueError(msg)
    cut = int(TRIMMED * count)
    inner = values[cut : count - cut]
    centre = float(inner.mean())
    if count == 1:
        return Estimate(value=math.exp(centre), low=0.0, high=math.inf)
    pulled_in = np.clip(values, inner[0], inner[-1])  # Winsorized: its spread is that of the trimmed mean
    error = float(pulled_in.std(ddof=1)) / ((1 - 2 * cut / count) * math.sqrt(count))
    half = error * float(stdtrit(len(inner) - 1, (1 + confidence) / 2))
    return Estimate(value=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half))


def log_ratios(numerator: Blocks, denominator: Blocks) -> NDArray[np.float64]:
    """The logarithm of the ratio of the two medians of each turn; a block that met none has none."""
    sides = zip(numerator, denominator, strict=False)
    return np.array([math.log(float(np.median(np.asarray(a)) / np.median(np.asarray(b)))) for a, b in sides])


def _centre(turns: NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(turns))
    return float(np.median((turns[first] + turns[second]) / 2))


def _percentile(times: NDArray[np.float64], share: float) -> float:
    """The smallest time that at least `share` of the times do not exceed; not interpolated, as in trtexec, LoadGen."""
    return float(np.quantile(times, share, method="inverted_cdf"))


def _expanded_tail(tail: float, blocks: int) -> float:
    """The tail to cut off a bootstrap distribution of few units, which lacks a factor `sqrt((n-1)/n)` and t-tails.

    Source: Hesterberg, The American Statistician 69 (2015) 371-386, section 5.3, the expanded percentile interval.
    """
    from scipy.special import ndtr, stdtrit

    if blocks < 2:
        msg = "an interval needs at least 2 blocks"
        raise ValueError(msg)
    return float(ndtr(math.sqrt(blocks / (blocks - 1)) * stdtrit(blocks - 1, tail)))


def _resampled(
    blocks: list[NDArray[np.float64]], share: float, rng: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """The percentile of the pooled times in each resample of whole blocks.

    A pooled percentile lies between the smallest and the largest of its blocks' percentiles. Only the times in that
    range can be the answer; how many times of each block are at most each of them is counted once, and every resample
    finds its own among them by halving.
    """
    ends = [_percentile(block, share) for block in blocks]
    pooled = np.unique(np.concatenate(blocks))
    grid = pooled[np.searchsorted(pooled, min(ends)) : np.searchsorted(pooled, max(ends), side="right")]
    up_to = np.stack([np.searchsorted(np.sort(block), grid, side="right") for block in blocks], axis=1)
    weights = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=resamples)
    sizes = np.array([len(block) for block in blocks])
    wanted = np.ceil(share * (weights @ sizes) - 1e-9)
    low, high = np.zeros(resamples, dtype=np.int64), np.full(resamples, len(grid) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        reached = np.einsum("ij,ij->i", weights, up_to[middle]) >= wanted
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return np.asarray(grid[low], dtype=np.float64)

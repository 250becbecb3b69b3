"""Percentiles and ratios of times: order statistics, coverage of the intervals, sample sizes."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from resdeploy import stats

Blocks = list[NDArray[np.float64]]


def run(rng: np.random.Generator, *, median: float = 10.0, blocks: int = 16, queries: int = 40) -> Blocks:
    """Skewed times whose blocks have moods of their own; the median of all is `median`."""
    return [median * np.exp(rng.normal(0, 0.01) + rng.normal(0, 0.02, queries)) for _ in range(blocks)]


def test_minimum_queries_are_mlperfs() -> None:
    """64 queries for p90 and 662 for p99, as MLPerf LoadGen demands; and each is the smallest such number."""
    assert stats.minimum_queries(0.9) == 64
    assert stats.minimum_queries(0.99) == 662
    for share, queries in ((0.9, 64), (0.99, 662)):
        assert binom.cdf(1, queries, 1 - share) <= 0.01 < binom.cdf(1, queries - 1, 1 - share)


def test_a_percentile_is_an_order_statistic() -> None:
    """Of 1..100 in two blocks, p50 is 50 and p99 is 99: times that were measured, not interpolated."""
    blocks = [np.arange(1.0, 51.0), np.arange(51.0, 101.0)]
    assert stats.percentile(blocks, 0.5).value == 50
    assert stats.percentile(blocks, 0.99).value == 99


def test_the_interval_is_that_of_resampling_whole_blocks() -> None:
    """The counting shortcut gives the percentile that pooling the resampled blocks gives, resample by resample."""
    from resdeploy.stats import timing

    blocks = run(np.random.default_rng(0), blocks=6, queries=9)
    for share in (0.5, 0.9):
        fast = timing._resampled(blocks, share, np.random.default_rng(1), 50)
        weights = np.random.default_rng(1).multinomial(6, np.full(6, 1 / 6), size=50)
        slow = [
            np.quantile(np.concatenate(np.repeat(blocks, w, axis=0)), share, method="inverted_cdf") for w in weights
        ]
        assert fast.tolist() == slow


@pytest.mark.parametrize("blocks", [8, 16])
def test_median_intervals_cover_the_truth_in_93_to_97_percent(blocks: int) -> None:
    """2,000 simulated runs with block moods half as large as the noise, true median 10."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(2000):
        found = stats.percentile(run(rng, blocks=blocks), 0.5, seed=3, resamples=400)
        held += found.low <= 10 <= found.high
    assert 0.93 <= held / 2000 <= 0.97


def test_two_equal_models_differ_in_at_most_5_percent_and_3_percent_is_found() -> None:
    """The ratio's interval leaves out 1 in at most 5 % (+ 1.5 % for chance) of 600 pairs of equal models."""
    rng = np.random.default_rng(4)
    different = found = 0
    for _ in range(600):
        base = run(rng)
        same = stats.ratio_of_medians(run(rng), base, seed=5, resamples=400)
        slower = stats.ratio_of_medians(run(rng, median=10.3), base, seed=5, resamples=400)
        different += not same.low <= 1 <= same.high
        found += slower.low > 1
    assert different <= 39
    assert found >= 480


def test_a_ratio_of_medians_by_hand() -> None:
    """Constant blocks: the ratio is exact and its interval has no width."""
    found = stats.ratio_of_medians([np.full(5, 3.0)] * 4, [np.full(5, 2.0)] * 3)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def test_intervals_repeat_for_a_seed_and_need_two_blocks() -> None:
    """The same seed, the same limits; one block has no interval."""
    blocks = run(np.random.default_rng(6))
    assert stats.percentile(blocks, seed=1) == stats.percentile(blocks, seed=1)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        stats.percentile(blocks[:1])

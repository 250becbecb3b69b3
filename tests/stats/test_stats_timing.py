"""Percentiles and ratios of times: order statistics, coverage of the intervals, sample sizes."""

import numpy as np
import pytest
import scipy.stats
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


def wandering(rng: np.random.Generator, *, ratio: float, blocks: int = 16) -> tuple[list[np.ndarray], ...]:
    """Two sides in turns: moods of 10 % are of both, each block has 1 % of its own and each query 2 %."""
    moods = np.exp(0.1 * rng.standard_normal(blocks))
    sides = (10.0 * ratio * moods, 10.0 * moods)
    return tuple(
        [m * np.exp(0.01 * rng.standard_normal() + 0.02 * rng.standard_normal(30)) for m in side] for side in sides
    )


def test_a_ratio_of_turns_covers_the_truth_where_the_machine_wanders_and_is_several_times_narrower() -> None:
    """1,000 pairs whose ratio is 1.03: held in 93 to 97 %, found in nearly all, a third as wide."""
    rng = np.random.default_rng(7)
    held = found = 0
    widths = []
    for number in range(1000):
        sides = wandering(rng, ratio=1.03)
        paired = stats.paired_ratio(*sides)
        held += paired.low <= 1.03 <= paired.high
        found += paired.low > 1
        if number < 30:
            apart = stats.ratio_of_medians(*sides, resamples=400)
            widths.append((paired.high - paired.low) / (apart.high - apart.low))
    assert 0.93 <= held / 1000 <= 0.97
    assert found >= 950
    assert np.median(widths) < 1 / 3


@pytest.mark.parametrize("blocks", [6, 9, 16])
def test_the_interval_of_turns_is_what_scipys_exact_test_does_not_reject(blocks: int) -> None:
    """Just inside either end the signed-rank test keeps the ratio, just outside it rejects it."""
    sides = wandering(np.random.default_rng(blocks), ratio=1.2, blocks=blocks)
    found = stats.paired_ratio(*sides)
    turns = np.log([np.median(a) / np.median(b) for a, b in zip(*sides, strict=True)])

    def p_value(ratio: float) -> float:
        return float(scipy.stats.wilcoxon(turns - np.log(ratio), method="exact").pvalue)

    step = 1e-9
    assert found.low < found.value < found.high
    assert p_value(found.low + step) > 0.05 >= p_value(found.low - step)
    assert p_value(found.high - step) > 0.05 >= p_value(found.high + step)


def test_turns_by_hand() -> None:
    """Constant ratios have no width, five turns are too few for 95 %, and blocks without a partner are refused."""
    found = stats.paired_ratio([[3.0, 6.0, 3.0]] * 6, [[2.0]] * 6)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    few = stats.paired_ratio([[3.0]] * 5, [[2.0]] * 5)
    assert few.value == pytest.approx(1.5)
    assert (few.low, few.high) == (0, np.inf)
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_ratio([[3.0]] * 6, [[2.0]] * 5)
    with pytest.raises(ValueError, match="needs blocks"):
        stats.paired_ratio([], [])


def test_intervals_repeat_for_a_seed_and_need_two_blocks() -> None:
    """The same seed, the same limits; one block has no interval."""
    blocks = run(np.random.default_rng(6))
    assert stats.percentile(blocks, seed=1) == stats.percentile(blocks, seed=1)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        stats.percentile(blocks[:1])

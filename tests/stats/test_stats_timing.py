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


def share_held(runs: int, blocks: int) -> float:
    """How often the median's interval holds 10, the truth, in so many simulated runs."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(runs):
        found = stats.percentile(run(rng, blocks=blocks), 0.5, seed=3, resamples=400)
        held += found.low <= 10 <= found.high
    return held / runs


@pytest.mark.parametrize("blocks", [8, 16])
def test_median_intervals_cover_the_truth_in_93_to_97_percent(blocks: int) -> None:
    """800 simulated runs with block moods half as large as the noise, true median 10.

    At 95 % fewer than 93 or more than 97 % of 800 are one chance in a hundred, and of a true 91 or 98.5 % fewer than
    three in a hundred would pass; the seed is fixed.
    """
    assert 0.93 <= share_held(800, blocks) <= 0.97


def test_two_equal_models_differ_in_at_most_5_percent_and_3_percent_is_found() -> None:
    """The ratio's interval leaves out 1 in at most 5 % of pairs of equal models: of 300 in 21 at most (95 % sure)."""
    rng = np.random.default_rng(4)
    different = found = 0
    for _ in range(300):
        base = run(rng)
        same = stats.ratio_of_medians(run(rng), base, seed=5, resamples=400)
        slower = stats.ratio_of_medians(run(rng, median=10.3), base, seed=5, resamples=400)
        different += not same.low <= 1 <= same.high
        found += slower.low > 1
    assert different <= binom.ppf(0.95, 300, 0.05) == 21
    assert found >= 240


def test_a_ratio_of_medians_by_hand() -> None:
    """Constant blocks: the ratio is exact and its interval has no width."""
    found = stats.ratio_of_medians([np.full(5, 3.0)] * 4, [np.full(5, 2.0)] * 3)
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)


def wandering(
    rng: np.random.Generator, *, ratio: float, pairs: int, restart: float = 0.01, turns: int = 8
) -> list[tuple[Blocks, Blocks]]:
    """Pairs of processes: moods of 10 % are of both sides of a turn, and each process settles at a speed of its own."""
    made = []
    for _ in range(pairs):
        moods = np.exp(0.1 * rng.standard_normal(turns))
        own = np.exp(restart * rng.standard_normal(2))
        above, below = (
            [base * m * s * np.exp(0.01 * rng.standard_normal() + 0.02 * rng.standard_normal(9)) for m in moods]
            for base, s in zip((10.0 * ratio, 10.0), own, strict=True)
        )
        made.append((above, below))
    return made


@pytest.mark.parametrize("pairs", [8, 20])
def test_a_ratio_covers_the_truth_although_every_process_settles_at_another_speed(pairs: int) -> None:
    """400 runs whose ratio is 1.03, restarts of 1 %: the interval holds it in 92.5 to 97.5 %; acceptance has 5,000."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(400):
        found = stats.ratio_of_pairs(wandering(rng, ratio=1.03, pairs=pairs))
        held += found.low <= 1.03 <= found.high
    assert 0.925 <= held / 400 <= 0.975


def test_pairing_takes_the_machines_moods_out_of_a_ratio() -> None:
    """Where the machine wanders by 10 % the interval is a third as wide as that of the two sides apart."""
    rng = np.random.default_rng(8)
    widths = []
    for _ in range(30):
        pairs = wandering(rng, ratio=1.03, pairs=8, restart=0.0)
        paired = stats.ratio_of_pairs(pairs)
        sides = [[block for pair in pairs for block in pair[k]] for k in (0, 1)]
        apart = stats.ratio_of_medians(*sides, resamples=400)
        widths.append((paired.high - paired.low) / (apart.high - apart.low))
    assert np.median(widths) < 1 / 3


def test_a_turn_and_a_pair_that_something_disturbed_move_a_ratio_little() -> None:
    """A turn of eight in every pair, and one pair of twelve whole, take twice as long: 1.03 is found within 1.5 %."""
    rng = np.random.default_rng(9)
    pairs = wandering(rng, ratio=1.03, pairs=12)
    for above, _ in pairs:
        above[3] = 2 * above[3]
    pairs[5] = ([2 * block for block in pairs[5][0]], pairs[5][1])
    found = stats.ratio_of_pairs(pairs)
    assert found.value == pytest.approx(1.03, abs=0.015)
    assert found.high < 1.1


@pytest.mark.parametrize(("pairs", "cut"), [(2, 0), (8, 0), (9, 0), (10, 1), (25, 2)])
def test_the_interval_is_students_of_the_pairs_and_yuens_of_many(pairs: int, cut: int) -> None:
    """scipy's t interval of the pairs' values; from ten pairs on that of the trimmed mean, from its own definition."""
    values = np.random.default_rng(pairs).normal(0.1, 0.02, pairs)
    found = stats.ratio_of_pairs([([[np.exp(v)]], [[1.0]]) for v in values], confidence=0.99)
    if not cut:
        low, high = scipy.stats.t.interval(0.99, pairs - 1, values.mean(), scipy.stats.sem(values))
    else:
        centre = scipy.stats.trim_mean(values, 0.1)
        spread = scipy.stats.mstats.winsorize(values, (0.1, 0.1)).std(ddof=1) / ((1 - 2 * cut / pairs) * pairs**0.5)
        low, high = scipy.stats.t.interval(0.99, pairs - 2 * cut - 1, centre, spread)
    assert np.log([found.low, found.high]) == pytest.approx([low, high])


def test_pairs_by_hand() -> None:
    """Constant ratios have no width, one pair has no interval, a turn without a partner is left out."""
    found = stats.ratio_of_pairs([([[3.0, 6.0, 3.0]] * 4, [[2.0]] * 4)] * 3)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    one = stats.ratio_of_pairs([([[3.0]] * 5, [[2.0]] * 4), ([], [[2.0]])])
    assert one.value == pytest.approx(1.5)
    assert (one.low, one.high) == (0, np.inf)
    with pytest.raises(ValueError, match="needs turns"):
        stats.ratio_of_pairs([([], [])])


def test_intervals_repeat_for_a_seed_and_need_two_blocks() -> None:
    """The same seed, the same limits; one block has no interval."""
    blocks = run(np.random.default_rng(6))
    assert stats.percentile(blocks, seed=1) == stats.percentile(blocks, seed=1)
    with pytest.raises(ValueError, match="at least 2 blocks"):
        stats.percentile(blocks[:1])

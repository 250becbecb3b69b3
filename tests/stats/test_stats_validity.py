"""Verdicts on synthetic clocks: each defect is named, and clean runs are believed."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import mannwhitneyu, norm

from resdeploy import stats
from resdeploy.stats import validity

Blocks = list[NDArray[np.float64]]


def clean(rng: np.random.Generator, *, blocks: int = 16, queries: int = 60, mood: float = 0.001) -> Blocks:
    """Times of 10 ms with noise of 1 % and a mood of 0.1 % a block."""
    return [0.01 * (1 + rng.normal(0, mood)) * (1 + rng.normal(0, 0.01, queries)) for _ in range(blocks)]


def two_modes(run: Blocks, rng: np.random.Generator) -> Blocks:
    return [block * np.where(rng.random(len(block)) < 0.4, 1.05, 1.0) for block in run]


def drift(run: Blocks, rng: np.random.Generator) -> Blocks:
    return [block * (1 + 0.01 * k / (len(run) - 1)) for k, block in enumerate(run)]


def slow_first(run: Blocks, rng: np.random.Generator) -> Blocks:
    return [run[0] * 1.03, *run[1:]]


def outliers(run: Blocks, rng: np.random.Generator) -> Blocks:
    return [block * np.where(rng.random(len(block)) < 0.05, 1.5, 1.0) for block in run]


def wide(run: Blocks, rng: np.random.Generator) -> Blocks:
    return [block * np.exp(rng.normal(0, 0.15, len(block))) for block in run]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [("bimodal", two_modes), ("drift", drift), ("slow-first", slow_first), ("outliers", outliers), ("variance", wide)],
)
def test_each_defect_is_named(kind: str, spoil: Callable[[Blocks, np.random.Generator], Blocks]) -> None:
    """Modes 5 % apart, 1 % of drift, a first block 3 % slower, 5 % outliers, 15 % of spread: found in 9 of 10 runs."""
    rng = np.random.default_rng(1)
    found = [{doubt.kind for doubt in stats.doubts(spoil(clean(rng), rng))} for _ in range(60)]
    assert sum(kind in kinds for kinds in found) >= 54
    assert Counter(k for kinds in found for k in kinds if k != kind).total() <= 3


def test_at_most_one_percent_of_clean_runs_are_doubted() -> None:
    """1,000 runs of normal noise, and 1,000 of right-skewed noise, with moods three times as large."""
    for seed, skewed in ((2, False), (3, True)):
        rng = np.random.default_rng(seed)
        doubted = 0
        for _ in range(1000):
            run = clean(rng, mood=0.003)
            if skewed:
                run = [block * (1 + rng.gamma(2, 0.007, len(block))) for block in run]
            doubted += bool(stats.doubts(run))
        assert doubted <= 10


def test_a_coarse_clock_is_not_two_modes() -> None:
    """Times of 100 us on a clock that ticks in 1 us."""
    rng = np.random.default_rng(4)
    assert stats.doubts([np.round(rng.normal(100, 3, 200)) for _ in range(16)]) == ()


def test_constant_times_are_believed() -> None:
    """No spread at all is no reason for doubt."""
    assert stats.doubts([np.full(50, 0.01)] * 16) == ()


def test_few_blocks_are_a_doubt_of_their_own() -> None:
    """Seven blocks cannot show a trend; none at all is no run."""
    assert [d.kind for d in stats.doubts([np.ones(9)] * 7)] == ["few-blocks"]
    assert [d.kind for d in stats.doubts([])] == ["few-blocks"]


def test_drift_is_measured_over_the_run_with_its_sign() -> None:
    """1 % faster from begin to end is observed as about -1 %."""
    rng = np.random.default_rng(5)
    (found,) = stats.doubts([block * (1 - 0.01 * k / 39) for k, block in enumerate(clean(rng, blocks=40))])
    assert found.kind == "drift"
    assert found.observed == pytest.approx(-0.01, abs=0.002)


def unimodal_distance(values: NDArray[np.float64]) -> float:
    """The dip by its definition: over every mode, a linear programme for the nearest unimodal distribution function.

    Convex up to the mode, concave after it, a jump allowed at the mode (its left limit is the extra variable).
    """
    x = np.sort(values)
    n = len(x)
    best = 1.0
    for mode in range(n):
        rows: list[NDArray[np.float64]] = []
        bounds: list[float] = []

        def unit(*entries: tuple[int, float]) -> NDArray[np.float64]:
            row = np.zeros(n + 2)
            for index, value in entries:
                row[index] += value
            return row

        def left(k: int, mode: int = mode) -> int:
            return n if k == mode else k

        for k in range(n):
            for variable, reached in ((left(k), k / n), (k, (k + 1) / n)):
                rows += [unit((variable, 1), (n + 1, -1)), unit((variable, -1), (n + 1, -1))]
                bounds += [reached, -reached]
        rows.append(unit((n, 1), (mode, -1)))
        slopes = [unit((left(k + 1), 1 / (x[k + 1] - x[k])), (k, -1 / (x[k + 1] - x[k]))) for k in range(n - 1)]
        rows += [-slope for slope in slopes]
        rows += [slopes[k] - slopes[k + 1] for k in range(mode - 1)]
        rows += [slopes[k + 1] - slopes[k] for k in range(mode, n - 2)]
        bounds += [0.0] * (len(rows) - len(bounds))
        distance = unit((n + 1, 1))
        best = min(best, linprog(distance, A_ub=np.array(rows), b_ub=bounds, bounds=[(0, 1)] * (n + 2)).fun)
    return best


def test_the_dip_is_the_distance_from_the_nearest_unimodal_distribution() -> None:
    """Against a linear programme, on samples of one mode, two modes and none."""
    rng = np.random.default_rng(6)
    for _ in range(10):
        n = int(rng.integers(4, 14))
        for values in (rng.normal(size=n), rng.uniform(size=n), np.r_[rng.normal(size=n), rng.normal(6, 1, n // 2)]):
            assert stats.dip(values) == pytest.approx(unimodal_distance(values), abs=1e-7)


def test_the_dips_quantiles_are_the_published_ones() -> None:
    """R's diptest has 0.0471 as the 90 % point for 100 uniform times; our limit is about its 99.9 % point."""
    rng = np.random.default_rng(7)
    dips = np.array([stats.dip(rng.uniform(size=100)) for _ in range(2000)])
    assert np.quantile(dips, 0.9) == pytest.approx(0.0471, rel=0.02)
    assert np.mean(dips * 10 > validity.DIP_LIMIT) <= 0.003


def test_the_rank_test_of_cached_results_is_scipys() -> None:
    """With ties, and where the share of faster times decides: as Mann and Whitney's statistic from its normal limit."""
    rng, decided = np.random.default_rng(1), set()
    for _ in range(300):
        slow = rng.integers(20, 26, rng.integers(2, 40)).astype(float)
        fast = rng.integers(12, 24, rng.integers(2, 40)).astype(float)
        below = mannwhitneyu(slow, fast, method="asymptotic").statistic / (len(slow) * len(fast))
        error = math.sqrt((len(slow) + len(fast) + 1) / (12 * len(slow) * len(fast)))
        surely = below - 0.5 > norm.ppf(1 - validity.ALPHA / 2) * error
        much = 1 - np.median(fast) / np.median(slow) > validity.CACHED_LIMIT
        assert (stats.cached([slow], [fast]) is not None) == (surely and much)
        decided.add((bool(surely), bool(much)))
    assert len(decided) == 4


def test_a_result_that_is_kept_is_found_and_noise_is_not():
    """One input repeated is answered 30 % faster, in every process; a burst in one process is not taken for that.

    With equal times, fewer than 1 % of 500 pairs are called cached.
    """
    rng = np.random.default_rng(0)
    fresh = rng.normal(1, 0.05, 20)
    for n in (1, 4):
        doubt = stats.cached([fresh] * n, [0.7 * fresh] * n)
        assert doubt is not None
        assert doubt.kind == "cached"
    assert stats.cached([fresh] * 4, [0.5 * fresh] * 3 + [fresh]) is None
    assert stats.cached([fresh], [0.95 * fresh]) is None  # MLPerf allows 10 %
    wrong = sum(stats.cached([rng.normal(1, 0.2, 20)], [rng.normal(1, 0.2, 20)]) is not None for _ in range(500))
    assert wrong < 5

"""What `make test` tries in small, with so many runs that a wrong rate could not hide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtr

from resdeploy import stats
from resdeploy.judge import speed
from resdeploy.stats import looks
from tests.judge.test_judge_speed import in_turns
from tests.stats.test_stats_timing import share_held, wandering

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("blocks", [8, 16])
def test_median_intervals_cover_the_truth_in_93_to_97_percent(blocks: int) -> None:
    """5,000 simulated runs: a true 92 or 98 % would pass in fewer than one of a hundred."""
    assert 0.93 <= share_held(5000, blocks) <= 0.97


@pytest.mark.parametrize("pairs", [8, 12, 25, 60])
def test_ratios_cover_the_truth_in_94_to_96_percent(pairs: int) -> None:
    """5,000 simulated runs of processes that settle at 1 % of each other, in turns whose machine wanders by 10 %."""
    rng = np.random.default_rng(pairs)
    held = 0
    for _ in range(5000):
        found = stats.ratio_of_pairs(wandering(rng, ratio=1.03, pairs=pairs, turns=4))
        held += found.low <= 1.03 <= found.high
    assert 0.94 <= held / 5000 <= 0.965


@pytest.mark.parametrize("error", [0.01, 0.1])
def test_looks_err_by_no_more_than_a_twentieth_more_often_than_promised(error: float) -> None:
    """400,000 runs without a difference through all six looks, by Student's t of the values themselves."""
    runs, level = 400_000, 1 - looks.confidence(error)
    wrong = 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.standard_normal((runs // 20, looks.PAIRS[-1]))
        crossed = np.zeros(len(values), bool)
        for count in looks.PAIRS:
            part = values[:, :count]
            t = part.mean(axis=1) / (part.std(axis=1, ddof=1) / np.sqrt(count))
            crossed |= 2 * stdtr(count - 1, -np.abs(t)) < level
        wrong += int(crossed.sum())
    assert 0.85 * error <= wrong / runs <= 1.02 * error


def test_a_gate_passes_what_is_at_its_limit_in_at_most_five_percent() -> None:
    """3,000 candidates exactly at the limit, looked at after 8, 12, 18 and 27 pairs: 6 % would be seen."""
    wrong = 0
    for seed in range(3000):
        whole = in_turns(0.01, 0.0103, pairs=27, turns=4, seed=seed)
        seen = [speed.InTurns(pairs=whole.pairs[:count]) for count in (8, 12, 18, 27)]
        wrong += any(speed.judge(look, max_slowdown_pct=3).state == "pass" for look in seen)
    assert wrong / 3000 <= 0.055

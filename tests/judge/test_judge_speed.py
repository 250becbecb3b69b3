"""The speed gate on synthetic clocks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from resdeploy.errors import UsageError
from resdeploy.judge import speed


def clock(median_s: float, *, seed: int, blocks: int = 16, noise: float = 0.01) -> list[NDArray[np.float64]]:
    """Blocks of 50 times with noise of 1 %, and a mood of 0.3 % a block."""
    rng = np.random.default_rng(seed)
    moods = rng.normal(1, 0.003, blocks)
    return [median_s * mood * np.exp(rng.normal(0, noise, 50)) for mood in moods]


def test_an_equal_model_passes_three_percent() -> None:
    """The interval of the slowdown holds 0 and ends below the limit."""
    check = speed.judge(clock(0.01, seed=0), clock(0.01, seed=1), max_slowdown_pct=3)
    assert check.state == "pass"
    assert check.interval is not None
    assert check.interval[0] < 0 < check.interval[1] < 3


def test_a_slower_model_fails() -> None:
    """8 % slower with a limit of 3 %."""
    check = speed.judge(clock(0.01, seed=0), clock(0.0108, seed=1), max_slowdown_pct=3)
    assert check.state == "fail"
    assert check.observed == pytest.approx(8, abs=0.5)
    assert check.interval is not None
    assert check.interval[0] < 8 < check.interval[1]


def test_a_slowdown_near_the_limit_is_inconclusive_and_says_how_many_blocks_decide() -> None:
    """2.8 % slower with a limit of 3 %: more blocks are asked for."""
    check = speed.judge(clock(0.01, seed=0), clock(0.01028, seed=1), max_slowdown_pct=3)
    assert check.state == "inconclusive"
    assert "instead of 16 would decide" in check.note


def test_a_doubtful_run_never_decides() -> None:
    """A fast candidate whose times drift by 5 %, and one with only three blocks."""
    drifting = [block * (1 + 0.05 * k / 15) for k, block in enumerate(clock(0.005, seed=1))]
    check = speed.judge(clock(0.01, seed=0), drifting, max_slowdown_pct=3)
    assert check.state == "inconclusive"
    assert "candidate: drift" in check.note
    few = speed.judge(clock(0.01, seed=0), clock(0.005, seed=1, blocks=3), max_slowdown_pct=3)
    assert few.state == "inconclusive"
    assert "candidate: few-blocks (3, limit 8)" in few.note
    assert speed.judge([], [], max_slowdown_pct=3).state == "inconclusive"


def test_a_demanded_speedup_is_a_negative_slowdown() -> None:
    """At least 20 % faster: a model at half the time passes, an equal one fails."""
    assert speed.judge(clock(0.01, seed=0), clock(0.005, seed=1), max_slowdown_pct=-20).state == "pass"
    assert speed.judge(clock(0.01, seed=0), clock(0.01, seed=1), max_slowdown_pct=-20).state == "fail"


def test_the_verdict_of_two_runs_repeats_for_a_seed() -> None:
    """The bootstrap is seeded."""
    sides = (clock(0.01, seed=0), clock(0.0103, seed=1))
    once, again = (speed.judge(*sides, max_slowdown_pct=3, paired=False, seed=4) for _ in range(2))
    assert once == again
    assert once.interval != speed.judge(*sides, max_slowdown_pct=3).interval


def test_a_machine_that_wanders_hides_a_slowdown_from_two_runs_and_not_from_one() -> None:
    """Moods of 4 % that both sides share, block by block: 3 % slower with a limit of 1 %."""
    moods = np.random.default_rng(2).normal(1, 0.04, 16)
    sides = [
        [mood * block for mood, block in zip(moods, clock(s, seed=k), strict=True)]
        for k, s in enumerate((0.01, 0.0103))
    ]
    assert speed.judge(*sides, max_slowdown_pct=1).state == "fail"
    assert speed.judge(*sides, max_slowdown_pct=1, paired=False).state == "inconclusive"


@pytest.mark.parametrize("limit", [-100, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    """Not a number, infinite, or less than no time."""
    with pytest.raises(UsageError, match="no limit"):
        speed.judge(clock(0.01, seed=0), clock(0.01, seed=1), max_slowdown_pct=limit)

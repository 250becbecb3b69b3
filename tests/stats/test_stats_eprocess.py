"""The paired drop watched image by image: how often it is wrong, how soon it decides, and bounds that agree with it."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from resdeploy import stats
from resdeploy.stats import eprocess


def outcomes(lost: float, gained: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    u = np.random.default_rng(seed).random(shape)
    return np.where(u < lost, 1, np.where(u < lost + gained, -1, 0)).astype(np.int8)


def stops(seen: np.ndarray, limit: float, side: eprocess.Side, *, tail: float = 0.05) -> np.ndarray:
    """Images until the decision in each row; one more than there are where there is none."""
    reached = eprocess.log_fortune(seen, limit, side=side) >= -math.log(tail)
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, seen.shape[1] + 1)


@pytest.mark.parametrize("side", ["within", "beyond"])
@pytest.mark.parametrize(
    ("limit", "flips", "images"), [(0.01, 0.04, 4000), (0.005, 0.005, 3000), (0.05, 0.2, 2000), (0.0, 0.1, 2000)]
)
def test_a_look_at_every_image_errs_no_more_often_than_promised(
    side: eprocess.Side, limit: float, flips: float, images: int
) -> None:
    """At a drop of exactly the limit, the worst case: 5 % at most, and 3 standard deviations of 1,000 runs.

    The tests' seeds are fixed; the benchmark has more runs (results/gate-sequential.json).
    """
    runs = 1000
    seen = outcomes((flips + limit) / 2, (flips - limit) / 2, (runs, images), seed=1)
    wrong = (stops(seen, limit, side) <= images).mean()
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("side", ["within", "beyond"])
@pytest.mark.parametrize("limit", [0.0, 0.003, 0.01, 0.2, 0.9])
@pytest.mark.parametrize("before", [(), (0,) * 50, (1, -1) * 20, (1,) * 10, (-1,) * 10])
def test_no_image_is_worth_a_bet_where_the_gambler_is_wrong(
    side: eprocess.Side, limit: float, before: tuple[int, ...]
) -> None:
    """The proof, by arithmetic: whatever was seen, the expected factor of the next image is at most 1."""
    sign = 1 if side == "beyond" else -1
    after = {x: eprocess.log_fortune([*before, x], limit, side=side) for x in (-1, 0, 1)}
    start = float(after[0][-2]) if before else 0.0
    factor = {x: math.exp(float(log[-1]) - start) for x, log in after.items()}
    assert min(factor.values()) > 0
    for drop in (limit, limit - sign * 0.1):
        for flips in (abs(drop), (1 + abs(drop)) / 2, 1.0):
            lost, gained = (flips + drop) / 2, (flips - drop) / 2
            if min(lost, gained) >= 0 and lost + gained <= 1:
                assert lost * factor[1] + gained * factor[-1] + (1 - flips) * factor[0] <= 1 + 1e-12


def test_without_a_drop_it_stops_sooner_than_a_planned_size_as_a_rule() -> None:
    """Limit 1 point, 4 % flips: the planned size is 2,562, and half of the runs have stopped by 2,426 at the latest."""
    assert stats.images_to_decide(0.04, 0.0, 0.01) == 2562
    seen = outcomes(0.02, 0.02, (1000, 4000), seed=2)
    assert np.median(stops(seen, 0.01, "within")) <= 2426


def test_a_broken_candidate_fails_within_a_hundred_images() -> None:
    """A drop of 11 points with 15 % flips, at a limit of 1 point: half of the runs have failed by image 93."""
    seen = outcomes(0.13, 0.02, (1000, 800), seed=3)
    assert np.median(stops(seen, 0.01, "beyond")) <= 93


@pytest.mark.parametrize("drop", [-0.02, 0.05])
def test_both_bounds_hold_the_truth_at_every_image(drop: float) -> None:
    """A bound is passed at some look in at most 5 % of the runs, also where the truth is far from the limit."""
    runs, looks = 150, (30, 60, 120, 200, 300, 400)
    seen = outcomes(0.05 + drop / 2, 0.05 - drop / 2, (runs, looks[-1]), seed=4)
    low = high = 0
    for row in seen:
        found = [eprocess.bounds(row[:n], 0.01) for n in looks]
        low += any(lower > drop for lower, _ in found)
        high += any(upper < drop for _, upper in found)
    assert max(low, high) <= runs * 0.05 + 3 * math.sqrt(runs * 0.05 * 0.95)


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.02, 0.02), (0.13, 0.02), (0.01, 0.04), (0.03, 0.02)])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.08])
def test_the_bounds_agree_with_the_decision(lost: float, gained: float, limit: float) -> None:
    """Within: the upper bound is at most the limit; beyond: the lower one at least; undecided: it lies between them."""
    for row in outcomes(lost, gained, (5, 1500), seed=5):
        found = eprocess.decide(row, limit)
        low, high = eprocess.bounds(row if found is None else row[: found.images], limit)
        assert low < high
        if found is None:
            assert low < limit < high
        elif found.within:
            assert high <= limit
        else:
            assert low >= limit
        if found is not None:
            assert eprocess.decide(row[: found.images - 1], limit) is None


def test_nothing_seen_tells_nothing() -> None:
    assert eprocess.decide([], 0.01) is None
    assert eprocess.bounds([], 0.01) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("mean", "drop", "flips"),
    [(0.01, 0.11, 0.15), (0.0, 0.02, 0.04), (-0.01, 0.0, 0.04), (-0.01, 0.0, 0.002), (-0.2, 0.0, 0.3), (0.3, 0.6, 0.8)],
)
def test_the_best_bet_grows_fastest(mean: float, drop: float, flips: float) -> None:
    """Against a numeric search for the maximum of the expected logarithm."""
    x = np.array([1, -1, 0])
    p = np.array([(flips + drop) / 2, (flips - drop) / 2, 1 - flips])
    end = 1 / (1 + mean) - 1e-9
    best = minimize_scalar(
        lambda bet: -(p * np.log1p(bet * (x - mean))).sum(), bounds=(0, end), method="bounded", options={"xatol": 1e-10}
    )
    assert float(eprocess.best_bet(mean, drop, flips)) == pytest.approx(best.x, rel=1e-4)


def test_later_images_change_nothing_about_earlier_ones() -> None:
    """What may stop at any image must not know what comes after it."""
    row = outcomes(0.05, 0.05, (400,), seed=6)
    whole = eprocess.log_fortune(row, 0.01, side="within")
    np.testing.assert_allclose(eprocess.log_fortune(row[:100], 0.01, side="within"), whole[:100])

"""Looks at data while they come in: published constants, and how often all looks together are wrong."""

import numpy as np
import pytest
from scipy.special import ndtri, stdtr

from resdeploy.stats import looks


@pytest.mark.parametrize(
    ("count", "error", "limit"),
    [(1, 0.05, 1.960), (2, 0.05, 2.178), (5, 0.05, 2.413), (10, 0.05, 2.555), (5, 0.01, 2.986), (10, 0.1, 2.270)],
)
def test_the_level_is_pococks(count: int, error: float, limit: float) -> None:
    """Jennison and Turnbull (2000), table 2.1: the constant for equally spaced looks at equal levels."""
    level = looks.level(tuple(range(1, count + 1)), error)
    assert -ndtri(level / 2) == pytest.approx(limit, abs=6e-4)


@pytest.mark.parametrize("error", [0.01, 0.1])
@pytest.mark.parametrize("ends", [60, 31, 13, 5])
def test_all_looks_together_err_no_more_often_than_promised(error: float, ends: int) -> None:
    """40,000 runs without a difference, looked at after 8, 12, 18 ... pairs until `ends`, where the time was over.

    At most `error` of them are called different (with what 40,000 runs can miss it by, 3 standard deviations).
    """
    runs = 40_000
    values = np.random.default_rng(ends).standard_normal((runs, ends))
    level = 1 - looks.confidence(error)
    wrong = np.zeros(runs, bool)
    for count in [*(size for size in looks.PAIRS if size < ends), ends]:
        seen = values[:, :count]
        t = seen.mean(axis=1) / (seen.std(axis=1, ddof=1) / np.sqrt(count))
        wrong |= 2 * stdtr(count - 1, -np.abs(t)) < level
    assert wrong.mean() <= error + 3 * np.sqrt(error / runs)
    if ends == 60:
        assert wrong.mean() >= 0.8 * error  # and no more cautious than it has to be


def test_looks_that_do_not_come_one_after_the_other_are_refused() -> None:
    for sizes in ((), (0,), (3, 3), (5, 2)):
        with pytest.raises(ValueError, match="looks at"):
            looks.level(sizes, 0.01)

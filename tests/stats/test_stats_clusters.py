"""Images in clusters: how many they are worth."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from resdeploy import stats


def clustered(rng: np.random.Generator, clusters: int, size: int, alike: float) -> tuple[np.ndarray, list[str]]:
    """2.5 % lost and 1.5 % gained; with probability `alike` a cluster's images all have one outcome."""
    kinds = np.array([1, -1, 0])
    shares = [0.025, 0.015, 0.96]
    x = rng.choice(kinds, (clusters, size), p=shares)
    same = rng.random(clusters) < alike
    x[same] = rng.choice(kinds, (int(same.sum()), 1), p=shares)
    return x.ravel(), [str(k) for k in np.repeat(np.arange(clusters), size)]


@pytest.mark.parametrize(("clusters", "size", "alike"), [(400, 5, 1.0), (300, 10, 0.3), (1000, 1, 0.0)])
def test_a_drop_of_the_limit_passes_and_fails_no_more_often_than_promised(
    clusters: int, size: int, alike: float
) -> None:
    """About 5 % each, where judging images as if drawn one by one would pass and fail up to five times as often."""
    rng, runs, z = np.random.default_rng(0), 1000, stats.proportions.normal_quantile(0.95)
    scores, naive = [], []
    for _ in range(runs):
        x, names = clustered(rng, clusters, size, alike)
        lost, gained = int((x > 0).sum()), int((x < 0).sum())
        effect = stats.design_effect(x, names)
        scores.append(float(stats.tango_score(lost / effect, gained / effect, len(x) / effect, 0.01)))
        naive.append(float(stats.tango_score(lost, gained, len(x), 0.01)))
    passes, fails = np.mean(np.array(scores) <= -z), np.mean(np.array(scores) >= z)
    assert max(passes, fails) <= 0.06 + 3 * math.sqrt(0.06 * 0.94 / runs)
    if alike == 1:
        assert np.mean(np.abs(naive) >= z) >= 0.3


def test_clusters_of_equal_answers_are_worth_one_image_each() -> None:
    """Copies of an image are no images: the effect is their number, times what Student's t adds for few clusters."""
    x = np.repeat([1, -1, 0, 0, 0, 0, 0, 1], 20)
    names = [str(k) for k in np.repeat(np.arange(8), 20)]
    wider = float(stdtrit(7, 0.95) / stats.proportions.normal_quantile(0.95)) ** 2
    assert stats.design_effect(x, names) == pytest.approx(20 * 8 / 7 * wider)


def test_without_flips_a_cluster_counts_as_one_image() -> None:
    """Nothing tells how alike its images are; of unequal sizes the large ones count more."""
    names = ["a"] * 30 + ["b"] * 10
    wider = float(stdtrit(1, 0.95) / stats.proportions.normal_quantile(0.95)) ** 2
    assert stats.design_effect(np.zeros(40), names) == pytest.approx(wider * (900 + 100) / 40)


def test_one_cluster_tells_nothing() -> None:
    with pytest.raises(ValueError, match="1 clusters"):
        stats.design_effect([0, 1], ["a", "a"])

"""Histograms of streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.quantize.histogram import BINS, Histogram

floats = st.floats(-1e6, 1e6, width=32)
chunks = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=floats), min_size=1, max_size=5)
ONE = np.ones(1)


def filled(arrays: list[np.ndarray]) -> Histogram:
    histogram = Histogram()
    for values in arrays:
        histogram.add(values, ONE)
    return histogram


@settings(deadline=None)
@given(chunks)
def test_every_value_is_counted_in_the_bin_that_holds_it(arrays: list[np.ndarray]) -> None:
    """However the range had to widen: the counts are numpy's for the final bins, zeros apart."""
    histogram, every = filled(arrays), np.concatenate(arrays).astype(np.float64)
    assert histogram.total == every.size
    assert histogram.zeros == int((every == 0).sum())
    edges = np.append(histogram.centres - histogram.width / 2, histogram.centres[-1] + histogram.width / 2)
    found = np.searchsorted(edges, every[every != 0], side="right") - 1
    assert histogram.counts.tolist() == np.bincount(found, minlength=BINS).tolist()


@settings(deadline=None)
@given(chunks)
def test_the_order_of_the_stream_does_not_matter(arrays: list[np.ndarray]) -> None:
    """Bins of one width are unions of the bins of every smaller one; only the last width reached counts."""
    forward, backward = filled(arrays), filled(arrays[::-1])
    if forward.width == backward.width:
        for histogram in (forward, backward):
            assert histogram.counts.sum() + histogram.zeros == sum(values.size for values in arrays)
        both = [dict(zip(h.centres.tolist(), h.counts.tolist(), strict=True)) for h in (forward, backward)]
        used = [{centre: n for centre, n in bins.items() if n} for bins in both]
        assert used[0] == used[1]


def test_the_bins_stay_fine_and_their_number_fixed() -> None:
    """A stream that grows a thousandfold ends with between half of the bins and all of them in its range."""
    histogram, random = Histogram(), np.random.default_rng(0)
    for scale in np.geomspace(1e-3, 1, 30):
        histogram.add((random.uniform(-1, 1, 1000) * scale).astype(np.float32), ONE)
    assert histogram.counts.shape == (BINS,)
    assert histogram.width * 1.01 >= 2 / BINS
    assert histogram.width < 4 / BINS * 1.01


def test_weights_follow_their_values() -> None:
    """Each bin's weight is the sum over its values, before and after bins are merged."""
    histogram = Histogram()
    histogram.add(np.array([[1.0, 2.0, 0.0], [1.0, 3.0, 5.0]], np.float32), np.array([10.0, 1.0, 0.5]))
    histogram.add(np.array([[4096.0, 0.0, 0.0]], np.float32), np.array([10.0, 1.0, 0.5]))
    assert histogram.weights.sum() == pytest.approx(32.5)
    assert histogram.weights[np.argmax(histogram.centres > 4000)] in (0.0, 10.0)
    assert histogram.zeros == 3

"""Histograms of streams: one pass, fixed memory, no range to be known beforehand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# At least half of them are in use whatever the range: 4 or more bins to a step of the 8-bit grid.
BINS = 2048


class Histogram:
    """Values in bins `[i, i + 1) * 2**exponent`; the width doubles, neighbours merged, when a value falls outside.

    Every edge of a wider bin is an edge of the narrower ones, so nothing is smeared and the order of the stream does
    not matter. Exact zeros (half of the values after a ReLU) are counted apart: every integer grid has a zero.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.float64] = np.zeros(BINS)
        self.weights: NDArray[np.float64] = np.zeros(BINS)
        self.zeros = 0
        self._first = 0  # what `i` is in the first bin
        self._exponent: int | None = None

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, (BINS,)."""
        return np.asarray((self._first + 0.5 + np.arange(BINS)) * self.width, np.float64)

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self._exponent or 0)

    @property
    def total(self) -> int:
        """How many values were added."""
        return int(self.counts.sum()) + self.zeros

    def add(self, values: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        """Counts finite values of any shape, each with a weight (broadcast to that shape)."""
        inside = values != 0
        self.zeros += values.size - int(inside.sum())
        nonzero = values[inside].astype(np.float64)
        if nonzero.size:
            self._widen(nonzero.min(), nonzero.max())
            at = np.floor(np.ldexp(nonzero, -(self._exponent or 0))).astype(np.int64) - self._first
            self.counts += _sum_by_bin(at, np.ones(nonzero.size))
            self.weights += _sum_by_bin(at, np.broadcast_to(weights, values.shape)[inside])

    def _widen(self, lo: float, hi: float) -> None:
        """Makes room for values from `lo` to `hi`."""
        used = np.flatnonzero(self.counts)
        if self._exponent is None:
            # The narrowest width that could do; a single value gets bins of its own magnitude's precision.
            exponent, old = math.frexp(max(hi - lo, abs(hi) / BINS) / BINS)[1] - 1, 0
            first, last = math.floor(math.ldexp(lo, -exponent)), math.floor(math.ldexp(hi, -exponent))
        else:
            exponent = old = self._exponent
            first = min(math.floor(math.ldexp(lo, -exponent)), self._first + int(used[0]))
            last = max(math.floor(math.ldexp(hi, -exponent)), self._first + int(used[-1]))
        while last - first >= BINS:
            first, last, exponent = first >> 1, last >> 1, exponent + 1
        if used.size:
            at = ((self._first + used) >> (exponent - old)) - first
            self.counts, self.weights = _sum_by_bin(at, self.counts[used]), _sum_by_bin(at, self.weights[used])
        self._first, self._exponent = first, exponent


def _sum_by_bin(at: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of each bin added up, (BINS,)."""
    return np.bincount(at, values, BINS).astype(np.float64, copy=False)

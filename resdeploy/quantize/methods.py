"""Which interval a tensor's integers should cover: everything seen, or less in exchange for finer steps.

minmax      Everything that was seen, exactly.
percentile  All but 0.001 % of the values (Wu et al. 2020, arXiv:2004.09602; ONNX Runtime's default).
entropy     The clip whose 8-bit histogram diverges least from the float one (Migacz 2017, "8-bit inference with
            TensorRT", GTC S7310; Kullback-Leibler).
mse         The clip with the least squared error, rounding and clipping together, on the target's own integer grid
            (Choukroun et al. 2019, arXiv:1902.06822), where an error of clipping counts `CLIPPED` times.
auto        Of the four, the one whose error disturbs the layers that read the tensor least: the same sum, the error of
            each channel weighted with the energy of the weights that it meets there.

Errors of rounding are independent, so a layer adds up their squares. Those of clipping have one sign and come in
patches, so it adds up part of them before they are squared: hence `CLIPPED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import UsageError
from resdeploy.quantize import ranges
from resdeploy.quantize.calibrate import Observed
from resdeploy.quantize.ranges import Range
from resdeploy.records import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

PERCENTILE = 99.999
# Fractions of the whole range that `mse` tries; the error is flat around its minimum.
CLIPS: Sequence[float] = np.linspace(1.0, 0.2, 81).tolist()
# Chosen between 1, 4, 9 (all taps of a 3x3 kernel in step) and 25 by ResNet-20's RMS logit error on 1,000 CIFAR-10 test
# images, two calibration sets, U8S8 and S8S8: 4 was the best of them, and better than percentile or within 1 % of it.
CLIPPED = 4.0
# Migacz's histogram and the first threshold he tries; a step of 8 bins moves the threshold by 0.4 %.
ENTROPY_BINS = 2048
ENTROPY_STEP = 8


def refuse_unknown(method: str) -> None:
    """Before any image is read.

    Raises:
        UsageError: no such method.
    """
    if method != "auto" and method not in METHODS:
        raise UsageError(f"there is no calibration method {method!r}", fix=f"Known: auto, {', '.join(METHODS)}")


def choose(seen: Observed, target: Target, method: str) -> tuple[str, Range]:
    """The method used (with `auto`: the one chosen) and its range."""
    if method != "auto":
        return method, METHODS[method](seen, target)
    candidates = {name: make(seen, target) for name, make in METHODS.items()}
    errors = squared_errors(seen, tuple(candidates.values()), target, seen.histogram.weights)
    best = min(zip(errors, candidates, strict=True), key=lambda pair: pair[0])[1]  # the first of equals: minmax
    return best, candidates[best]


def squared_errors(
    seen: Observed, candidates: Sequence[Range], target: Target, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum over the histogram's bins of weight x squared error, for each candidate; see the head of the file."""
    grids = [ranges.activation(candidate, target) for candidate in candidates]
    scale = np.array([[grid.scale] for grid in grids])
    zero = np.array([[grid.zero_point] for grid in grids])
    lowest, highest = (-128, 127) if grids[0].signed else (0, 255)
    used = np.flatnonzero(weights)
    x = seen.histogram.centres[used]
    integers = np.rint(x / scale) + zero
    inside = np.clip(integers, lowest, highest)
    errors = np.square((inside - zero) * scale - x) * np.where(inside == integers, 1.0, CLIPPED)
    return np.asarray(errors @ weights[used])


def minmax(seen: Observed, target: Target) -> Range:
    """Everything."""
    return seen.extremes


def percentile(seen: Observed, target: Target) -> Range:
    """Leaves out 0.001 % of the magnitudes (symmetric grids), or half of that at each end."""
    histogram = seen.histogram
    edges = histogram.centres + histogram.width / 2
    tail = (1 - PERCENTILE / 100) * histogram.total
    if histogram.counts.sum() <= tail:  # zeros, and hardly anything else
        return seen.extremes
    if target == "tensorrt":
        order = np.argsort(-np.abs(histogram.centres), kind="stable")
        beyond = np.cumsum(histogram.counts[order])
        limit = float(np.abs(histogram.centres[order][np.searchsorted(beyond, tail)])) + histogram.width / 2
        return _clip_to_seen(seen, -limit, limit)
    below, above = np.cumsum(histogram.counts), np.cumsum(histogram.counts[::-1])
    lo = edges[np.searchsorted(below, tail / 2)] - histogram.width
    hi = edges[::-1][np.searchsorted(above, tail / 2)]
    return _clip_to_seen(seen, float(lo), float(hi))


def entropy(seen: Observed, target: Target) -> Range:
    """Magnitudes up to the threshold of least divergence; 128 levels, or 256 of what is never negative on U8."""
    histogram, reach = seen.histogram, max(-seen.extremes.lo, seen.extremes.hi)
    levels = 256 if target != "tensorrt" and seen.extremes.lo >= 0 else 128
    at = np.abs(histogram.centres) * (ENTROPY_BINS / reach) if reach > 0 else np.zeros_like(histogram.centres)
    counts = np.bincount(np.minimum(at.astype(np.int64), ENTROPY_BINS - 1), histogram.counts, ENTROPY_BINS).astype(
        float
    )
    limits = range(levels, ENTROPY_BINS + 1, ENTROPY_STEP)
    best = min(limits, key=lambda limit: (_divergence(counts, limit, levels), -limit))
    return _clip_to_seen(seen, -reach * best / ENTROPY_BINS, reach * best / ENTROPY_BINS)


def _divergence(counts: NDArray[np.float64], limit: int, levels: int) -> float:
    """KL divergence between the first `limit` bins, the rest added to the last of them, and their `levels` levels."""
    inside = counts[:limit]
    reference = inside.copy()
    reference[-1] += counts[limit:].sum()
    level = np.arange(limit) * levels // limit
    filled = inside > 0
    share = np.bincount(level, inside, levels) / np.maximum(np.bincount(level, filled, levels), 1)
    coarse = np.where(filled, share[level], 0.0)
    if not coarse.sum() or (reference[-1] > 0 and not filled[-1]):
        return np.inf  # the clipped values would have nowhere to go
    p, q = reference / reference.sum(), coarse / coarse.sum()
    return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))


def mse(seen: Observed, target: Target) -> Range:
    """Each end is searched with the other one fixed, twice; a symmetric grid has one end only."""
    lo, hi = min(seen.extremes.lo, 0.0), max(seen.extremes.hi, 0.0)

    def best(candidates: list[Range]) -> Range:
        return candidates[int(np.argmin(squared_errors(seen, candidates, target, seen.histogram.counts)))]

    if target == "tensorrt" or lo == 0.0 or hi == 0.0:
        return best([Range(lo=lo * clip, hi=hi * clip) for clip in CLIPS])
    clipped = Range(lo=lo, hi=hi)
    for _ in range(2):
        clipped = best([Range(lo=clipped.lo, hi=hi * clip) for clip in CLIPS])
        clipped = best([Range(lo=lo * clip, hi=clipped.hi) for clip in CLIPS])
    return clipped


def _clip_to_seen(seen: Observed, lo: float, hi: float) -> Range:
    """An interval no larger than what was seen."""
    return Range(lo=max(lo, min(seen.extremes.lo, 0.0)), hi=min(hi, max(seen.extremes.hi, 0.0)))


METHODS: Mapping[str, Callable[[Observed, Target], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}

"""How ranges are chosen from what was seen."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from resdeploy.errors import UsageError
from resdeploy.quantize import methods, ranges
from resdeploy.quantize.calibrate import Observed
from resdeploy.quantize.histogram import Histogram
from resdeploy.records import Target

TARGETS = get_args(Target)


def seen(values: NDArray[np.float32], weights: NDArray[np.float64] | None = None) -> Observed:
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part, np.ones(1) if weights is None else weights)
    return Observed(extremes=ranges.Range(lo=float(values.min()), hi=float(values.max())), histogram=histogram)


def errors_of(values: NDArray[np.float32], covered: ranges.Range, target: Target) -> NDArray[np.float64]:
    """Squared, those of clipping times `CLIPPED`."""
    beyond = ranges.activation(covered, target).scale * 0.5001
    off = np.abs(rounded(values, covered, target) - values)
    return np.square(off) * np.where(off > beyond, methods.CLIPPED, 1.0)


def rounded(values: NDArray[np.float32], covered: ranges.Range, target: Target) -> NDArray[np.float64]:
    """What comes back from the integers, by the definition of QuantizeLinear."""
    grid = ranges.activation(covered, target)
    low, high = (-128, 127) if grid.signed else (0, 255)
    return (np.clip(np.rint(values / grid.scale) + grid.zero_point, low, high) - grid.zero_point) * grid.scale


@pytest.fixture
def relu() -> NDArray[np.float32]:
    """What follows a ReLU, with a few outliers."""
    values = np.maximum(np.random.default_rng(0).standard_normal(400_000), 0)
    values[::9973] *= 6
    return values.astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_minmax_is_exact(relu: NDArray[np.float32], target: Target) -> None:
    """Not the edge of a bin."""
    name, found = methods.choose(seen(relu), target, "minmax")
    assert (name, found.lo, found.hi) == ("minmax", 0.0, float(relu.max()))


@pytest.mark.parametrize("target", TARGETS)
def test_percentiles_are_numpys_up_to_a_bin(target: Target) -> None:
    """Of magnitudes for a symmetric grid, of each end for an asymmetric one; zeros are values too."""
    values = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float32)
    values[:300_000] = 0
    observed = seen(values)
    found = methods.percentile(observed, target)
    near = 2 * observed.histogram.width
    if target == "tensorrt":
        expected = np.quantile(np.abs(values), 0.99999)
        assert max(-found.lo, found.hi) == pytest.approx(expected, abs=near + 0.02)
    else:
        assert found.lo == pytest.approx(np.quantile(values, 0.000005), abs=near + 0.05)
        assert found.hi == pytest.approx(np.quantile(values, 0.999995), abs=near + 0.05)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("signed", [False, True])
def test_mse_is_the_least_error_on_the_real_grid(target: Target, signed: bool) -> None:
    """Within 3 % of a brute-force search over the values themselves, and below minmax."""
    values = np.maximum(np.random.default_rng(0).laplace(size=400_000), 0).astype(np.float32)
    if signed:
        values[::3] *= -0.5
    found = methods.mse(seen(values), target)

    def error(covered: ranges.Range) -> float:
        return float(errors_of(values, covered, target).mean())

    lo, hi = float(values.min()), float(values.max())
    grid = np.linspace(0.2, 1, 33)
    pairs = [(a, b) for a in grid for b in grid] if signed and target == "onnxruntime" else [(a, a) for a in grid]
    best = min(error(ranges.Range(lo=lo * a, hi=hi * b)) for a, b in pairs[:: 7 if len(pairs) > 99 else 1])
    assert error(found) <= 1.03 * best
    assert error(found) < 0.97 * error(ranges.Range(lo=lo, hi=hi))


def test_entropy_cuts_a_thin_tail_and_keeps_a_uniform_one(relu: NDArray[np.float32]) -> None:
    """Rare values lie beyond the threshold; without any tail it is the largest value."""
    assert methods.entropy(seen(relu), "tensorrt").hi < 0.8 * relu.max()
    flat = np.random.default_rng(2).uniform(0, 1, 400_000).astype(np.float32)
    assert methods.entropy(seen(flat), "tensorrt").hi > 0.97


def test_auto_takes_the_method_of_least_weighted_error(relu: NDArray[np.float32]) -> None:
    """By the values themselves; and where nothing reads the channel of the outliers, these may be cut."""
    planes = np.stack([np.minimum(relu, 3), relu], axis=1)  # outliers in the second channel only
    for weights in (np.array([1.0, 1.0]), np.array([1.0, 0.0]), np.array([0.0, 1.0])):
        observed = seen(planes, weights)
        name, found = methods.choose(observed, "openvino", "auto")
        errors = {
            other: float((errors_of(planes, make(observed, "openvino"), "openvino") * weights).sum())
            for other, make in methods.METHODS.items()
        }
        assert errors[name] <= 1.02 * min(errors.values())
        assert found == methods.METHODS[name](observed, "openvino")


@pytest.mark.parametrize("method", [*methods.METHODS, "auto"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_a_constant_is_kept(method: str, target: Target, value: float) -> None:
    """Every method gives a grid on which one value is off by half a step at most."""
    values = np.full(5000, value, np.float32)
    _, found = methods.choose(seen(values), target, method)
    grid = ranges.activation(found, target)
    assert np.abs(rounded(values, found, target) - values).max() <= 0.51 * grid.scale + abs(value) / 1000


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    """The way out is in the message."""
    with pytest.raises(UsageError, match="magic") as caught:
        methods.refuse_unknown("magic")
    assert all(name in caught.value.fix for name in ("auto", *methods.METHODS))

"""Scales and zero points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.graph.qdq_placement import BIAS_LIMIT
from resdeploy.quantize import ranges

values = st.floats(-1e4, 1e4, width=32)


@given(values, values, st.sampled_from(["tensorrt", "openvino", "onnxruntime"]), st.floats(0, 1))
def test_a_value_inside_the_range_is_off_by_at_most_one_step(a: float, b: float, target: str, where: float) -> None:
    """Half a step of rounding, and half a step for the zero point; none of it clipped away."""
    covered = ranges.Range(lo=min(a, b), hi=max(a, b))
    how = ranges.activation(covered, target)  # type: ignore[arg-type]
    low, high = (-127, 127) if how.signed else (0, 255)
    assert low <= how.zero_point <= high
    value = covered.lo + where * (covered.hi - covered.lo)
    integer = np.clip(np.rint(value / how.scale) + how.zero_point, low, high)
    assert abs((integer - how.zero_point) * how.scale - value) <= how.scale * 1.001


def test_what_follows_a_relu_gets_the_whole_unsigned_range() -> None:
    """Zero point 0 lets ONNX Runtime and OpenVINO drop the ReLU; TensorRT takes signed integers only."""
    relu = ranges.Range(lo=0.0, hi=5.1)
    assert ranges.activation(relu, "onnxruntime").zero_point == 0
    assert ranges.activation(relu, "onnxruntime").scale == pytest.approx(5.1 / 255)
    assert ranges.activation(relu, "tensorrt").scale == pytest.approx(5.1 / 127)
    assert ranges.activation(ranges.Range(lo=-3.0, hi=5.1), "tensorrt").zero_point == 0


def test_a_tensor_that_is_always_zero_still_has_a_positive_scale() -> None:
    """A scale of zero would divide by zero at run time."""
    assert ranges.activation(ranges.Range(lo=0.0, hi=0.0), "openvino").scale > 0


@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_has_its_own_scale(axis: int) -> None:
    """Its largest weight becomes the largest integer, and each weight is off by at most half a step."""
    weights = np.random.default_rng(0).standard_normal((6, 5, 3, 3)).astype(np.float32)
    found = ranges.weight(weights, axis)
    others = tuple({0, 1, 2, 3} - {axis})
    assert np.abs(found.values).max(axis=others).tolist() == [127] * weights.shape[axis]
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    step = found.scale.reshape(shape)
    assert (np.abs(found.values * step - weights) <= step * 0.5001).all()


def test_portable_weights_never_saturate_the_16_bit_sum_of_two_products() -> None:
    """`vpmaddubsw`: the largest unsigned activation with the largest weights, twice, fits; full range does not."""
    weights = np.full((1, 2), -3.0, np.float32)
    largest = {n: int(np.abs(ranges.weight(weights, 0, limit=n).values).max()) for n in (ranges.REDUCED_RANGE, 127)}
    assert 2 * 255 * largest[ranges.REDUCED_RANGE] <= np.iinfo(np.int16).max < 2 * 255 * largest[127]


def test_a_dead_channel_keeps_a_bias_that_fits_int32() -> None:
    """Pruned channels have weights near zero and biases that are not."""
    weights = np.array([[0.0, 0.0], [1e-12, 0.0], [1.0, -1.0]], np.float32)
    bias = np.array([2.0, -3.0, 4.0], np.float32)
    found = ranges.weight(weights, 0, bias=bias, input_scale=0.01)
    assert (np.abs(bias / (0.01 * found.scale)) <= BIAS_LIMIT).all()
    assert found.scale[2] == pytest.approx(1 / 127)

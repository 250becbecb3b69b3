"""Second-order rounding: against brute force on small layers, and on a network in a real runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import qdq_placement
from resdeploy.quantize import bias, ptq, ranges, rounding
from resdeploy.records import Target
from tests.sessions import session


def error(weight: np.ndarray, integers: np.ndarray, scale: np.ndarray, second: np.ndarray) -> float:
    """E |(W - s Q) x|^2."""
    lost = weight - integers * scale[:, None]
    return float(((lost @ second) * lost).sum())


def inputs(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Correlated, as neighbouring pixels are."""
    return random.standard_normal((count, size)) @ (random.standard_normal((size, size)) + 2)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_rounding_lies_between_the_best_of_all_roundings_and_nearest(seed: int) -> None:
    """Brute force over both neighbours of each of 6 weights is the bound below; a layer's rows are averaged."""
    random = np.random.default_rng(seed)
    x = inputs(random, 200, 6)
    second = (x.T @ x / len(x)).astype(np.float32)
    weight = random.standard_normal((16, 6)).astype(np.float32)
    scale = np.full(16, 0.4, np.float32)
    found = rounding.gptq(weight, second, scale, 127)
    floors = np.floor(weight / scale[:, None])
    choices = [np.array(ups) for ups in itertools.product((0, 1), repeat=6)]
    best = sum(
        min(error(row[None], (low + ups)[None], scale[:1], second) for ups in choices)
        for row, low in zip(weight, floors, strict=True)
    )
    nearest = error(weight, np.rint(weight / scale[:, None]), scale, second)
    made = error(weight, found, scale, second)
    assert made <= nearest
    # Rounding beyond the two neighbours can be better still, so the bound has some slack.
    assert made >= 0.3 * best


def test_inputs_that_are_not_correlated_are_rounded_to_nearest() -> None:
    random = np.random.default_rng(1)
    weight = random.uniform(-20, 20, (8, 300)).astype(np.float32)
    found = rounding.gptq(
        weight, np.diag(random.uniform(1, 2, 300)).astype(np.float32), np.full(8, 0.25, np.float32), 64
    )
    np.testing.assert_array_equal(found, np.clip(np.rint(weight / 0.25), -64, 64))


@pytest.mark.parametrize("groups", [1, 2])
def test_samples_are_the_values_that_a_convolution_multiplies(groups: int) -> None:
    """Samples times weights are the convolution's outputs at those positions, as a runtime computes them."""
    random = np.random.default_rng(2)
    x = random.standard_normal((2, 4, 9, 8)).astype(np.float32)
    w = random.standard_normal((6, 4 // groups, 3, 2)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], "y", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2], group=groups
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, x.shape)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (expected,) = session(model).run(None, {"x": x})
    seen = rounding.samples(node, x, w.shape, 0)
    positions = seen.shape[1]
    assert positions == expected.shape[2] * expected.shape[3]  # all of them, in an order of their own
    rows = w.reshape(groups, 6 // groups, -1)
    made = np.einsum("npgi,goi->ngop", seen.reshape(2, positions, groups, -1), rows).reshape(2, 6, -1)
    np.testing.assert_allclose(np.sort(made), np.sort(expected.reshape(2, 6, -1)), rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def here(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    opened = session(model)
    yield lambda images: opened.run(None, {"input": images})[0]


def network(random: np.random.Generator) -> onnx.ModelProto:
    """A stem, a residual block of a grouped and a plain convolution, a classifier."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        spread = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(spread.astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("Conv", ["input", "w0", "b0"], ["a"], "stem", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"], "relu0"),
            node("Conv", ["b", "w1"], ["c"], "grouped", pads=[1, 1, 1, 1], group=2),
            node("Relu", ["c"], ["d"], "relu1"),
            node("Conv", ["d", "w2", "b2"], ["e"], "plain", pads=[1, 1, 1, 1]),
            node("Add", ["e", "b"], ["f"], "add"),
            node("Relu", ["f"], ["g"], "relu2"),
            node("GlobalAveragePool", ["g"], ["h"], "pool"),
            node("Flatten", ["h"], ["i"], "flat"),
            node("Gemm", ["i", "w3", "b3"], ["logits"], "fc", transB=1),
        ],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [value("logits", TensorProto.FLOAT, ["batch", 5])],
        [
            *(weight("w0", 8, 3, 3, 3), weight("b0", 8), weight("w1", 8, 4, 3, 3), weight("w2", 8, 8, 3, 3)),
            *(weight("b2", 8), weight("w3", 5, 8), weight("b3", 5)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"])
def test_a_network_rounded_anew_errs_less_on_other_images(target: Target) -> None:
    """With weights in 4 bits their rounding is what counts; images not used for it are judged, in exact arithmetic."""
    random = np.random.default_rng(4)
    model = network(random)
    smooth = random.standard_normal((96, 3, 4, 4)).repeat(3, 2).repeat(3, 3)
    images = (smooth + 0.1 * random.standard_normal(smooth.shape)).astype(np.float32)
    placement = qdq_placement.plan(model, target)
    activations = {name: ranges.activation(ranges.Range(lo=-4.0, hi=4.0), target) for name in placement.observed}
    weights = ptq.quantized_weights(model, placement, activations, 7)
    nearest = rounding.Rounding(model=model, placement=placement, activations=activations, weights=weights, limit=7)
    refined = rounding.refine(nearest, list(images[:64]), here)
    assert all(np.abs(w.values).max() <= 7 for w in refined.weights.values())
    assert all(len(set(w.scale.tolist())) == 1 for w in refined.weights.values()) == placement.one_scale
    shifts = bias.correction(model, nearest.graph(), placement, weights, list(images[:64]), here).shifts
    corrected = dataclasses.replace(nearest, shifts=shifts).graph()
    made = refined.graph()
    onnx.checker.check_model(made, full_check=True)

    def rms(graph: onnx.ModelProto) -> float:
        sides = [session(m, exactly=True).run(None, {"input": images[64:]})[0] for m in (model, graph)]
        return float(np.sqrt(np.square(sides[0] - sides[1]).mean()))

    assert rms(made) < 0.8 * rms(corrected)

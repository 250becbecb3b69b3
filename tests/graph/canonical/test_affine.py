"""One layer in many spellings: what is multiplied and added behind it becomes its weights, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import counts
from resdeploy.graph.canonical import form
from resdeploy.records import ModelSpec
from tests.sessions import session

node = helper.make_node
RANDOM = np.random.default_rng(3)
CHANNELS = 4


def numbers(*shape: int) -> np.ndarray:
    """Away from zero, of both signs."""
    return (RANDOM.uniform(0.5, 2, shape) * RANDOM.choice([-1, 1], shape)).astype(np.float32)


def model_of(nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    opened = session(model, exactly=True)
    return opened.run(None, {opened.get_inputs()[0].name: x})[0]


def assert_same(raw: onnx.ModelProto, model: onnx.ModelProto) -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 5, 5)).astype(np.float32)
    before, after = run(raw, x), run(model, x)
    assert np.abs(before - after).max() <= 2e-6 * np.abs(before).max()
    assert form.canonicalise(model).SerializeToString() == model.SerializeToString()


NORM = {name: RANDOM.uniform(0.5, 2, CHANNELS).astype(np.float32) for name in ("gamma", "beta", "mean", "variance")}
SHAPES: list[tuple[int, ...]] = [(CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (1, 1, 1), (1,), ()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div", "minus", "chain"])
@pytest.mark.parametrize("bias", [True, False])
def test_constants_behind_a_convolution_are_folded(op: str, shape: tuple[int, ...], bias: bool) -> None:
    """Factors and shifts in any shape that is broadcast along channels, and a batch norm behind a chain of them."""
    conv = node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"])
    chain = [
        node("Mul", ["k", "c"], ["m"]),
        node("Add", ["m", "l"], ["a"]),
        node("BatchNormalization", ["a", *NORM], ["n"]),
        node("Sub", ["l", "n"], ["s"]),
        node("Div", ["s", "k"], ["y"]),
    ]
    behind = {"chain": chain, "minus": [node("Sub", ["k", "c"], ["y"])]}.get(op) or [node(op, ["c", "k"], ["y"])]
    weights = {"w": numbers(CHANNELS, 2, 3, 3), "k": numbers(*shape), "l": numbers(*shape), **NORM}
    raw = model_of([conv, *behind], weights | ({"b": numbers(CHANNELS)} if bias else {}))
    model = form.canonicalise(raw)
    assert ops(model) == {"Conv": 1}
    assert_same(raw, model)


def test_what_is_no_number_per_channel_stays() -> None:
    """A constant for each position, one that widens the output, a zero divisor, and an output with two readers."""
    conv, weights = node("Conv", ["x", "w"], ["c"]), {"w": numbers(CHANNELS, 2, 3, 3)}
    for constant in (numbers(3, 3), numbers(1, CHANNELS, 3, 3), numbers(1, 1, CHANNELS, 1, 1)):
        raw = model_of([conv, node("Add", ["c", "k"], ["y"])], weights | {"k": constant})
        assert ops(form.canonicalise(raw)) == {"Conv": 1, "Add": 1}
    zero = weights | {"k": np.zeros((1,), np.float32)}
    assert ops(form.canonicalise(model_of([conv, node("Div", ["c", "k"], ["y"])], zero))) == {"Conv": 1, "Div": 1}
    shared = [conv, node("Mul", ["c", "k"], ["m"]), node("Add", ["c", "m"], ["y"])]
    raw = model_of(shared, weights | {"k": numbers(CHANNELS, 1, 1)})
    assert ops(form.canonicalise(raw)) == {"Conv": 1, "Mul": 1, "Add": 1}
    assert_same(raw, form.canonicalise(raw))


def test_a_scale_behind_a_batch_norm_is_folded_into_it() -> None:
    """Caffe's batch norm without a convolution before it, as in its DenseNets: BatchNorm, then Scale."""
    norm = {name: array[:2] for name, array in NORM.items()}
    nodes = [
        node("BatchNormalization", ["x", *NORM], ["n"]),
        node("Mul", ["n", "k"], ["m"]),
        node("Add", ["m", "l"], ["y"]),
    ]
    raw = model_of(nodes, norm | {"k": numbers(2, 1, 1), "l": numbers(2, 1, 1)})
    model = form.canonicalise(raw)
    assert ops(model) == {"BatchNormalization": 1}
    assert_same(raw, model)


@pytest.mark.parametrize("shape", [(CHANNELS,), (1, CHANNELS), (1, 1), (1,), ()])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "factors", "bias"])
def test_a_product_is_gemm_with_a_vector_as_its_bias(op: str, shape: tuple[int, ...]) -> None:
    """MatMul + Add, alpha, beta, transA, and biases in any shape, as CNTK, Caffe2 and simplified files have them."""
    pooled = [node("GlobalAveragePool", ["x"], ["g"]), node("Flatten", ["g"], ["f"])]
    product = {
        "MatMul": [node("MatMul", ["f", "w"], ["p"]), node("Add", ["k", "p"], ["y"])],
        "Gemm": [node("Gemm", ["f", "w"], ["p"]), node("Mul", ["p", "k"], ["q"]), node("Sub", ["q", "k"], ["y"])],
        "factors": [node("Gemm", ["f", "w", "k"], ["y"], alpha=0.3, beta=-2.5)],
        "bias": [node("Transpose", ["f"], ["t"]), node("Gemm", ["t", "w", "k"], ["y"], transA=1, beta=0.5)],
    }[op]
    raw = model_of([*pooled, *product], {"w": numbers(2, CHANNELS), "k": numbers(*shape)})
    model = form.canonicalise(raw)
    assert ops(model) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    (gemm,) = [n for n in model.graph.node if n.op_type == "Gemm"]
    assert [(a.name, a.i) for a in gemm.attribute] == [("transB", 1)]
    stored = {t.name: list(t.dims) for t in model.graph.initializer}
    assert [stored[name] for name in gemm.input[1:]] == [[CHANNELS, 2], [CHANNELS]]
    assert_same(raw, model)


def test_a_convolution_of_two_batch_norms_is_one() -> None:
    """Its norms stay behind it, so that its work is done, and counted, once; called twice, it is two and so counted."""
    weights = {"w": numbers(CHANNELS, 2, 3, 3), **NORM, "other": NORM["beta"] * 3}
    norms = [
        node("BatchNormalization", ["c", *NORM], ["m"]),
        node("BatchNormalization", ["d", "other", *list(NORM)[1:]], ["n"]),
        node("Add", ["m", "n"], ["y"]),
    ]
    spec = ModelSpec(name="m", family="f", classes=1, input_shape=(2, 5, 5), params=0)
    taps = CHANNELS * 9 * 2 * 9
    shared = [node("Conv", ["x", "w"], ["c"]), norms[0], node("BatchNormalization", ["c", *norms[1].input[1:]], ["n"])]
    twice = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["x"], ["r"]), node("Conv", ["r", "w"], ["d"]), *norms]
    for nodes, convolutions, left in (([*shared, norms[2]], 1, 2), (twice, 2, 0)):
        raw = model_of(nodes, weights)
        model = form.canonicalise(raw)
        assert (ops(model)["Conv"], ops(model)["BatchNormalization"]) == (convolutions, left)
        assert counts.count(raw, spec).macs == counts.count(model, spec).macs == convolutions * taps
        assert_same(raw, model)

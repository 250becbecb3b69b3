"""Zero points as additions: the same integers, the same sums, and nothing but INT8 with zero point 0."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import zero_points
from resdeploy.graph.index import Index, integers
from tests.sessions import session


def network(zero_point: int, random: np.random.Generator, *, per_channel: bool) -> onnx.ModelProto:
    """One tensor read by a padded, strided, grouped convolution and by a plain one, and a classifier; all dyadic."""
    node, stored = helper.make_node, []

    def constant(name: str, values: np.ndarray) -> str:
        stored.append(numpy_helper.from_array(values, name))
        return name

    def weight(name: str, *shape: int) -> list[onnx.NodeProto]:
        scale = np.exp2(random.integers(-6, -3, shape[0] if per_channel else ())).astype(np.float32)
        constant(f"{name}/q", random.integers(-127, 128, shape).astype(np.int8))
        constant(f"{name}/s", scale)
        constant(f"{name}/z", np.zeros(scale.shape, np.int8))
        return [node("DequantizeLinear", [f"{name}/q", f"{name}/s", f"{name}/z"], [name], f"{name}/DQ", axis=0)]

    def pair(data: str, scale: float, zero: int) -> list[onnx.NodeProto]:
        constant(f"{data}/s", np.array(scale, np.float32))
        constant(f"{data}/z", np.array(zero, np.uint8))
        return [
            node("QuantizeLinear", [data, f"{data}/s", f"{data}/z"], [f"{data}/q"], f"{data}/Q"),
            node("DequantizeLinear", [f"{data}/q", f"{data}/s", f"{data}/z"], [f"{data}/dq"], f"{data}/DQ"),
        ]

    constant("b", np.array([1.5, -0.25, 0, 3], np.float32))
    nodes = [
        *pair("input", 2**-4, zero_point),
        *weight("w0", 4, 2, 3, 3),
        node("Conv", ["input/dq", "w0", "b"], ["c0"], "padded", pads=[1, 0, 2, 1], strides=[2, 2], group=2),
        *weight("w1", 4, 4, 1, 1),
        node("Conv", ["input/dq", "w1"], ["c1"], "plain", strides=[2, 2]),
        node("GlobalAveragePool", ["c0"], ["p0"], "pool0"),
        node("GlobalAveragePool", ["c1"], ["p1"], "pool1"),
        node("Add", ["p0", "p1"], ["sum"], "sum"),
        node("Flatten", ["sum"], ["flat"], "flat"),
        *pair("flat", 2**-2, 255 - zero_point),
        *weight("w2", 3, 4),
        node("Gemm", ["flat/dq", "w2"], ["logits"], "fc", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("zero_point", [0, 100, 128, 255])
def test_the_function_stays_and_all_is_int8_with_zero_point_0(zero_point: int, per_channel: bool) -> None:
    """Values beyond the range at both ends, borders of uneven padding: equal to the last bit, all sums being exact."""
    random = np.random.default_rng(zero_point)
    model = network(zero_point, random, per_channel=per_channel)
    made = zero_points.to_additions(model)
    onnx.checker.check_model(made, full_check=True)
    images = (random.integers(-80, 80, (2, 4, 8, 8)) / 4).astype(np.float32)
    sides = [session(m, exactly=True).run(None, {"input": images})[0] for m in (model, made)]
    np.testing.assert_array_equal(*sides)
    index = Index(made)
    for node in index.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = index.array(node.input[2])
            assert zero.dtype == np.int8
            assert not zero.any()
        assert zero_point == 128 or not any(integers(node, "pads", (0,)))


def test_what_cannot_take_a_shift_is_known() -> None:
    """A product of unknown structure, and padding that depends on the size."""
    make = helper.make_node
    assert zero_points.can_shift(make("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]))
    assert not zero_points.can_shift(make("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"))
    assert zero_points.can_shift(make("Gemm", ["x", "w", "b"], ["y"], transB=1))
    assert not zero_points.can_shift(make("Gemm", ["x", "w", "b"], ["y"], alpha=0.5))
    assert not zero_points.can_shift(make("MatMul", ["x", "w"], ["y"]))

"""Padding in one spelling, and pools that every runtime reads alike."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.canonical import form
from tests.sessions import session

node = helper.make_node


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], size: int = 6) -> onnx.ModelProto:
    """Images of 2 x `size` x `size`, named x."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    opened = session(model, exactly=True)
    return opened.run(None, {opened.get_inputs()[0].name: x})[0]


def images(size: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 2, size, size)).astype(np.float32)


@pytest.mark.parametrize("size", [5, 6, 7])
def test_pools_that_round_up_are_the_same_everywhere(size: int) -> None:
    """torch, ONNX Runtime and OpenVINO give one answer, whatever windows would begin in the padding."""
    torch, openvino = pytest.importorskip("torch"), pytest.importorskip("openvino")
    x = images(size)
    expected, pools = list[Any](), list[onnx.NodeProto]()
    for kernel, stride, pad in itertools.product((2, 3), (1, 2, 3), (0, 1)):
        shape: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
            "ceil_mode": 1,
        }
        window = (torch.from_numpy(x), kernel, stride, pad)
        pools.append(node("MaxPool", ["x"], [f"p{len(pools)}"], **shape))
        expected.append(torch.nn.functional.max_pool2d(*window, ceil_mode=True))
        for included in (0, 1):
            pools.append(node("AveragePool", ["x"], [f"p{len(pools)}"], **shape, count_include_pad=included))
            expected.append(torch.nn.functional.avg_pool2d(*window, ceil_mode=True, count_include_pad=bool(included)))
    flat = [node("Flatten", [f"p{k}"], [f"f{k}"]) for k in range(len(pools))]
    joined = node("Concat", [f"f{k}" for k in range(len(pools))], ["y"], axis=1)
    model = form.canonicalise(model_of([*pools, *flat, joined], {}, size))
    assert not any(a.name == "ceil_mode" for n in model.graph.node for a in n.attribute)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", options)
    whole = np.concatenate([answer.numpy().reshape(2, -1) for answer in expected], axis=1)
    for found in (run(model, x), compiled(x)[0]):
        assert found.shape == whole.shape
        assert np.allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("relu", "value", "taken_in"),
    [
        *((True, 0.0, True), (True, -1e4, True), (False, -np.inf, True), (False, np.finfo(np.float32).min, True)),
        *((False, 0.0, False), (False, -1e4, False), (True, 1.0, False)),
    ],
)
def test_a_pad_below_all_data_is_the_max_pools_own(relu: bool, value: float, taken_in: bool) -> None:
    """What data cannot reach is left out by a pool's own padding too; any other value may be the largest."""
    nodes = [
        *([node("Relu", ["x"], ["r"])] if relu else []),
        node("Constant", [], ["v"], value=numpy_helper.from_array(np.array(value, np.float32))),
        node("Pad", ["r" if relu else "x", "pads", "v"], ["p"]),
        node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    raw = model_of(nodes, {"pads": np.array([0, 0, 0, 1, 0, 0, 1, 1])})
    model = form.canonicalise(raw)
    assert ops(model)["Pad"] == (not taken_in)
    assert np.array_equal(run(model, images() - 3), run(raw, images() - 3))


def test_a_pad_before_a_pool_that_rounds_up_changes_no_window() -> None:
    """In what is padded already, a window may begin that a pool would not begin in padding of its own."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Pad", ["r", "pads"], ["p"]),
        node("MaxPool", ["p"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    ]
    raw = model_of(nodes, {"pads": np.array([0, 0, 1, 1, 0, 0, 2, 2])})
    model = form.canonicalise(raw)
    assert not any(a.name == "ceil_mode" for n in model.graph.node for a in n.attribute)
    assert np.array_equal(run(model, images()), run(raw, images()))


def test_zeros_around_a_convolution_are_its_padding() -> None:
    """A Pad, the convolution's own pads and `auto_pad` come to the same numbers."""
    weight = {"w": np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype(np.float32)}
    spellings = [
        model_of([node("Conv", ["x", "w"], ["y"], pads=[0, 0, 1, 1], strides=[2, 2])], weight),
        model_of([node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], weight),
        model_of(
            [
                node("Pad", ["x", "pads"], ["p"]),
                node("Conv", ["p", "w"], ["y"], auto_pad="VALID", strides=[2, 2]),
            ],
            weight | {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1])},
        ),
    ]
    first, *others = [form.canonicalise(spelling).SerializeToString() for spelling in spellings]
    assert others == [first, first]
    assert np.array_equal(run(onnx.load_from_string(first), images()), run(spellings[1], images()))

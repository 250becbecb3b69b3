"""Lowering for TensorRT: scales that FP16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import for_tensorrt


def test_integers_of_a_scale_that_fp16_cannot_hold_are_put_on_one_that_it_can() -> None:
    """Each weight stays within half a step of 2^-17, and a channel whose scale is large enough keeps its integers.

    Raised alone, the scale of 1e-6 would make that channel's weights eight times as large.
    """
    integers = np.random.default_rng(0).integers(-127, 128, (2, 3, 3, 3)).astype(np.int8)
    scale = np.array([1e-6, 0.01], np.float32)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], "conv"),
    ]
    held = {"s": np.float32(0.1), "z": np.int8(0), "w": integers, "ws": scale, "wz": np.zeros(2, np.int8)}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [value("y", TensorProto.FLOAT, [1, 2, 2, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    lowered = for_tensorrt.half_around_pairs(onnx.shape_inference.infer_shapes(model))
    stored = {t.name: numpy_helper.to_array(t) for t in lowered.graph.initializer}
    (node,) = [node for node in lowered.graph.node if node.name == "wd"]
    found_integers, found_scale = stored[node.input[0]], stored[node.input[1]]
    assert found_scale.dtype == np.float16
    weights = integers * scale.astype(np.float64)[:, None, None, None]
    found = found_integers * found_scale.astype(np.float64)[:, None, None, None]
    assert np.abs(found[0] - weights[0]).max() <= 2.0**-18 * 1.01
    assert np.array_equal(found_integers[1], integers[1])
    assert np.abs(found[0]).max() < 2 * np.abs(weights[0]).max()

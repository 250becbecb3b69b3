"""Tiny classifiers whose files say how they see images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import metadata
from resdeploy.records import ModelSpec, Preprocessing

LABELS = ("bird", "cat", "dog", "elk")


def network(path: Path, how: Preprocessing, *, labels: tuple[str, ...] = LABELS) -> Path:
    """A convolution, a pooling and a product, of float32 or of uint8 pixels as `how` says."""
    rng = np.random.default_rng(0)
    height, width = how.size
    kernel = numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "kernel")
    matrix = numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), "matrix")
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "kernel"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], name="pool"),
        helper.make_node("Flatten", ["c"], ["d"], name="flat"),
        helper.make_node("MatMul", ["d", "matrix"], ["logits"], name="fc"),
    ]
    kind = TensorProto.UINT8 if how.dtype == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", kind, ["N", 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [kernel, matrix],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = ModelSpec(
        name="small", family="f", classes=4, input_shape=(3, height, width), preprocessing=how, labels=labels
    )
    metadata.attach(proto, spec)
    onnx.save(proto, path)
    return path


def move_a_weight(path: Path) -> None:
    """One value of one tensor by a tenth."""
    model = onnx.load(path)
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    values = numpy_helper.to_array(kernel).copy()
    values.flat[3] += 0.1
    kernel.CopyFrom(numpy_helper.from_array(values, "kernel"))
    onnx.save(model, path)

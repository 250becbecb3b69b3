"""Three graphs whose every number is a few sixteenths, so that their files, and engines, are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 32, 16


class _Graph:
    """Nodes and weights as they are added; all weights in one type."""

    def __init__(self, kind: type[np.generic]) -> None:
        self.kind = kind
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def node(self, operator: str, name: str, *inputs: str, **how: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [f"{name}_out"], name=name, **how))
        return f"{name}_out"

    def weight(self, name: str, *shape: int) -> str:
        """Sixteenths from -3/16 to 3/16, in a fixed order."""
        values = ((np.arange(np.prod(shape)) * 5 % 7) - 3) / 16
        self.stored.append(numpy_helper.from_array(values.reshape(shape).astype(self.kind), name))
        return name

    def conv(self, name: str, data: str, inputs: int = CHANNELS, *, pair: bool = False, width: int = 3) -> str:
        weight = self.weight(f"{name}_w", CHANNELS, inputs, width, width)
        weight = self.pair(weight, 1 / 64) if pair else weight
        bias = self.weight(f"{name}_b", CHANNELS)
        return self.node("Conv", name, data, weight, bias, pads=[width // 2] * 4)

    def pair(self, data: str, scale: float) -> str:
        """Q/DQ with one scale, INT8 with zero point 0."""
        self.stored.append(numpy_helper.from_array(np.asarray(scale, self.kind), f"{data}_s"))
        self.stored.append(numpy_helper.from_array(np.zeros((), np.int8), f"{data}_z"))
        quantized = self.node("QuantizeLinear", f"{data}_Q", data, f"{data}_s", f"{data}_z")
        return self.node("DequantizeLinear", f"{data}_DQ", quantized, f"{data}_s", f"{data}_z")

    def model(self, result: str, shape: list[int], channels: int = CHANNELS) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Cast", [result], ["logits"], name="cast_out", to=TensorProto.FLOAT))
        ends = (("input", [1, channels, SIZE, SIZE]), ("logits", shape))
        taken, given = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)] for name, sizes in ends)
        graph = helper.make_graph(self.nodes, "fixed", taken, given, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def stem_and_classifier() -> onnx.ModelProto:
    """FP32: a convolution of three channels, max pooling, the mean, and a linear layer."""
    graph = _Graph(np.float32)
    relu = graph.node("Relu", "relu", graph.conv("stem", "input", 3, width=7))
    pooled = graph.node("MaxPool", "pool", relu, kernel_shape=[2, 2], strides=[2, 2])
    flat = graph.node("Flatten", "flat", graph.node("GlobalAveragePool", "mean", pooled))
    logits = graph.node("Gemm", "fc", flat, graph.weight("fc_w", 10, CHANNELS), graph.weight("fc_b", 10), transB=1)
    return graph.model(logits, [1, 10], 3)


def half_block() -> onnx.ModelProto:
    """FP16: a residual block with an identity shortcut."""
    graph = _Graph(np.float16)
    data = graph.node("Cast", "cast_in", "input", to=TensorProto.FLOAT16)
    first = graph.node("Relu", "relu1", graph.conv("conv1", data))
    added = graph.node("Add", "add", graph.conv("conv2", first), data)
    return graph.model(graph.node("Relu", "relu2", added), [1, CHANNELS, SIZE, SIZE])


def int8_block(*, main: bool = False, skip: bool = False) -> onnx.ModelProto:
    """INT8, one scale a weight tensor: two convolutions, the sum behind the second, its operands in FP16 or rounded."""
    graph = _Graph(np.float16)
    data = graph.node("Cast", "cast_in", "input", to=TensorProto.FLOAT16)
    rounded = graph.pair(data, 1 / 16)
    first = graph.node("Relu", "relu1", graph.conv("conv1", rounded, pair=True))
    second = graph.conv("conv2", graph.pair(first, 1 / 16), pair=True)
    added = graph.node("Add", "add", graph.pair(second, 1 / 16) if main else second, rounded if skip else data)
    return graph.model(graph.node("Relu", "relu2", added), [1, CHANNELS, SIZE, SIZE])


def gelu() -> onnx.ModelProto:
    """FP16: a convolution, GELU in the five nodes that exporters write, and a convolution; its numbers are of FP16."""
    graph = _Graph(np.float16)
    for name, value in {"root": 2**0.5, "one": 1.0, "half": 0.5}.items():
        graph.stored.append(numpy_helper.from_array(np.asarray(value, graph.kind), name))
    data = graph.conv("conv1", graph.node("Cast", "cast_in", "input", to=TensorProto.FLOAT16))
    total = graph.node("Add", "plus", graph.node("Erf", "erf", graph.node("Div", "divide", data, "root")), "one")
    result = graph.node("Mul", "halve", graph.node("Mul", "product", data, total), "half")
    return graph.model(graph.conv("conv2", result), [1, CHANNELS, SIZE, SIZE])


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "stem and classifier": stem_and_classifier,
    "half block": half_block,
    "int8 block": int8_block,
}

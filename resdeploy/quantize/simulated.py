"""A low-precision file's arithmetic spelled out in FP32 operators: the same values in any runtime, on any CPU.

Left as they are, Q/DQ pairs become integer kernels, which saturate on CPUs without VNNI (ONNX Runtime's
WeightBiasQuantization rounds even float weights, to a scale of its own), and FP16 is computed in FP32 by CPUs that have
no FP16 arithmetic, where nothing overflows. Here each rounding is an operator of its own, and sums are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.index import attribute, copy, set_nodes

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with FP32 weights and values, rounded where the file rounds them; names of values stay.

    What is FP16 or BF16 is rounded by a Cast there and back, which ONNX Runtime keeps and OpenVINO leaves out.

    Args:
        model: INT8 with Q/DQ pairs of ours, or FP16 or BF16 by `graph.cast`.
    """
    writer = _Writer(model)
    for node in model.graph.node:
        writer.add(node)
    result = copy(model)
    del result.graph.value_info[:], result.graph.initializer[:]
    set_nodes(result.graph, writer.nodes)
    read = {name for node in writer.nodes for name in node.input}
    result.graph.initializer.extend(t for name, t in writer.stored.items() if name in read)
    return result


class _Writer:
    """Nodes and initializers of the new graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, tensor in self.stored.items():
            if tensor.data_type in HALVES:
                self.constant(name, numpy_helper.to_array(tensor).astype(np.float32))
        self.half = {
            value.name: value.type.tensor_type.elem_type
            for value in model.graph.value_info
            if value.type.tensor_type.elem_type in HALVES
        }

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.stored[name] = numpy_helper.from_array(value, name)
        return name

    def value(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.stored[name])

    def add(self, node: onnx.NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            self.quantize(node)
        elif node.op_type == "DequantizeLinear":
            self.dequantize(node)
        else:
            self.carry_over(node)

    def quantize(self, node: onnx.NodeProto) -> None:
        zero = self.value(node.input[2])
        limits, (tensor, scale), output = np.iinfo(zero.dtype), node.input[:2], node.output[0]
        if tensor in self.stored:  # weights that the file holds in float (TensorRT's)
            steps = np.rint(self.value(tensor) / self.along(node, self.value(scale), self.value(tensor).ndim))
            self.constant(output, np.clip(steps, limits.min, limits.max).astype(zero.dtype))
            return
        low, high = (
            self.constant(f"{output}/{at}", np.array(getattr(limits, at) - int(zero), np.float32))
            for at in ("min", "max")
        )
        self.nodes += [
            helper.make_node("Div", [tensor, scale], [f"{output}/steps"]),
            helper.make_node("Round", [f"{output}/steps"], [f"{output}/whole"]),
            helper.make_node("Clip", [f"{output}/whole", low, high], [output]),
        ]

    def dequantize(self, node: onnx.NodeProto) -> None:
        integers, scale = node.input[:2]
        if integers in self.stored:
            values = self.value(integers)
            self.constant(node.output[0], values.astype(np.float32) * self.along(node, self.value(scale), values.ndim))
        else:  # whole numbers of steps, from which `quantize` has left out the zero point
            self.nodes.append(helper.make_node("Mul", [integers, scale], node.output))

    @staticmethod
    def along(node: onnx.NodeProto, scale: NDArray[Any], rank: int) -> NDArray[Any]:
        """A scale for each index of the node's axis, in the shape that multiplies."""
        if not scale.ndim:
            return scale
        axis = attribute(node, "axis", 1) % rank
        return np.expand_dims(scale, [i for i in range(rank) if i != axis])

    def carry_over(self, node: onnx.NodeProto) -> None:
        twin = copy(node)
        self.nodes.append(twin)
        for setting in twin.attribute:
            if node.op_type == "Cast" and setting.name == "to" and setting.i in HALVES:
                setting.i = TensorProto.FLOAT
        for k, name in enumerate(node.output):
            if (kind := self.half.get(name)) is None:
                continue
            twin.output[k] = f"{name}/exact"
            self.nodes += [
                helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=kind),
                helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
            ]

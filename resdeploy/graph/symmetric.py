"""Rewrites 8-bit Q/DQ as TensorRT takes them, INT8 with zero point 0, exactly; what cannot be is refused.

NVIDIA's parser takes UINT8 for INT8 with a warning alone, and so a zero point that is left out, which in ONNX means
UINT8 at 0 (onnx-tensorrt 10.1, onnxOpImporters.cpp, QuantDequantLinearHelper): what was cut off above 255 scales is
then cut off above 127. Equal in every value, rounding and saturation included, are

    UINT8 with zero point 128     INT8 with 0: the same integers less 128
    a constant                    its integers less their zero points, where INT8 holds these

and nothing else: an activation in UINT8 at 0 has twice as many levels above zero as INT8. A constant in INT32, which is
how biases are stored for other runtimes, becomes the floats that it means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from resdeploy.errors import MalformedInput
from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    copy,
    drop_attributes,
    drop_unused,
    input_name,
    node_name,
)
from resdeploy.graph.qdq_placement import PAIR

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOWEST, HIGHEST = -128, 127
PLACE_ANEW = (
    "Quantize the FP32 file for it: resdeploy quantize F.onnx --target tensorrt --calib-data DIR "
    "(--target tensorrt-rtx for TensorRT-RTX)"
)
FOREIGN = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT16, TensorProto.UINT16)


def to_symmetric(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with all integer Q/DQ in INT8 with zero point 0; the same object where they are that already.

    FP8 and INT4 are left to the parser.

    Raises:
        MalformedInput: Q/DQ that have no equal; the first is named.
    """
    if not _Graph(model).unfit:
        return model
    result = copy(model)
    writer = _Writer(result)
    writer.fold_biases(_Graph(result))
    graph = _Graph(result)
    groups = [[node, *graph.dequantizers(node)] for node in graph.unfit if graph.moves(node)]
    settled = {node.output[0] for group in groups for node in group}
    stored: list[tuple[onnx.NodeProto, NDArray[np.int8]]] = []
    for node in graph.unfit:
        if node.output[0] not in settled:
            values = graph.integers(node)
            if values is None:
                raise _refusal(graph, node)
            stored.append((node, values))
    for group in groups:
        writer.rewrite_pairs(group, graph)
    for node, values in stored:
        writer.rewrite_constant(node, values, graph)
    drop_unused(result.graph)
    return result


class _Graph(Index):
    """A graph with Q/DQ. `unfit`: those in integers of 8 bits and more that are not INT8 with zero point 0."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self.input_types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        pairs = (node for node in self.nodes if node.op_type in PAIR)
        self.unfit = [node for node in pairs if self.kind(node) in FOREIGN and not self._fits(node)]

    def _fits(self, node: onnx.NodeProto) -> bool:
        zero = self.zero(node)
        return self.kind(node) == TensorProto.INT8 and zero is not None and not zero.any()

    def kind(self, node: onnx.NodeProto) -> int:
        """The type of a node's quantized side: its zero point's, else what ONNX says of one without."""
        if zero := input_name(node, 2):
            return self._type(zero)
        if node.op_type == "QuantizeLinear":
            return int(attribute(node, "output_dtype", 0)) or TensorProto.UINT8
        return self._type(node.input[0])

    def _type(self, tensor: str) -> int:
        """Of integers; what else stands between a quantizer and a dequantizer moves them and converts nothing."""
        visited: set[str] = set()
        while tensor not in visited:
            visited.add(tensor)
            stored, node = self.value(tensor), self.maker(tensor)
            if stored is not None:
                return int(stored.data_type)
            if node is None:
                return int(self.input_types.get(tensor, TensorProto.UNDEFINED))
            if node.op_type == "QuantizeLinear":
                return self.kind(node)
            if node.op_type in ("Cast", "DynamicQuantizeLinear"):
                return int(attribute(node, "to", TensorProto.UINT8))
            tensor = node.input[0] if node.input else tensor
        return TensorProto.UNDEFINED

    def zero(self, node: onnx.NodeProto) -> NDArray[np.int64] | None:
        """A node's zero point, of the shape of its scale where that is known; None where it is computed."""
        if input_name(node, 2):
            stored = self.value(node.input[2])
            return None if stored is None else numpy_helper.to_array(stored).astype(np.int64)
        scale = self.value(node.input[1])
        return np.zeros(tuple(scale.dims) if scale is not None else (), np.int64)

    def dequantizers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """All readers of a quantizer, where these are dequantizers on its zero point; none where any is not."""
        zero, output = self.zero(node), node.output[0]
        readers = [self.nodes[i] for i in self.readers.get(output, ())]
        if zero is None or output in self.outputs:
            return []
        for reader in readers:
            other = self.zero(reader) if reader.op_type == "DequantizeLinear" and reader.input[0] == output else None
            if other is None or not np.array_equal(other.ravel(), zero.ravel()):
                return []
        return readers

    def moves(self, node: onnx.NodeProto) -> bool:
        """Whether a quantizer in INT8 with zero point 0 gives the same multiples of its scale."""
        zero = self.zero(node)
        if node.op_type != "QuantizeLinear" or zero is None or not self.dequantizers(node):
            return False
        if self.kind(node) not in (TensorProto.UINT8, TensorProto.INT8):
            return False
        lowest = 0 if self.kind(node) == TensorProto.UINT8 else LOWEST
        if (lowest - zero == LOWEST).all():
            return True
        stored, scale = self.value(node.input[0]), self.value(node.input[1])
        if stored is None or scale is None:
            return False
        values = numpy_helper.to_array(stored).astype(np.float32)
        steps = _along(node, numpy_helper.to_array(scale).astype(np.float32), values.ndim)
        offset = _along(node, zero, values.ndim)
        if steps is None or offset is None:
            return False
        multiples = np.rint(values / steps)
        meant = np.clip(multiples, lowest - offset, lowest + 255 - offset)
        return bool((meant == np.clip(multiples, LOWEST, HIGHEST)).all())

    def integers(self, node: onnx.NodeProto) -> NDArray[np.int8] | None:
        """A dequantizer's stored integers less their zero points; None where there are none or INT8 holds them not."""
        stored, zero = self.value(node.input[0]), self.zero(node)
        if node.op_type != "DequantizeLinear" or stored is None or zero is None:
            return None
        values = numpy_helper.to_array(stored).astype(np.int64)
        offset = _along(node, zero, values.ndim)
        if offset is None or (values - offset < LOWEST).any() or (values - offset > HIGHEST).any():
            return None
        return np.asarray(values - offset, np.int8)


def _along(node: onnx.NodeProto, values: NDArray[Any], rank: int) -> NDArray[Any] | None:
    """One value, or one per channel, in the shape that applies it to a tensor; None for one per block."""
    if values.size == 1:
        return values.reshape(())
    axis = attribute(node, "axis", 1)
    if values.ndim != 1 or not -rank <= axis < rank:
        return None
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _refusal(graph: _Graph, node: onnx.NodeProto) -> MalformedInput:
    zero = graph.zero(node)
    at = "that is computed" if zero is None else f"of {zero.ravel()[np.abs(zero).argmax()]}"
    what, who = TensorProto.DataType.Name(graph.kind(node)), f"node {node_name(node)} ({node.op_type})"
    harm = "; it would take 0..255 for -128..127 and cut off half the range" if what == "UINT8" else ""
    return MalformedInput(
        f"this Q/DQ file is not for TensorRT: {who} has {what} with a zero point {at}",
        cause=f"TensorRT's are INT8 with zero point 0{harm}",
        fix=PLACE_ANEW,
    )


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.infos = {value.name: value for value in model.graph.value_info}
        named = (*model.graph.initializer, *model.graph.input)
        self.taken = {x.name for x in named} | {name for node in model.graph.node for name in node.output}

    def fold_biases(self, graph: _Graph) -> None:
        """Puts floats in the place of dequantized INT32 constants: (x - zero point) scale, computed in FP32."""
        for node in graph.unfit:
            stored, scale, zero = graph.value(node.input[0]), graph.value(node.input[1]), graph.zero(node)
            if node.op_type != "DequantizeLinear" or stored is None or scale is None or zero is None:
                continue
            if stored.data_type != TensorProto.INT32:
                continue
            values, steps = numpy_helper.to_array(stored).astype(np.int64), numpy_helper.to_array(scale)
            offset, factor = _along(node, zero, values.ndim), _along(node, steps, values.ndim)
            if offset is None or factor is None:
                continue
            floats = (values - offset).astype(np.float32) * factor.astype(np.float32)
            name = node.output[0]
            self.graph.node.remove(node)
            add_constant(self.graph, name, floats.astype(steps.dtype))
        drop_unused(self.graph)

    def rewrite_pairs(self, group: list[onnx.NodeProto], graph: _Graph) -> None:
        """A quantizer and its dequantizers, to INT8 with zero point 0."""
        for node in group:
            self._set_zero(node, graph)
        if (info := self.infos.get(group[0].output[0])) is not None:
            info.type.tensor_type.elem_type = TensorProto.INT8

    def rewrite_constant(self, node: onnx.NodeProto, values: NDArray[np.int8], graph: _Graph) -> None:
        """A dequantizer of a constant, to these integers and zero point 0."""
        self._set_zero(node, graph)
        node.input[0] = self._store(f"{node_name(node)}/int8", values)

    def _set_zero(self, node: onnx.NodeProto, graph: _Graph) -> None:
        zero = graph.zero(node)
        assert zero is not None
        name = self._store(f"{node_name(node)}/zero_point", np.zeros(zero.shape, np.int8))
        del node.input[2:]
        node.input.append(name)
        if node.op_type == "QuantizeLinear":
            drop_attributes(node, "output_dtype")

    def _store(self, name: str, values: NDArray[np.int8]) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return add_constant(self.graph, name, values)

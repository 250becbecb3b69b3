"""Rewrites activations in UINT8 with a zero point as INT8 with zero point 0 and the same 256 levels, exactly.

NVIDIA's parser takes no other zero point than 0, and a ReLU's output would leave half of INT8 unused. With s the scale,
z the zero point and o = z - 128 the same integers less 128 are those of `x + o s` in INT8, and what a convolution or
Gemm with weights W then computes of them is too large by `o s sum(W)`, a constant of each output channel:

    x -> Add(o s) -> [Pad(o s)] -> Q/DQ -> Conv without padding, its bias less o s sum(W)

Padding means x = 0 there, which is `o s` here, so it must come before. TensorRT-RTX 1.7.1 puts the addition and the
padding into the kernel that quantizes (its layer lists; docs/quantization.md), so that neither is a kernel more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    copy,
    drop_attributes,
    input_name,
    insert_nodes,
    integers,
    node_name,
    prune,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

OFFSET = 128  # between the integers of UINT8 and INT8


def can_shift(node: onnx.NodeProto) -> bool:
    """Whether a constant added to all that a node reads is a constant of each channel that it writes."""
    if node.op_type == "Conv":
        return attribute(node, "auto_pad", b"") in (b"", b"NOTSET")
    factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
    return node.op_type == "Gemm" and all(factor == 1.0 for factor in factors) and not attribute(node, "transA", 0)


def to_additions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph in which all activations are INT8 with zero point 0.

    Args:
        model: its activations in UINT8; what reads one whose zero point is not 128 is `can_shift`, with weights that
            are stored, as floats or as integers behind a DequantizeLinear.
    """
    result = copy(model)
    graph, index = result.graph, Index(result)
    writer = _Writer(graph, index)
    added: dict[str, list[onnx.NodeProto]] = {}
    for quantizer in index.nodes:
        if quantizer.op_type == "QuantizeLinear" and quantizer.input[0] not in index.constants:
            added[node_name(quantizer)] = writer.replace(quantizer)
    insert_nodes(graph, before=added, after={})
    prune(graph)
    return result


class _Writer:
    """Makes the new pairs and leads the readers of the old ones to them."""

    def __init__(self, graph: onnx.GraphProto, index: Index) -> None:
        self.graph, self.index = graph, index

    def replace(self, quantizer: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take the place of one pair: a pair for each padding of its readers, if it must be shifted."""
        tensor, scale = quantizer.input[0], self.index.array(quantizer.input[1])
        shift = (int(self.index.array(quantizer.input[2])) - OFFSET) * float(scale)
        zero = add_constant(self.graph, f"{quantizer.output[0]}/zero_point", np.zeros(scale.shape, np.int8))
        parameters = [quantizer.input[1], zero]
        groups: dict[tuple[int, ...], list[onnx.NodeProto]] = {}
        for dequantizer in (self.index.nodes[i] for i in self.index.readers[quantizer.output[0]]):
            for reader in (self.index.nodes[i] for i in self.index.readers[dequantizer.output[0]]):
                pads = integers(reader, "pads", ())
                groups.setdefault(pads if shift and any(pads) else (), []).append(reader)
        nodes: list[onnx.NodeProto] = []
        if shift:
            amount = add_constant(self.graph, f"{tensor}/int8/shift", np.array(shift, np.float32))
            nodes.append(helper.make_node("Add", [tensor, amount], [f"{tensor}/int8/shifted"], f"{tensor}/int8/Add"))
        for number, (pads, readers) in enumerate(groups.items()):
            stem = f"{tensor}/int8/{number}" if number else f"{tensor}/int8"
            data = f"{tensor}/int8/shifted" if shift else tensor
            if pads:
                nodes.append(self._pad(data, f"{stem}/padded", pads, amount))
                data = f"{stem}/padded"
            nodes += _pair(data, stem, parameters)
            for reader in readers:
                self._lead(reader, f"{stem}/dequantized", shift)
        return nodes

    def _pad(self, tensor: str, output: str, pads: Sequence[int], value: str) -> onnx.NodeProto:
        half = len(pads) // 2
        amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        return helper.make_node(
            "Pad", [tensor, add_constant(self.graph, f"{output}/pads", amounts), value], [output], f"{output}/Pad"
        )

    def _lead(self, reader: onnx.NodeProto, data: str, shift: float) -> None:
        """Has a node read the new pair; its bias loses what the shift adds."""
        reader.input[0] = data
        if not shift:
            return
        drop_attributes(reader, "pads")
        weight = self._weight(reader.input[1])
        summed = weight.sum(axis=1 - _output_axis(reader)) if weight.ndim == 2 else weight.sum(axis=(1, 2, 3))
        bias = self.index.array(reader.input[2]).astype(np.float64) if input_name(reader, 2) else 0.0
        stem = f"{node_name(reader)}/bias/shifted"
        name = add_constant(self.graph, stem, (bias - shift * summed).astype(np.float32))
        reader.input[:] = [*reader.input[:2], name]

    def _weight(self, tensor: str) -> NDArray[np.float64]:
        """The numbers that are multiplied with."""
        dequantizer = self.index.maker(tensor)
        if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
            return self.index.array(tensor).astype(np.float64)
        values, scale = (self.index.array(name).astype(np.float64) for name in dequantizer.input[:2])
        if not scale.ndim:
            return np.asarray(values * scale)
        axis = attribute(dequantizer, "axis", 1) % values.ndim
        return values * np.expand_dims(scale, [i for i in range(values.ndim) if i != axis])


def _output_axis(gemm: onnx.NodeProto) -> int:
    return 0 if attribute(gemm, "transB", 0) else 1


def _pair(tensor: str, stem: str, parameters: list[str]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [tensor, *parameters], [stem], f"{stem}/QuantizeLinear"),
        helper.make_node("DequantizeLinear", [stem, *parameters], [f"{stem}/dequantized"], f"{stem}/DequantizeLinear"),
    ]

"""Lowers a graph for the TensorRT version that builds it.

    TensorRT   FP32            FP16                    INT8
    8.6        as it is        the FP16 file           the Q/DQ file in FP32; the builder's FP16 flag does the rest
    10, 11     as it is        the FP16 file           cast to FP16 around the Q/DQ, scales too, at opset 19

Q/DQ that are not INT8 with zero point 0 are brought to that where it is exact, else refused (`symmetric`), and so is
what NVIDIA's parser takes for something else (`parser_gaps`).

From version 10 on networks are strongly typed: a Q/DQ file in FP32 would leave every operator that is not quantized in
FP32. QuantizeLinear and DequantizeLinear take FP16 scales from opset 19 on; 8.6 reads 17 at most and no such scales.

Below 2^-14 FP16 has fewer bits. A weight on the grid of its scale, q s, is found again as q as long as the rounded
scale is off by less than half a step at q = 127, 0.39 %: down to 2^-17. Smaller scales of weights are raised to that:
such a channel's weights are all below 0.001, and its step stays below 0.00001. Smaller scales of activations keep their
pair in FP32, by name: raising them would cost a whole tensor its resolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import numpy_helper

from resdeploy.errors import MalformedInput
from resdeploy.graph import cast, parser_gaps
from resdeploy.graph.canonical import form
from resdeploy.graph.canonical.opset import OPSET
from resdeploy.graph.index import Index, attribute, node_name, opset_version, overwrite
from resdeploy.graph.qdq_placement import PAIR
from resdeploy.graph.symmetric import PLACE_ANEW, to_symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPED_OPSET, TYPED_IR_VERSION = 19, 9
SMALLEST = 2.0**-17
INTEGER_OPERATOR = re.compile("QLinear|QGemm|ConvInteger|MatMulInteger|DynamicQuantizeLinear")


def is_typed(major: int) -> bool:
    """Whether this major version of TensorRT builds strongly typed networks."""
    return major >= 10


def lower(model: onnx.ModelProto, major: int) -> onnx.ModelProto:
    """The graph for a major version of TensorRT; the same object where nothing is to be done.

    Raises:
        MalformedInput: Q/DQ in another form or at an opset that 8.6 cannot read, integer operators, what the parser
            would take for something else, or a node that has no equal in opset 17.
    """
    quantized = any(node.op_type in PAIR for node in model.graph.node)
    _refuse_integer_operators(model)
    model = parser_gaps.close(to_symmetric(model) if quantized else model)
    if is_typed(major):
        return half_around_pairs(model) if quantized and _has_float_scales(model) else model
    opset = opset_version(model, 0)
    if opset <= OPSET:
        return model
    if quantized:
        raise MalformedInput(
            f"this Q/DQ file is at opset {opset}, and TensorRT {major} reads {OPSET} at most",
            fix=PLACE_ANEW,
        )
    return form.canonicalise(model)


def _refuse_integer_operators(model: onnx.ModelProto) -> None:
    """Refuses what is quantized in operators and not in pairs, as other runtimes' tools write it."""
    node = next((node for node in model.graph.node if INTEGER_OPERATOR.match(node.op_type)), None)
    if node is not None:
        raise MalformedInput(
            f"this file is not for TensorRT: node {node_name(node)} ({node.op_type}) computes in integers",
            cause="TensorRT takes INT8 as QuantizeLinear and DequantizeLinear around float operators",
            fix=PLACE_ANEW,
        )


def node_at(model: onnx.ModelProto, number: int) -> str:
    """The name and type of the node at a position, as parsers count."""
    if number >= len(model.graph.node):
        return f"node #{number}"
    return f"node {node_name(model.graph.node[number])} ({model.graph.node[number].op_type})"


def half_around_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Q/DQ graph in FP32 -> the same in FP16, scales included, with FP32 input and output, at opset 19."""
    try:
        converted = onnx.version_converter.convert_version(model, TYPED_OPSET)
    except Exception as e:
        raise MalformedInput(
            f"this ONNX file cannot be brought to opset {TYPED_OPSET}: {e}",
            cause="ONNX's converter does not know an operator of it",
            fix=PLACE_ANEW,
        ) from e
    converted.ir_version = max(converted.ir_version, TYPED_IR_VERSION)
    _raise_weight_scales(converted)
    return cast.to_half(converted, "fp16", keep=tuple(_pairs_of_tiny_scales(Index(converted))), pairs=True)


def _has_float_scales(model: onnx.ModelProto) -> bool:
    """Whether any scale is in FP32 still."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    scales = (types.get(node.input[1]) for node in model.graph.node if node.op_type in PAIR)
    return any(kind == onnx.TensorProto.FLOAT for kind in scales)


def _raise_weight_scales(model: onnx.ModelProto) -> None:
    """Raises scales of weights to the smallest that FP16 holds well enough; integers that are stored are put on it."""
    index = Index(model)
    pairs = [node for node in index.nodes if node.op_type in PAIR and node.output[0] in index.constants]
    for node in pairs:
        stored = index.initializers.get(node.input[0])
        if node.op_type == "DequantizeLinear" and stored is not None and node.input[1] in index.initializers:
            _put_on_raised_scale(stored, index.array(node.input[1]), attribute(node, "axis", 1))
    for name in dict.fromkeys(node.input[1] for node in pairs):
        stored = index.initializers.get(name)
        if stored is not None:
            overwrite(stored, np.maximum(numpy_helper.to_array(stored), np.float32(SMALLEST)))


def _put_on_raised_scale(stored: onnx.TensorProto, scale: NDArray[Any], axis: int) -> None:
    """Integers q of steps s become the nearest of steps max(s, SMALLEST): off by half of such a step at most."""
    ratio = scale.astype(np.float64) / np.maximum(scale, SMALLEST)
    if (ratio < 1).any():
        values = numpy_helper.to_array(stored)
        shape = [-1 if k == axis % values.ndim else 1 for k in range(values.ndim)] if ratio.ndim else []
        overwrite(stored, np.rint(values * ratio.reshape(shape)).astype(values.dtype))


def _pairs_of_tiny_scales(index: Index) -> Iterator[str]:
    """The pairs of activations whose scale FP16 cannot hold."""
    for node in index.nodes:
        stored = index.value(node.input[1]) if node.op_type in PAIR else None
        if stored is not None and numpy_helper.to_array(stored).min(initial=1.0) < SMALLEST:
            yield node.name

"""Clips whose work the quantizer behind them does anyhow."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy.graph.index import Index, input_name


def leave_to_quantizers(model: onnx.ModelProto) -> None:
    """Removes each Clip whose bounds the quantizer that alone reads it saturates at anyhow, in place.

    A bound within half a step of the quantizer's range changes no integer (at half a step, both are as near to it). One
    that is tighter than that range, by a rounding of the zero point, makes ONNX Runtime compute the convolution before
    it in float (a FusedConv, 1.32).
    """
    index = Index(model)
    found = [node for node in index.nodes if node.op_type == "Clip" and _is_left_to_quantizers(index, node)]
    for clip in found:
        for i in index.readers[clip.output[0]]:
            index.nodes[i].input[0] = clip.input[0]
        model.graph.node.remove(clip)


def _is_left_to_quantizers(index: Index, clip: onnx.NodeProto) -> bool:
    bounds = [index.value(input_name(clip, k)) for k in (1, 2)]
    readers = [index.nodes[i] for i in index.readers[clip.output[0]]]
    if None in bounds or clip.output[0] in index.outputs or not readers:
        return False
    low, high = (float(numpy_helper.to_array(bound)) for bound in bounds if bound is not None)
    return all(node.op_type == "QuantizeLinear" and _saturates_at(index, node, low, high) for node in readers)


def _saturates_at(index: Index, quantizer: onnx.NodeProto, low: float, high: float) -> bool:
    scale, zero = (index.array(name) for name in quantizer.input[1:3])
    limits, half = np.iinfo(zero.dtype), 0.5 + 1e-3  # FP32 scales miss the half by some 1e-5
    first, last = np.array([low, high]) / float(scale) + int(zero)
    return bool(first <= limits.min + half and last >= limits.max - half)

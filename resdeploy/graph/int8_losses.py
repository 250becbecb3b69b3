"""What of a graph's Q/DQ a runtime does not compute in integers, without a word: why `audit` finds what it finds.

From executed graphs of 26 kinds of INT8 files (docs/matrix.md): OpenVINO 2026.4 and ONNX Runtime 1.32 on x86 CPUs, and
what TensorRT's parser says. The executed kernels decide; these sentences tell why, and what a file holds at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from resdeploy.graph.index import Index, input_name
from resdeploy.graph.qdq_placement import NVIDIA
from resdeploy.records import Target

_WIDE = (TensorProto.INT16, TensorProto.UINT16)
_CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def reasons(model: onnx.ModelProto, target: Target | None) -> tuple[str, ...]:
    """Sentences on what is in the file and is lost in the runtime `target`; none where nothing is known to be."""
    index = Index(model)
    return tuple(_reasons(index, target))


def _reasons(index: Index, target: Target | None) -> Iterator[str]:
    quantizers = [node for node in index.nodes if node.op_type == "QuantizeLinear"]
    contrib = sum(node.domain == "com.microsoft" for node in quantizers)
    if contrib and target in NVIDIA:
        yield f"{contrib} of its quantizers are com.microsoft's, which {target} does not read"
    types = Counter(_type(index, node) for node in quantizers if node.input[0] not in index.constants)
    if wide := sum(types[each] for each in _WIDE):
        yield _of_sixteen_bits(wide, target)
    weights = Counter(_type(index, node) for node in _weight_dequantizers(index))
    if weights[TensorProto.UINT8] and target == "openvino":
        yield f"{weights[TensorProto.UINT8]} weights are uint8: OpenVINO multiplies int8 weights alone, others in FP32"
    shifted = sum(_is_shifted(index, node) for node in quantizers if _type(index, node) == TensorProto.INT8)
    if shifted and target == "openvino":
        yield f"{shifted} tensors are int8 with a zero point: with AMX, OpenVINO's convolutions read these in FP32"
    if types[TensorProto.INT8] and target == "onnxruntime":
        yield f"{types[TensorProto.INT8]} tensors are int8: on x86 ONNX Runtime keeps uint8 alone in integers at forks"
    if target in NVIDIA and (offset := sum(_is_shifted(index, node) for node in quantizers)):
        yield f"{offset} quantizers have a zero point, which {target} refuses or takes for 0"


def _of_sixteen_bits(count: int, target: Target | None) -> str:
    what = f"{count} tensors are quantized in 16 bits"
    if target == "openvino":
        return f"{what}: OpenVINO drops such pairs, their clipping too, and computes in FP32"
    return f"{what}: no kernel multiplies such integers, and they are computed in FP32"


def _weight_dequantizers(index: Index) -> Iterator[onnx.NodeProto]:
    for node in index.nodes:
        if node.op_type in _CONVOLUTIONS and len(node.input) > 1 and node.input[1] in index.constants:
            maker = index.maker(node.input[1])
            if maker is not None and maker.op_type == "DequantizeLinear":
                yield maker


def _type(index: Index, node: onnx.NodeProto) -> int:
    """The integers that a Q/DQ node makes or reads: those of its zero point, by default uint8."""
    zero = index.value(input_name(node, 2)) if input_name(node, 2) else None
    if zero is None and node.op_type == "DequantizeLinear":
        zero = index.value(node.input[0])
    return TensorProto.UINT8 if zero is None else zero.data_type


def _is_shifted(index: Index, node: onnx.NodeProto) -> bool:
    stored = index.value(input_name(node, 2)) if input_name(node, 2) else None
    return stored is not None and bool(np.any(numpy_helper.to_array(stored)))

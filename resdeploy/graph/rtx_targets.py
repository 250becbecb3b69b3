"""What TensorRT-RTX cannot do for a GPU, or does otherwise than the graph says, found before it builds.

Seen in 1.7.1.116, each with a graph of one operator (tests/rtx):

    BF16, any operator           no code for SM75
    FP8                          no code below SM89
    Gemm and MatMul in FP32      no code for SM75; convolutions in FP32 have some
    convolutions in INT8         with SM75 among the targets they are FP16 ones, for all targets

Without targets the compiler takes all of these: what it makes then is for SM80 and later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto

from resdeploy import errors
from resdeploy.graph import files
from resdeploy.graph.index import Index, node_name

TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
TURING = "sm75"
BEFORE_FP8 = ("sm75", "sm80", "sm86")
FP8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)

# Who is unable, and what comes of it.
_UNABLE = {
    "INT8 convolutions": ((TURING,), "which become FP16 for all targets where {} is among them"),
    "BF16": ((TURING,), "which {} does not have"),
    "Gemm or MatMul in FP32": ((TURING,), "for which there is no code for {}"),
    "FP8": (BEFORE_FP8, "which {} does not have"),
}


def refuse(model: onnx.ModelProto, *, targets: Sequence[str], path: str) -> None:
    """Refuses targets that there are not, and what the graph asks of one that cannot do it.

    Args:
        model: the graph as it is to be built.
        targets: names such as `sm89`; (): the compiler's choice, of which nothing is refused.
        path: the file, for errors.

    Raises:
        UsageError: with the target, the first node, and what to do instead.
    """
    unknown = [name for name in targets if name not in TARGETS]
    errors.refuse(
        (
            unknown,
            f"TensorRT-RTX does not compile for {', '.join(unknown)}",
            f"Choose among {', '.join(TARGETS)}; for H100, H200 and Jetson build with --backend tensorrt on the device",
        )
    )
    held = _kinds(model) if any(name in BEFORE_FP8 for name in targets) else {}
    asked = [(kind, [name for name in unable if name in targets], what) for kind, (unable, what) in _UNABLE.items()]
    errors.refuse(
        *(
            (
                kind in held and bad,
                f"{path} holds {kind} ({held.get(kind, '')}), {what.format(', '.join(bad))}",
                _remedy(targets, bad),
            )
            for kind, bad, what in asked
        )
    )


def _remedy(targets: Sequence[str], unable: Sequence[str]) -> str:
    rest = ",".join(name for name in targets if name not in unable)
    others = f"Leave them out: --targets {rest}" if rest else f"Build for others: --targets {','.join(TARGETS[3:])}"
    return (
        f"{others}; for {', '.join(unable)} build the FP16 file (resdeploy quantize F.onnx --precision fp16) by itself"
    )


def _kinds(model: onnx.ModelProto) -> dict[str, str]:
    """Which of `_UNABLE` the graph holds, each with the first node of it."""
    found: dict[str, str] = {}
    for kind, node in _each(onnx.shape_inference.infer_shapes(files.weightless(model))):
        found.setdefault(kind, node)
    return found


def _each(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    index, graph = Index(model), model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {name: stored.data_type for name, stored in index.initializers.items()}
    for node in index.nodes:
        touched = {types.get(name, 0) for name in (*node.input, *node.output)}
        if TensorProto.BFLOAT16 in touched:
            yield "BF16", node_name(node)
        if touched & set(FP8):
            yield "FP8", node_name(node)
        if node.op_type in ("Gemm", "MatMul") and types.get(node.output[0]) == TensorProto.FLOAT:
            yield "Gemm or MatMul in FP32", node_name(node)
        if node.op_type == "Conv" and all(_is_dequantized(index, types, name) for name in node.input[:2]):
            yield "INT8 convolutions", node_name(node)


def _is_dequantized(index: Index, types: dict[str, int], tensor: str) -> bool:
    maker = index.maker(tensor)
    return maker is not None and maker.op_type == "DequantizeLinear" and types.get(maker.input[0], 0) not in FP8

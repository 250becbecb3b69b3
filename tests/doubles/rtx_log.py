"""What TensorRT-RTX's compiler tells its log of a small residual network, written by hand in its form.

    image -> stem -> stem.relu -> one -> one.relu -> two -> add (+ stem.relu's output) -> add.relu -> head

`graph` is that network, with or without Q/DQ. Of the lists, shapes, constants and names are made up; what each kind of
kernel names, and in which types it reads and writes, is as was seen of real networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = {"f": "Float", "h": "Half", "b": "BFloat16", "q": "Int8"}
CHANNELS, SIZE = 6, 10  # of every tensor but the image, which has 3 channels
Kernel = tuple[str, str, str, str, str]


def graph(quantized: Literal["", "skip", "no skip", "both"] = "", *, half: bool = True) -> onnx.ModelProto:
    """The network, in FP16 or FP32; with pairs on all convolutions, and on the sum's skip, both operands or none."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    held: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []

    def keep(name: str, values: np.ndarray) -> str:
        held[name] = numpy_helper.from_array(values, name)
        return name

    def op(operator: str, name: str, *reads: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, reads, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def pair(tensor: str) -> str:
        scale, zero = keep(f"{tensor}.s", np.asarray(0.5, dtype)), keep(f"{tensor}.z", np.asarray(0, np.int8))
        stored = op("QuantizeLinear", f"{tensor}/Q", tensor, scale, zero)
        return op("DequantizeLinear", f"{tensor}/DQ", stored, scale, zero)

    def conv(name: str, x: str, channels: int = CHANNELS) -> str:
        weight = keep(f"{name}.weight", np.ones((CHANNELS, channels, 1, 1), dtype))
        bias = keep(f"{name}.bias", np.ones(CHANNELS, dtype))
        return op("Conv", name, pair(x) if quantized else x, pair(weight) if quantized else weight, bias)

    x = op("Cast", "image.cast", "image", to=kind) if half else "image"
    stem = op("Relu", "stem.relu", conv("stem", x, 3))
    two = conv("two", op("Relu", "one.relu", conv("one", stem)))
    skip = f"{stem}/DQ.out" if quantized in ("skip", "both") else stem
    total = op("Relu", "add.relu", op("Add", "add", pair(two) if quantized == "both" else two, skip))
    logits = conv("head", total)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "small", [value("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])], [value(logits, kind, None)],
        list(held.values()),
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def log(kernels: Sequence[Kernel]) -> str:
    """A log that tells of these kernels: each a type, a name, the tensors read and written, and the nodes named.

    A tensor is written `q:name`, its type before its name; of the name `image` it has three channels.
    """
    lines = [
        f"Name: {name}_myl0_{i}, LayerType: {kind}, Inputs: [{_tensors(reads)}], "
        f"Constants: [{_tensors('h:constant') if kind == 'correlation' else ''}], Outputs: [{_tensors(writes)}], "
        f"TacticName: , StreamId: 0, Metadata: " + "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes.split())
        for i, (kind, name, reads, writes, nodes) in enumerate(kernels)
    ]
    tensors = [" Name: image, IOMode: Input, DataType: Float, Dimensions: [1,3,10,10], Location: Device"]
    return "\n".join(["Some other words", "Layers:", *lines, "", "I/O Tensors:", *tensors, "", "Engine Metadata:"])


def _tensors(text: str) -> str:
    found = (part.partition(":") for part in text.split())
    return ",".join(
        f" {{ Name: {name}, Dimensions: [1,{3 if name == 'image' else CHANNELS},{SIZE},{SIZE}], "
        f"Strides: [600,100,10,1], StrideOrder: [3,2,1,0], Datatype: {WORDS[kind]}, Format: (Linear) Row major }}"
        for kind, _, name in found
    )


# A cast and padding kernel that names the convolution after it, and a wait for another stream.
HALF: tuple[Kernel, ...] = (
    ("kgen", "__myl_CastConc", "f:image", "h:a", "image.cast stem stem.relu"),
    ("correlation", "stem", "h:a", "h:b", "stem stem.relu"),
    ("signal", "__mye1", "", "", ""),
    ("correlation", "one", "h:b", "h:c", "one one.relu"),
    ("wait", "__mye2", "", "", ""),
    ("correlation", "two", "h:c h:b", "h:d", "two add.relu add"),
    ("runtime_fusion", "__myl_FcAdd", "h:d", "h:head.out", "head"),
)

# One scale a channel: convolutions write floats, and what follows runs in generated kernels that name them too.
PER_CHANNEL: tuple[Kernel, ...] = (
    ("kgen", "__myl_CastMulMinMaxRounCastConc", "f:image", "q:a", "image.cast image.cast.out/Q stem image.cast.out/DQ"),
    ("correlation", "stem", "q:a", "f:b", "stem image.cast.out/DQ stem.weight/DQ stem.weight/Q"),
    ("kgen", "__myl_MulCastAddReluMulMinMaxRounCast", "f:b", "q:c", "stem.relu stem stem.relu.out/Q"),
    ("correlation", "one", "q:c", "f:d", "one stem.relu.out/DQ one.weight/DQ one.weight/Q"),
    ("kgen", "__myl_MulCastAddReluMulMinMaxRounCast", "f:d", "q:e", "one.relu one one.relu.out/Q"),
    ("correlation", "two", "q:e", "f:g", "two one.relu.out/DQ two.weight/DQ two.weight/Q"),
    (
        "kgen", "__myl_CastMulMulCastAddAddReluMulMinMaxRounCast", "f:g q:c", "q:i",
        "stem.relu.out/DQ two add add.relu.out/Q add.relu",
    ),
    ("correlation", "head", "q:i", "f:j", "head add.relu.out/DQ head.weight/DQ head.weight/Q"),
    ("kgen", "__myl_MulCastAdd", "f:j", "h:head.out", "head"),
)  # fmt: skip

# One scale a tensor, and a float skip: all but the requantization runs in the convolutions.
PER_TENSOR: tuple[Kernel, ...] = (
    ("kgen", "__myl_CastMulMinMaxRounCastConc", "f:image", "q:a", "image.cast image.cast.out/Q stem stem.relu"),
    ("correlation", "stem", "q:a", "h:b", "stem image.cast.out/DQ stem.weight/DQ stem.weight/Q stem.relu"),
    ("kgen", "__myl_MulMinMaxRounCast", "h:b", "q:c", "stem.relu.out/Q"),
    ("correlation", "one", "q:c", "h:d", "one stem.relu.out/DQ one.weight/DQ one.relu one.weight/Q"),
    ("kgen", "__myl_MulMinMaxRounCast", "h:d", "q:e", "one.relu.out/Q"),
    ("correlation", "two", "q:e h:b", "h:g", "two one.relu.out/DQ two.weight/DQ two.weight/Q add add.relu"),
    ("kgen", "__myl_MulMinMaxRounCast", "h:g", "q:i", "add.relu.out/Q"),
    ("correlation", "head", "q:i", "h:head.out", "head add.relu.out/DQ head.weight/DQ head.weight/Q"),
)

# The same with pairs on both operands of the sum: the second convolution ends before it.
BOTH: tuple[Kernel, ...] = (
    *PER_TENSOR[:5],
    ("correlation", "two", "q:e", "h:g", "two one.relu.out/DQ two.weight/DQ two.weight/Q"),
    (
        "kgen", "__myl_CastMulMulMinMaxRounCastCastMulAddReluMulMinMaxRounCast", "h:g q:c", "q:i",
        "stem.relu.out/DQ two.out/Q two.out/DQ add add.relu.out/Q add.relu",
    ),
    PER_TENSOR[-1],
)  # fmt: skip

# A pair on the skip alone: the sum is taken in, and the skip is read in floats from a kernel that rounds it.
ON_SKIP: tuple[Kernel, ...] = (
    *PER_TENSOR[:2],
    ("kgen", "__myl_MulMinMaxRounCastCastMul", "h:b", "q:c h:s", "stem.relu.out/Q stem.relu.out/DQ"),
    *PER_TENSOR[3:5],
    ("correlation", "two", "q:e h:s", "h:g", "two one.relu.out/DQ two.weight/DQ two.weight/Q add add.relu"),
    *PER_TENSOR[6:],
)

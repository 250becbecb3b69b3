"""Parameters and multiply-accumulates, counted on the ONNX graph alone: what will run, not what was written.

One multiply-accumulate per weight tap and output element at batch 1, padding taps included; biases, BN, ReLU,
pooling and additions excluded (the convention of torchvision's "GFLOPS" metadata and of He et al. 2016, table 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import onnx
from onnx import TensorProto, helper

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import Cost, LayerCost, ModelSpec

Shape = tuple[int, ...]

# Multiply, but their products are not counted here: such a model's total is a lower bound, and says so.
_UNCOUNTED = frozenset({
    *("Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv"),
    *("QLinearMatMul", "RNN"),
})  # fmt: skip
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
# Operands that are settings rather than parameters: (op, input index).
_SETTINGS = {("Clip", 1), ("Clip", 2), ("Pad", 2), ("Resize", 1), ("Resize", 2)}
_SETTINGS |= {(op, k) for op in ("QuantizeLinear", "DequantizeLinear") for k in (1, 2)}
_BLOCK = re.compile(r"(?P<block>(?P<stage>[A-Za-z_]\w*)\.\d+)\.")


def count(model: onnx.ModelProto, spec: ModelSpec) -> Cost:
    """Costs of every layer at batch 1 and `spec.input_shape`; a Q/DQ graph counts as its original.

    Raises:
        UsageError: the image size is unknown (0 in `spec.input_shape`).
        MalformedInput: the shapes cannot be inferred, for example because the file's image size is another one.
    """
    if 0 in spec.input_shape:
        raise UsageError(f"{spec.name} takes images of any size, and its costs depend on it", fix="Add --img-size")
    shapes, batch_size = _shapes(model, spec)
    producers = {output: node for node in model.graph.node for output in node.output}
    sizes = _parameter_sizes(model.graph)
    layers: list[LayerCost] = []
    unknown: list[str] = []
    for node in model.graph.node:
        counter = _COUNTERS.get(node.op_type)
        if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx", "com.microsoft"):
            unknown.append(node.name or node.op_type)
        if counter is None:
            continue
        if any(name and name not in shapes for name in (*node.input[:2], node.output[0])):
            unknown.append(node.name or node.op_type)
            continue
        owned = (_origin(name, producers) for name in node.input[1:])
        layers.append(
            LayerCost(
                name=node.name or node.output[0],
                op=node.op_type,
                params=sum(sizes.get(name, 0) for name in owned),
                macs=counter(node, shapes) // batch_size,
                output_shape=(1, *shapes[node.output[0]][1:]),
                **place(node.name),
            )
        )
    return Cost(
        model=spec.name,
        params=spec.params,
        params_deployed=sum(sizes.values()),
        input_shape=spec.input_shape,
        layers=tuple(layers),
        unknown=tuple(unknown),
    )


def place(name: str) -> dict[str, str]:
    """Block and stage of a node's name: `layer1.0.conv2` is in block layer1.0 of stage layer1."""
    if match := _BLOCK.match(name):
        return {"block": match["block"], "stage": match["stage"]}
    first, dot, _ = name.partition(".")
    return {"block": first, "stage": first} if dot else {"block": "", "stage": ""}


def _parameter_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of every initialiser that is a parameter: no shapes, bounds, scales or zero points."""
    users: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for k, name in enumerate(node.input):
            users.setdefault(name, set()).add((node.op_type, k))
    sizes = {}
    for tensor in graph.initializer:
        uses = users.get(tensor.name, set()) - _SETTINGS
        if (tensor.data_type in _FLOATS and uses) or ("DequantizeLinear", 0) in uses:
            sizes[tensor.name] = math.prod(tensor.dims)
    return sizes


def _origin(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The initialiser behind Q/DQ pairs and casts."""
    while name in producers and producers[name].op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
        name = producers[name].input[0]
    return name


def _shapes(model: onnx.ModelProto, spec: ModelSpec) -> tuple[dict[str, Shape], int]:
    """Static shapes of all values, and the batch size that they hold: 1 unless the file fixes another.

    Inference runs on a copy without the weights' bytes, which it does not need.
    """
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node)
    held = {t.name for t in model.graph.initializer}
    image = next(v for v in model.graph.input if v.name not in held)
    fixed = [d.dim_value for d in image.type.tensor_type.shape.dim]  # 0 where symbolic
    if len(fixed) == 4 and fixed[1] not in (0, spec.input_shape[0]):
        raise MalformedInput(f"the file takes {fixed[1]} channels, and {spec.name} has {spec.input_shape[0]}")
    batch_size = fixed[0] if fixed and fixed[0] else 1
    elem_type = image.type.tensor_type.elem_type
    graph.input.append(helper.make_tensor_value_info(image.name, elem_type, (batch_size, *spec.input_shape)))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    output = model.graph.output[0]
    graph.output.append(helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, None))
    light = onnx.ModelProto(graph=graph, ir_version=model.ir_version, opset_import=model.opset_import)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as e:
        raise MalformedInput(
            f"the shapes of {spec.name} do not follow from the input {spec.input_shape}: {e}",
            cause="The file was exported for another image size",
            fix="Give the image size it was exported for with --img-size",
        ) from e
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes, batch_size


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Weights are (out, in / groups, kh, kw): each output element takes the taps of one filter."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Weights are (in, out / groups, kh, kw): each input element meets the taps of one filter."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


_COUNTERS: Mapping[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

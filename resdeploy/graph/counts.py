"""Parameters, multiply-accumulates and bytes, counted on the ONNX graph alone: what will run, not what was written.

One multiply-accumulate per weight tap and output element at batch 1, padding taps included; biases, BN, ReLU,
pooling and additions excluded (the convention of torchvision's "GFLOPS" metadata and of He et al. 2015, table 1;
`conventions` has those of other tools).

Bytes are those of a runtime that fuses as well as can be: every convolution, product and pooling is a kernel that
reads its inputs and weights and writes its output; activations, batch norms and additions run inside it, an addition
reading its other operand; a concatenation's inputs are written where it lies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.graph import files, metadata
from resdeploy.graph.canonical import form, names, opset
from resdeploy.graph.index import Index, attribute, copy, image_input, node_name, set_nodes
from resdeploy.records import Cost, LayerCost, ModelSpec

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# What a graph may hold that multiplies nothing under the convention, by what it costs in memory traffic. An operator
# in none of these tables and without a counter is unknown, and is named: the total is then a lower bound, and says so.
_KERNELS = frozenset({
    *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "LpNormalization", "LpPool", "MaxPool"),
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "LogSoftmax", "Softmax", "Hardmax"),
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    *("ArgMax", "ArgMin", "CumSum", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Resize"),
    *("ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Tile", "TopK", "Transpose", "Upsample"),
    *("NhwcMaxPool", "QLinearAveragePool", "QLinearGlobalAveragePool"),
})  # fmt: skip
_PAIRWISE = frozenset({
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod"),
    *("Mul", "Or", "Pow", "Sub", "Sum", "Where", "QLinearAdd", "QLinearMul"),
})  # fmt: skip
_FUSED = frozenset({
    *("Abs", "BatchNormalization", "BiasGelu", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu"),
    *("Erf", "Exp", "FastGelu", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not"),
    *("PRelu", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "QLinearLeakyRelu", "QLinearSigmoid", "QuickGelu"),
    *("Concat", "QLinearConcat", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    *("Constant", "ConstantOfShape", "IsInf", "IsNaN", "NonZero", "Range", "Shape", "Size"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
})  # fmt: skip
# Operators newer than opset 17 that count as one, not as what ONNX defines them by; of the last it infers no shape.
_COUNTED_WHOLE = (_FUSED | _KERNELS) - {"GroupNormalization"}
_OURS = ("", "ai.onnx", "com.microsoft")  # domains whose operators the tables mean
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
# Where an operator keeps its parameters: (weights, bias); everything else it is given is a scale or a zero point.
_QLINEAR = {"QLinearConv": (3, 8), "QLinearMatMul": (3, None), "QGemm": (3, 6), "ConvInteger": (1, None)}
_QLINEAR |= {"MatMulInteger": (1, None)}
# Operands that are settings rather than parameters: (op, input index).
_SETTINGS = {("Clip", 1), ("Clip", 2), ("Pad", 2), ("Resize", 1), ("Resize", 2)}
_SETTINGS |= {(op, k) for op in ("QuantizeLinear", "DequantizeLinear") for k in (1, 2)}
_SETTINGS |= {(op, k) for op, parameters in _QLINEAR.items() for k in range(9) if k not in parameters}
_SETTINGS |= {(op, k) for op in ("QLinearAdd", "QLinearMul") for k in (1, 2, 4, 5, 6, 7)}
_SETTINGS |= {(op, k) for op in ("QLinearGlobalAveragePool", "QLinearAveragePool") for k in (1, 2, 3, 4)}
# Operators of ONNX Runtime's quantized graphs, whose shapes it does not store: like which of ONNX's, of which inputs.
_LIKE = {
    "QLinearAdd": ("Add", slice(0, 4, 3)),
    "QLinearMul": ("Mul", slice(0, 4, 3)),
    "QGemm": ("Gemm", slice(0, 4, 3)),
    "FusedConv": ("Conv", slice(3)),
    "FusedGemm": ("Gemm", slice(3)),
}
# Their pairs of 16 bits, and of opsets before ONNX had per-channel scales.
_LIKE |= {op: (op, slice(None)) for op in ("QuantizeLinear", "DequantizeLinear")}
_LIKE |= {f"QLinear{op}": (op, slice(1)) for op in ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")}
_LIKE |= {"QLinearConcat": ("Concat", slice(2, None, 3))}
_BLOCK = re.compile(r"(?P<block>(?P<stage>[A-Za-z_]\w*)\.\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph as it is counted: functions inlined, shapes that are written as arithmetic computed."""

    model: onnx.ModelProto
    spec: ModelSpec
    index: Index
    shapes: Shapes
    batch_size: int  # that `shapes` hold


def count(model: onnx.ModelProto, spec: ModelSpec) -> Cost:
    """Costs of every layer at batch 1 and `spec.input_shape`; a Q/DQ graph counts as its original.

    Raises:
        UsageError, MalformedInput: as `prepare`.
    """
    return count_prepared(prepare(model, spec))


def prepare(model: onnx.ModelProto, spec: ModelSpec) -> Graph:
    """The graph with all shapes at `spec.input_shape`; `model` is left alone.

    Raises:
        UsageError: the image size is unknown (0 in `spec.input_shape`).
        MalformedInput: the shapes cannot be inferred, for example because the file's image size is another one.
    """
    if 0 in spec.input_shape:
        raise UsageError(f"{spec.name} takes images of any size, and its costs depend on it", fix="Add --img-size")
    model = opset.expand(model, known=_COUNTED_WHOLE)
    index = Index(model)
    shapes, batch_size = _infer_shapes(model, spec)
    if any(_is_known(node) and not _has_shapes(node, shapes) for node in index.nodes):
        # Shapes written as arithmetic, which ONNX's inference does not follow (torch's exporter, unoptimised).
        model = form.fold_constants(model, (batch_size, *spec.input_shape))
        index = Index(model)
        shapes, batch_size = _infer_shapes(model, spec)
    return Graph(model=model, spec=spec, index=index, shapes=shapes, batch_size=batch_size)


def count_prepared(graph: Graph) -> Cost:
    """Costs of every layer of a prepared graph."""
    index, shapes, spec = graph.index, graph.shapes, graph.spec
    sizes = _parameter_sizes(graph.model.graph)
    removed = metadata.read_removed(graph.model)
    counted = dict.fromkeys(sizes, False)
    layers: list[LayerCost] = []
    unknown: list[str] = []
    for node in index.nodes:
        if index.constants.issuperset(node.output):
            continue  # a constant, however it is written
        if not (_is_known(node) and _has_shapes(node, shapes)):
            unknown.append(f"{node_name(node)} ({node.op_type})")
        elif node.op_type not in _QUANTIZING:
            layers.append(_layer(node, index, shapes, graph.batch_size, sizes, counted, removed or metadata.Removed()))
    return Cost(
        model=spec.name,
        params=spec.params,
        params_deployed=sum(sizes.values()),
        input_shape=spec.input_shape,
        layers=tuple(layers),
        unknown=tuple(unknown),
        norms_known=removed is not None or not metadata.may_hide_norms(index),
    )


def _is_known(node: onnx.NodeProto) -> bool:
    """Whether the operator is one of the tables above."""
    tables = (COUNTERS, _KERNELS, _PAIRWISE, _FUSED)
    return node.domain in _OURS and any(node.op_type in table for table in tables)


def _has_shapes(node: onnx.NodeProto, shapes: Shapes) -> bool:
    """Whether all shapes that its count needs are known."""
    if node.op_type in _FUSED:
        return True
    weights = _QLINEAR.get(node.op_type, (1, None))[0]
    needed = [node.input[0], node.input[weights]] if node.op_type in COUNTERS else []
    return all(name in shapes for name in (*needed, node.output[0]))


def _layer(
    node: onnx.NodeProto,
    index: Index,
    shapes: Shapes,
    batch_size: int,
    sizes: Mapping[str, int],
    counted: dict[str, bool],
    removed: metadata.Removed,
) -> LayerCost:
    name = node_name(node)
    output = shapes.get(node.output[0], (0,))
    owned = [tensor for i in node.input if (tensor := _origin(i, index)) in sizes and not counted[tensor]]
    counted.update(dict.fromkeys(owned, True))  # a weight that two nodes share is counted where it is read first
    vectors = [sizes[t] for t in owned if len(shapes.get(t, ())) <= 1]
    normed = name in removed.norms
    inputs = sum(math.prod(shapes.get(i, (0,))) for i in index.operands(node)) // batch_size
    outputs = math.prod(output) // batch_size
    return LayerCost(
        name=name,
        op=node.op_type,
        params=sum(sizes[t] for t in owned),
        biases=sum(vectors),
        macs=COUNTERS[node.op_type](node, shapes) // batch_size if node.op_type in COUNTERS else 0,
        output_shape=(-(-output[0] // batch_size), *output[1:]) if output else (1,),
        output_elements=outputs,
        input_elements=inputs,
        moved_elements=_moved_elements(node, inputs, outputs),
        own_bias=bool(vectors) and node.op_type in COUNTERS and (not normed or name in removed.biased),
        folded_norm=normed,
        dropped_pool=name in removed.pools,
        **place(name),
    )


def _moved_elements(node: onnx.NodeProto, inputs: int, outputs: int) -> int:
    if node.op_type in COUNTERS or node.op_type in _KERNELS:
        return inputs + outputs
    # One operand is what the kernel before has just computed.
    return max(0, inputs - outputs) if node.op_type in _PAIRWISE else 0


def place(name: str) -> dict[str, str]:
    """Block and stage of a node's name: `layer1.0.conv2` is in block layer1.0 of stage layer1."""
    name = names.module_path(name) if name.startswith("/") else name
    if match := _BLOCK.match(name + "."):
        return {"block": match["block"], "stage": match["stage"]}
    first, dot, _ = name.partition(".")
    return {"block": first, "stage": first} if dot else {"block": "", "stage": ""}


def _parameter_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Elements of every constant that is a parameter: no shapes, bounds, scales or zero points."""
    users: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for k, name in enumerate(node.input):
            users.setdefault(name, set()).add((node.op_type, k))
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            stored.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    sizes = {}
    for name, tensor in stored.items():
        uses = users.get(name, set()) - _SETTINGS if tensor.dims else set()  # a scalar is a setting too
        quantized = any((op, k) in uses for op, parameters in _QLINEAR.items() for k in parameters)
        if (tensor.data_type in _FLOATS and uses) or ("DequantizeLinear", 0) in uses or quantized:
            sizes[name] = math.prod(tensor.dims)
    return sizes


def _origin(name: str, index: Index) -> str:
    """The constant behind Q/DQ pairs and casts, and behind the transposition that exporters put before a product."""
    while (node := index.maker(name)) is not None and name in index.constants and node.input:
        if node.op_type not in _QUANTIZING | {"Transpose", "Identity", "Reshape"}:
            break
        name = node.input[0]
    return name


def _infer_shapes(model: onnx.ModelProto, spec: ModelSpec) -> tuple[dict[str, Shape], int]:
    """Static shapes of all values, and the batch size that they hold: 1 unless the file fixes another.

    Inference runs on a copy without the weights' bytes, which it does not need. What operators of other domains give
    it cannot know; the file's own shapes are taken there, if they are for images of the spec's size.

    Raises:
        MalformedInput: the shapes do not follow from the spec's input.
    """
    image = image_input(model.graph)
    fixed = [d.dim_value for d in image.type.tensor_type.shape.dim]  # 0 where symbolic
    if len(fixed) == 4 and fixed[1] not in (0, spec.input_shape[0]):
        raise MalformedInput(
            f"the file takes {fixed[1]} channels, and {spec.name} has {spec.input_shape[0]}",
            cause="The file and the description of its model are not of the same network",
            fix="Export it again: resdeploy export MODEL -o F.onnx",
        )
    batch_size = fixed[0] if fixed and fixed[0] else 1
    sizes = (batch_size, *spec.input_shape)
    light = files.weightless(model)
    graph = light.graph
    del graph.value_info[:], graph.output[:]
    set_nodes(graph, (_standard(node) for node in model.graph.node))
    graph.value_info.extend(_foreign_shapes(model, image, sizes))
    graph.output.append(onnx.ValueInfoProto(name=model.graph.output[0].name))
    image_of_copy = next(v for v in graph.input if v.name == image.name)
    image_of_copy.CopyFrom(helper.make_tensor_value_info(image.name, image.type.tensor_type.elem_type, sizes))
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


def _standard(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node of ONNX's own whose output has the same shape, where `_LIKE` has one; else the node."""
    if node.domain != "com.microsoft" or node.op_type not in _LIKE:
        return node
    if attribute(node, "channels_last", 0):
        return node
    op, inputs = _LIKE[node.op_type]
    return onnx.NodeProto(op_type=op, input=node.input[inputs], output=node.output, attribute=node.attribute)


def _foreign_shapes(model: onnx.ModelProto, image: onnx.ValueInfoProto, sizes: Shape) -> list[onnx.ValueInfoProto]:
    """The file's shapes of what operators of other domains give, its symbols replaced by the input's sizes."""
    dims = image.type.tensor_type.shape.dim
    if any(d.dim_value not in (0, size) for d, size in zip(dims, sizes, strict=False)):
        return []
    named = {d.dim_param: size for d, size in zip(dims, sizes, strict=False) if d.dim_param}
    foreign = {name for node in model.graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    values = [copy(v) for v in model.graph.value_info if v.name in foreign]
    for dim in (d for value in values for d in value.type.tensor_type.shape.dim if d.dim_param in named):
        dim.dim_value = named[dim.dim_param]
    return values


def _conv(node: onnx.NodeProto, shapes: Shapes, weights: int = 1) -> int:
    """Weights are (out, in / groups, kh, kw): each output element takes the taps of one filter."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weights]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Weights are (in, out / groups, kh, kw): each input element meets the taps of one filter."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = bool(attribute(node, "transA", 0))
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


COUNTERS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QGemm": _gemm,
    "QLinearConv": lambda node, shapes: _conv(node, shapes, weights=3),
    "QLinearMatMul": _matmul,
}

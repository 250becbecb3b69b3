"""Constant folding and batch-norm folding on an onnx-ir graph, in place.

Folding is our own since the exporters' is either absent or done in float32: here batch norms are folded in
float64 and rounded once. Values that depend on the batch size alone (`x.view(x.size(0), -1)`) are followed
symbolically, so that no Shape/Gather/Concat arithmetic is left in the file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import MalformedInput

# Marks on nodes, read before the metadata is stripped (`metadata.Removed`).
NORM, BIASED = "resdeploy.norm", "resdeploy.biased"

Dims = tuple[int | str, ...]  # a shape-like vector: known integers, and names of symbolic dimensions
Array = NDArray[np.generic]

# Ops worth evaluating: what exporters write around shapes, pads and zero biases. No op that draws or loops.
_FOLDABLE = frozenset({
    *("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal", "Expand"),
    *("Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range"),
    *("ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose"),
    *("Unsqueeze", "Where"),
})  # fmt: skip
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})
# A 111-byte file can ask Tile for terabytes: results over this are not computed here.
_MAX_FOLDED_ELEMENTS = 1 << 22


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant value, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """A required input.

    Raises:
        MalformedInput: it is not given.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise MalformedInput(
            f"node {node.name!r} ({node.op_type}) lacks its input {index}",
            cause="The exporter left it out, or the file was edited",
            fix="Export the model again: resdeploy export MODEL -o F.onnx",
        )
    return value


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initialiser; `name` is only a hint, the final names are given by `names.py`."""
    unique, n = name, 0
    while unique in graph.initializers:
        n += 1
        unique = f"{name}_{n}"
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.Tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Every use of `old`, as a node's input or the graph's output, becomes one of `new`."""
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new


def fold_constants(graph: ir.Graph, opset: int) -> None:
    """Replaces what is known without running the model; needs inferred shapes."""
    memo: dict[tuple[object, ...], tuple[Array, ...]] = {}
    known: dict[ir.Value, Dims] = {}
    for node in tuple(graph):
        arrays = _evaluate(node, opset, memo)
        if arrays is None:
            dims = _follow(node, known)
            if dims is None:
                continue
            known[node.outputs[0]] = dims
            if any(isinstance(d, str) for d in dims):
                continue
            scalar = node.outputs[0].shape is not None and len(node.outputs[0].shape) == 0
            arrays = (np.array(dims[0] if scalar else dims, dtype=np.int64),)
        for output, array in zip(node.outputs, arrays, strict=True):
            replace(graph, output, add_constant(graph, str(output.name), array))
        graph.remove(node, safe=True)
    for node in graph:
        if node.op_type == "Reshape" and (dims := known.get(operand(node, 1))) is not None:
            _freeze_reshape(graph, node, dims)


def _evaluate(node: ir.Node, opset: int, memo: dict[tuple[object, ...], tuple[Array, ...]]) -> tuple[Array, ...] | None:
    """The node's results where they are constant."""
    if node.domain:
        return None
    if node.op_type == "Constant":
        return (_constant_node(node),)
    inputs = [constant(v) for v in node.inputs]
    if node.op_type == "CastLike" and inputs[0] is not None and (dtype := operand(node, 1).dtype) is not None:
        return (inputs[0].astype(dtype.numpy()),)
    if node.op_type not in _FOLDABLE or not inputs:
        return None
    if any(a is None and v is not None for a, v in zip(inputs, node.inputs, strict=True)):
        return None
    if node.op_type in _GROWING and _elements_after(node, inputs) > _MAX_FOLDED_ELEMENTS:
        return None
    key = (
        node.op_type,
        tuple(sorted(str(a) for a in node.attributes.values())),
        tuple(None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in inputs if a is None or a.size < 1024),
        tuple(id(v) for v, a in zip(node.inputs, inputs, strict=True) if a is not None and a.size >= 1024),
    )
    if key not in memo:
        memo[key] = _run(node, opset, inputs)
    return memo[key]


def _constant_node(node: ir.Node) -> Array:
    (attribute,) = node.attributes.values()
    if attribute.name == "value":
        return attribute.as_tensor().numpy()
    dtype = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return np.array(attribute.value, dtype=dtype[attribute.name])


def _elements_after(node: ir.Node, inputs: list[Array | None]) -> float:
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    assert first is not None
    if node.op_type == "ConstantOfShape":
        return float(np.prod(first.astype(np.float64)))
    if node.op_type == "Range":
        start, limit, delta = (float(np.asarray(a).astype(np.float64)) for a in inputs if a is not None)
        return abs((limit - start) / delta) if delta else np.inf
    assert second is not None
    return first.size * float(np.prod(np.maximum(second.astype(np.float64), 1)))


def _run(node: ir.Node, opset: int, inputs: list[Array | None]) -> tuple[Array, ...]:
    """The node alone, through ONNX's reference implementation."""
    values = [None if v is None else ir.Value(name=f"i{k}", type=v.type) for k, v in enumerate(node.inputs)]
    alone = ir.Node("", node.op_type, values, node.attributes.values(), num_outputs=len(node.outputs))
    for k, output in enumerate(alone.outputs):
        output.name = f"o{k}"
    graph = ir.Graph([v for v in values if v is not None], alone.outputs, nodes=[alone], opset_imports={"": opset})
    for value in (*graph.inputs, *graph.outputs):
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=8))
    feeds = {f"i{k}": a for k, a in enumerate(inputs) if a is not None}
    return tuple(np.asarray(a) for a in ReferenceEvaluator(proto).run(None, feeds))


def _follow(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    """What a node does to a shape-like vector: the ops that exporters write between a Shape and a Reshape."""
    if node.domain or node.op_type not in _FOLLOWED:
        return None
    return _FOLLOWED[node.op_type](node, known)


def _dims_of(value: ir.Value | None, known: dict[ir.Value, Dims]) -> Dims | None:
    if value in known:
        return known[value]
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 16:
        return None
    return tuple(int(d) for d in np.atleast_1d(array))


def _shape(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    shape = operand(node).shape
    if shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in shape]
    named = tuple(d for d in dims if d is not None)
    if len(named) < len(dims):
        return None
    return named[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]


def _gather(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    dims, indices = _dims_of(node.inputs[0], known), constant(node.inputs[1])
    if dims is None or indices is None or indices.ndim > 1:
        return None
    return tuple(dims[int(i)] for i in np.atleast_1d(indices))


def _slice(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    dims, arrays = _dims_of(node.inputs[0], known), [constant(v) for v in node.inputs[1:]]
    if dims is None or any(a is None or a.size != 1 for a in arrays):
        return None
    numbers = [int(np.ravel(a)[0]) for a in arrays if a is not None]
    step = numbers[3] if len(numbers) > 3 else 1
    return dims[numbers[0] : numbers[1] : step]


def _concat(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    parts = [_dims_of(v, known) for v in node.inputs]
    if any(p is None for p in parts):
        return None
    return tuple(d for p in parts if p is not None for d in p)


def _same(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    shape = node.outputs[0].shape
    if node.op_type == "Cast" and node.attributes["to"].as_int() not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return _dims_of(node.inputs[0], known) if shape is None or len(shape) <= 1 else None


_FOLLOWED: dict[str, Callable[[ir.Node, dict[ir.Value, Dims]], Dims | None]] = {
    "Shape": _shape,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"), _same),
}


def _freeze_reshape(graph: ir.Graph, node: ir.Node, dims: Dims) -> None:
    """A Reshape that only keeps its input's first dimension gets the constant shape (0, ...)."""
    shape = operand(node).shape
    if shape is None or not dims or isinstance(shape[0], int) or dims[0] != shape[0].value:
        return
    if any(isinstance(d, str) or d == 0 for d in dims[1:]):
        return
    node.replace_input_with(1, add_constant(graph, "shape", np.array((0, *dims[1:]), dtype=np.int64)))
    node.attributes.pop("allowzero", None)


def fold_batch_norms(graph: ir.Graph) -> None:
    """Folds every batch norm that directly follows a convolution into its weights (He et al. 2016, section 3.4).

    With s = gamma / sqrt(variance + epsilon): W' = W s per output channel, b' = (b - mean) s + beta, in float64
    and rounded once to the weights' type. A batch norm after anything else, or after a convolution whose
    output is used elsewhere, stays.
    """
    for norm in tuple(graph):
        if norm.domain or norm.op_type != "BatchNormalization":
            continue
        conv = operand(norm).producer()
        parameters = [constant(v) for v in norm.inputs[1:5]]
        training = norm.attributes.get_int("training_mode", 0)
        if conv is None or conv.domain or conv.op_type != "Conv" or training or any(p is None for p in parameters):
            continue
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.float64(0)
        weight = constant(conv.inputs[1])
        if weight is None or bias is None or len(conv.outputs[0].uses()) != 1 or conv.outputs[0].is_graph_output():
            continue
        gamma, beta, mean, variance = (np.asarray(p, dtype=np.float64) for p in parameters)
        epsilon = norm.attributes.get_float("epsilon", 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        folded_weight = weight.astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1))
        folded_bias = (np.asarray(bias, dtype=np.float64) - mean) * scale + beta
        name = str(operand(conv, 1).name)
        inputs = (
            conv.inputs[0],
            add_constant(graph, name, folded_weight.astype(weight.dtype)),
            add_constant(graph, f"{name}_bias", folded_bias.astype(weight.dtype)),
        )
        conv.metadata_props[NORM] = ""
        if len(conv.inputs) > 2 and conv.inputs[2] is not None:
            conv.metadata_props[BIASED] = ""
        new_node(graph, conv, "Conv", inputs, norm.outputs[0], attributes=tuple(conv.attributes.values()))
        graph.remove(norm, safe=True)
        graph.remove(conv, safe=True)


def new_node(
    graph: ir.Graph,
    origin: ir.Node,
    op_type: str,
    inputs: tuple[ir.Value | None, ...],
    replaces: ir.Value,
    *,
    attributes: tuple[ir.Attr, ...] = (),
) -> ir.Value:
    """Puts a node before `origin`, with its name and scope, whose output takes over every use of `replaces`."""
    node = ir.Node("", op_type, inputs, attributes, name=origin.name, metadata_props=dict(origin.metadata_props))
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{replaces.name}_", replaces.shape, replaces.type
    graph.insert_before(origin, node)
    replace(graph, replaces, output)
    return output

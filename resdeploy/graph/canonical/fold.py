"""Constant folding on an onnx-ir graph, in place, and the few edits that every pass here is made of.

Values that depend on the batch size alone (`x.view(x.size(0), -1)`) are followed symbolically, so that no
Shape/Gather/Concat arithmetic is left in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import MalformedInput
from resdeploy.graph.canonical import blanks

Dims = tuple[int | str, ...]  # a shape-like vector: known integers, and names of symbolic dimensions
Array = NDArray[np.generic]

# Operators whose result is not decided by their inputs, and those that say which weights are integers.
_KEPT = frozenset({
    *("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"),
    *("DequantizeLinear", "QuantizeLinear"),
})  # fmt: skip
# Operators whose result's size follows from values alone: at most so many times their first input's (8 axes).
_AT_MOST = {"Compress": 1, "NonZero": 8, "Unique": 1}
# Operators that ONNX's reference computes element by element, in Python.
_SLOW = frozenset({
    *("AffineGrid", "AveragePool", "Col2Im", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GRU", "GatherND"),
    *("GridSample", "LRN", "LSTM", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "NonMaxSuppression", "QLinearConv"),
    *("RNN", "Resize", "RoiAlign", "STFT", "ScatterElements", "ScatterND", "TfIdfVectorizer", "TopK", "Upsample"),
})  # fmt: skip
# A 111-byte file can ask Tile for terabytes, or a product for hours: what is larger is left to the runtime.
_MAX_FOLDED_ELEMENTS, _MAX_SLOW_ELEMENTS = 1 << 22, 1 << 14
_MAX_TIMES_LARGEST = 2  # what is computed of larger weights is about as large as they are
_MAX_PRODUCTS = 1 << 32
_MOST_IN_SHAPES = 64  # elements of a constant that may be a shape, and so decide one


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
        const_value=blanks.tensor(array, unique),
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


def only_use(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value; None where several do or it is the graph's output."""
    users = {user for user, _ in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def only_maker(value: ir.Value) -> ir.Node | None:
    """The node that makes a value which one node alone reads; None otherwise."""
    return value.producer() if only_use(value) is not None else None


def fold_constants(graph: ir.Graph, opset: int) -> bool:
    """Replaces what is known without running the model; needs inferred shapes.

    Returns:
        Whether more of them may follow now: integers were computed, of which shapes are made.
    """
    new = False
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
        for output, array in zip(node.outputs, _as_declared(node, arrays), strict=True):
            replace(graph, output, add_constant(graph, str(output.name), array))
            new |= array.dtype.kind in "iu" and node.op_type != "Constant"
        graph.remove(node, safe=True)
    for node in graph:
        if node.op_type == "Reshape" and (dims := known.get(operand(node, 1))) is not None:
            _freeze_reshape(graph, node, dims)
    return new


def _as_declared(node: ir.Node, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Results in the types that the graph has for them: numpy widens some."""
    types = [None if output.dtype is None else output.dtype.numpy() for output in node.outputs]
    return tuple(a if t is None else a.astype(t, copy=False) for a, t in zip(arrays, types, strict=True))


def _evaluate(node: ir.Node, opset: int, memo: dict[tuple[object, ...], tuple[Array, ...]]) -> tuple[Array, ...] | None:
    """The node's results where they are constant, of whatever operator, and not too large."""
    if node.domain:
        return None
    if node.op_type == "Constant":
        return (_constant_node(node),)
    inputs = [constant(v) for v in node.inputs]
    if node.op_type == "CastLike" and inputs[0] is not None and (dtype := operand(node, 1).dtype) is not None:
        return (inputs[0].astype(dtype.numpy()),)
    if node.op_type in _KEPT or not inputs:
        return None
    if any(a is None and v is not None for a, v in zip(inputs, node.inputs, strict=True)):
        return None
    key = (
        node.op_type,
        tuple(sorted(str(a) for a in node.attributes.values())),
        tuple(None if a is None else (a.dtype.str, a.shape, a.tobytes()) for a in inputs if a is None or a.size < 1024),
        tuple(id(v) for v, a in zip(node.inputs, inputs, strict=True) if a is not None and a.size >= 1024),
    )
    if key not in memo:
        results = _run(node, opset, inputs)
        if results is None:
            return None
        memo[key] = results
    return memo[key]


def _constant_node(node: ir.Node) -> Array:
    (attribute,) = node.attributes.values()
    if attribute.name == "value":
        return attribute.as_tensor().numpy()
    dtype = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return np.array(attribute.value, dtype=dtype[attribute.name])


def _run(node: ir.Node, opset: int, inputs: list[Array | None]) -> tuple[Array, ...] | None:
    """The node alone, through ONNX's reference implementation; None where that is too much, or lacks the operator."""
    values = [None if v is None else ir.Value(name=f"i{k}", type=v.type) for k, v in enumerate(node.inputs)]
    alone = ir.Node("", node.op_type, values, node.attributes.values(), num_outputs=len(node.outputs))
    for k, output in enumerate(alone.outputs):
        output.name = f"o{k}"
    graph = ir.Graph([v for v in values if v is not None], alone.outputs, nodes=[alone], opset_imports={"": opset})
    for value in graph.inputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    feeds = {f"i{k}": a for k, a in enumerate(inputs) if a is not None}
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=8))
    if not _is_bounded(node, proto, feeds):
        return None
    try:
        results = ReferenceEvaluator(proto).run(None, feeds)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the runtime that will have the file may know more
    arrays = tuple(np.asanyarray(a) for a in results)  # blank ones stay so
    return None if any(a.dtype == object for a in arrays) else arrays


def _is_bounded(node: ir.Node, proto: onnx.ModelProto, feeds: dict[str, Array]) -> bool:
    """Whether the results, by the sizes that ONNX's own inference gives for these inputs, are not too large."""
    largest = max((a.size for a in feeds.values()), default=0)
    if node.op_type in _AT_MOST:
        elements: float = _AT_MOST[node.op_type] * largest
    else:
        elements = _elements_inferred(proto, feeds)
    if node.op_type in _SLOW:
        return max(elements, largest) <= _MAX_SLOW_ELEMENTS
    if node.op_type in ("Einsum", "Gemm", "MatMul") and elements * max(feeds["i0"].shape, default=1) > _MAX_PRODUCTS:
        return False
    return elements <= max(_MAX_FOLDED_ELEMENTS, _MAX_TIMES_LARGEST * largest)


def _elements_inferred(proto: onnx.ModelProto, feeds: dict[str, Array]) -> float:
    """How many elements the results have together; infinitely many where that does not follow from the inputs."""
    asked = onnx.ModelProto()
    asked.CopyFrom(proto)
    for value in asked.graph.input:
        array = feeds[value.name]
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, dtype, array.shape))
        if array.size <= _MOST_IN_SHAPES:
            asked.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    for value in asked.graph.output:
        value.ClearField("type")
    try:
        results = onnx.shape_inference.infer_shapes(asked, data_prop=True).graph.output
    except (onnx.shape_inference.InferenceError, ValueError):
        return math.inf
    types = [value.type.tensor_type for value in results if value.name]
    sizes = [[d.dim_value if d.HasField("dim_value") else math.inf for d in t.shape.dim] for t in types]
    return sum(math.prod(dims) for dims in sizes) if all(t.HasField("shape") for t in types) else math.inf


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


def _size(node: ir.Node, known: dict[ir.Value, Dims]) -> Dims | None:
    """How long the vector is: the rank of a tensor of which it is the shape."""
    dims = _dims_of(node.inputs[0], known)
    return None if dims is None else (len(dims),)


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
    "Size": _size,
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


def insert_node(
    graph: ir.Graph,
    origin: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Value,
    *,
    attributes: Sequence[ir.Attr] = (),
) -> ir.Value:
    """Puts a node before `origin`, with its name and scope; returns its output, of the type and shape of `like`."""
    node = ir.Node("", op_type, inputs, attributes, name=origin.name, metadata_props=dict(origin.metadata_props))
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{like.name}_", like.shape, like.type
    graph.insert_before(origin, node)
    return output


def new_node(
    graph: ir.Graph,
    origin: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    replaces: ir.Value,
    *,
    attributes: Sequence[ir.Attr] = (),
) -> ir.Value:
    """`insert_node` whose output takes over every use of `replaces`."""
    output = insert_node(graph, origin, op_type, inputs, replaces, attributes=attributes)
    replace(graph, replaces, output)
    return output

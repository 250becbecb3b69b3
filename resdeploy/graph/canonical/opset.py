"""Bringing a graph to opset 17, the highest that TensorRT 8.6 reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from resdeploy.errors import MalformedInput
from resdeploy.graph import files
from resdeploy.graph.canonical.fold import add_constant, constant, operand
from resdeploy.graph.index import copy, opset_version, set_nodes

OPSET = 17
IR_VERSION = 8  # the format version that came with opset 17

# Attributes newer than opset 17 that mean "as before" at this value (ONNX operator changelog).
_DEFAULTS = {
    "saturate": 1, "num_outputs": None, "dilations": (1, 1), "antialias": 0, "keep_aspect_ratio_policy": "stretch",
    "noop_with_empty_axes": 0, "round_mode": "up", "ceil_mode": 0, "mode": "DCR", "stash_type": 1,
}  # fmt: skip


def expand(model: onnx.ModelProto, *, known: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with functions written out: the file's own, and operators newer than opset 17 that ONNX defines so.

    Their bodies are onnx's own (`OpSchema`), in whatever opset the model has, so that any operator that a later opset
    defines by older ones (Gelu, GroupNormalization, Mish, RMSNormalization, ...) is read without being known here. A
    node's expansion keeps its name. `model` is left alone.

    Args:
        model: of any opset.
        known: operators that stay although opset 17 has none of their name.

    Raises:
        MalformedInput: onnx cannot write out such an operator, since a type that its body depends on is not known.
    """
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    version = opset_version(model, OPSET)
    newer = {n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx") and n.op_type not in known}
    newer = {op for op in newer if version > OPSET and not _exists(op) and _is_function(op, version)}
    if not newer:
        return model
    try:
        written = onnx.inliner.inline_selected_functions(
            _with_types(model, newer), [("", op) for op in sorted(newer)], inline_schema_functions=True
        )
    except Exception as e:  # onnx's C++ raises RuntimeError's own kin
        raise MalformedInput(
            f"{', '.join(sorted(newer))} of opset {version} cannot be written out in older operators: {e}",
            fix="Export the model again with opset 18 or lower",
        ) from e
    result = copy(model)
    set_nodes(result.graph, _named_as_before(model.graph.node, written.graph.node))
    return result


def _with_types(model: onnx.ModelProto, functions: Collection[str]) -> onnx.ModelProto:
    """A copy, large weights left out, that says the type of every tensor, as the bodies of functions need it.

    onnx infers nothing of the outputs of some of them; they have the type of the first input.
    """
    light = files.weightless(model)
    guess = copy(light)
    for node in guess.graph.node:
        if node.op_type in functions and not onnx.defs.get_schema(node.op_type).has_type_and_shape_inference_function:
            same = onnx.NodeProto(op_type="Identity", input=node.input[:1], output=node.output[:1])
            node.CopyFrom(same)
    guess = onnx.shape_inference.infer_shapes(guess, data_prop=True)
    small = (onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in light.graph.initializer)
    del light.graph.value_info[:]
    light.graph.value_info.extend([*guess.graph.value_info, *small])
    return light


def _named_as_before(nodes: Iterable[onnx.NodeProto], written: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, of which some are written out, each of those under the name and in the scope of what it is part of."""
    parts = iter(written)
    for node in nodes:
        outputs = {name for name in node.output if name}
        while outputs:
            part = next(parts)
            outputs -= set(part.output)
            if part.op_type != node.op_type and node.name:
                scope, slash, _ = node.name.rpartition("/")
                part.name = f"{scope}/{part.op_type}" if slash else f"{node.name}.{part.op_type.lower()}"
                del part.metadata_props[:]
                part.metadata_props.extend(node.metadata_props)
            yield part


def upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of an older opset, at 17, through onnx's own converter.

    Raises:
        MalformedInput: the converter refuses it.
    """
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as e:
        raise MalformedInput(
            f"this ONNX file cannot be brought to opset {OPSET}: {e}", fix="Export it again with opset 13 to 18"
        ) from e


def downgrade(graph: ir.Graph) -> None:
    """Rewrites in place what opset 18 and later spell differently; the rest is unchanged by definition.

    Raises:
        MalformedInput: a node has no equal in opset 17.
    """
    opset = graph.opset_imports.get("", OPSET)
    graph.opset_imports[""] = OPSET
    if opset <= OPSET:
        return
    for node in graph:
        if node.domain:
            continue
        if not onnx.defs.has(node.op_type) or not _exists(node.op_type):
            _refuse(node, opset)
        if onnx.defs.get_schema(node.op_type, opset).since_version > OPSET:
            _respell(graph, node, opset)


def spell_attributes(graph: ir.Graph) -> None:
    """Attributes by name, without those that say what holds anyway; windows of convolutions and pools in full."""
    for node in graph:
        if node.domain or not _exists(node.op_type):
            continue
        schema = onnx.defs.get_schema(node.op_type, OPSET)
        said = {
            name: attribute
            for name, attribute in node.attributes.items()
            if not _is_default(attribute, schema.attributes.get(name))
        }
        if node.op_type in ("Conv", "MaxPool", "AveragePool") and "auto_pad" not in said:
            said = _whole_windows(node) | said
        node.attributes.clear()
        node.attributes.update({name: said[name] for name in sorted(said)})


def _is_default(attribute: ir.Attr, formal: onnx.defs.OpSchema.Attribute | None) -> bool:
    if formal is None or formal.default_value.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(ir.serde.deserialize_attribute(formal.default_value).value == attribute.value)


def _whole_windows(node: ir.Node) -> dict[str, ir.Attr]:
    """What ONNX leaves to defaults that depend on the number of axes."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    if node.op_type == "Conv":
        weight = constant(node.inputs[1])
        kernel = kernel if weight is None else weight.shape[2:]
    sizes = {"kernel_shape": kernel, "pads": [0] * 2 * len(kernel), "strides": [1] * len(kernel)}
    if node.op_type != "AveragePool":
        sizes["dilations"] = [1] * len(kernel)
    return {name: ir.AttrInt64s(name, list(numbers)) for name, numbers in sizes.items()} if kernel else {}


def _exists(op_type: str) -> bool:
    try:
        onnx.defs.get_schema(op_type, OPSET)
    except onnx.defs.SchemaError:
        return False
    return True


def _is_function(op_type: str, opset: int) -> bool:
    """Whether ONNX defines the operator by others; some bodies are made for a node's attributes and types."""
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset)  # whose stubs know neither property
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _refuse(node: ir.Node, opset: int) -> None:
    raise MalformedInput(
        f"node {node.name!r} ({node.op_type} of opset {opset}) has no equal in opset {OPSET}",
        cause=f"TensorRT 8.6 and this program's passes read opset {OPSET}",
        fix="Export the model again with opset 18 or lower",
    )


def _respell(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    schema = onnx.defs.get_schema(node.op_type, OPSET)
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
        axes = constant(node.inputs[1])
        if axes is None:
            _refuse(node, opset)
        else:
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes])
            node.resize_inputs(1)
    if node.op_type == "Pad" and len(node.inputs) > 3:
        _pad_all_axes(graph, node, opset)
    if node.op_type == "Split" and len(node.inputs) == 1:
        _split_by_sizes(graph, node, opset)
    for name in tuple(node.attributes):
        if name not in schema.attributes:
            value = node.attributes[name].value
            value = tuple(value) if isinstance(value, (list, tuple)) else value
            if name not in _DEFAULTS or _DEFAULTS[name] not in (None, value):
                _refuse(node, opset)
            node.attributes.pop(name)
    if len(node.inputs) > schema.max_input:
        _refuse(node, opset)


def _pad_all_axes(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    pads, axes, shape = constant(node.inputs[1]), constant(node.inputs[3]), operand(node).shape
    if pads is None or axes is None or shape is None:
        _refuse(node, opset)
        return
    full = np.zeros((2, len(shape)), dtype=np.int64)
    full[:, axes] = pads.reshape(2, -1)
    node.replace_input_with(1, add_constant(graph, "pads", full.ravel()))
    node.resize_inputs(3)


def _split_by_sizes(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    axis = node.attributes.get_int("axis", 0)
    shape, parts = operand(node).shape, len(node.outputs)
    length = None if shape is None else shape[axis]
    if not isinstance(length, int):
        _refuse(node, opset)
        return
    size = -(-length // parts)
    sizes = np.array([*[size] * (parts - 1), length - size * (parts - 1)], dtype=np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, add_constant(graph, "split", sizes))

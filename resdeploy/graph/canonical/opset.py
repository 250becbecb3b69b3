"""Bringing a graph to opset 17, the highest that TensorRT 8.6 reads."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

from resdeploy.errors import MalformedInput
from resdeploy.graph.canonical.fold import add_constant, constant, operand

OPSET = 17
IR_VERSION = 8  # the format version that came with opset 17

# Attributes newer than opset 17 that mean "as before" at this value (ONNX operator changelog).
_DEFAULTS = {
    "saturate": 1, "num_outputs": None, "dilations": (1, 1), "antialias": 0, "keep_aspect_ratio_policy": "stretch",
    "noop_with_empty_axes": 0, "round_mode": "up",
}  # fmt: skip


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

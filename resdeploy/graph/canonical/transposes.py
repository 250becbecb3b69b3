"""What is computed between a Transpose and its inverse is computed in the layout before, and both Transposes go.

Converters from TensorFlow wrap every convolution in a pair of them. A region of the graph between such Transposes is
rewritten as a whole or not at all: where anything in it depends on the layout, all of it stays. Needs inferred shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from resdeploy.graph.canonical.fold import add_constant, constant, operand, replace

_UNARY = frozenset({
    *("Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log"),
    *("Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh"),
})  # fmt: skip
_PAIRWISE = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"})


@dataclass(kw_only=True, eq=False)
class _Region:
    """What is computed in one layout: axis k there is axis `order[k]` of the layout before."""

    order: tuple[int, ...]
    entries: list[ir.Node] = field(default_factory=list)
    inside: list[ir.Node] = field(default_factory=list)
    exits: list[ir.Node] = field(default_factory=list)
    ends: list[ir.Node] = field(default_factory=list)  # readers to which the layout makes no difference

    @property
    def inverse(self) -> tuple[int, ...]:
        return tuple(int(k) for k in np.argsort(self.order))


def cancel(graph: ir.Graph) -> None:
    """Merges Transposes that follow each other, and removes those between which the layout does not matter."""
    for node in tuple(graph):
        if node.graph is None or not _is_transpose(node):
            continue
        before = operand(node).producer()
        if before is not None and _is_transpose(before):
            first, second = _order(before), _order(node)
            node.replace_input_with(0, operand(before))
            node.attributes["perm"] = ir.AttrInt64s("perm", [first[k] for k in second])
        if _order(node) == tuple(range(len(_order(node)))):
            replace(graph, node.outputs[0], operand(node))
            graph.remove(node, safe=True)
    for node in tuple(graph):
        if node.graph is not None and _is_transpose(node) and (region := _region(node)) is not None:
            _rewrite(graph, region)


def _is_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.domain and operand(node).shape is not None


def _order(node: ir.Node) -> tuple[int, ...]:
    rank = len(operand(node).shape or ())
    return tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))


def _region(start: ir.Node) -> _Region | None:
    """The region that begins at a Transpose; None: it has no end in the layout before."""
    region = _Region(order=_order(start), entries=[start])
    pending, seen = [start.outputs[0]], {start.outputs[0]}
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return None
        for reader, _ in value.uses():
            if _is_transpose(reader) and _order(reader) == region.inverse:
                region.exits.append(reader)
            elif _ignores_layout(reader, region.order):
                region.ends.append(reader)
            elif reader not in region.inside:
                more = _take_in(region, reader)
                if more is None:
                    return None
                pending += [v for v in more if v not in seen]
                seen.update(more)
    return region


def _take_in(region: _Region, node: ir.Node) -> list[ir.Value] | None:
    """Takes a node and what it needs into the region; the values that this adds to it, or None where it cannot."""
    added, pending = list[ir.Value](), [node]
    while pending:
        node = pending.pop()
        if node in region.inside or node in region.entries:
            continue
        if _is_transpose(node) and _order(node) == region.order:
            region.entries.append(node)
        elif _can_be_turned(node, len(region.order)):
            region.inside.append(node)
            makers = [v.producer() for v in _computed(node)]
            if any(maker is None for maker in makers):
                return None
            pending += [maker for maker in makers if maker is not None]
        else:
            return None
        added.append(node.outputs[0])
    return added


def _computed(node: ir.Node) -> list[ir.Value]:
    """The operands that are no constants."""
    return [v for v in node.inputs if v is not None and constant(v) is None]


def _can_be_turned(node: ir.Node, rank: int) -> bool:
    """Whether a node computes the same in any order of axes, its constants and attributes turned with them."""
    if node.domain or len(node.outputs) != 1 or any(len(v.shape or ()) != rank for v in _computed(node)):
        return False
    if node.op_type in _UNARY:
        return len(_computed(node)) == 1
    if node.op_type == "Pad":
        return len(_computed(node)) == 1 and len(node.inputs) < 4
    if node.op_type in _PAIRWISE:
        return all((a := constant(v)) is None or a.ndim <= rank for v in node.inputs)
    if node.op_type == "ReduceMean":
        return node.attributes.get_int("keepdims", 1) == 1 and "axes" in node.attributes and len(node.inputs) == 1
    return node.op_type == "Concat" and len(_computed(node)) == len(node.inputs)


def _ignores_layout(node: ir.Node, order: Sequence[int]) -> bool:
    """Whether a node reads the same values in the same order in both layouts, or means that lose the turned axes."""
    shape = operand(node).shape
    if node.domain or shape is None or len(shape) != len(order):
        return False
    if node.op_type == "ReduceMean" and not node.attributes.get_int("keepdims", 1) and len(node.inputs) == 1:
        axes = {a % len(order) for a in node.attributes.get_ints("axes", ())}
        kept = [before for axis, before in enumerate(order) if axis not in axes]
        return bool(axes) and kept == sorted(kept)
    if node.op_type not in ("Flatten", "Reshape") or order[0] != 0 or len(node.outputs[0].shape or ()) != 2:
        return False
    lengthy = [before for axis, before in enumerate(order) if shape[axis] != 1]
    return lengthy == sorted(lengthy) and 0 in lengthy


def _rewrite(graph: ir.Graph, region: _Region) -> None:
    for node in region.inside:
        _turn(graph, node, region)
    for node in region.ends:
        _turn_axes(node, region.order)
    for transpose in (*region.entries, *region.exits):
        replace(graph, transpose.outputs[0], operand(transpose))
    graph.remove([*region.entries, *region.exits], safe=True)


def _turn(graph: ir.Graph, node: ir.Node, region: _Region) -> None:
    """The node in the layout before."""
    rank, inverse = len(region.order), region.inverse
    if node.op_type == "Pad":
        amounts = constant(node.inputs[1])
        assert amounts is not None
        turned = amounts.reshape(2, rank)[:, inverse].ravel()
        node.replace_input_with(1, add_constant(graph, str(operand(node, 1).name), turned))
    elif node.op_type in _PAIRWISE:
        for k, value in enumerate(node.inputs):
            if value is not None and (array := constant(value)) is not None and array.size > 1:
                whole = array.reshape(*[1] * (rank - array.ndim), *array.shape).transpose(inverse)
                node.replace_input_with(k, add_constant(graph, str(value.name), np.ascontiguousarray(whole)))
    _turn_axes(node, region.order)
    output = node.outputs[0]
    if output.shape is not None and len(output.shape) == rank:
        output.shape = ir.Shape([output.shape[k] for k in inverse])


def _turn_axes(node: ir.Node, order: Sequence[int]) -> None:
    """The axes that attributes name."""
    if node.op_type == "Concat":
        node.attributes["axis"] = ir.AttrInt64("axis", order[node.attributes["axis"].as_int()])
    if node.op_type == "ReduceMean":
        axes = node.attributes["axes"].as_ints()
        node.attributes["axes"] = ir.AttrInt64s("axes", sorted(order[a] for a in axes))

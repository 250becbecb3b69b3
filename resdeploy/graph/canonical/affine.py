"""What multiplies or shifts each channel behind a convolution, a product or a batch norm becomes its weights and bias.

Exporters write one layer in many ways: Caffe a Scale (Mul, Add) behind its batch norm, TensorFlow a batch norm as Mul
and Add or Sub, Paddle and CNTK a bias as an Add of (C, 1, 1) or (1, C). All of them are y * s + t with a number per
channel, and so is a batch norm in inference (He et al. 2016, section 3.4): s = gamma / sqrt(variance + epsilon),
t = beta - mean s. A whole chain of them is followed in float64 and rounded once to the weights' type:
W' = W s per output channel, b' = b s + t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from resdeploy.graph.canonical import blanks
from resdeploy.graph.canonical.fold import add_constant, constant, new_node, only_use, operand
from resdeploy.graph.canonical.rewrite import POOL

# Marks on nodes, read before the metadata is stripped (`metadata.Removed`).
NORM, BIASED = "resdeploy.norm", "resdeploy.biased"

Vector = NDArray[np.float64]


@dataclass(kw_only=True)
class _Tail:
    """The nodes behind an operator that its weights can take in, and what they come to: y * scale + shift."""

    scale: Vector
    shift: Vector
    nodes: list[ir.Node] = field(default_factory=list)
    normed: bool = False  # one of them is a batch norm
    biased: bool = False  # something was added before it

    def append(self, node: ir.Node, scale: Vector, shift: Vector) -> None:
        if node.op_type == "BatchNormalization":
            self.normed, self.biased = True, self.biased or bool(self.shift.any())
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift
        self.nodes.append(node)


def absorb(graph: ir.Graph) -> None:
    """Folds into a convolution, Gemm or batch norm what multiplies and shifts each channel of its output.

    That must alone read the output: what else reads it wants the values before. Needs ranks, and products in the form
    of `products`.
    """
    for node in tuple(graph):
        if node.graph is None or node.domain or node.op_type not in _FOLDED:
            continue  # taken in by an earlier one, or nothing to fold into
        shape = node.outputs[0].shape
        if shape is not None and len(shape) > 1 and all(constant(v) is not None for v in node.inputs[1:] if v):
            _FOLDED[node.op_type](graph, node)


def _tail(node: ir.Node, channels: int) -> _Tail:
    """What follows `node`, whose output has this many channels along its axis 1."""
    tail = _Tail(scale=np.ones(channels), shift=np.zeros(channels))
    value = node.outputs[0]
    while (reader := only_use(value)) is not None and (step := _step(reader, value, channels)) is not None:
        tail.append(reader, *step)
        value = reader.outputs[0]
    return tail


def _step(node: ir.Node, value: ir.Value, channels: int) -> tuple[Vector, Vector] | None:
    """The factor and the shift of each channel of `value`, where that is all that the node does to it."""
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        return _norm(node) if node.inputs[0] is value else None
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(set(node.inputs)) != 2:
        return None
    first = node.inputs[0] is value
    other = _per_channel(constant(node.inputs[1 if first else 0]), value, channels)
    if other is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return other, zero
    if node.op_type == "Div":
        return (1 / other, zero) if first and other.all() else None
    if node.op_type == "Add":
        return one, other
    return (one, -other) if first else (-one, other)


def _per_channel(array: NDArray[np.generic] | None, value: ir.Value, channels: int) -> Vector | None:
    """A constant as one number per channel, in whatever shape it is broadcast along the channels alone."""
    rank = 0 if value.shape is None else len(value.shape)
    if array is None or array.dtype.kind != "f" or array.ndim > rank or not np.isfinite(array).all():
        return None
    shape = (*[1] * (rank - array.ndim), *array.shape)
    if shape[1] not in (1, channels) or array.size != shape[1]:
        return None
    return np.broadcast_to(array.ravel().astype(np.float64), (channels,))


def _norm(node: ir.Node) -> tuple[Vector, Vector] | None:
    """The factor and the shift of a batch norm in inference, with constant parameters."""
    parameters = [constant(v) for v in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0) or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, dtype=np.float64) for p in parameters)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _fold_weights(graph: ir.Graph, node: ir.Node, axis: int) -> None:
    """Into the weights of a convolution or a product, whose output channels lie along `axis`."""
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    tail = _tail(node, weight.shape[axis])
    if not tail.nodes:
        return
    along = tail.scale.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])
    shifted = (np.zeros(()) if bias is None else bias.astype(np.float64)) * tail.scale + tail.shift
    name = str(operand(node, 1).name)
    inputs = [node.inputs[0], add_constant(graph, name, _times(weight, along))]
    if bias is not None or tail.normed or shifted.any():
        inputs.append(add_constant(graph, f"{name}_bias", shifted.astype(weight.dtype)))
    if tail.normed:
        node.metadata_props[NORM] = ""
    if tail.normed and (bias is not None or tail.biased):
        node.metadata_props[BIASED] = ""
    _put_in_place(graph, node, tail, inputs)


def _times(weight: NDArray[np.generic], along: Vector) -> NDArray[np.generic]:
    return weight if blanks.is_blank(weight) else (weight.astype(np.float64) * along).astype(weight.dtype)


def _fold_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Into gamma and beta of a batch norm that no convolution precedes: Caffe's, in DenseNets."""
    gamma, beta = constant(node.inputs[1]), constant(node.inputs[2])
    if gamma is None or beta is None or _norm(node) is None:
        return
    tail = _tail(node, len(gamma))
    if not tail.nodes:
        return
    shifted = beta.astype(np.float64) * tail.scale + tail.shift
    parameters = (gamma.astype(np.float64) * tail.scale, shifted)
    new = [
        add_constant(graph, str(operand(node, k).name), array.astype(gamma.dtype))
        for k, array in enumerate(parameters, 1)
    ]
    _put_in_place(graph, node, tail, [node.inputs[0], *new, *node.inputs[3:]])


def _put_in_place(graph: ir.Graph, node: ir.Node, tail: _Tail, inputs: list[ir.Value | None]) -> None:
    if any(POOL in folded.metadata_props for folded in tail.nodes):
        node.metadata_props[POOL] = ""
    new_node(graph, node, node.op_type, inputs, tail.nodes[-1].outputs[0], attributes=tuple(node.attributes.values()))
    graph.remove([*reversed(tail.nodes), node], safe=True)


def _fold_transposed(graph: ir.Graph, node: ir.Node) -> None:
    if node.attributes.get_int("group", 1) == 1:  # else the axis holds the channels of one group
        _fold_weights(graph, node, 1)


def _fold_gemm(graph: ir.Graph, node: ir.Node) -> None:
    plain = {"alpha": 1.0, "beta": 1.0}
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if all(node.attributes.get_float(k, v) == v for k, v in plain.items()) and (bias is None or bias.ndim == 1):
        _fold_weights(graph, node, 0 if node.attributes.get_int("transB", 0) else 1)


_FOLDED: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    "Conv": lambda graph, node: _fold_weights(graph, node, 0),
    "ConvTranspose": _fold_transposed,
    "Gemm": _fold_gemm,
    "BatchNormalization": _fold_norm,
}

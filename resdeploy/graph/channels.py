"""Which channels of which tensors may be rescaled together without changing what the network computes.

A ReLU gives `relu(x / d) = relu(x) / d` for any positive `d`, so a convolution may divide an output channel by `d`
where every layer that reads the channel multiplies it back: cross-layer equalization of convolution pairs (Nagel et al.
2019, arXiv:1906.04721, section 4.1). A residual stream is the same thing with several writers and several readers: the
additions tie channel c of all of them together, and one `d` for the tie leaves the function as it was. Here every
channel of every tensor is a node, operators that keep channels apart join nodes, and whatever is not known to
commute with a positive factor pins them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    copy,
    drop_unused,
    input_name,
    insert_nodes,
    node_name,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Positively homogeneous, channel by channel: f(x / d) = f(x) / d for d > 0.
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"})
PINNED = 0  # the tie of channels that must keep their scale


@dataclass(frozen=True, kw_only=True, eq=False)
class Ties:
    """Channels that must share one factor, as numbers from 0 (`PINNED`: the factor stays 1) to `count - 1`."""

    tensors: Mapping[str, NDArray[np.int64]]  # tensor -> (channels,): the tie of each
    count: int


def ties(model: onnx.ModelProto) -> Ties:
    """The ties of a float graph whose tensors have known channel counts (`canonical.form.canonicalise` infers them)."""
    return _Walk(model).result()


class _Walk:
    """Nodes are channels of tensors, joined by union-find with node `PINNED` as the root of all that is pinned."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index = Index(model)
        graph = model.graph
        values = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self.parent = [PINNED]
        self.nodes: dict[str, NDArray[np.int64]] = {}
        for value in graph.input:
            if value.name not in self.index.initializers:
                self._pin(value.name)
        for node in self.index.nodes:
            self._visit(node)
        for output in graph.output:
            self._pin(output.name)

    def result(self) -> Ties:
        roots, number = np.unique([self._root(i) for i in range(len(self.parent))], return_inverse=True)
        return Ties(tensors={name: number[nodes] for name, nodes in self.nodes.items()}, count=len(roots))

    def _root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def _join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self._root(one), self._root(other)))
            self.parent[high] = low  # PINNED is the lowest

    def _fresh(self, count: int) -> NDArray[np.int64]:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _pin(self, tensor: str) -> None:
        """Whatever it is tied to stays as it is."""
        nodes = self.nodes.get(tensor)
        if nodes is None:
            shape = self.shapes.get(tensor, [])
            self.nodes[tensor] = np.full(shape[1] if len(shape) > 1 else 1, PINNED, np.int64)
        else:
            self._join(nodes, np.full(len(nodes), PINNED, np.int64))

    def _visit(self, node: onnx.NodeProto) -> None:
        if all(name in self.index.constants for name in node.output if name):
            return
        channels = self._output_channels(node)
        if channels is None:
            for name in (*self.index.operands(node), *node.output):
                if name:
                    self._pin(name)
        else:
            self.nodes[node.output[0]] = channels

    def _output_channels(self, node: onnx.NodeProto) -> NDArray[np.int64] | None:
        """The channels of a node's output; None where no factor passes through it."""
        operands = self.index.operands(node)
        if any(name not in self.nodes for name in operands) or len([name for name in node.output if name]) != 1:
            return None
        inputs = [self.nodes[name] for name in operands]
        if node.op_type in ("Conv", "Gemm"):
            return self._weighted_channels(node, inputs)
        if node.op_type in HOMOGENEOUS and len(inputs) == 1:
            return inputs[0]
        if node.op_type == "Add" and len(inputs) == 2 and self._alike(operands):
            self._join(*inputs)
            return inputs[0]
        if node.op_type == "Concat" and attribute(node, "axis", 0) == 1 and len(operands) == len(node.input):
            return np.concatenate(inputs)
        if node.op_type == "Flatten" and attribute(node, "axis", 1) == 1:
            shape = self.shapes.get(operands[0], [])
            return np.repeat(inputs[0], int(np.prod(shape[2:]))) if len(shape) > 1 and all(shape[2:]) else None
        if node.op_type == "Slice":
            return inputs[0] if self._keeps_channels(node) else None
        return self._padded_channels(node, inputs[0]) if node.op_type == "Pad" else None

    def _alike(self, operands: list[str]) -> bool:
        """Whether no operand is broadcast along its channels."""
        shapes = [self.shapes.get(name, []) for name in operands]
        return all(len(shape) == len(shapes[0]) > 1 for shape in shapes) and shapes[0][1] == shapes[1][1] > 0

    def _weighted_channels(self, node: onnx.NodeProto, inputs: list[NDArray[np.int64]]) -> NDArray[np.int64] | None:
        """Convolutions and Gemms with constant weights mix the channels they read and write channels of their own."""
        weight = self.index.value(node.input[1])
        if len(inputs) != 1 or weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            return None
        broadcast = bool(bias := input_name(node, 2))
        if broadcast and (stored := self.index.value(bias)) is not None:
            broadcast = list(stored.dims) != [_outputs(node, weight)]
        if broadcast or (node.op_type == "Gemm" and not _is_plain_product(node)):
            return None
        read = weight.dims[1] * attribute(node, "group", 1) if node.op_type == "Conv" else _inputs(node, weight)
        return self._fresh(_outputs(node, weight)) if len(inputs[0]) == read else None

    def _keeps_channels(self, node: onnx.NodeProto) -> bool:
        axes = self.index.value(input_name(node, 3))
        return axes is not None and bool((numpy_helper.to_array(axes) > 1).all())

    def _padded_channels(self, node: onnx.NodeProto, channels: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Zeros keep under any factor."""
        pads, mode = self.index.value(node.input[1]), attribute(node, "mode", b"")
        value = self.index.value(input_name(node, 2))
        filled = input_name(node, 2) and (value is None or numpy_helper.to_array(value).any())
        if pads is None or filled or mode not in (b"", b"constant") or len(node.input) > 3:
            return None
        amounts = numpy_helper.to_array(pads)
        before, after = int(amounts[1]), int(amounts[len(amounts) // 2 + 1])
        if before < 0 or after < 0:
            return None
        return np.concatenate([self._fresh(before), channels, self._fresh(after)])


def _is_plain_product(node: onnx.NodeProto) -> bool:
    """A Gemm that is `x W + b`."""
    factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
    return all(factor == 1.0 for factor in factors) and not attribute(node, "transA", 0)


def _outputs(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    return int(weight.dims[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1])


def _inputs(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    return int(weight.dims[1 if attribute(node, "transB", 0) else 0])


def rescale(model: onnx.ModelProto, tied: Ties, factors: NDArray[np.float64]) -> onnx.ModelProto:
    """A copy of the graph in which channel c of every tensor is divided by the factor of its tie.

    The arithmetic is float64, rounded once. Biases and weights get new names; what they replace is dropped.

    Args:
        model: the graph.
        tied: its ties.
        factors: (ties,), positive; that of `PINNED` is 1.
    """
    result = copy(model)
    index = Index(result)
    for node in result.graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.output[0] not in tied.tensors:
            continue
        stored = index.value(node.input[1])
        if stored is None:
            continue
        read, written = (factors[tied.tensors[name]] for name in (node.input[0], node.output[0]))
        if (read == 1.0).all() and (written == 1.0).all():
            continue
        weight = numpy_helper.to_array(stored).astype(np.float64)
        parts = {f"{node_name(node)}/weight/rescaled": rescale_weight(node, weight, read, written)}
        if input_name(node, 2):
            parts[f"{node_name(node)}/bias/rescaled"] = index.array(node.input[2]) / written
        for i, (name, values) in enumerate(parts.items(), 1):
            node.input[i] = add_constant(result.graph, name, values.astype(np.float32))
    drop_unused(result.graph)
    return result


def scale_before(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float64]], readers: Collection[str]
) -> onnx.ModelProto:
    """A copy of the graph in which some layers read channel c of a tensor times a factor, their weights divided by it.

    Unlike `rescale` this takes an operator, a Mul before these layers; all others read the tensor as it was. The
    factors are rounded to FP16, so that a file in FP16 multiplies by what the weights were divided by.

    Args:
        model: the graph.
        factors: for each tensor (channels,), positive.
        readers: convolutions and Gemms that read them, with weights of their own.
    """
    result = copy(model)
    index = Index(result)
    exact = {tensor: factor.astype(np.float16).astype(np.float64) for tensor, factor in factors.items()}
    after: dict[str, list[onnx.NodeProto]] = {}
    for node in result.graph.node:
        if node_name(node) not in readers or node.input[0] not in exact:
            continue
        tensor, name = node.input[0], f"{node_name(node)}/weight/scaled"
        stored = index.array(node.input[1]).astype(np.float64)
        scaled = rescale_weight(node, stored, 1 / exact[tensor], np.ones(1))
        node.input[:2] = [f"{tensor}/scaled", add_constant(result.graph, name, scaled.astype(np.float32))]
        if tensor not in after:
            shape = (1, -1, *[1] * (stored.ndim - 2))
            factor = add_constant(result.graph, f"{tensor}/factor", exact[tensor].reshape(shape).astype(np.float32))
            after[tensor] = [helper.make_node("Mul", [tensor, factor], [f"{tensor}/scaled"], f"{tensor}/Mul")]
    insert_nodes(result.graph, before={}, after=after)
    drop_unused(result.graph)
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)


def rescale_weight(
    node: onnx.NodeProto, weight: NDArray[np.float64], read: NDArray[np.float64], written: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weight of a convolution or Gemm for inputs divided and outputs to be divided by a factor per channel.

    Args:
        node: the operator.
        weight: as its file has it.
        read: (channels read,).
        written: (channels written,), or (1,) for all alike.
    """
    if node.op_type == "Gemm":
        turned = weight if attribute(node, "transB", 0) else weight.T  # (out, in)
        scaled = turned * read / written[:, None]
        return scaled if attribute(node, "transB", 0) else scaled.T
    groups = attribute(node, "group", 1)
    inside = np.repeat(read.reshape(groups, -1), len(weight) // groups, axis=0)  # (out, in of its group)
    shape = (*inside.shape, *[1] * (weight.ndim - 2))
    return weight * inside.reshape(shape) / written.reshape(-1, *[1] * (weight.ndim - 1))

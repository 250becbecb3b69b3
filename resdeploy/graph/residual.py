"""Residual blocks, found from the graph's structure and never from names.

An Add of two computed tensors is residual where both go back to one tensor through which everything they share
passes: their nearest common dominator, the block's input. Of its two branches the one with more convolutions
(then with more nodes) is the main one: Model Optimizer's rule, "the branch farther from the lowest common ancestor
is the non-residual one" (`graph_utils.build_non_residual_input_map`), counted in convolutions first because the
option-A shortcut of CIFAR networks is slice, slice, pad: as many nodes as convolution, ReLU, convolution.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from resdeploy.graph.index import Index, node_name

SUMS = frozenset({"Add", "Sum"})  # Caffe2 and MXNet write Sum, of two tensors
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# What a shortcut without parameters is made of: it moves values, or adds zeros, and computes nothing.
MOVES = frozenset({"Slice", "Pad", "Concat", "Identity", "MaxPool", "Transpose", "Reshape"})
ACTIVATIONS = frozenset({"Relu", "Clip"})

Shortcut = Literal["identity", "projection", "padding", "other"]


@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """One residual addition. Nodes are given by `node_name`, tensors by their names in the graph."""

    add: str
    relu: str | None  # the activation that alone reads the sum
    source: str  # tensor from which both branches start
    main: str  # the Add's operand at the end of the main branch
    skip: str  # the Add's other operand
    output: str  # tensor after the activation, or the sum where there is none
    last_conv: str | None  # None: the main branch does not end in a convolution
    convs: tuple[str, ...]  # convolutions of the main branch only, in order of execution
    shortcut: Shortcut  # padding: option A of the CIFAR networks (slice and pad), no parameters
    projection: str | None  # the convolution that makes `skip`, with shortcut "projection"


def find_blocks(model: onnx.ModelProto) -> tuple[ResidualBlock, ...]:
    """The residual blocks of a graph in order of execution; none in a plain network."""
    index = Index(model)
    blocks = (_block(index, node) for node in index.nodes if node.op_type in SUMS)
    return tuple(block for block in blocks if block is not None)


def _block(index: Index, add: onnx.NodeProto) -> ResidualBlock | None:
    operands = index.operands(add)
    if len(operands) != 2 or operands[0] == operands[1]:
        return None
    source, branches = _branches(index, operands)
    if source is None:
        return None
    shared = branches[0] & branches[1]
    own = [sorted(branch - shared) for branch in branches]
    sizes = [(sum(index.nodes[i].op_type in CONVOLUTIONS for i in branch), len(branch)) for branch in own]
    # Equal branches: either could be called the skip; take as main the one that ends in a convolution.
    main = 0 if sizes[0] > sizes[1] or (sizes[0] == sizes[1] and _ends_in_conv(index, operands[0])) else 1
    convs = [node_name(index.nodes[i]) for i in own[main] if index.nodes[i].op_type in CONVOLUTIONS]
    if not convs:
        return None
    shortcut = _shortcut(index, operands[1 - main], own[1 - main], source)
    relu = index.only_reader(add.output[0])
    if relu is not None and relu.op_type not in ACTIVATIONS:
        relu = None
    projection = index.maker(operands[1 - main]) if shortcut == "projection" else None
    last = index.maker(operands[main])
    return ResidualBlock(
        add=node_name(add),
        relu=None if relu is None else node_name(relu),
        source=source,
        main=operands[main],
        skip=operands[1 - main],
        output=add.output[0] if relu is None else relu.output[0],
        last_conv=node_name(last) if last is not None and last.op_type in CONVOLUTIONS else None,
        convs=tuple(convs),
        shortcut=shortcut,
        projection=None if projection is None else node_name(projection),
    )


def _branches(index: Index, operands: Sequence[str]) -> tuple[str | None, tuple[set[int], set[int]]]:
    """The nearest tensor through which all that both operands share passes, and the nodes from it to each.

    Walks back from both operands, always from the latest node, so that the walk ends at the block's own
    input: deep networks cost no more than their blocks. A source of None: the operands share nothing.
    """
    reached: dict[str, int] = defaultdict(int)  # bit 0: the first operand depends on it, bit 1: the second
    nodes: tuple[set[int], set[int]] = (set(), set())
    queue: list[tuple[int, str]] = []

    def visit(tensor: str, bits: int) -> None:
        if tensor not in reached:
            heapq.heappush(queue, (-index.producer.get(tensor, -1), tensor))
        reached[tensor] |= bits

    visit(operands[0], 1)
    visit(operands[1], 2)
    while queue:
        position, tensor = heapq.heappop(queue)
        bits = reached[tensor]
        if not queue and bits == 3:
            return tensor, nodes
        if tensor not in index.producer:  # an input of the graph, with other tensors still to be explained
            return None, nodes
        for bit in (0, 1):
            if bits >> bit & 1:
                nodes[bit].add(-position)
        for name in index.operands(index.nodes[-position]):
            visit(name, bits)
    return None, nodes


def _ends_in_conv(index: Index, tensor: str) -> bool:
    node = index.maker(tensor)
    return node is not None and node.op_type in CONVOLUTIONS


def _shortcut(index: Index, skip: str, branch: Sequence[int], source: str) -> Shortcut:
    if skip == source:
        return "identity"
    if _ends_in_conv(index, skip):
        return "projection"
    return "padding" if all(index.nodes[i].op_type in MOVES for i in branch) else "other"

"""Removing residual branches from a graph: what stays of a block is its shortcut.

`relu(main + skip)` becomes `relu(skip)`, and where the skip is the block's own input and that is a ReLU's output, the
block is gone altogether: the same function as with the last batch normalisation of the branch set to zero, exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from resdeploy.errors import UsageError
from resdeploy.graph.counts import place
from resdeploy.graph.index import Index, copy, node_name, prune
from resdeploy.graph.residual import MOVES, ResidualBlock, find_blocks

# Zero and above stay so through what only moves values or adds zeros.
_NON_NEGATIVE = MOVES - {"Concat"}


def named_blocks(model: onnx.ModelProto) -> Mapping[str, ResidualBlock]:
    """The residual blocks in order of execution, by the module's name (`layer1.0`), else by the addition's."""
    return {place(block.convs[0])["block"] or block.add: block for block in find_blocks(model)}


def removable_blocks(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the blocks with an identity shortcut, which can be removed and leave nothing behind."""
    return tuple(name for name, block in named_blocks(model).items() if block.shortcut == "identity")


def remove(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of the graph without the residual branches of these blocks.

    Raises:
        UsageError: no block has such a name.
    """
    blocks = named_blocks(model)
    if unknown := set(names) - blocks.keys():
        raise UsageError(
            f"no residual block is called {', '.join(sorted(unknown))}", fix=f"There are {', '.join(blocks) or 'none'}"
        )
    index = Index(model)
    becomes: dict[str, str] = {}
    for name in names:
        block = blocks[name]
        last = block.output if block.relu is None or _not_negative(index, block.skip) else _sum(index, block)
        becomes[last] = block.skip
    result = copy(model)
    for node in result.graph.node:
        node.input[:] = [_end(tensor, becomes) for tensor in node.input]
    prune(result.graph)
    return result


def _sum(index: Index, block: ResidualBlock) -> str:
    return next(str(node.output[0]) for node in index.nodes if node_name(node) == block.add)


def _not_negative(index: Index, tensor: str) -> bool:
    node = index.maker(tensor)
    while node is not None and node.op_type in _NON_NEGATIVE:
        node = index.maker(node.input[0])
    return node is not None and node.op_type == "Relu"


def _end(tensor: str, becomes: Mapping[str, str]) -> str:
    """Where a chain of removed blocks ends."""
    while tensor in becomes:
        tensor = becomes[tensor]
    return tensor

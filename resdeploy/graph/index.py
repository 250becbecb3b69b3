"""Who makes and who reads each tensor of a graph, and the few edits that every pass is made of.

All of it works on ONNX's own messages; what works on onnx-ir, whose values know their users, is in `canonical`. A pass
takes a `copy`, changes that in place and gives it back, so that the graph it was given stays as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

Value = TypeVar("Value", int, float, bytes)
Message = TypeVar("Message", onnx.ModelProto, onnx.NodeProto, onnx.ValueInfoProto)


class Index:
    """Who makes and who reads each tensor of a graph whose nodes are in topological order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: Sequence[onnx.NodeProto] = list(graph.node)
        self.initializers: Mapping[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.outputs = frozenset(o.name for o in graph.output)
        for i, node in enumerate(self.nodes):
            for name in node.output:
                self.producer[name] = i
            for name in node.input:
                self.readers[name].append(i)
        # What depends on no input of the graph is constant, however it is written (Constant, Shape arithmetic).
        self.constants = set(self.initializers)
        for node in self.nodes:
            if all(name in self.constants or not name for name in node.input) and not has_subgraph(node):
                self.constants.update(node.output)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes `tensor`; None for inputs and initializers."""
        i = self.producer.get(tensor)
        return None if i is None else self.nodes[i]

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads `tensor`; None where several do or it is an output of the graph."""
        readers = self.readers.get(tensor, [])
        return self.nodes[readers[0]] if len(readers) == 1 and tensor not in self.outputs else None

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that are computed from the graph's inputs."""
        return [name for name in node.input if name and name not in self.constants]

    def value(self, tensor: str) -> onnx.TensorProto | None:
        """The constant behind a name, where it is stored as one (an initializer or a Constant node)."""
        if tensor in self.initializers:
            return self.initializers[tensor]
        node = self.maker(tensor)
        if node is None or node.op_type != "Constant":
            return None
        return next((a.t for a in node.attribute if a.name == "value"), None)

    def type_of_constant(self, tensor: str) -> int:
        """The type (of `TensorProto`) that a constant is read in: of the last cast, else of what is stored."""
        node = self.maker(tensor)
        while node is not None and node.op_type not in ("Constant", "Cast", "DequantizeLinear"):
            tensor = next(iter(node.input), "")
            node = self.maker(tensor)
        if node is not None and node.op_type == "Cast":
            return attribute(node, "to", onnx.TensorProto.UNDEFINED)
        if node is not None and node.op_type == "DequantizeLinear":
            return self.type_of_constant(node.input[1])
        stored = self.value(tensor)
        return onnx.TensorProto.UNDEFINED if stored is None else stored.data_type

    def array(self, tensor: str) -> NDArray[Any]:
        """The numbers behind the name of a constant that is known to be stored."""
        stored = self.value(tensor)
        assert stored is not None, tensor
        return numpy_helper.to_array(stored)


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or node.output[0])


def input_name(node: onnx.NodeProto, k: int) -> str:
    """The tensor that a node reads as its input `k`; "" where that is left out."""
    return str(node.input[k]) if k < len(node.input) else ""


def image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """The first input that is not a weight: files of format version 3 list the weights there too."""
    weights = {tensor.name for tensor in graph.initializer}
    image: onnx.ValueInfoProto = next(value for value in graph.input if value.name not in weights)
    return image


def fixed_batch(model: onnx.ModelProto) -> int:
    """The batch size that a file is fixed to; 0 where it is free."""
    dims = image_input(model.graph).type.tensor_type.shape.dim
    return int(dims[0].dim_value) if dims else 0


def opset_version(model: onnx.ModelProto, default: int) -> int:
    """The version of ONNX's own operators that a model is written in; `default` where it does not say."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default)


def by_name(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Nodes by `node_name`; of several with one name the last."""
    return {node_name(node): node for node in nodes}


def attribute(node: onnx.NodeProto, name: str, default: Value) -> Value:
    """An attribute of a node that is a number or a text (in bytes)."""
    stored = next((a for a in node.attribute if a.name == name), None)
    value: Value = default if stored is None else helper.get_attribute_value(stored)
    return value


def integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute of a node that is a list of integers."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), default)


def has_subgraph(node: onnx.NodeProto) -> bool:
    """Whether a node (If, Loop, Scan) carries a graph of its own, which may read any tensor."""
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def copy(message: Message) -> Message:
    """A copy that shares nothing with the original."""
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def add_constant(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> str:
    """Stores numbers under a name that is free; returns the name."""
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def overwrite(stored: onnx.TensorProto, values: NDArray[Any]) -> None:
    """Other numbers in the place and under the name of those that are stored."""
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))


def drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    """Takes attributes away, so that ONNX's defaults hold."""
    _keep(node.attribute, [a for a in node.attribute if a.name not in names])


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Makes these, new ones or its own, all nodes of the graph, in this order."""
    _keep(graph.node, nodes)


def insert_nodes(
    graph: onnx.GraphProto,
    *,
    before: Mapping[str, Sequence[onnx.NodeProto]],
    after: Mapping[str, Sequence[onnx.NodeProto]],
) -> None:
    """Puts new nodes where they belong in the order of execution.

    Args:
        graph: changed in place.
        before: what precedes a node, by its `node_name`.
        after: what follows the maker of a tensor; all others follow what is after the graph's inputs.
    """
    nodes = [new for value in graph.input for new in after.get(value.name, ())]
    for node in graph.node:
        nodes += before.get(node_name(node), ())
        nodes.append(node)
        nodes += (new for name in node.output for new in after.get(name, ()))
    set_nodes(graph, nodes)


def set_output(graph: onnx.GraphProto, name: str, shape: Sequence[int | str | None] | None) -> None:
    """Makes a tensor of floats the only output; None: of a size, or of a shape, that is not known."""
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes initializers and Constant nodes that nobody reads any more.

    For passes that replace weights: nodes that compute, and recorded shapes, stay as they are (`prune` removes those).
    """
    read = {name for node in graph.node for name in _reads(node)} | {o.name for o in graph.output}
    for unread in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(unread)
    _keep_named(graph.initializer, read)


def prune(graph: onnx.GraphProto) -> None:
    """Removes nodes, initializers and recorded shapes on which no output depends; what holds a graph of its own stays.

    For passes that cut a graph: unlike `drop_unused` it takes whole branches.
    """
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(list(graph.node)):
        if any(name in needed for name in node.output) or has_subgraph(node):
            needed.update(_reads(node))
            kept.append(node)
    _keep_named(graph.initializer, needed)
    _keep_named(graph.value_info, {name for node in kept for name in node.output})
    set_nodes(graph, reversed(kept))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that graphs of its own read from around it included."""
    yield from node.input
    for inner in (graph for a in node.attribute for graph in (a.g, *a.graphs)):
        yield from (value.name for value in inner.output)
        for inner_node in inner.node:
            yield from _reads(inner_node)


def _keep_named(field: Any, names: Collection[str]) -> None:
    _keep(field, [item for item in field if item.name in names])


def _keep(field: Any, items: Iterable[object]) -> None:
    """A repeated field of a message with these items, which may be its own, and no others."""
    kept = list(items)
    del field[:]
    field.extend(kept)

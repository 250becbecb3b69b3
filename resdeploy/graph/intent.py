"""What a graph asks of the runtime: its residual blocks, what follows a convolution, which precision each is to have.

Q/DQ pairs, casts and batch normalisations are looked through, so that an INT8 graph has the blocks of the FP32 graph it
was made from. A convolution asks for INT8 where both its data and its weight come out of a DequantizeLinear; a residual
Add where one of its operands does and its result goes into a QuantizeLinear. All else asks for the type of its tensors:
what a DequantizeLinear gives is of its scale's type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from resdeploy.graph.index import Index, attribute, by_name, copy, input_name, node_name, set_nodes
from resdeploy.graph.qdq_placement import AVERAGES, PAIR, TRANSPARENT
from resdeploy.graph.residual import ACTIVATIONS, CONVOLUTIONS, ResidualBlock, find_blocks

FLOATS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
INTEGERS = ("int8", "int16")
_SIXTEEN_BITS = (onnx.TensorProto.INT16, onnx.TensorProto.UINT16)
MEANS = ("GlobalAveragePool", "ReduceMean")
LONGEST_GATE = 16  # nodes: two layers, their activations in several nodes each, and reshapes
# What follows a convolution value by value, besides the activations of residual blocks.
FOLLOWERS = frozenset(
    {
        "Elu",
        "Celu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)
GELU = ["Add", "Erf", "Mul", "Mul", "Mul"]  # its operators, where x is divided by sqrt 2 or multiplied
INTEGER_CONVOLUTIONS = ("QLinearConv", "ConvInteger")


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Nodes are given by `index.node_name`."""

    blocks: tuple[ResidualBlock, ...]
    asked: Mapping[str, str]  # convolution or residual Add -> precision
    followers: Mapping[str, tuple[str, ...]]  # convolution -> the batch normalisation and activation that alone read it
    producers: Mapping[str, str]  # tensor -> the node that makes it, Q/DQ and casts looked through
    nodes: frozenset[str]  # all that compute from the graph's inputs, Q/DQ and casts left out
    pairs: frozenset[str]  # all Q/DQ nodes
    edges: frozenset[str]  # those at the graph's own inputs and outputs, which no placement does without
    casts: frozenset[str] = frozenset()  # nodes that only convert between types
    # Convolution or residual Add -> the quantizers of what it gives, its activation included.
    requantizers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # What computes the gates of squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): one value a channel each.
    gates: frozenset[str] = frozenset()

    @property
    def quantized_convolutions(self) -> frozenset[str]:
        """Those that ask for integers, of 8 or of 16 bits."""
        adds = {block.add for block in self.blocks}
        return frozenset(name for name, wide in self.asked.items() if wide in INTEGERS and name not in adds)


def kernel_starts(intent: Intent) -> dict[str, str]:
    """What a fused kernel ends with -> what it then began with."""
    before = {node: conv for conv, followers in intent.followers.items() for node in reversed(followers)}
    for block in intent.blocks:
        before |= {block.relu: block.add} if block.relu else {}
        before |= {block.add: block.last_conv} if block.last_conv else {}
    return before


def computed_nodes(
    sources: Sequence[str], intent: Intent, before: Mapping[str, str], *, convolves: bool
) -> tuple[str, ...]:
    """The graph's nodes that a kernel computes, by the sources that the runtime names.

    ONNX Runtime names a fused convolution after what its last node makes: `before`, of `kernel_starts`, leads back.
    """
    makers = (s if s in intent.nodes else intent.producers.get(s, "") for s in sources)
    nodes = [node for node in makers if node]
    while nodes and convolves and nodes[0] in before and before[nodes[0]] not in nodes:
        nodes.insert(0, before[nodes[0]])
    return tuple(dict.fromkeys(nodes))


def of(model: onnx.ModelProto) -> Intent:
    """The intent of a graph with or without Q/DQ pairs."""
    index = Index(model)
    plain, twins = _strip_pairs(model, index)
    inner = Index(plain)
    blocks = find_blocks(plain)
    nodes = by_name(index.nodes)
    asked = {name: _precision_of_weighted(index, node) for name, node in nodes.items() if node.op_type in CONVOLUTIONS}
    asked |= dict.fromkeys((name for name, node in nodes.items() if node.op_type in INTEGER_CONVOLUTIONS), "int8")
    asked |= {block.add: _precision_of_add(index, nodes[block.add]) for block in blocks}
    producers = {tensor: node_name(inner.nodes[i]) for tensor, i in inner.producer.items()}
    producers |= {twin: producers[source] for twin, source in twins.items() if source in producers}
    pairs = frozenset(name for name, node in nodes.items() if node.op_type in PAIR)
    casts = frozenset(name for name, node in nodes.items() if node.op_type == "Cast")
    return Intent(
        blocks=blocks,
        asked=asked,
        followers={
            name: tuple(_followers(index, nodes[name])) for name in asked if name not in {b.add for b in blocks}
        },
        producers=producers,
        nodes=frozenset(
            name for name, node in nodes.items() if name not in pairs | casts and node.output[0] not in index.constants
        ),
        pairs=pairs,
        edges=frozenset(name for name in pairs if _at_edge(index, nodes[name])),
        casts=casts,
        requantizers={name: _requantizers(index, nodes[name]) for name in asked},
        gates=_gates(inner),
    )


def _gates(index: Index) -> frozenset[str]:
    """The nodes between the mean over an image and the product with what it is the mean of, Q/DQ looked through."""
    gates: set[str] = set()
    for node in index.nodes:
        if node.op_type == "Mul":
            for features, gate in (node.input, reversed(node.input)):
                gates |= _from_mean_of(index, features, gate)
    return frozenset(gates)


def _from_mean_of(index: Index, features: str, gate: str) -> set[str]:
    """All nodes that make `gate` of the mean of `features`; none where it depends on anything else."""
    passed: set[str] = set()
    todo, reached = [gate], False
    while todo and len(passed) < LONGEST_GATE:
        maker = index.maker(todo.pop())
        if maker is None:
            return set()
        if maker.op_type in MEANS:
            if maker.input[0] != features:
                return set()
            reached = True
        elif node_name(maker) not in passed:
            passed.add(node_name(maker))
            todo += [name for name in maker.input if name and name not in index.constants]
    return passed if reached and not todo else set()


def _strip_pairs(model: onnx.ModelProto, index: Index) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy in which each reader of Q/DQ, a cast or a batch normalisation reads their source; tensor -> source."""
    twins: dict[str, str] = {}
    for node in index.nodes:
        if node.op_type in (*PAIR, "Cast", "BatchNormalization") and node.input[0] not in index.constants:
            twins[node.output[0]] = twins.get(node.input[0], node.input[0])
    plain = copy(model)
    others = [node for node in plain.graph.node if node.output[0] not in twins]
    for node in others:
        for i, name in enumerate(node.input):
            node.input[i] = twins.get(name, name)
    set_nodes(plain.graph, others)
    for output in plain.graph.output:
        output.name = twins.get(output.name, output.name)
    return plain, twins


def _followers(index: Index, convolution: onnx.NodeProto) -> list[str]:
    followers: list[str] = []
    output = convolution.output[0]
    reader = index.only_reader(output)
    if reader is not None and reader.op_type == "BatchNormalization":
        followers.append(node_name(reader))
        output = reader.output[0]
        reader = index.only_reader(output)
    if reader is not None and reader.op_type in (ACTIVATIONS | FOLLOWERS):
        return [*followers, node_name(reader)]
    return [*followers, *map(node_name, _spelled(index, output))]


def _spelled(index: Index, tensor: str) -> list[onnx.NodeProto]:
    """The nodes of an activation that takes several and alone reads a tensor, the one that gives its result last."""
    return _gate(index, tensor) or _gelu(index, tensor)


def _gate(index: Index, tensor: str) -> list[onnx.NodeProto]:
    """The two nodes of SiLU, x sigmoid(x), or of its hard form, where they alone read a tensor."""
    readers = [index.nodes[i] for i in index.readers.get(tensor, ())]
    sigmoid = next((node for node in readers if node.op_type in ("Sigmoid", "HardSigmoid")), None)
    product = None if sigmoid is None else index.only_reader(sigmoid.output[0])
    if sigmoid is None or product is None or tensor in index.outputs or product.op_type != "Mul":
        return []
    reads_both = set(product.input) == {tensor, sigmoid.output[0]}
    return [sigmoid, product] if len(readers) == 2 and reads_both else []


def _gelu(index: Index, tensor: str) -> list[onnx.NodeProto]:
    """The five nodes of x/2 (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel 2016, arXiv:1606.08415), in whatever order."""
    found: dict[str, onnx.NodeProto] = {}
    inside = [tensor]
    for made in inside:  # grows
        for node in (index.nodes[i] for i in index.readers.get(made, ())):
            known = all(name in index.constants or name in inside for name in node.input)
            if known and node.op_type in ("Div", "Mul", "Erf", "Add") and len(found) < len(GELU):
                found[node_name(node)] = node
                inside += [name for name in node.output if name not in inside]
    nodes = list(found.values())
    spelled = sorted("Mul" if node.op_type == "Div" else node.op_type for node in nodes) == GELU
    readers = (index.nodes[i] for name in inside[:-1] for i in index.readers.get(name, ()))
    alone = all(node_name(reader) in found for reader in readers) and not index.outputs.intersection(inside[:-1])
    return nodes if spelled and alone else []


def _requantizers(index: Index, node: onnx.NodeProto) -> tuple[str, ...]:
    """The quantizers of what a node gives once its batch normalisation and activation have run."""
    tensors = [node.output[0]]
    for tensor in tensors:  # grows
        readers = [index.nodes[i] for i in index.readers.get(tensor, ())]
        tensors += [reader.output[0] for reader in readers if reader.op_type == "Cast"]
        follower = index.only_reader(tensor)
        if follower is not None and follower.op_type in (ACTIVATIONS | FOLLOWERS | {"BatchNormalization"}):
            tensors.append(follower.output[0])
        tensors += [last.output[0] for last in _spelled(index, tensor)[-1:]]
    readers = [index.nodes[i] for tensor in tensors for i in index.readers.get(tensor, ())]
    return tuple(node_name(reader) for reader in readers if reader.op_type == "QuantizeLinear")


def _at_edge(index: Index, node: onnx.NodeProto) -> bool:
    given, output = node.input[0], node.output[0]
    while (maker := index.maker(given)) is not None and maker.op_type == "Cast":  # of FP16 around FP32 inputs
        given = maker.input[0]
    reads_input = given not in index.producer and given not in index.initializers
    # Logits that are pooled last stay in float, and so does that pooling.
    while (reader := index.only_reader(output)) is not None and reader.op_type in {"Cast"} | TRANSPARENT | AVERAGES:
        output = reader.output[0]
    return reads_input or output in index.outputs


def _dequantizer(index: Index, tensor: str) -> onnx.NodeProto | None:
    """What makes a tensor hold quantized values: OpenVINO's placement has the pair before a pooling, not after it."""
    node = index.maker(tensor)
    while node is not None and (node.op_type == "Cast" or node.op_type in TRANSPARENT):
        node = index.maker(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _precision_of_weighted(index: Index, node: onnx.NodeProto) -> str:
    makers = [_dequantizer(index, name) for name in node.input[:2]]
    if None not in makers:
        zeros = (index.value(input_name(maker, 2)) for maker in makers if maker is not None)
        return "int16" if any(zero is not None and zero.data_type in _SIXTEEN_BITS for zero in zeros) else "int8"
    return FLOATS.get(index.type_of_constant(node.input[1]), "fp32")


def _precision_of_add(index: Index, add: onnx.NodeProto) -> str:
    """What a residual Add asks for."""
    floats = next(filter(None, (_float_type(index, name) for name in add.input)), "fp32")
    if not any(_dequantizer(index, name) for name in add.input):
        return floats
    return "int8" if _requantizers(index, add) else floats


def _float_type(index: Index, tensor: str) -> str | None:
    """The type of a tensor of floats, from the nearest weight, scale or cast behind it; None where none tells."""
    node = index.maker(tensor)
    while node is not None:
        if node.op_type == "Cast":
            return FLOATS.get(attribute(node, "to", 0))
        known = [stored for name in node.input if (stored := index.value(name)) and stored.data_type in FLOATS]
        if known:
            return FLOATS[known[0].data_type]
        node = index.maker(node.input[0]) if node.input else None
    return None

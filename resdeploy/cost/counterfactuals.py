"""What 1x1 convolutions save: a network beside the same network without them, in exact numbers.

A bottleneck (1x1, 3x3, 1x1: He et al. 2015, figure 5, right) can be compared with two basic blocks (3x3, 3x3), and the
answers have nothing to do with each other:

  (a) `outer`: the basic block of the bottleneck's own outer width, which carries as many channels from block to block.
      For C channels outside and C/4 inside: 2 x 9 C^2 against C^2/4 + 9 C^2/16 + C^2/4 multiplications: 288/17.
  (b) `quarter`: the basic block of a quarter of that width, which is ResNet-34's, and "of similar time complexity"
      (He et al.): 2 x 9 (C/4)^2, so that the bottleneck has 17/18 of its cost.

An Inception module is compared with the naive one of Szegedy et al. 2014, figure 2(a): large kernels read the module's
input directly, and the pooled branch has no projection. Blocks are found from the graph's structure, never from names,
and Q/DQ pairs, casts and standing batch norms are looked through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from resdeploy.errors import UsageError
from resdeploy.graph import counts, intent
from resdeploy.graph.index import attribute, by_name, node_name
from resdeploy.graph.intent import Intent
from resdeploy.graph.residual import ResidualBlock
from resdeploy.records import Cost, LayerCost, ModelSpec

_ELEMENTWISE = frozenset({"Relu", "Clip", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Cast"})
_POOLS = frozenset({"MaxPool", "AveragePool"})


@dataclass(frozen=True, kw_only=True)
class Size:
    """Multiply-accumulates for one image, weights of convolutions without their biases, output channels."""

    macs: int = 0
    weights: int = 0
    channels: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            macs=self.macs + other.macs, weights=self.weights + other.weights, channels=self.channels + other.channels
        )

    @property
    def learnable(self) -> int:
        """Parameters, with a batch norm's scale and shift after every convolution."""
        return self.weights + 2 * self.channels


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """One block of the network beside both basic blocks."""

    stage: str
    identity: bool  # its shortcut has no convolution
    own: Size
    outer: Size
    quarter: Size


@dataclass(frozen=True, kw_only=True)
class BasicCounterfactual:
    """A network of bottlenecks beside the two networks of basic blocks; `params` None where the file cannot tell."""

    model: str
    blocks: tuple[Bottleneck, ...]
    own_macs: int
    outer_macs: int
    quarter_macs: int
    own_params: int | None
    outer_params: int | None
    quarter_params: int | None


def compare_basic_blocks(model: onnx.ModelProto, spec: ModelSpec) -> BasicCounterfactual:
    """The network's bottlenecks against basic blocks, everything else unchanged but for the classifier of (b).

    Raises:
        UsageError: the graph has no bottleneck, or an unknown image size.
        MalformedInput: as `counts.prepare`.
    """
    graph = counts.prepare(model, spec)
    cost, graph_intent, sizes = counts.count_prepared(graph), intent.of(graph.model), _Sizes(graph)
    layers = _layers(cost, sizes)
    blocks, width = _bottlenecks(graph_intent.blocks, sizes, layers)
    if not blocks:
        raise UsageError(
            f"{spec.name} has no bottlenecks (1x1, 3x3, 1x1 beside a shortcut) to compare with basic blocks",
            fix="Name ResNet-50 or deeper; --against naive compares Inception modules",
        )
    own, outer, quarter = (sum((getattr(b, side) for b in blocks), Size()) for side in ("own", "outer", "quarter"))
    saved_macs, saved_weights = _classifier_savings(cost, width)
    macs = sum(layer.macs for layer in cost.layers)
    params = cost.params if _have_norms(graph_intent, layers) else None
    return BasicCounterfactual(
        model=spec.name,
        blocks=blocks,
        own_macs=macs,
        outer_macs=macs - own.macs + outer.macs,
        quarter_macs=macs - own.macs + quarter.macs - saved_macs,
        own_params=cost.params,
        outer_params=None if params is None else params - own.learnable + outer.learnable,
        quarter_params=None if params is None else params - own.learnable + quarter.learnable - saved_weights,
    )


def _classifier_savings(cost: Cost, width: int) -> tuple[int, int]:
    """MACs and weights that the classifier of (b) saves: of the `width` channels it reads a quarter."""
    head = next((layer for layer in reversed(cost.layers) if layer.macs and layer.op in ("Gemm", "MatMul")), None)
    if head is None or head.input_elements != width:
        return 0, 0
    return head.macs - head.macs // 4, (head.params - head.biases) * 3 // 4


def _have_norms(graph_intent: Intent, layers: Mapping[str, LayerCost]) -> bool:
    """Whether every convolution of a block has a batch norm, folded or standing."""
    standing = {name for name, layer in layers.items() if layer.op == "BatchNormalization"}
    return all(
        layers[name].folded_norm or not standing.isdisjoint(graph_intent.followers[name])
        for block in graph_intent.blocks
        for name in block.convs
    )


def _layers(cost: Cost, sizes: _Sizes) -> dict[str, LayerCost]:
    """The counted layers by name.

    Raises:
        UsageError: a convolution is not among them.
    """
    layers = {layer.name: layer for layer in cost.layers}
    unknown = [name for name in sizes.convs if name not in layers]
    if unknown:
        raise UsageError(
            f"the sizes of {unknown[0]} and {len(unknown) - 1} other convolutions of {cost.model} are not known",
            cause=f"They come after what cannot be counted: {', '.join(cost.unknown[:5])}",
            fix="Name the file that this one was made from, before a runtime optimised it",
        )
    return layers


def _bottlenecks(
    residual: Iterable[ResidualBlock], sizes: _Sizes, layers: Mapping[str, LayerCost]
) -> tuple[tuple[Bottleneck, ...], int]:
    """The bottlenecks among the blocks, and the outer width of the last one."""
    blocks: list[Bottleneck] = []
    width = 0
    for block in residual:
        if sizes.is_bottleneck(block):
            blocks.append(_bottleneck(block, sizes, layers, narrow_inputs=width // 4))
            width = sizes.outputs(block.convs[-1])
    return tuple(blocks), width


def _bottleneck(
    block: ResidualBlock, sizes: _Sizes, layers: Mapping[str, LayerCost], *, narrow_inputs: int
) -> Bottleneck:
    """The block beside its counterparts; `narrow_inputs` is what (b)'s reads, 0 where it is the first."""
    first, last = block.convs[0], block.convs[-1]
    inputs, width, area = sizes.inputs(first), sizes.outputs(last), sizes.area(last)
    narrow = width // 4
    narrow_inputs = narrow_inputs or inputs  # the stem has the same width in both networks
    outer = conv_size(inputs, width, 3, area) + conv_size(width, width, 3, area)
    quarter = conv_size(narrow_inputs, narrow, 3, area) + conv_size(narrow, narrow, 3, area)
    if block.projection:
        outer += conv_size(inputs, width, 1, area)
    shrinks = sizes.area(first) != sizes.input_area(first) or area != sizes.area(first)
    if narrow_inputs != narrow or shrinks:
        quarter += conv_size(narrow_inputs, narrow, 1, area)
    return Bottleneck(
        stage=layers[first].stage,
        identity=block.shortcut == "identity",
        own=sum(map(sizes.of, [*block.convs, *([block.projection] if block.projection else [])]), Size()),
        outer=outer,
        quarter=quarter,
    )


def conv_size(inputs: int, outputs: int, kernel: int, area: int) -> Size:
    """A convolution without groups, on an output map of `area` positions."""
    weights = inputs * outputs * kernel * kernel
    return Size(macs=weights * area, weights=weights, channels=outputs)


class _Sizes:
    """Shapes of a graph's convolutions, by node name."""

    def __init__(self, graph: counts.Graph) -> None:
        self.index, self.shapes = graph.index, graph.shapes
        self.convs = by_name(n for n in self.index.nodes if n.op_type == "Conv" and n.input[1] in self.shapes)

    def weight(self, name: str) -> tuple[int, ...]:
        return self.shapes[self.convs[name].input[1]]

    def groups(self, name: str) -> int:
        return attribute(self.convs[name], "group", 1)

    def inputs(self, name: str) -> int:
        return self.weight(name)[1] * self.groups(name)

    def outputs(self, name: str) -> int:
        return self.weight(name)[0]

    def taps(self, name: str) -> int:
        return math.prod(self.weight(name)[2:])

    def area(self, name: str) -> int:
        return math.prod(self.shapes[self.convs[name].output[0]][2:])

    def input_area(self, name: str) -> int:
        return math.prod(self.shapes[self.convs[name].input[0]][2:])

    def of(self, name: str) -> Size:
        weights = math.prod(self.weight(name))
        return Size(macs=weights * self.area(name), weights=weights, channels=self.outputs(name))

    def is_bottleneck(self, block: ResidualBlock) -> bool:
        """Three convolutions, the large kernel between two 1x1, whose first narrows what the last widens."""
        if len(block.convs) != 3 or any(name not in self.convs for name in block.convs):
            return False
        first, middle, last = (self.taps(name) for name in block.convs)
        return first == last == 1 < middle and self.outputs(block.convs[-1]) > self.outputs(block.convs[0])

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Who reads a convolution's output, behind what is elementwise."""
        readers, pending = [], [self.convs[name].output[0]]
        while pending:
            tensor = pending.pop()
            for i in self.index.readers.get(tensor, ()):
                node = self.index.nodes[i]
                if node.op_type in _ELEMENTWISE:
                    pending.append(node.output[0])
                else:
                    readers.append(node)
        return readers

    def reads_pool(self, name: str) -> bool:
        """Whether it alone reads a pool that keeps the map's size: the pooled branch of an Inception module."""
        node = self.index.maker(self.convs[name].input[0])
        while node is not None and node.op_type in _ELEMENTWISE:
            node = self.index.maker(node.input[0])
        if node is None or node.op_type not in _POOLS or len(self.index.readers[node.output[0]]) > 1:
            return False
        return self.shapes[node.input[0]][2:] == self.shapes[node.output[0]][2:]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """A 1x1 convolution before large kernels, with it and without."""

    module: str
    name: str
    readers: tuple[str, ...]
    reduced: Size
    direct: Size


@dataclass(frozen=True, kw_only=True)
class Module:
    """An Inception module as it is, and naive."""

    name: str
    own: Size
    naive: Size


@dataclass(frozen=True, kw_only=True)
class NaiveCounterfactual:
    """A network's reductions and Inception modules, each beside what it would be without."""

    model: str
    reductions: tuple[Reduction, ...]
    modules: tuple[Module, ...]


def compare_naive_modules(model: onnx.ModelProto, spec: ModelSpec) -> NaiveCounterfactual:
    """The network's Inception modules with and without their 1x1 reductions.

    Raises:
        UsageError: the graph has no such reduction, or an unknown image size.
        MalformedInput: as `counts.prepare`.
    """
    graph = counts.prepare(model, spec)
    sizes = _Sizes(graph)
    layers = _layers(counts.count_prepared(graph), sizes)
    residual = {name for block in intent.of(graph.model).blocks for name in block.convs}
    reductions = tuple(_reductions(sizes, layers, residual))
    if not reductions:
        raise UsageError(
            f"{spec.name} has no 1x1 convolutions before larger ones outside residual blocks",
            fix="Name a GoogLeNet or an Inception; --against basic compares bottlenecks",
        )
    return NaiveCounterfactual(model=spec.name, reductions=reductions, modules=_modules(reductions, sizes, layers))


def _modules(reductions: Sequence[Reduction], sizes: _Sizes, layers: Mapping[str, LayerCost]) -> tuple[Module, ...]:
    """The modules that have reductions, each summed over its convolutions."""
    modules: dict[str, Module] = {}
    homes = {r.module for r in reductions}
    names, reduction_of = {r.name for r in reductions}, {reader: r.name for r in reductions for reader in r.readers}
    for name in sizes.convs:
        home = layers[name].block or name
        if home in homes:
            module = modules.get(home, Module(name=home, own=Size(), naive=Size()))
            naive = Size() if name in names else _without_reduction(name, sizes, reduction_of.get(name))
            modules[home] = replace(module, own=module.own + sizes.of(name), naive=module.naive + naive)
    return tuple(modules.values())


def _reductions(sizes: _Sizes, layers: Mapping[str, LayerCost], residual: set[str]) -> Iterator[Reduction]:
    for name in sizes.convs:
        if name in residual or sizes.taps(name) > 1 or sizes.outputs(name) >= sizes.inputs(name):
            continue
        readers = [node_name(node) for node in sizes.readers(name)]
        if not readers or any(r not in sizes.convs or sizes.taps(r) == 1 or sizes.groups(r) > 1 for r in readers):
            continue
        yield Reduction(
            module=layers[name].block or name,
            name=name,
            readers=tuple(readers),
            reduced=sum((sizes.of(reader) for reader in readers), sizes.of(name)),
            direct=sum((_direct(reader, name, sizes) for reader in readers), Size()),
        )


def _direct(reader: str, reduction: str, sizes: _Sizes) -> Size:
    weights = math.prod(sizes.weight(reader)) // sizes.outputs(reduction) * sizes.inputs(reduction)
    return Size(macs=weights * sizes.area(reader), weights=weights, channels=sizes.outputs(reader))


def _without_reduction(name: str, sizes: _Sizes, reduction: str | None) -> Size:
    """What a convolution is in the naive module; None: it reads no reduction."""
    if reduction is not None:
        return _direct(name, reduction, sizes)
    return Size() if sizes.taps(name) == 1 and sizes.reads_pool(name) else sizes.of(name)

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from resdeploy.errors import UsageError
from resdeploy.graph import counts, intent
from resdeploy.graph.index import attribute, by_name, node_name
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
class Counterfactual:
    """A network of bottlenecks beside the two networks of basic blocks; `params` None where the file cannot tell."""

    model: str
    blocks: tuple[Bottleneck, ...]
    own_macs: int
    outer_macs: int
    quarter_macs: int
    own_params: int | None
    outer_params: int | None
    quarter_params: int | None


def basic(model: onnx.ModelProto, spec: ModelSpec) -> Counterfactual:
    """The network's bottlenecks against basic blocks, everything else unchanged but for the classifier of (b).

    Raises:
        UsageError: the graph has no bottleneck, or an unknown image size.
        MalformedInput: as `cost.prepare`.
    """
    graph = counts.prepare(model, spec)
    counted, meant, sizes = counts.counted(graph), intent.of(graph.model), _Sizes(graph)
    layers = _layers(counted, sizes)
    blocks: list[Bottleneck] = []
    before = 0  # a quarter of the width that the block before has
    outer = 0
    for block in meant.blocks:
        if sizes.is_bottleneck(block):
            made, outer = _bottleneck(block, sizes, layers, before)
            blocks.append(made)
            before = outer // 4
    if not blocks:
        raise UsageError(
            f"{spec.name} has no bottlenecks (1x1, 3x3, 1x1 beside a shortcut) to compare with basic blocks",
            fix="Name ResNet-50 or deeper; --against naive compares Inception modules",
        )
    own, wide, narrow = (sum((getattr(b, side) for b in blocks), Size()) for side in ("own", "outer", "quarter"))
    macs = sum(layer.macs for layer in counted.layers)
    # The classifier of (b) reads a quarter of the channels.
    head = next((layer for layer in reversed(counted.layers) if layer.macs and layer.op in ("Gemm", "MatMul")), None)
    saved_macs, saved_weights = 0, 0
    if head is not None and head.input_elements == outer:
        saved_macs, saved_weights = head.macs - head.macs // 4, (head.params - head.biases) * 3 // 4
    standing = {name for name, layer in layers.items() if layer.op == "BatchNormalization"}
    normed = all(
        layers[name].folded_norm or not standing.isdisjoint(meant.followers[name])
        for block in meant.blocks
        for name in block.convs
    )
    params = counted.params if normed else None
    return Counterfactual(
        model=spec.name,
        blocks=tuple(blocks),
        own_macs=macs,
        outer_macs=macs - own.macs + wide.macs,
        quarter_macs=macs - own.macs + narrow.macs - saved_macs,
        own_params=counted.params,
        outer_params=None if params is None else params - own.learnable + wide.learnable,
        quarter_params=None if params is None else params - own.learnable + narrow.learnable - saved_weights,
    )


def _layers(counted: Cost, sizes: _Sizes) -> dict[str, LayerCost]:
    found = {layer.name: layer for layer in counted.layers}
    lost = [name for name in sizes.convs if name not in found]
    if lost:
        raise UsageError(
            f"the sizes of {lost[0]} and {len(lost) - 1} other convolutions of {counted.model} are not known",
            cause=f"They come after what cannot be counted: {', '.join(counted.unknown[:5])}",
            fix="Name the file that this one was made from, before a runtime optimised it",
        )
    return found


def _bottleneck(
    block: ResidualBlock, sizes: _Sizes, layers: Mapping[str, LayerCost], before: int
) -> tuple[Bottleneck, int]:
    """The block beside its counterparts, and its outer width."""
    inputs, outer, area = sizes.inputs(block.convs[0]), sizes.outputs(block.convs[-1]), sizes.area(block.convs[-1])
    convs = [*block.convs, *([block.projection] if block.projection else [])]
    own = sum((sizes.of(name) for name in convs), Size())
    width = outer // 4
    before = before or inputs  # the stem has the same width in both networks
    changes = sizes.area(block.convs[0]) != sizes.input_area(block.convs[0]) or area != sizes.area(block.convs[0])
    wide = conv_size(inputs, outer, 3, area) + conv_size(outer, outer, 3, area)
    narrow = conv_size(before, width, 3, area) + conv_size(width, width, 3, area)
    if block.projection:
        wide += conv_size(inputs, outer, 1, area)
    if before != width or changes:
        narrow += conv_size(before, width, 1, area)
    stage = layers[block.convs[0]].stage
    return Bottleneck(stage=stage, identity=block.shortcut == "identity", own=own, outer=wide, quarter=narrow), outer


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
        found, pending = [], [self.convs[name].output[0]]
        while pending:
            tensor = pending.pop()
            for i in self.index.readers.get(tensor, ()):
                node = self.index.nodes[i]
                if node.op_type in _ELEMENTWISE:
                    pending.append(node.output[0])
                else:
                    found.append(node)
        return found

    def reads_pool(self, name: str) -> bool:
        """Whether it alone reads a pool that keeps the map's size: the pooled branch of an Inception module."""
        node = self.index.made_by(self.convs[name].input[0])
        while node is not None and node.op_type in _ELEMENTWISE:
            node = self.index.made_by(node.input[0])
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
class Modules:
    """All of a network's."""

    model: str
    reductions: tuple[Reduction, ...]
    modules: tuple[Module, ...]


def naive(model: onnx.ModelProto, spec: ModelSpec) -> Modules:
    """The network's Inception modules with and without their 1x1 reductions.

    Raises:
        UsageError: the graph has no such reduction, or an unknown image size.
        MalformedInput: as `cost.prepare`.
    """
    graph = counts.prepare(model, spec)
    sizes = _Sizes(graph)
    layers = _layers(counts.counted(graph), sizes)
    residual = {name for block in intent.of(graph.model).blocks for name in block.convs}
    reductions = tuple(_reductions(sizes, layers, residual))
    if not reductions:
        raise UsageError(
            f"{spec.name} has no 1x1 convolutions before larger ones outside residual blocks",
            fix="Name a GoogLeNet or an Inception; --against basic compares bottlenecks",
        )
    modules: dict[str, Module] = {}
    direct = {reader: r for r in reductions for reader in r.readers}
    reducing = {r.name for r in reductions}
    members = {r.module for r in reductions}
    for name in sizes.convs:
        home = layers[name].block or name
        if home not in members:
            continue
        without = _without(name, sizes, direct, reducing)
        module = modules.get(home, Module(name=home, own=Size(), naive=Size()))
        modules[home] = Module(name=home, own=module.own + sizes.of(name), naive=module.naive + without)
    return Modules(model=spec.name, reductions=reductions, modules=tuple(modules.values()))


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


def _without(name: str, sizes: _Sizes, direct: Mapping[str, Reduction], reducing: set[str]) -> Size:
    """What is left of a convolution in the naive module."""
    if name in reducing:
        return Size()
    if name in direct:
        return _direct(name, direct[name].name, sizes)
    return Size() if sizes.taps(name) == 1 and sizes.reads_pool(name) else sizes.of(name)

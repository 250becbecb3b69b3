"""Matches the residual blocks of a TensorRT engine to its executed layers, where the graph is not at hand.

A layer adds where one of the graph nodes it names is called Add (`Add_42`, `block1_add`, `/layer1/layer1.0/Add`), or
where it is a convolution that reads a second tensor of its output's shape: that is how TensorRT lists a fused sum. From
both operands one walks back, through reformats, to the tensor that they share; the layers on the way are the block.
Any other layer that reads two tensors of one shape may add them under another name: `possible_sums`, an open question.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from resdeploy.graph.intent import Intent
from resdeploy.graph.residual import ResidualBlock
from resdeploy.records import Layer

ADD = re.compile(r"(?:^|[/._:])add(?:v2)?(?:_\d+)*$", re.IGNORECASE)
CONV = re.compile(r"(?:^|[/._])(?:conv|gemm|matmul)[^/+]*$", re.IGNORECASE)
ACTIVATION = re.compile(r"(?:^|[/._])(?:relu|clip)[^/+]*$", re.IGNORECASE)
WEIGHT = re.compile(r"(.+)\.weight$")
PAIR = re.compile(r"(?:^|[/._])(?:de)?quantizelinear[^/+]*$", re.IGNORECASE)
CAST = re.compile(r"(?:^|[/._])cast(?:_\d+)*$", re.IGNORECASE)
LONGEST_WALK = 12  # layers; a bottleneck's main branch has three


def is_convolution(layer: Layer) -> bool:
    """Whether a layer convolves, by its type or by the nodes it names; fully connected layers do not count."""
    if layer.role != "compute":
        return False
    if any(re.search(r"(?:^|[/._])(?:gemm|matmul|fc)(?:[._]|$|_\d)", part, re.IGNORECASE) for part in layer.sources):
        return False
    return any(word in layer.kind.lower() for word in ("conv", "correlation")) or any(
        re.search(r"(?:^|[/._])conv[^/]*$", p, re.IGNORECASE) for p in layer.sources
    )


def name_sums(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, each fused sum that no name tells of given one: `<layer>:add`."""
    return tuple(
        Layer(**{**vars(layer), "sources": (*layer.sources, f"{layer.name}:add")}) if _is_unnamed_sum(layer) else layer
        for layer in layers
    )


def _is_unnamed_sum(layer: Layer) -> bool:
    return (
        is_convolution(layer)
        and not any(ADD.search(part) for part in layer.sources)
        and len(layer.inputs) == 2
        and len(layer.outputs) == 1
        and bool(layer.outputs[0].shape)
        and layer.inputs[1].shape == layer.outputs[0].shape
    )


def possible_sums(layers: Sequence[Layer], known: Set[str]) -> list[Layer]:
    """Layers of which nothing tells whether they add: two operands of one shape, or of shapes that are not given.

    Args:
        layers: as `name_sums` returns them.
        known: the additions that are part of a block.
    """
    return [
        layer
        for layer in layers
        if layer.role == "compute" and not known & set(layer.sources) and _may_add(layer, is_convolution(layer))
    ]


def _may_add(layer: Layer, convolves: bool) -> bool:
    """A convolution's first tensor is what it convolves; an addition's operands both have the output's shape."""
    shapes = [port.shape for port in (layer.inputs[1:] if convolves else layer.inputs)]
    result = layer.outputs[0].shape if layer.outputs else ()
    return sum(not shape or not result or shape == result for shape in shapes) >= (1 if convolves else 2)


def intent_of(layers: Sequence[Layer]) -> Intent:
    """What the graph asked for, as far as layers from `name_sums` tell; every precision is left open."""
    walk = _Walk(layers)
    adds = [(part, layer) for layer in layers if layer.role == "compute" for part in layer.sources if ADD.search(part)]
    blocks = tuple(block for add, layer in adds if (block := walk.block(add, layer)) is not None)
    return Intent(
        blocks=blocks,
        asked={},
        followers={conv_name(layer): walk.followers(layer) for layer in layers if is_convolution(layer)},
        producers={},
        nodes=frozenset(part for layer in layers for part in layer.sources),
        pairs=frozenset(part for layer in layers for part in layer.sources if PAIR.search(part)),
        edges=frozenset(),
        casts=frozenset(part for layer in layers for part in layer.sources if CAST.search(part)),
    )


def conv_name(layer: Layer) -> str:
    """The node that stands for a layer's convolution."""
    convs = (p for p in layer.sources if CONV.search(p) and not WEIGHT.match(p))
    return next(convs, layer.sources[0] if layer.sources else layer.name)


def block_name(block: ResidualBlock, layers: Sequence[Layer]) -> str:
    """What all the block's layers share in their names (`layer1.0`), else the name of its addition."""
    stems = [match[1] for layer in layers for part in layer.sources if (match := WEIGHT.match(part))]
    if stems:
        paths = [stem.split(".") for stem in stems]
        shared = [parts[0] for parts in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*paths, strict=False))]
        return ".".join(shared[:-1] if len(stems) == 1 else shared) or block.add
    return block.add.rpartition(".")[0] if "." in block.add and "/" not in block.add else block.add


@dataclass(frozen=True)
class _Step:
    tensor: str
    layer: Layer | None


class _Walk:
    def __init__(self, layers: Sequence[Layer]) -> None:
        self.makers = {port.name: layer for layer in layers for port in layer.outputs}
        self.readers: dict[str, list[Layer]] = {}
        for layer in layers:
            for port in layer.inputs:
                self.readers.setdefault(port.name, []).append(layer)

    def block(self, add: str, layer: Layer) -> ResidualBlock | None:
        """The block that `layer` ends; None where it adds a constant."""
        if len(layer.inputs) < 2:
            # An engine described without tensors still says by name that this layer adds.
            return None if layer.inputs else self._block_by_name(add, layer)
        one, other = (self._walk_back(port.name) for port in layer.inputs[:2])
        tensors = {step.tensor for step in other}
        shared = next((step.tensor for step in one if step.tensor in tensors), None)
        own = [_take_until(branch, shared) for branch in (one, other)]
        convs = [conv_name(step) for branch in own for step in reversed(branch) if is_convolution(step)]
        main = one[0].layer if one else None
        last = next((conv_name(x) for x in (layer, main) if x is not None and is_convolution(x)), None)
        return ResidualBlock(
            add=add,
            relu=next((part for part in layer.sources if ACTIVATION.search(part)), None) or self._activation(layer),
            source=shared or "",
            main=layer.inputs[0].name,
            skip=layer.inputs[1].name,
            output=layer.outputs[0].name if layer.outputs else "",
            last_conv=last,
            convs=tuple(dict.fromkeys([*convs, *([last] if last else [])])),
            shortcut="other",
            projection=None,
        )

    def followers(self, layer: Layer) -> tuple[str, ...]:
        """The activation that runs apart from the convolution it follows."""
        activation = self._activation(layer)
        return (activation,) if activation else ()

    def _block_by_name(self, add: str, layer: Layer) -> ResidualBlock:
        last = conv_name(layer) if is_convolution(layer) else None
        return ResidualBlock(
            add=add, relu=None, source="", main="", skip="", output="", last_conv=last,
            convs=(last,) if last else (), shortcut="other", projection=None,
        )  # fmt: skip

    def _activation(self, layer: Layer) -> str | None:
        readers = [reader for port in layer.outputs for reader in self._computing_readers(port.name)]
        if len(readers) != 1 or is_convolution(readers[0]) or any(ADD.search(p) for p in readers[0].sources):
            return None
        return next((part for part in readers[0].sources if ACTIVATION.search(part)), None)

    def _computing_readers(self, tensor: str) -> list[Layer]:
        """The computing readers of a tensor, reformats looked through."""
        readers, pending, visited = [], [tensor], {tensor}
        while pending:
            for reader in self.readers.get(pending.pop(), ()):
                if reader.role == "compute":
                    readers.append(reader)
                    continue
                later = {port.name for port in reader.outputs} - visited
                visited |= later
                pending += sorted(later)
        return readers

    def _walk_back(self, tensor: str) -> list[_Step]:
        """Tensors from here towards the input, each with the computing layer that makes it."""
        steps: list[_Step] = []
        visited: set[str] = set()  # a reformat that reads its own output is no end of the walk
        while len(steps) < LONGEST_WALK:
            maker = self.makers.get(tensor)
            while maker is not None and maker.role != "compute" and maker.inputs and tensor not in visited:
                visited.add(tensor)
                tensor = maker.inputs[0].name
                maker = self.makers.get(tensor)
            steps.append(_Step(tensor, maker))
            if maker is None or not maker.inputs:
                break
            tensor = maker.inputs[0].name
        return steps


def _take_until(branch: Sequence[_Step], shared: str | None) -> list[Layer]:
    """The layers of a branch up to the shared tensor; none where the branches share nothing."""
    layers: list[Layer] = []
    for step in branch:
        if shared is None or step.tensor == shared or step.layer is None:
            break
        layers.append(step.layer)
    return layers

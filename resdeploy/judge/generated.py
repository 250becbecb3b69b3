"""Nodes that several kernels name: which of them runs each.

Compilers that generate kernels (Myelin, in TensorRT and TensorRT-RTX) name a convolution in three places: in the kernel
that holds its weights, in the generated one that prepares its input (a cast, channels added up to a multiple of four),
and in the one that does what was left over of it: its bias and scales, then what follows. Of these the first runs it.
The second runs none of what the first names too. Of the third, that is so of the convolution alone: what both name
comes after the bias, and so runs there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from resdeploy.graph.intent import Intent
from resdeploy.records import Layer

GENERATED = "kgen"
SPELLED = re.compile(r"__myl_((?:[A-Z][a-z]+)+)_")
# A generated kernel's name spells its operations.
MOVES = frozenset({"Move", "Tran", "Cast", "Resh"})
QUANTIZES = MOVES | {"Mul", "Div", "Min", "Max", "Roun", "Conc"}


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Layers of which each names what it runs."""

    layers: tuple[Layer, ...]
    finishers: Mapping[str, tuple[int, ...]]  # convolution -> the kernels that do what is left over of it, by position

    @property
    def finishing(self) -> frozenset[int]:
        """The kernels that do what is left over of any convolution."""
        return frozenset(i for places in self.finishers.values() for i in places)


def settle(layers: Sequence[Layer], convolutions: Set[str], computing: Set[str]) -> Settled:
    """Takes nodes from the layers that name but do not run them.

    Args:
        layers: in order of execution.
        convolutions: nodes that have weights.
        computing: all nodes that compute, Q/DQ and casts left out.
    """
    sources = [list(layer.sources) if layer.role == "compute" else [] for layer in layers]
    named: dict[str, list[int]] = {}
    for i, names in enumerate(sources):
        for name in names:
            named.setdefault(name, []).append(i)
    finishers: dict[str, tuple[int, ...]] = {}
    for conv in sorted(convolutions & named.keys()):
        generated = [i for i in named[conv] if is_generated(layers[i])]
        homes = [i for i in named[conv] if i not in generated]
        if len(homes) != 1 or not generated:
            continue
        (home,) = homes
        finishers[conv] = tuple(i for i in generated if i > home)
        for i in generated:
            shared = set(sources[i]) & set(sources[home])
            if i > home:
                sources[home] = [n for n in sources[home] if n == conv or n not in shared & computing]
                shared = {conv}
            sources[i] = [n for n in sources[i] if n not in shared]
    settled = (
        dataclasses.replace(layer, sources=tuple(names)) if layer.role == "compute" else layer
        for layer, names in zip(layers, sources, strict=True)
    )
    return Settled(layers=tuple(settled), finishers={conv: places for conv, places in finishers.items() if places})


def is_generated(layer: Layer) -> bool:
    """Whether a compiler wrote this kernel for the operations at hand: it holds no convolution of its own."""
    return layer.kind.lower() == GENERATED


def recognise(layer: Layer, intent: Intent) -> Layer:
    """The layer, known for a Q/DQ kernel or a conversion where all that it names are such nodes.

    Not every runtime says so itself. Of one that names nothing, the operations that its name spells tell.
    """
    if layer.role != "compute" or not layer.kind:
        return layer
    if (intent.pairs | intent.casts).issuperset(layer.sources) and layer.sources:
        return dataclasses.replace(layer, role="qdq" if intent.pairs.intersection(layer.sources) else "reformat")
    if is_generated(layer) and layer.sources in ((), (layer.name,)):
        match = SPELLED.match(layer.name)
        words = set(re.findall("[A-Z][a-z]+", match[1])) if match else {""}
        if words <= MOVES:
            return dataclasses.replace(layer, role="reformat")
        if words <= QUANTIZES and "Roun" in words:
            return dataclasses.replace(layer, role="qdq")
    return layer

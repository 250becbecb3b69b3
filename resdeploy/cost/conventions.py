"""What other tools would report for the same network, so that their figures can be reconciled with ours.

Each formula was read off the tool's source and holds to the last digit on the networks in
`tests/cost/test_conventions.py`; of a graph with other operators than theirs no figure is given. Tools look at a torch
module, we at its graph: batch norms that were folded and pools over single elements that were dropped are remembered in
our files (`metadata.Removed`). What a graph cannot tell apart, a module from a function call, is taken to be a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resdeploy.records import Cost, LayerCost

# The operators on which every formula was compared with its tool, and those that are nothing but views.
_CHECKED = frozenset({
    *("Add", "BatchNormalization", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MaxPool", "Pad", "ReduceMean"),
    *("Relu", "Slice", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToolCount:
    """What one tool would report for a network at its batch size."""

    model: str
    convention: str
    formula: str
    count: int | None  # None: not known
    doubt: str  # why not; "": it is


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One tool's way to count: what it reports for `Cost.batch_size` images, where there is no `doubt`."""

    name: str
    formula: str
    counts_norms: bool
    count: Callable[[Cost], int]
    operators: frozenset[str] | None = _CHECKED  # None: any that we can count

    def doubt(self, cost: Cost) -> str:
        """Why there is no figure for a graph; "": there is one."""
        if cost.unknown:
            return f"{len(cost.unknown)} operators cannot be counted: {_list_few(cost.unknown)}"
        others = [] if self.operators is None else sorted({y.op for y in cost.layers} - self.operators)
        if others:
            return f"{self.name} was not compared with our counts on {_list_few(others)}"
        if self.counts_norms and not cost.norms_known:
            return (
                f"{self.name} counts batch norms or biases, and the file does not say which of its biases were batch "
                "norms before they were folded; name the network, or export it with resdeploy"
            )
        return ""

    def apply(self, cost: Cost) -> ToolCount:
        """The tool's figure for a graph, or why there is none."""
        doubt = self.doubt(cost)
        figure = None if doubt else self.count(cost)
        return ToolCount(model=cost.model, convention=self.name, formula=self.formula, count=figure, doubt=doubt)


def _list_few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


_POOLS = ("GlobalAveragePool", "ReduceMean")  # the two spellings of an adaptive pool to one element


def _sum(cost: Cost, value: Callable[[LayerCost], int]) -> int:
    return cost.batch_size * sum(value(layer) for layer in cost.layers)


def _norms(layer: LayerCost) -> int:
    return layer.output_elements if layer.folded_norm or layer.op == "BatchNormalization" else 0


def _global_pools(layer: LayerCost) -> int:
    """Elements that adaptive average pools read; one over single elements reads what its maker writes."""
    own = layer.input_elements if layer.op in _POOLS else 0
    return own + (layer.output_elements if layer.dropped_pool else 0)


def _adaptive_sums(layer: LayerCost) -> int:
    """Additions and the division of each output element of an adaptive average pool (thop's `count_adap_avgpool`)."""
    own = layer.input_elements + layer.output_elements if layer.op in _POOLS else 0
    return own + (2 * layer.output_elements if layer.dropped_pool else 0)


def _biases(layer: LayerCost) -> int:
    return layer.output_elements if layer.own_bias else 0


def _double_counts(layer: LayerCost) -> int:
    """What ptflops counts both in its module hook and in its patched function."""
    activations = layer.output_elements if layer.op == "Relu" else 0
    pools = layer.input_elements if layer.op in ("MaxPool", "AveragePool") else 0
    return activations + pools + _global_pools(layer)


CONVENTIONS: Mapping[str, Convention] = {
    c.name: c
    for c in (
        Convention(name="torchvision", formula="MACs", counts_norms=False, count=lambda c: c.macs, operators=None),
        Convention(
            name="fvcore",  # 0.1.5
            formula="MACs + 2 x batch norm elements + adaptive average pool inputs",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: 2 * _norms(y) + _global_pools(y)),
            operators=_CHECKED | {"AveragePool", "Clip", "LRN"},
        ),
        Convention(
            name="thop",  # 0.1.1
            formula="MACs + 4 x batch norm elements + adaptive average pool sums",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: 4 * _norms(y) + _adaptive_sums(y)),
            operators=_CHECKED | {"LRN"},
        ),
        Convention(
            name="ptflops",  # 0.7, backend aten, its default
            formula="MACs + bias additions",
            counts_norms=True,  # a folded batch norm leaves a bias that the network did not have
            count=lambda c: c.macs + _sum(c, _biases),
            operators=_CHECKED | {"AveragePool", "Clip", "LRN"},
        ),
        Convention(
            name="ptflops-pytorch",  # 0.7, backend pytorch
            formula="MACs + bias additions + 2 x batch norm elements + 2 x (ReLU outputs + pool inputs)",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: _biases(y) + 2 * _norms(y) + 2 * _double_counts(y)),
            operators=_CHECKED | {"AveragePool"},
        ),
    )
}

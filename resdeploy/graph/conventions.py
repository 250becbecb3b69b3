"""What other tools would report for the same network, so that their figures can be reconciled with ours.

Each formula was read off the tool's source and holds to the last digit on the torchvision networks in
`tests/graph/test_conventions.py`. Tools look at a torch module, we at its graph: batch norms that were folded and pools
over single elements that were dropped are remembered in our files (`metadata.Removed`). What a graph cannot tell
apart, a module from a function call, is taken to be a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from resdeploy.records import Cost, LayerCost


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One tool's way to count. `count` gives what it reports for `Cost.batch_size` images."""

    name: str
    formula: str
    counts_norms: bool
    count: Callable[[Cost], int]


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


def _doubled(layer: LayerCost) -> int:
    """What ptflops counts both in its module hook and in its patched function."""
    activations = layer.output_elements if layer.op == "Relu" else 0
    pools = layer.input_elements if layer.op in ("MaxPool", "AveragePool") else 0
    return activations + pools + _global_pools(layer)


CONVENTIONS: Mapping[str, Convention] = {
    c.name: c
    for c in (
        Convention(name="torchvision", formula="MACs", counts_norms=False, count=lambda c: c.macs),
        Convention(
            name="fvcore",  # 0.1.5
            formula="MACs + 2 x batch norm elements + adaptive average pool inputs",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: 2 * _norms(y) + _global_pools(y)),
        ),
        Convention(
            name="thop",  # 0.1.1
            formula="MACs + 4 x batch norm elements + adaptive average pool sums",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: 4 * _norms(y) + _adaptive_sums(y)),
        ),
        Convention(
            name="ptflops",  # 0.7, backend aten, its default
            formula="MACs + bias additions",
            counts_norms=True,  # a folded batch norm leaves a bias that the network did not have
            count=lambda c: c.macs + _sum(c, _biases),
        ),
        Convention(
            name="ptflops-pytorch",  # 0.7, backend pytorch
            formula="MACs + bias additions + 2 x batch norm elements + 2 x (ReLU outputs + pool inputs)",
            counts_norms=True,
            count=lambda c: c.macs + _sum(c, lambda y: _biases(y) + 2 * _norms(y) + 2 * _doubled(y)),
        ),
    )
}

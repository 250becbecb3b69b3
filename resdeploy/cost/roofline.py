"""The time that a machine's roofs allow each layer, and how much of it is used.

Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 52(4), 2009: a kernel that does
W FLOPs and moves Q bytes takes at least max(W / peak arithmetic, Q / peak bandwidth). Which of the two is larger is its
bound. Bytes are those of `graph.counts`, every tensor to and from memory once: a layer whose tensors are still in a
cache can be faster than a memory bound, and then reaches more than all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from resdeploy.records import Cost, Layer, LayerCost, LayerRoof, Peaks, Precision, Roofline


def roofline(
    cost: Cost,
    peaks: Peaks,
    precision: Precision,
    *,
    kernels_of: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    executed: Sequence[Layer] = (),
    p50_s: float | None = None,
    p50_ci95_s: tuple[float, float] | None = None,
    backend: str = "",
    valid: bool = True,
) -> Roofline:
    """A network under the roofs of one precision.

    Args:
        cost: of the network, with the batch size that is asked about.
        peaks: with a roof for that precision.
        precision: of weights, activations and arithmetic.
        kernels_of: executed kernel -> the counted layers that it computes.
        executed: the kernels of a traced run, with times.
        p50_s: of the whole network, measured without a trace.
        p50_ci95_s: its interval.
        backend: what it was measured on.
        valid: whether that measurement may be believed.
    """
    layers = {layer.name: layer for layer in cost.layers if layer.macs or layer.moved_elements}
    left = dict.fromkeys(layers)
    groups: list[tuple[tuple[str, ...], float | None]] = []
    other_s = 0.0
    for kernel in executed:
        members = tuple(name for name in kernels_of.get(kernel.name, ()) if name in left)
        if not members:
            other_s += kernel.time_s or 0.0
            continue
        groups.append((members, kernel.time_s))
        for name in members:
            del left[name]
    groups += [((name,), None) for name in left]
    order = {name: k for k, name in enumerate(layers)}
    groups.sort(key=lambda group: order[group[0][0]])
    rows = [_layer(layers, cost.batch_size, peaks, precision, *group) for group in groups]
    return Roofline(
        model=cost.model,
        batch_size=cost.batch_size,
        precision=precision,
        peaks=peaks,
        layers=tuple(rows),
        other_s=other_s if executed else None,
        p50_s=p50_s,
        p50_ci95_s=p50_ci95_s,
        backend=backend,
        unknown=len(cost.unknown),
        valid=valid,
    )


def _layer(
    layers: Mapping[str, LayerCost],
    batch_size: int,
    peaks: Peaks,
    precision: Precision,
    members: tuple[str, ...],
    measured_s: float | None,
) -> LayerRoof:
    found = [layers[name] for name in members]
    flops = 2 * batch_size * sum(layer.macs for layer in found)
    moved = sum(layer.weight_bytes(precision) + batch_size * layer.activation_bytes(precision) for layer in found)
    return LayerRoof(
        name=" + ".join(members),
        op=found[0].op,
        flops=flops,
        moved_bytes=moved,
        compute_s=flops / peaks.roofs[precision].rate,
        memory_s=moved / peaks.bandwidth.rate,
        measured_s=measured_s,
    )

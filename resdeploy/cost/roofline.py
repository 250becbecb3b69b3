"""The time that a machine's roofs allow each layer, and how much of it is used.

Williams, Waterman, Patterson, "Roofline: An Insightful Visual Performance Model", CACM 52(4), 2009: a kernel that does
W FLOPs and moves Q bytes takes at least max(W / peak arithmetic, Q / peak bandwidth). Which of the two is larger is its
bound. Bytes are those of `graph.counts`, every tensor to and from memory once: a layer whose tensors are still in a
cache can be faster than a memory bound, and then reaches more than all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resdeploy.records import Cost, Layer, LayerCost, LayerRoof, Peaks, Precision, Roofline


@dataclass(frozen=True, kw_only=True)
class TracedRun:
    """How a backend ran a network: its kernels, with the times of a trace, and its own time, without."""

    backend: str = ""
    kernels: tuple[Layer, ...] = ()
    layers_of: Mapping[str, tuple[str, ...]]  # kernel -> the counted layers that it computes
    p50_s: float | None = None
    p50_ci95_s: tuple[float, float] | None = None
    valid: bool = True  # False: the machine was disturbed


def roofline(cost: Cost, peaks: Peaks, precision: Precision, run: TracedRun | None = None) -> Roofline:
    """A network under the roofs of one precision.

    Args:
        cost: of the network, with the batch size that is asked about.
        peaks: with a roof for that precision.
        precision: of weights, activations and arithmetic.
        run: the network measured; None: what the roofs allow, alone.
    """
    run = run or TracedRun(layers_of={})
    layers = {layer.name: layer for layer in cost.layers if layer.macs or layer.moved_elements}
    rest = dict.fromkeys(layers)
    groups: list[tuple[tuple[str, ...], float | None]] = []
    other_s = 0.0
    for kernel in run.kernels:
        members = tuple(name for name in run.layers_of.get(kernel.name, ()) if name in rest)
        if not members:
            other_s += kernel.time_s or 0.0
            continue
        groups.append((members, kernel.time_s))
        for name in members:
            del rest[name]
    groups += [((name,), None) for name in rest]
    order = {name: k for k, name in enumerate(layers)}
    groups.sort(key=lambda group: order[group[0][0]])
    return Roofline(
        model=cost.model,
        batch_size=cost.batch_size,
        precision=precision,
        peaks=peaks,
        layers=tuple(
            _put_under_roofs([layers[name] for name in names], cost.batch_size, peaks, precision, time_s)
            for names, time_s in groups
        ),
        other_s=other_s if run.kernels else None,
        p50_s=run.p50_s,
        p50_ci95_s=run.p50_ci95_s,
        backend=run.backend,
        unknown=len(cost.unknown),
        valid=run.valid,
    )


def _put_under_roofs(
    layers: Sequence[LayerCost], batch_size: int, peaks: Peaks, precision: Precision, measured_s: float | None
) -> LayerRoof:
    """Layers that one kernel computes."""
    flops = 2 * batch_size * sum(layer.macs for layer in layers)
    moved = sum(layer.weight_bytes(precision) + batch_size * layer.activation_bytes(precision) for layer in layers)
    return LayerRoof(
        name=" + ".join(layer.name for layer in layers),
        op=layers[0].op,
        flops=flops,
        moved_bytes=moved,
        compute_s=flops / peaks.roofs[precision].rate,
        memory_s=moved / peaks.bandwidth.rate,
        measured_s=measured_s,
    )

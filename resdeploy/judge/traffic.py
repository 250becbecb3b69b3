"""How many kernels a model runs, and how many bytes of activations these read and write: counts, and no times.

Each kernel's tensors are counted as the runtime lists them, as often as a kernel reads or writes one; weights and other
constants are left out, and so are caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from resdeploy.records import Layer, Port

BITS = {
    "fp64": 64, "int64": 64, "fp32": 32, "int32": 32, "fp16": 16, "bf16": 16, "int16": 16, "int8": 8, "uint8": 8,
    "fp8": 8, "bool": 8, "int4": 4, "fp4": 4,
}  # fmt: skip


def kernels(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers for which something runs on the device's cores."""
    return tuple(layer for layer in layers if layer.role != "free")


def activation_bytes(layers: Sequence[Layer]) -> int | None:
    """Read and written by these layers; None where there are none, or a type or size of a tensor is not told."""
    run = kernels(layers)
    # A generated kernel of constants alone reads nothing; what writes nothing is not described.
    sizes = [_size(port) for layer in run for port in (*layer.inputs, *layer.outputs)]
    if not run or None in sizes or not all(layer.outputs for layer in run):
        return None
    return sum(size for size in sizes if size is not None)


def _size(port: Port) -> int | None:
    if port.precision not in BITS or not port.shape or min(port.shape) < 0:
        return None
    return math.ceil(math.prod(port.shape) * BITS[port.precision] / 8)

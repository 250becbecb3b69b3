"""What one inference costs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from resdeploy.vocabulary import BYTES, STRICT, Precision


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Cost of one graph node at batch 1."""

    name: str
    op: str
    params: int
    macs: int
    output_shape: tuple[int, ...]
    output_elements: int  # for one image
    biases: int = 0  # of the params, those that are vectors: no runtime keeps them in 8 bits
    input_elements: int = 0  # of the computed inputs, not of weights
    moved_elements: int = 0  # read and written where everything elementwise runs inside the kernel that feeds it
    own_bias: bool = False  # adds a bias that the original network has too
    folded_norm: bool = False  # holds a batch norm of the original network
    dropped_pool: bool = False  # the original network pools its output over windows of one element
    block: str = ""  # e.g. layer1.0
    stage: str = ""  # e.g. layer1

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes of its parameters in `precision`; with INT8 the biases are FP32 or INT32."""
        size = BYTES[precision]
        return (self.params - self.biases) * size + self.biases * (4 if precision == "int8" else size)

    def activation_bytes(self, precision: Precision) -> int:
        """Bytes read and written for one image in `precision`."""
        return self.moved_elements * BYTES[precision]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts of one inference: multiply-accumulates of convolutions and matrix products, padding taps included.

    FLOPs are 2 x MACs. Biases, BN, ReLU, pooling and additions are excluded (the convention of torchvision's "GFLOPS"
    metadata). Layers are at batch 1; the totals are those of `batch_size` images.
    """

    model: str
    params: int | None  # learnable parameters of the original module; None: the file cannot tell
    params_deployed: int  # what the graph holds
    input_shape: tuple[int, int, int]
    layers: tuple[LayerCost, ...]
    unknown: tuple[str, ...] = ()  # operators that we cannot count, by name
    norms_known: bool = True  # False: batch norms may have been folded before the file says so
    batch_size: int = 1

    @property
    def macs(self) -> int:
        return self.batch_size * sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def activations(self) -> int:
        """Output elements of convolutions and products (Radosavovic et al. 2020, arXiv:2003.13678, section 3.1)."""
        return self.batch_size * sum(layer.output_elements for layer in self.layers if layer.macs)

    def weight_bytes(self, precision: Precision) -> int:
        return sum(layer.weight_bytes(precision) for layer in self.layers)

    def activation_bytes(self, precision: Precision) -> int:
        return self.batch_size * sum(layer.activation_bytes(precision) for layer in self.layers)

    def intensity(self, precision: Precision) -> float:
        """FLOPs per byte moved (Williams et al. 2009, "Roofline")."""
        moved = self.weight_bytes(precision) + self.activation_bytes(precision)
        return self.flops / moved if moved else 0.0


@dataclass(frozen=True, kw_only=True)
class Roof:
    """One peak rate: FLOPs per second, or bytes per second."""

    __pydantic_config__ = STRICT
    rate: float
    ci95: tuple[float, float] | None = None  # None: from a data sheet, or too few blocks
    by: str = ""  # the graph and backend that reached it
    valid: bool = True


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What a machine can do at most: arithmetic in each precision, and memory."""

    __pydantic_config__ = STRICT
    name: str
    source: str
    roofs: Mapping[Precision, Roof]  # FLOPs a second; a precision that is not accelerated is absent
    bandwidth: Roof  # bytes per second
    missing: Mapping[Precision, str] = field(default_factory=dict)  # precision -> why it has no roof
    measured: bool = True  # else from a data sheet
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether every roof is reliable."""
        return all(roof.valid for roof in (*self.roofs.values(), self.bandwidth))


@dataclass(frozen=True, kw_only=True)
class LayerRoof:
    """One kernel under the roofs: a layer, or several that one kernel computes."""

    name: str
    op: str
    flops: int
    moved_bytes: int
    compute_s: float  # at the arithmetic roof
    memory_s: float  # at the bandwidth roof
    measured_s: float | None = None

    @property
    def bound(self) -> Literal["compute", "memory"]:
        return "compute" if self.compute_s >= self.memory_s else "memory"

    @property
    def allowed_s(self) -> float:
        return max(self.compute_s, self.memory_s)

    @property
    def reached(self) -> float | None:
        """The share of the roof; above 1 where its tensors came from a cache."""
        return self.allowed_s / self.measured_s if self.measured_s else None


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A network under the roofs of a machine in one precision."""

    model: str
    batch_size: int
    precision: Precision
    peaks: Peaks
    layers: tuple[LayerRoof, ...]
    other_s: float | None = None  # kernels that compute no counted layer: layout changes; None: no trace
    p50_s: float | None = None
    p50_ci95_s: tuple[float, float] | None = None
    backend: str = ""
    unknown: int = 0  # operators that could not be counted, so that no time is allowed for them
    valid: bool = True  # False: the machine was disturbed while `p50_s` was measured

    @property
    def allowed_s(self) -> float:
        """All layers after each other, each at its roof."""
        return sum(layer.allowed_s for layer in self.layers)

    @property
    def reached(self) -> float | None:
        return self.allowed_s / self.p50_s if self.p50_s else None

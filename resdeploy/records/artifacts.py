"""What is deployed and how it runs: networks, weights, files, and what a backend is told and tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from resdeploy.vocabulary import STRICT, Arithmetic, Effort, Format, Precision, Target


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns a decoded image into the network's input: resize, centre crop, scale, normalise.

    Pixels become `(value / 255 - mean) / std`, float32, channels first; with `dtype="uint8"` the model does that itself
    and is given the pixels.
    """

    __pydantic_config__ = STRICT
    size: tuple[int, int]  # height, width of the crop: the network's input
    resize: int | None = None  # target of the shorter side before the crop; None: no resizing at all
    resize_mode: Literal["shorter", "squash"] = "shorter"  # squash: both sides to `resize`, aspect lost
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    dtype: Literal["float32", "uint8"] = "float32"  # of the model's input


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Duplicates in a set of images: of equal contents one counts, and none where their labels differ."""

    __pydantic_config__ = STRICT
    again: tuple[str, ...] = ()  # `NAME is NAME`, the second of which counts; a folder's name where links lead to one
    contradicted: tuple[str, ...] = ()  # `NAME is NAME`, of different labels: none of them counts

    def __add__(self, other: Repeats) -> Repeats:
        return Repeats(again=self.again + other.again, contradicted=self.contradicted + other.contradicted)

    @property
    def notes(self) -> tuple[str, ...]:
        """In sentences what a reader of figures must know; none where everything counts."""
        kinds = (
            (self.again, "repeat", "of others: each image is counted once"),
            (self.contradicted, "image", "of several labels: left out"),
        )
        return tuple(
            f"{len(names):,} {noun}{'s' * (len(names) > 1)} {fate} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for names, noun, fate in kinds
            if names
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A description of a network, never its weights."""

    __pydantic_config__ = STRICT
    name: str  # a zoo name, `timm:NAME`, `torchvision:NAME`, `package.module:factory`, or a file's stem
    family: str
    classes: int
    input_shape: tuple[int, int, int]  # channels, height, width
    preprocessing: Preprocessing | None = None  # None: a foreign file that does not say
    labels: tuple[str, ...] = ()
    params: int | None = None  # learnable parameters of the original module, BN's gamma and beta included
    removed: tuple[str, ...] = ()  # residual blocks that were pruned away, e.g. layer1.3


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights came from: a file or URL with its hash, or `random` with its seed."""

    __pydantic_config__ = STRICT
    source: str
    sha256: str | None = None
    seed: int | None = None

    @property
    def random(self) -> bool:
        return self.source == "random"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the ranges of an INT8 model were taken from."""

    __pydantic_config__ = STRICT
    data: str  # the --calib-data argument, or "synthetic"
    count: int
    seed: int
    method: str
    fingerprint: str | None = None  # the data set's, None when synthetic
    images: tuple[str, ...] = ()  # content hashes (16 hex digits) of the images used, to find leaks into evaluation
    methods: Mapping[str, str] = field(default_factory=dict)  # tensor -> how its range was found
    effort: Effort = "normal"  # high: exact input, channels rescaled, second-order rounding
    arithmetic: Arithmetic = "fp32"  # of the network while its ranges were observed

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How like its source's a low-precision file's output is (`quantize.fidelity`)."""

    __pydantic_config__ = STRICT
    snr_db: float | None  # signal to noise, bounded; None: it could not be told
    images: int = 0  # compared on
    where: str = ""  # the layer where a lost output breaks
    why: str = ""  # it could not be told


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model file and everything known about it: the sidecar `<file>.json`.

    Nothing but the format is ever inferred from a file name.
    """

    __pydantic_config__ = STRICT
    path: str
    format: Format
    precision: Precision
    sha256: str  # of the file and its companions (.bin of OpenVINO, external data of ONNX)
    parent: str | None = None  # sha256 of what this was made from
    model: ModelSpec | None = None
    weights: Weights | None = None
    target: Target | None = None  # whose fusion rules the Q/DQ placement follows
    calibration: Calibration | None = None
    machine: str | None = None  # CPU ISA or GPU this file is tied to; None: portable
    checks: Mapping[str, float] = field(default_factory=dict)  # e.g. max_abs_error against torch float64
    notes: tuple[str, ...] = ()  # what a reader must know: kept-float layers, unfusable blocks, reduced range
    likeness: Likeness | None = None  # None: no low-precision file, or one that resdeploy did not make
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version
    layers: tuple[Layer, ...] = ()  # as its compiler listed them while it built; (): an opened model tells them


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What only TensorRT's builder is told. None: its default."""

    __pydantic_config__ = STRICT
    batch_range: tuple[int, int] | None = None  # the smallest and largest batch; None: the batch size alone
    workspace_mib: int | None = None
    level: int | None = None  # builder optimization level, 0 to 5
    tactics: tuple[str, ...] = ()  # names of tactic sources; (): all but cuBLAS and cuDNN
    version_compatible: bool = False
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    refit: bool = False
    strip: bool = False
    refit_from: str | None = None  # an engine to be given the source's weights, in place of a build
    timing_cache: str | None = None  # its file
    targets: tuple[str, ...] = ()  # GPUs to compile for, such as sm89; (): the compiler's own choice. TensorRT-RTX only


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a built model is to run. Everything a backend may depend on besides the file itself."""

    __pydantic_config__ = STRICT
    batch_size: int = 1
    threads: int | None = None  # None: the usable cores (affinity and cgroup quota)
    streams: int = 1
    hint: Literal["latency", "throughput"] = "latency"
    precision: Precision = "fp32"  # arithmetic for what the graph leaves in FP32 (OpenVINO's hint)
    input_shape: tuple[int, int, int] | None = None  # overrides a dynamic image size
    engine: EngineOptions = EngineOptions()
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"  # ONNX Runtime's
    # ONNX Runtime then keeps a second block of memory, laid out for all tensors of a run at once.
    memory_pattern: bool = True
    compiled: bool = False  # by torch.compile before running; torch only


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a backend can run here; if not, why, and the command that would change it."""

    ok: bool
    builds: bool = False  # although it cannot run here, it builds here, and tells what it built
    version: str | None = None
    reason: str = ""
    install: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Port:
    """A tensor that a kernel reads or writes, constants excluded."""

    name: str
    precision: str  # as `Precision`; other types by their own name; "unknown" where the runtime does not say
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One executed layer (kernel) of an opened model."""

    name: str
    kind: str
    precision: str  # of the arithmetic; "unknown" where the runtime does not say
    sources: tuple[str, ...] = ()  # names of the graph nodes that this kernel computes
    time_s: float | None = None
    # qdq: a Q/DQ left over as a kernel; reformat: a copy into another layout or type; free: nothing is executed.
    role: Literal["compute", "qdq", "reformat", "free"] = "compute"
    activation: bool = False  # the runtime says that an activation is part of it
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    others: tuple[Port, ...] = ()  # what it reads besides: weights, scales; as far as the runtime tells
    tactic: str = ""
    doubt: str = ""  # what the runtime says of the precision, where its kernel's own name says another

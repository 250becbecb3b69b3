"""The nouns: frozen records that verbs turn into other frozen records.

Standard library only, so that every room and every worker process can import them for free. Units live
in the names (`times_s`, `drop_pp`). Raw samples are kept; whatever can be derived from them is a
property or a function elsewhere, never a stored field. Where a record is read from disk,
`resdeploy.store` validates it with pydantic and refuses unknown keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Format = Literal["checkpoint", "onnx", "openvino", "engine"]
BackendName = Literal["tensorrt", "openvino", "onnxruntime", "torch", "null"]
Target = Literal["tensorrt", "openvino", "onnxruntime"]
Effort = Literal["normal", "high"]
# As MLPerf Inference names them; its fourth, server, would need arrivals at random times.
Scenario = Literal["single-stream", "multi-stream", "offline"]
# What a time covers: the inputs on the device already, in host memory, or in JPEG files.
Scope = Literal["compute", "host", "jpeg"]
State = Literal["pass", "fail", "inconclusive"]

# Work over two seconds reports (what, done, total); only the command line draws.
Progress = Callable[[str, int, int], None]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of one value

# pydantic reads this from a plain dataclass: unknown keys are an error, not ignored.
STRICT = {"extra": "forbid"}


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

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"


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
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version


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
    timing_cache: str | None = None  # its file


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


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether a backend can run here; if not, why, and the command that would change it."""

    ok: bool
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
    tactic: str = ""


@dataclass(frozen=True, kw_only=True)
class BlockAudit:
    """How one residual block ran. None and "unknown": the runtime does not say."""

    name: str
    fused: bool | None  # its convolutions, activations and addition took no kernel but the convolutions'
    precision: str  # in which the addition ran: the widest of the tensors that it reads and writes
    asked: str
    conv_precisions: tuple[str, ...]
    executed_as: tuple[str, ...]  # kernels in order: `layer1.0.conv2 + layer1.0.add + layer1.0.relu2 [int8]`
    reformats: tuple[str, ...] = ()  # kernels that only convert what this block reads or writes
    time_s: float | None = None
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a built model really executes, and the verdict on it."""

    subject: str
    asked: Precision
    verdict: Verdict
    blocks: tuple[BlockAudit, ...]
    layers: tuple[Layer, ...]
    superfluous: tuple[Layer, ...]  # Q/DQ kernels that a better placement does without
    notes: tuple[str, ...] = ()

    @property
    def time_s(self) -> float | None:
        """All kernels together; None where none was timed."""
        times = [layer.time_s for layer in self.layers if layer.time_s is not None]
        return math.fsum(times) if times else None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One uninterrupted stretch of queries on one lane; the unit of resampling.

    `put_s`, `run_s` and `get_s` have one entry a query: host to device, compute, device to host.
    """

    __pydantic_config__ = STRICT
    put_s: tuple[float, ...]
    run_s: tuple[float, ...]
    get_s: tuple[float, ...]
    started_s: float  # clock of the run, for drift
    wall_s: float = 0.0  # of the whole block
    device_s: tuple[float, ...] = ()  # of each run, by the device's own events where it has them
    cpu_s: float = 0.0  # CPU time of the whole process meanwhile, all its threads
    energy_j: float | None = None  # of the processor packages meanwhile, by anybody; None: not readable


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Compute times of inputs never seen before, and of one input again and again: the check for cached results."""

    __pydantic_config__ = STRICT
    fresh_s: tuple[float, ...]
    replayed_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Raw times of one model on one backend in one scenario. Statistics are derived from it."""

    __pydantic_config__ = STRICT
    label: str  # tells it from the others of its run
    model: str
    backend: BackendName
    precision: Precision
    batch_size: int
    scenario: Scenario
    sha256: str
    execution: Execution
    blocks: tuple[Block, ...]
    load_s: float = 0.0
    first_s: float = 0.0
    peak_rss_bytes: int = 0
    size_bytes: int = 0
    params: int | None = None
    macs: int | None = None
    weights: str | None = None  # `Weights.source`: a file, a URL or `random`
    calibration: str | None = None  # `Calibration.data` of an INT8 model
    settings: Mapping[str, str] = field(default_factory=dict)  # the vendor's, as it reports them itself
    notes: tuple[str, ...] = ()  # what a reader must know of the model that ran: FP16 computed in FP32
    disturbances: tuple[str, ...] = ()  # what disturbed the machine meanwhile: no speed is claimed then
    scope: Scope = "compute"
    replays: tuple[Replay, ...] = ()  # one a process


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A candidate that could not be built or measured. It is a row of the results; the others stand."""

    label: str
    model: str
    backend: BackendName
    precision: Precision
    batch_size: int
    error_code: str  # as in errors.py
    exit_status: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a `Measurement` says, derived by `measure.summary.summarise`."""

    measurement: Measurement
    latency_s: Mapping[str, float | None]  # p50 p90 p95 p99 mean std min max of the scope; None: too few samples
    end_to_end_p50_s: float  # put + run + get
    p50_ci95_s: tuple[float, float] | None  # None: too few blocks
    throughput_ips: float  # images a second
    valid: bool  # False: no speed may be claimed from it
    warnings: tuple[str, ...]
    samples_s: tuple[float, ...] = ()  # every query's time in the measurement's scope
    cpu_s_per_image: float | None = None
    energy_j_per_image: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much faster `candidate` is than `baseline`, an image, by the ratio of median times."""

    baseline: str
    candidate: str
    speedup: float  # above 1: the candidate is faster
    speedup_ci95: tuple[float, float] | None  # None: too few blocks
    valid: bool  # both measurements are

    @property
    def different(self) -> bool:
        """Whether a difference was found: both sides are valid and the interval leaves out 1 by more than 1 %.

        Two processes a side tell too little of how processes differ to call less than that a difference (criterion's
        `noise_threshold` has the same default).
        """
        if not self.valid or self.speedup_ci95 is None:
            return False
        low, high = self.speedup_ci95
        return low > 1.01 or high < 1 / 1.01


@dataclass(frozen=True, kw_only=True)
class Change:
    """One quantity of one row, in two saved results, and what may be said of its change."""

    subject: str
    quantity: str  # time an image, file size, peak memory, top-1, top-5
    unit: str  # of `before` and `after`
    before: float
    after: float
    change: float  # in `change_unit`: percent of `before`, or points
    interval: tuple[float, float] | None  # 95 %, of the change; None: it is exact, or has no model of its noise
    change_unit: Literal["%", "points"]
    finding: str  # slower, faster, bigger, smaller, less exact, more exact, no difference found, or why none


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What made predictions, besides the model file and the images: what a gate must know before it compares two."""

    __pydantic_config__ = STRICT
    weights: str = ""  # `Weights.source`: a file, a URL or `random`
    precision: str = ""
    backend: str = ""
    machine: str = ""  # processor and instruction set, or the GPU
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version
    preprocessing: Preprocessing | None = None
    calibration: Calibration | None = None  # without `methods`, which no gate asks for


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Per-image results on one data set, in the data set's order."""

    model: str
    ids: tuple[str, ...]  # () where a foreign file has none: its order is then all there is to match by
    labels: NDArray[np.int64]  # (N,)
    top: NDArray[np.int64]  # (N, min(5, classes)) class ids, best first
    logits: NDArray[np.float32] | None  # (N, classes)
    data: str
    data_fingerprint: str
    preprocessing_fingerprint: str
    sha256: str  # the artifact's
    images: tuple[str, ...] = ()  # content hashes (16 hex digits), as in Calibration.images
    unreadable: tuple[str, ...] = ()  # images that could not be decoded, never silently dropped
    classes: tuple[str, ...] = ()  # their names, by id; () where nobody told them
    origin: Origin | None = None  # None: a foreign file, which does not say


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of predictions, in percent."""

    model: str
    top1: float
    top5: float | None  # None: only one class an image is known, or there are fewer than five
    correct: int  # top-1
    total: int
    top1_ci95: tuple[float, float]  # Wilson


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Cost of one graph node at batch 1."""

    name: str
    op: str
    params: int
    macs: int
    output_shape: tuple[int, ...]
    biases: int = 0  # of the params, those that are vectors: no runtime keeps them in 8 bits
    input_elements: int = 0  # of the computed inputs, not of weights
    moved_elements: int = 0  # read and written where everything elementwise runs inside the kernel that feeds it
    own_bias: bool = False  # adds a bias that the original network has too
    folded_norm: bool = False  # holds a batch norm of the original network
    dropped_pool: bool = False  # the original network pools its output over windows of one element
    block: str = ""  # e.g. layer1.0
    stage: str = ""  # e.g. layer1

    @property
    def output_elements(self) -> int:
        return math.prod(self.output_shape)

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
        """FLOPs a byte moved (Williams et al. 2009, "Roofline")."""
        moved = self.weight_bytes(precision) + self.activation_bytes(precision)
        return self.flops / moved if moved else 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One judged quantity: what was allowed, what was seen, and how sure that is."""

    name: str
    limit: float | None
    observed: float | None
    interval: tuple[float, float] | None
    state: State
    unit: str = ""
    note: str = ""  # one sentence a person understands; for `inconclusive` what would decide


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A tuple of checks; its state is the worst of theirs, and `fail` is worse than `inconclusive`."""

    checks: tuple[Check, ...]

    @property
    def state(self) -> State:
        states = {check.state for check in self.checks}
        if "fail" in states:
            return "fail"
        return "inconclusive" if "inconclusive" in states or not states else "pass"


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One image whose predicted class changed from the baseline to the candidate."""

    image: str  # its id, such as its path in the data set; its position where the files have no ids
    label: int
    baseline: int
    candidate: int

    @property
    def effect(self) -> Literal["right to wrong", "wrong to right", "wrong to other"]:
        if self.baseline == self.label:
            return "right to wrong"
        return "wrong to right" if self.candidate == self.label else "wrong to other"


@dataclass(frozen=True, kw_only=True)
class ClassDrop:
    """What one class lost, in points of its own images."""

    label: int
    name: str  # "" where nobody told it
    images: int
    lost: int
    gained: int
    p_adjusted: float  # McNemar mid-p, corrected by Holm for the number of classes

    @property
    def drop_pp(self) -> float:
        return 100 * (self.lost - self.gained) / self.images


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a gate: which model, what it ran on, and which images it answered. "" is what nobody told."""

    name: str  # as the command line names it
    model: str
    sha256: str = ""
    weights: str = ""
    precision: str = ""
    backend: str = ""
    machine: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    data_fingerprint: str = ""
    preprocessing_fingerprint: str = ""
    images: int | None = None  # None: it was only measured


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One candidate of a gate: its verdict, and what that was drawn from."""

    candidate: Subject
    verdict: Verdict
    flips: tuple[Flip, ...] = ()
    unchanged: int | None = None  # images with the same predicted class; None: no predictions were compared
    classes: tuple[ClassDrop, ...] = ()  # the largest drop first


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a gate found: one baseline, one or more candidates."""

    baseline: Subject
    judged: tuple[Judged, ...]
    confidence: float
    notes: tuple[str, ...] = ()  # what a reader must know of the comparison: other machines, a baseline replaced

    @property
    def verdict(self) -> Verdict:
        """All checks of all candidates."""
        return Verdict(checks=tuple(check for one in self.judged for check in one.verdict.checks))


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantizing one layer, or one residual block, alone did to the logits, against the float network."""

    name: str
    kind: str  # the operator of a layer, or "block"
    layers: tuple[str, ...]  # convolutions and matrix products in it
    images: int
    changed: int  # images whose predicted class differs
    signal: float  # sum of the squared float logits
    noise: float  # sum of the squared differences

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise of the logits, in decibels; infinite without any difference."""
        return 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else math.inf


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """One candidate of the search for the fastest model within an accuracy budget."""

    label: str
    precision: Precision
    keep_float: tuple[str, ...]  # layers of an INT8 model that stay in FP32
    noise_share: float  # predicted logit noise, as a share of that with every layer in INT8
    check: Check | None = None  # of its top-1 drop; None: not judged, since a more exact one was not within the budget
    summary: Summary | None = None  # its times; None: not measured
    speedup: Comparison | None = None  # over FP32
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """What the network loses, on the images to choose on, when a block goes."""

    block: str
    divergence: float  # mean Kullback-Leibler divergence from the whole network's answers, nats
    drop_pp: float  # of top-1
    interval_pp: tuple[float, float]  # Tango, each end one-sided at the budget's confidence
    flips: int  # images that are right on one side only


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a TOML profile says. Flat, no inheritance; every field has a command-line equivalent."""

    __pydantic_config__ = STRICT
    name: str
    model: str = "resnet50"
    weights: str = "random"
    img_size: int | None = None  # input height and width; None: the model's own
    data: str | None = None
    calib_data: str | None = None  # None: the training split of `data`
    calib_samples: int = 300
    calib_method: Literal["auto", "minmax", "entropy", "percentile", "mse"] = "percentile"
    epochs: int = 0  # 0: no training
    lr: float = 0.1
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    backends: tuple[BackendName, ...] = ("openvino", "onnxruntime")
    batch_size: int = 1
    threads: int | None = None
    duration_s: float = 3.0
    max_drop_pp: float | None = None
    max_slowdown_pct: float | None = None  # of the median time, against FP32 on the same backend; may be negative
    max_size_mb: float | None = None  # of the built model
    max_memory_mb: float | None = None  # peak of the process that ran it
    seed: int = 0

"""What a benchmark saw, and what may be said of it: raw samples are fields, everything derived is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from resdeploy.errors import ResdeployError
from resdeploy.records.artifacts import Execution
from resdeploy.registered_backends import BackendName
from resdeploy.vocabulary import STRICT, Precision, Scenario, Scope


@dataclass(frozen=True, kw_only=True)
class Block:
    """One uninterrupted stretch of queries on one lane; the unit of resampling.

    `put_s`, `run_s` and `get_s` have one entry per query: host to device, compute, device to host.
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
    replays: tuple[Replay, ...] = ()  # one per process


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
    message: str  # what happened, the likely cause and the next step, in sentences

    @classmethod
    def of(
        cls,
        error: ResdeployError,
        *,
        label: str,
        model: str,
        backend: BackendName,
        precision: Precision,
        batch_size: int,
    ) -> Failure:
        """The row of a candidate that `error` kept from being measured."""
        return cls(
            label=label,
            model=model,
            backend=backend,
            precision=precision,
            batch_size=batch_size,
            error_code=error.code,
            exit_status=error.exit_status,
            message=error.paragraph,
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a `Measurement` says, derived by `measure.summary.summarise`."""

    measurement: Measurement
    latency_s: Mapping[str, float | None]  # p50 p90 p95 p99 mean std min max of the scope; None: too few samples
    end_to_end_p50_s: float  # put + run + get
    p50_ci95_s: tuple[float, float] | None  # None: too few blocks
    throughput_ips: float  # images per second
    valid: bool  # False: no speed may be claimed from it
    warnings: tuple[str, ...]
    samples_s: tuple[float, ...] = ()  # every query's time in the measurement's scope
    cpu_s_per_image: float | None = None
    energy_j_per_image: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much faster `candidate` is than `baseline`, per image, by the ratios of their turns."""

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
    quantity: str  # time per image, file size, peak memory, top-1, top-5
    unit: str  # of `before` and `after`
    before: float
    after: float
    change: float  # in `change_unit`: percent of `before`, or points
    interval: tuple[float, float] | None  # 95 %, of the change; None: it is exact, or has no model of its noise
    change_unit: Literal["%", "points"]
    finding: str  # slower, faster, bigger, smaller, less exact, more exact, no difference found, or why none

"""What a benchmark saw, and what may be said of it: raw samples are fields, everything derived is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from resdeploy.errors import ResdeployError
from resdeploy.records.artifacts import Execution
from resdeploy.registered_backends import BackendName
from resdeploy.vocabulary import EQUAL_WITHIN, STRICT, Precision, Scenario, Scope

SAME_KERNELS = "same"  # of `Comparison.kernels`
LEAST_PAIRS = 8  # of processes, to say anything of a ratio: fewer tell too little of what a restart changes


@dataclass(frozen=True, kw_only=True)
class Block:
    """One uninterrupted stretch of queries on one lane: its turn.

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
    process: int = 0  # which of the row's processes, from 0: what a restart changes all its blocks share
    others: float | None = None  # share of the usable cores that other processes took meanwhile; None: not readable
    withheld: float | None = None  # likewise what the hypervisor took, or the container's quota kept from us
    waited: float | None = None  # seconds a second that its threads were ready and had no core; None: not readable
    instructions: int | None = None  # of the whole process meanwhile, in user space; None: not readable
    cycles: int | None = None  # likewise of the processor's clock, while its threads ran


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Compute times of inputs never seen before, and of one input again and again: the check for cached results."""

    __pydantic_config__ = STRICT
    fresh_s: tuple[float, ...]
    replayed_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Executed kernels that do the same: one kind, in one precision, on tensors of the same types and shapes."""

    __pydantic_config__ = STRICT
    kind: str
    precision: str  # of the arithmetic
    reads: tuple[str, ...]  # types and shapes, sorted; "fp32 1x64x56x56"
    writes: tuple[str, ...]
    variant: str = ""  # the runtime's own name of the code, and what is fused, where it tells them apart
    count: int = 1
    example: str = ""  # a node of the file that one of them computes
    time_s: float | None = None  # of all of them in one traced query; None: not told


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
    disturbances: tuple[str, ...] = ()  # what disturbed the machine meanwhile
    scope: Scope = "compute"
    replays: tuple[Replay, ...] = ()  # one per process
    kernels: tuple[Kernels, ...] = ()  # what was executed, by a traced query after the timing; (): not known
    uncounted: str = ""  # which of the processor's counters could not be read, and why


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
    valid: bool  # False: something makes the figures wrong, and no speed may be claimed from them
    warnings: tuple[str, ...]  # those that make it invalid or unsteady included
    unsteady: tuple[str, ...] = ()  # how the times wandered: they are of this machine at that time
    samples_s: tuple[float, ...] = ()  # every query's time in the measurement's scope
    cpu_s_per_image: float | None = None
    energy_j_per_image: float | None = None
    instructions_per_image: float | None = None  # in user space, likewise the cycles; None: not readable
    cycles_per_image: float | None = None

    @property
    def steady(self) -> bool:
        """Whether its times may be taken by themselves, and not in a ratio of turns alone: a roof is such a time."""
        return self.valid and not self.unsteady


SpeedVerdict = Literal["faster", "slower", "equal", "undecided", "INVALID"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How much faster `candidate` is than `baseline`, per image, by pairs of processes that took turns."""

    baseline: str
    candidate: str
    speedup: float  # above 1: the candidate is faster
    speedup_ci95: tuple[float, float] | None  # of this run alone, had it been looked at once; None: too few pairs
    # What the verdict is read off: all looks at the growing run together miss the truth in 1 of 100 runs.
    speedup_ci99: tuple[float, float] | None = None
    cpu_ratio: float | None = None  # the candidate's CPU time per image over the baseline's; None: nothing was read
    cpu_ratio_ci99: tuple[float, float] | None = None
    instructions_ratio: float | None = None  # likewise of the instructions per image
    instructions_ratio_ci99: tuple[float, float] | None = None
    pairs: int = 0  # of processes
    equal_within: float = EQUAL_WITHIN  # the share of the time that is called no difference
    needed_s: float | None = None  # about how long the run would take in all to decide; None: no sensible time
    invalid: tuple[str, ...] = ()  # what makes the figure wrong
    kernels: str | None = None  # `SAME_KERNELS`, or what differs in a few words; None: not known

    @property
    def valid(self) -> bool:
        """Whether anything may be said of the two."""
        return not self.invalid

    @property
    def verdict(self) -> SpeedVerdict:
        """What the 99 % interval says: it leaves out 1, or lies within what is called equal, or neither yet."""
        if self.invalid:
            return "INVALID"
        if self.speedup_ci99 is None or self.pairs < LEAST_PAIRS:
            return "undecided"
        low, high = self.speedup_ci99
        if low > 1 or high < 1:
            return "faster" if low > 1 else "slower"
        return "equal" if max(high, 1 / low) <= 1 + self.equal_within else "undecided"


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

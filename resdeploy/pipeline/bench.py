"""`bench` and `cost`: which rows a run has, in which files they live, what is compared with what."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy import backends
from resdeploy.backends import choose
from resdeploy.errors import BackendCrash, OutOfMemory, ResdeployError, UsageError
from resdeploy.measure import bench as timing
from resdeploy.pipeline import make, sources
from resdeploy.pipeline.request import Request
from resdeploy.records import (
    Artifact,
    BackendName,
    Comparison,
    Cost,
    Execution,
    Failure,
    Measurement,
    Precision,
    Progress,
)

# What most users run today: every low precision that `--backend auto` measures is compared with it too.
REFERENCE: BackendName = "onnxruntime"


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """Which rows to measure, and how long."""

    precision: Precision | None = None  # None: what each model is
    backends: tuple[str, ...] = ("auto",)  # names, `auto`, or `all`
    batch_sizes: tuple[int, ...] = (1,)
    threads: int | None = None
    streams: int = 1
    duration_s: float = 3.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One built model as one row of a run; `baselines` are the labels of the rows it is compared with."""

    source: Artifact
    candidate: timing.Candidate
    baselines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The result of one interleaved run, in the order of its rows, those that could not be built first."""

    outcomes: tuple[Measurement | Failure, ...]
    comparisons: tuple[Comparison, ...]
    sources: tuple[Artifact, ...] = ()  # the files measured, before they were built

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Failure))


def costs(requests: Iterable[Request], *, progress: Progress) -> tuple[Cost, ...]:
    """Counts from the ONNX graph of each model."""
    return tuple(cost_of(make.onnx_fp32(request, progress=progress)) for request in requests)


def cost_of(artifact: Artifact) -> Cost:
    """Counts from an ONNX file."""
    from resdeploy.graph import cost, files

    assert artifact.model is not None
    return cost.count(files.load_model(Path(artifact.path)), artifact.model)


def bench(
    requests: Sequence[Request], plan: BenchPlan, calibration: make.CalibrationPlan, *, progress: Progress
) -> Bench:
    """Times every model x batch size x backend x precision, interleaved in one run.

    Raises:
        BackendMissing, UsageError: what was asked for cannot run here.
        BackendCrash, OutOfMemory: every row failed.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    for request, batch_size, (backend, precision, baselines) in itertools.product(
        requests, plan.batch_sizes, _table(plan)
    ):
        source = source_for(request, backend, precision, calibration, progress=progress)
        execution = execution_for(source, batch_size=batch_size, threads=plan.threads, streams=plan.streams)
        labels = tuple(_label(request, name, wide, batch_size) for name, wide in baselines)
        label = _label(request, backend, precision, batch_size)
        try:
            built = make.built(source, backend, execution)
        except (BackendCrash, OutOfMemory) as e:
            failures.append(failure(label, source, backend, execution, e))
            continue
        candidate = timing.Candidate(label=label, backend=backend, artifact=built, execution=execution)
        rows.append(Row(source=source, candidate=candidate, baselines=labels))
    if not rows:
        raise BackendCrash("no row could be built: " + "; ".join(f.message for f in failures))
    found = measure(rows, duration_s=plan.duration_s, seed=plan.seed, progress=progress)
    return dataclasses.replace(found, outcomes=(*failures, *found.outcomes))


def measure(rows: Sequence[Row], *, duration_s: float, seed: int, progress: Progress) -> Bench:
    """Times built rows in one interleaved run, and compares each with its baselines."""
    return compared(rows, timed(rows, duration_s=duration_s, seed=seed, progress=progress))


def timed(
    rows: Sequence[Row], *, duration_s: float, seed: int, progress: Progress
) -> tuple[Measurement | Failure, ...]:
    """Raw times of built rows from one interleaved run, with the cost of each model where its file can tell."""
    candidates = [
        dataclasses.replace(row.candidate, macs=cost_of(row.source).macs if row.source.format == "onnx" else None)
        for row in rows
    ]
    return timing.run(candidates, duration_s=duration_s, seed=seed, progress=progress)


def compared(rows: Sequence[Row], outcomes: Sequence[Measurement | Failure]) -> Bench:
    """Each row beside its baselines, where both could be measured."""
    measured = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    comparisons = tuple(
        timing.compare(measured[baseline], measured[row.candidate.label])
        for row in rows
        for baseline in row.baselines
        if baseline in measured and row.candidate.label in measured
    )
    return Bench(outcomes=tuple(outcomes), comparisons=comparisons, sources=tuple(row.source for row in rows))


def _table(plan: BenchPlan) -> list[tuple[BackendName, Precision | None, tuple[tuple[BackendName, Precision], ...]]]:
    """Backend, precision, and the rows to compare it with.

    A low precision is compared with FP32 on its own backend; where the backend was left to us, with ONNX Runtime in
    FP32 too. Without a low precision the first row is what the others are compared with.
    """
    names = _backends(plan)
    if plan.precision in (None, "fp32"):
        return [(name, plan.precision, ()) for name in names]
    reference: tuple[tuple[BackendName, Precision], ...] = ()
    if plan.backends == ("auto",) and names != (REFERENCE,) and backends.load(REFERENCE).available().ok:
        reference = ((REFERENCE, "fp32"),)
    table: list[tuple[BackendName, Precision | None, tuple[tuple[BackendName, Precision], ...]]] = [
        (name, precision, ()) for name, precision in reference
    ]
    for name in names:
        if plan.precision in backends.load(name).ACCEPTS:
            table.append((name, "fp32", reference))
            table.append((name, plan.precision, (*reference, (name, "fp32"))))
        elif plan.backends != ("all",):
            raise UsageError(f"{name} does not run {plan.precision}", fix="Leave it out of --backend")
    return table


def _label(request: Request, backend: BackendName, precision: Precision | None, batch_size: int) -> str:
    return f"{sources.stem(request.model)} {backend}{' ' + precision if precision else ''} b{batch_size}"


def failure(label: str, source: Artifact, backend: BackendName, execution: Execution, error: ResdeployError) -> Failure:
    """The row of a model that could not be built."""
    return Failure(
        label=label,
        model=source.model.name if source.model else Path(source.path).stem,
        backend=backend,
        precision=source.precision,
        batch_size=execution.batch_size,
        error_code=error.code,
        exit_status=error.exit_status,
        message=str(error),
    )


def _backends(plan: BenchPlan) -> tuple[BackendName, ...]:
    if plan.backends == ("all",):
        return tuple(name for name in backends.PREFERENCE if backends.load(name).available().ok)
    return tuple(choose.pick(name, plan.precision or "fp32")[0] for name in plan.backends)


def source_for(
    request: Request,
    backend: BackendName,
    precision: Precision | None,
    calibration: make.CalibrationPlan,
    *,
    progress: Progress,
) -> Artifact:
    """The file that `backend` builds from, in the precision asked for (None: what the model is)."""
    if sources.format_of(request.model) in ("openvino", "engine"):
        return sources.model_file(request)
    if backends.load(backend).SOURCE == "checkpoint":
        artifact = make.checkpoint(request)
        return dataclasses.replace(artifact, precision=precision or artifact.precision)
    artifact = make.onnx_fp32(request, progress=progress)
    target = make.TARGETS[backend]
    return make.lowered(artifact, precision or artifact.precision, target, calibration, progress=progress)


def execution_for(source: Artifact, *, batch_size: int, threads: int | None, streams: int = 1) -> Execution:
    """How to run `source`: what its graph leaves in FP32 runs in FP32, or in the half precision it is in."""
    assert source.model is not None
    return Execution(
        batch_size=batch_size,
        threads=threads,
        streams=streams,
        hint="latency" if streams == 1 else "throughput",
        precision="fp32" if source.precision == "int8" else source.precision,
        input_shape=source.model.input_shape,
    )

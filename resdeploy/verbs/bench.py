"""`bench`: which models are timed beside which, made ready and measured."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resdeploy import backends
from resdeploy.backends import choose, lane, machine
from resdeploy.deploy import build, calibration, candidates, model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import ResdeployError, UsageError
from resdeploy.measure import interleaved, journal, summary
from resdeploy.records import (
    Artifact,
    BackendName,
    Comparison,
    Failure,
    Measurement,
    Precision,
    Progress,
    Scenario,
    Scope,
    Summary,
    Target,
)

# What most users run today: every low precision that `--backend auto` measures is compared with it too.
REFERENCE: BackendName = "onnxruntime"


IMAGES = 64  # files that the scope `jpeg` decodes in turn; they are in the page cache after the first time


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """Which rows to measure, and how long."""

    precision: Precision | None = None  # None: what each model is
    backends: tuple[str, ...] = ("auto",)  # names, `auto`, or `all`
    batch_sizes: tuple[int, ...] = (1,)
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"  # ONNX Runtime's
    threads: tuple[int | None, ...] = (None,)
    scenario: Scenario | None = None  # None: one stream is single-stream, several are offline
    streams: int | None = None  # None: one; for offline one per core
    scope: Scope = "compute"
    data: str | None = None  # whose JPEG files the scope `jpeg` decodes
    duration_s: float = 3.0
    timeout_s: float = lane.TIMEOUT_S  # longest that one operation of a row may take: it hangs
    seed: int = 0
    journal: Path | None = None  # keeps what has been measured so far


@dataclass(frozen=True, kw_only=True)
class Row:
    """One built model as one row of a run; `baselines` are the labels of the rows it is compared with."""

    source: Artifact
    candidate: interleaved.Candidate
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


def bench(
    requests: Sequence[Request],
    plan: BenchPlan,
    calibration: calibration.CalibrationPlan,
    *,
    progress: Progress,
    watch: interleaved.Watch | None = None,
    starting: interleaved.Starting | None = None,
) -> Bench:
    """Times every model x batch size x threads x backend x precision, interleaved in one run; what fails is a row too.

    Raises:
        BackendMissing, UsageError: what was asked for cannot run here.
        ResdeployError: every row failed; of the first one's class.
    """
    images = _images(plan)
    rows: list[Row] = []
    failures: list[Failure] = []
    errors: list[ResdeployError] = []
    names = _names(requests)
    for request, batch_size, threads in itertools.product(
        dict.fromkeys(requests), dict.fromkeys(plan.batch_sizes), dict.fromkeys(plan.threads)
    ):
        sized = f"b{batch_size}" + (f" t{threads}" if len(set(plan.threads)) > 1 else "")
        for backend, precision, baselines in _table(request, plan):
            label, *others = (
                f"{names[request]} {name}{' ' + wide if wide else ''} {sized}"
                for name, wide in ((backend, precision), *baselines)
            )
            try:
                row = _row(request, backend, precision, (batch_size, threads), label, plan, calibration, progress)
            except UsageError:
                raise
            except ResdeployError as e:
                errors.append(e)
                failures.append(_failure(label, request, backend, precision, batch_size, e))
            else:
                # Without a low precision the first row is what the others are compared with.
                first = () if baselines or not rows else (rows[0].candidate.label,)
                candidate = dataclasses.replace(row.candidate, images=images)
                rows.append(dataclasses.replace(row, candidate=candidate, baselines=(*others, *first)))
    if not rows:
        raise errors[0]
    with journal.keeping(plan.journal, failures) as keep:
        outcomes = time_rows(
            rows,
            duration_s=plan.duration_s,
            seed=plan.seed,
            progress=progress,
            watch=_both(keep, watch),
            starting=starting,
            timeout_s=plan.timeout_s,
        )
        found = compare_rows(rows, outcomes)
    return dataclasses.replace(found, outcomes=(*failures, *found.outcomes))


def _both(first: interleaved.Watch | None, second: interleaved.Watch | None) -> interleaved.Watch:
    def watch(outcome: Measurement | Failure, done: int, total: int) -> None:
        for tell in (first, second):
            if tell is not None:
                tell(outcome, done, total)

    return watch


def _images(plan: BenchPlan) -> tuple[Path, ...]:
    """Files to decode, for the scope `jpeg`.

    Raises:
        UsageError: the data are no files.
    """
    if plan.scope != "jpeg":
        return ()
    from resdeploy.data import datasets

    if plan.data is None:
        raise UsageError("timing from JPEG files needs files", fix="Add --data FOLDER")
    items = datasets.open_dataset(plan.data, need_labels=False).items
    files = [item for item in items if isinstance(item, Path)] if isinstance(items, tuple) else []
    found = tuple(path for path in files if path.suffix.lower() in (".jpg", ".jpeg"))[:IMAGES]
    if not found:
        raise UsageError(f"{plan.data} holds no JPEG files", fix="Name a folder in ImageFolder layout")
    return found


def summaries(outcomes: Iterable[Measurement | Failure]) -> tuple[Summary | Failure, ...]:
    """Every outcome as it is reported."""
    return tuple(o if isinstance(o, Failure) else summary.summarise(o) for o in outcomes)


def _names(requests: Sequence[Request]) -> dict[Request, str]:
    """A name for each model: its stem, or all that was typed where stems are equal."""
    stems = [model_string.stem(request.model) for request in dict.fromkeys(requests)]
    return {
        request: stem if stems.count(stem) == 1 else request.model
        for request, stem in zip(dict.fromkeys(requests), stems, strict=True)
    }


def _row(
    request: Request,
    backend: BackendName,
    precision: Precision | None,
    size: tuple[int, int | None],
    label: str,
    plan: BenchPlan,
    calibration: calibration.CalibrationPlan,
    progress: Progress,
) -> Row:
    on_tensorrt = backend == "onnxruntime" and plan.provider == "tensorrt"
    target: Target | None = "tensorrt" if on_tensorrt else None
    source = candidates.source_for(request, backend, precision, calibration, target=target, progress=progress)
    batch_size, threads = size
    streams = plan.streams or ((threads or machine.usable_cores()) if plan.scenario == "offline" else 1)
    execution = candidates.execution_for(source, batch_size=batch_size, threads=threads, streams=streams)
    if backend == "onnxruntime":
        execution = dataclasses.replace(execution, provider=plan.provider)
    candidate = interleaved.Candidate(
        label=label,
        backend=backend,
        artifact=build.build(source, backend, execution),
        execution=execution,
        macs=candidates.cost_of(source).macs if source.format == "onnx" else None,
        scenario=plan.scenario,
        scope=plan.scope,
    )
    return Row(source=source, candidate=candidate, baselines=())


def _failure(
    label: str,
    request: Request,
    backend: BackendName,
    precision: Precision | None,
    batch_size: int,
    error: ResdeployError,
) -> Failure:
    return Failure(
        label=label,
        model=request.model,
        backend=backend,
        precision=precision or "fp32",
        batch_size=batch_size,
        error_code=error.code,
        exit_status=error.exit_status,
        message=str(error),
    )


def time_rows(
    rows: Sequence[Row],
    *,
    duration_s: float,
    seed: int,
    progress: Progress,
    watch: interleaved.Watch | None = None,
    starting: interleaved.Starting | None = None,
    timeout_s: float = lane.TIMEOUT_S,
) -> tuple[Measurement | Failure, ...]:
    """Raw times of built rows from one interleaved run."""
    return interleaved.run(
        [row.candidate for row in rows],
        duration_s=duration_s,
        seed=seed,
        progress=progress,
        watch=watch,
        starting=starting,
        open_lane=functools.partial(lane.Lane, timeout_s=timeout_s),
    )


def compare_rows(rows: Sequence[Row], outcomes: Sequence[Measurement | Failure]) -> Bench:
    """Each row beside its baselines, where both could be measured."""
    measured = {outcome.label: outcome for outcome in outcomes if isinstance(outcome, Measurement)}
    comparisons = tuple(
        summary.compare(measured[baseline], measured[row.candidate.label])
        for row in rows
        for baseline in row.baselines
        if baseline in measured and row.candidate.label in measured
    )
    return Bench(outcomes=tuple(outcomes), comparisons=comparisons, sources=tuple(row.source for row in rows))


Baseline = tuple[BackendName, Precision]


def _table(request: Request, plan: BenchPlan) -> list[tuple[BackendName, Precision | None, tuple[Baseline, ...]]]:
    """Backend, precision, and the rows to compare it with.

    A low precision is compared with FP32 on its own backend; where the backend was left to us, with ONNX Runtime in
    FP32 too.
    """
    names = _backends(request, plan)
    if plan.precision in (None, "fp32"):
        return [(name, plan.precision, ()) for name in names]
    reference: tuple[Baseline, ...] = ()
    if plan.backends == ("auto",) and names != (REFERENCE,) and backends.load(REFERENCE).available().ok:
        reference = ((REFERENCE, "fp32"),)
    table: list[tuple[BackendName, Precision | None, tuple[Baseline, ...]]] = [
        (name, precision, ()) for name, precision in reference
    ]
    for name in names:
        if plan.precision in backends.load(name).ACCEPTS:
            table.append((name, "fp32", reference))
            table.append((name, plan.precision, (*reference, (name, "fp32"))))
        elif plan.backends != ("all",):
            raise UsageError(f"{name} does not run {plan.precision}", fix="Leave it out of --backend")
    return table


def _backends(request: Request, plan: BenchPlan) -> tuple[BackendName, ...]:
    if plan.backends != ("all",):
        picked = (choose.pick(name, plan.precision or "fp32")[0] for name in plan.backends)
        return tuple(dict.fromkeys(picked))
    able = (name for name in backends.PREFERENCE if backends.load(name).available().ok)
    return tuple(name for name in able if model_string.can_give(request, backends.load(name).SOURCE))

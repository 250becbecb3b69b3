"""`bench`: which models are timed beside which, made ready and measured."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resdeploy import backends
from resdeploy.backends import choose, lane
from resdeploy.deploy import candidates, model_string
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import ForeignName, Request, ZooName
from resdeploy.errors import BackendMissing, ResdeployError, UsageError, refuse
from resdeploy.measure import interleaved, journal, lull, one_run
from resdeploy.records import (
    BackendName,
    Failure,
    Measurement,
    Precision,
    Progress,
    Scenario,
    Scope,
    Target,
)
from resdeploy.registered_backends import PREFERENCE
from resdeploy.verbs import float_fallback
from resdeploy.vocabulary import EQUAL_WITHIN, MAX_TIME_S

# What most users run today: every low precision that `--backend auto` measures is compared with it too.
REFERENCE: BackendName = "onnxruntime"
IMAGES = 64  # files that the scope `jpeg` decodes in turn; they are in the page cache after the first time

Baseline = tuple[BackendName, Precision]


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
    max_time_s: float = MAX_TIME_S  # longest that one comparison may take
    equal_within: float = EQUAL_WITHIN  # the share of the time that is called no difference
    timeout_s: float = lane.TIMEOUT_S  # longest that one operation of a row may take: it hangs
    wait_quiet_s: float | None = None  # longest that a quiet machine is waited for; None: not at all
    seed: int = 0
    journal: Path | None = None  # keeps what has been measured so far


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One row that is asked for, whose file is still to be made."""

    request: Request
    backend: BackendName
    precision: Precision | None  # None: what the model is
    batch_size: int
    threads: int | None
    label: str
    baselines: tuple[str, ...]  # labels of the rows that it is compared with


def bench(
    requests: Sequence[Request],
    plan: BenchPlan,
    calibration: CalibrationPlan,
    *,
    progress: Progress,
    watch: interleaved.Watch | None = None,
    starting: interleaved.Starting | None = None,
) -> one_run.Bench:
    """Times every model x batch size x threads x backend x precision, interleaved in one run; what fails is a row too.

    Raises:
        BackendMissing, UsageError: what was asked for cannot run here.
        ResdeployError: every row failed; of the first one's class.
    """
    _refuse_contradictions(plan)
    refuse_twice(requests)
    images = _images(plan)
    rows: list[one_run.Row] = []
    made: list[_Cell] = []
    failures: list[Failure] = []
    errors: list[ResdeployError] = []
    for cell in _cells(requests, plan):
        try:
            row = _row(cell, images, plan, calibration, progress)
        except UsageError:
            raise
        except ResdeployError as e:
            errors.append(e)
            failures.append(_failure(cell, e))
        else:
            rows.append(dataclasses.replace(row, baselines=cell.baselines or _most_like(cell, made)))
            made.append(cell)
    if not rows and not errors:
        raise BackendMissing(
            f"no backend here runs {', '.join(request.model for request in requests)}"
            + (f" in {plan.precision}" if plan.precision else ""),
            fix="Name one with --backend, to be told what it lacks",
        )
    if not rows:
        raise errors[0]
    # Here, not before: making the rows takes minutes, in which a machine does not stay as it was.
    waited = () if plan.wait_quiet_s is None else (lull.wait(plan.wait_quiet_s, progress=progress).note,)
    with journal.open_journal(plan.journal, failures) as keep:
        outcomes = one_run.time_rows(
            rows,
            interleaved.Schedule(duration_s=plan.duration_s, seed=plan.seed, max_time_s=plan.max_time_s),
            interleaved.Listener(progress=progress, watch=_both(keep, watch), starting=starting),
            equal_within=plan.equal_within,
            timeout_s=plan.timeout_s,
        )
        comparison = one_run.compare_rows(rows, outcomes, equal_within=plan.equal_within)
    return dataclasses.replace(comparison, outcomes=(*failures, *comparison.outcomes), notes=waited)


def _most_like(cell: _Cell, others: Sequence[_Cell]) -> tuple[str, ...]:
    """Of earlier rows the label of the one with which a row is compared: what differs least, then what came first.

    So another model is compared on the same backend at the same batch size, and not everything with the first row.
    """

    def likeness(other: _Cell) -> int:
        ours, its = ((one.request, one.backend, one.batch_size, one.threads) for one in (cell, other))
        return sum(a == b for a, b in zip(ours, its, strict=True))

    return (max(others, key=likeness).label,) if others else ()


def _both(first: interleaved.Watch | None, second: interleaved.Watch | None) -> interleaved.Watch:
    def watch(outcome: Measurement | Failure, done: int, total: int) -> None:
        for tell in (first, second):
            if tell is not None:
                tell(outcome, done, total)

    return watch


def _refuse_contradictions(plan: BenchPlan) -> None:
    """Refuses options that do not go together, before any work.

    Raises:
        UnknownName: no such backend.
        UsageError: a scope without its files; a backend that does not run the precision.
    """
    named = [name for name in plan.backends if name not in ("auto", "all")]
    refuse(
        (plan.scope == "jpeg" and plan.data is None, "timing from JPEG files needs files", "Add --data FOLDER"),
        (
            plan.provider != "cpu" and not _heeds_provider(plan),
            "--provider is ONNX Runtime's, and --backend names others",
            "Add --backend onnxruntime, or leave --provider out",
        ),
        *(choose.unable(name, plan.precision) for name in named if plan.precision is not None),
    )


def _heeds_provider(plan: BenchPlan) -> bool:
    """Whether a backend among those asked for, or that may be picked, has providers."""
    heeding = {name for name in PREFERENCE if "provider" in backends.load(name).HEEDS}
    return bool({"all", *heeding} & set(plan.backends))


def refuse_twice(requests: Sequence[Request]) -> None:
    """One model named twice is a slip: the row of the one would be the row of the other.

    Raises:
        UsageError: a name, or a file under any of its paths, stands there twice.
    """
    seen: dict[object, str] = {}
    problems = []
    for request in requests:
        named = request.named
        what = request.model if isinstance(named, (ZooName, ForeignName)) else named.path.resolve()
        if what in seen:
            other = seen[what]
            also = "named twice" if other == request.model else f"the file {other}, which is named too"
            problems.append(
                (True, f"{request.model} is {also}", "Name it once; a copy under another name is a row of its own")
            )
        seen[what] = request.model
    refuse(*problems)


def _images(plan: BenchPlan) -> tuple[Path, ...]:
    """Files to decode, for the scope `jpeg`.

    Raises:
        UsageError: the data are no files.
    """
    if plan.scope != "jpeg":
        return ()
    from resdeploy.data import datasets

    assert plan.data is not None
    items = datasets.open_dataset(plan.data, need_labels=False).items
    files = [item for item in items if isinstance(item, Path)] if isinstance(items, tuple) else []
    photographs = tuple(path for path in files if path.suffix.lower() in (".jpg", ".jpeg"))[:IMAGES]
    if not photographs:
        raise UsageError(f"{plan.data} holds no JPEG files", fix="Name a folder in ImageFolder layout")
    return photographs


def _cells(requests: Sequence[Request], plan: BenchPlan) -> Iterator[_Cell]:
    """Every model x batch size x threads x backend x precision."""
    names = model_string.names(requests)
    for request, batch_size, threads in itertools.product(
        dict.fromkeys(requests), dict.fromkeys(plan.batch_sizes), dict.fromkeys(plan.threads)
    ):
        sized = f"b{batch_size}" + (f" t{threads}" if len(set(plan.threads)) > 1 else "")
        for backend, precision, baselines in _table(request, plan):
            label, *others = (
                f"{names[request]} {name}{' ' + wide if wide else ''} {sized}"
                for name, wide in ((backend, precision), *baselines)
            )
            yield _Cell(
                request=request,
                backend=backend,
                precision=precision,
                batch_size=batch_size,
                threads=threads,
                label=label,
                baselines=tuple(others),
            )


def _row(
    cell: _Cell, images: tuple[Path, ...], plan: BenchPlan, calibration: CalibrationPlan, progress: Progress
) -> one_run.Row:
    """The cell's file, made and built."""
    backend, threads = cell.backend, cell.threads
    has_providers = "provider" in backends.load(backend).HEEDS
    target: Target | None = "tensorrt" if has_providers and plan.provider == "tensorrt" else None
    source = candidates.source_for(cell.request, backend, cell.precision, calibration, target=target, progress=progress)
    streams = candidates.streams_of(plan.scenario, plan.streams, threads)
    execution = candidates.execution_for(source, batch_size=cell.batch_size, threads=threads, streams=streams)
    if has_providers:
        execution = dataclasses.replace(execution, provider=plan.provider)
    candidate = dataclasses.replace(
        candidates.candidate(source, backend, label=cell.label, execution=execution),
        macs=candidates.cost_of(source).macs if source.format == "onnx" else None,
        scenario=plan.scenario,
        scope=plan.scope,
        images=images,
    )
    float_fallback.warn(source, candidate)
    return one_run.Row(source=source, candidate=candidate, baselines=cell.baselines)


def _failure(cell: _Cell, error: ResdeployError) -> Failure:
    return Failure.of(
        error,
        label=cell.label,
        model=cell.request.model,
        backend=cell.backend,
        precision=cell.precision or "fp32",
        batch_size=cell.batch_size,
    )


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
    return table


def _backends(request: Request, plan: BenchPlan) -> tuple[BackendName, ...]:
    if plan.backends != ("all",):
        return tuple(dict.fromkeys(candidates.pick_backend(request, name, plan.precision) for name in plan.backends))
    able = (name for name in PREFERENCE if backends.load(name).available().ok)
    return tuple(name for name in able if request.can_give(backends.load(name).SOURCE))

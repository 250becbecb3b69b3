"""`cost --roofline`: networks under the roofs of this machine or of a GPU, beside what was measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resdeploy.backends import choose
from resdeploy.backends.lane import Lane
from resdeploy.cost import gpus, peaks, roofline
from resdeploy.deploy import build, candidates, export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UnknownName, UsageError
from resdeploy.measure import interleaved, summary
from resdeploy.records import (
    PRECISIONS,
    Artifact,
    Cost,
    Failure,
    Layer,
    Measurement,
    Peaks,
    Precision,
    Progress,
    Roofline,
)
from resdeploy.verbs.bench import BenchPlan

MACHINE = "machine"
TRACED_S = 1.0  # of traced queries, so that the cold first one does not weigh in the means


def roofs(name: str, *, refresh: bool, progress: Progress) -> Peaks:
    """The roofs of this machine, or of a GPU by its name.

    Raises:
        UnknownName: no such GPU.
    """
    if name == MACHINE:
        return peaks.of_this_machine(refresh=refresh, progress=progress)
    refuse_unknown(name)
    return gpus.GPUS[name]


def refuse_unknown(name: str) -> None:
    """Raises UnknownName unless `roofs` knows the machine."""
    if name != MACHINE and name not in gpus.GPUS:
        raise UnknownName(f"no roofs are known of {name!r}", fix=f"Name one of: {MACHINE}, {', '.join(gpus.GPUS)}")


def time_under_roofs(
    requests: Sequence[Request],
    found: Peaks,
    precisions: Sequence[Precision],
    plan: BenchPlan,
    *,
    measured: bool,
    progress: Progress,
) -> tuple[Roofline, ...]:
    """Every model x batch size x precision under the roofs.

    Args:
        requests: the models.
        found: the roofs.
        precisions: asked for; none: what a model is in already, else all that have a roof.
        plan: batch sizes, backend and duration.
        measured: whether to time the networks here, kernel by kernel too.
        progress: told what is being done.

    Raises:
        UsageError: a precision without a roof was asked for, or a GPU's roofs beside a measurement here.
        ResdeployError: a network could not be timed.
    """
    if measured and not found.measured:
        raise UsageError(f"what is measured here says nothing of {found.name}", fix="Use --roofline machine")
    for precision in precisions:
        if precision not in found.roofs:
            why = found.missing.get(precision, "nobody gives a figure")
            raise UsageError(f"{found.name} has no roof in {precision}: {why}", fix=f"It has {', '.join(found.roofs)}")
    if measured:
        return _measure(requests, found, precisions, plan, progress)
    rows = []
    for request in requests:
        source = export.to_onnx(request, progress=progress)
        cost = candidates.cost_of(source)
        for size in plan.batch_sizes:
            sized = dataclasses.replace(cost, batch_size=size)
            rows += [roofline.roofline(sized, found, p) for p in _asked(source, found, precisions)]
    return tuple(rows)


def _asked(source: Artifact, found: Peaks, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    if precisions:
        return tuple(precisions)
    if source.precision != "fp32" and source.precision in found.roofs:
        return (source.precision,)
    return tuple(p for p in PRECISIONS if p in found.roofs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    source: Artifact
    cost: Cost
    precision: Precision
    candidate: interleaved.Candidate


def _measure(
    requests: Sequence[Request],
    found: Peaks,
    precisions: Sequence[Precision],
    plan: BenchPlan,
    progress: Progress,
) -> tuple[Roofline, ...]:
    """Times of the networks from one interleaved run, then of their kernels from a traced one each."""
    rows: list[_Row] = []
    calibration = CalibrationPlan(seed=plan.seed)
    for request in requests:
        first = export.to_onnx(request, progress=progress)
        for precision in _asked(first, found, precisions):
            backend = choose.pick(plan.backends[0], precision)[0]
            source = candidates.source_for(request, backend, precision, calibration, progress=progress)
            cost = candidates.cost_of(source)
            for size in plan.batch_sizes:
                execution = candidates.execution_for(source, batch_size=size, threads=plan.threads[0])
                candidate = interleaved.Candidate(
                    label=f"{request.model} {precision} b{size}",
                    backend=backend,
                    artifact=build.build(source, backend, execution),
                    execution=execution,
                )
                sized = dataclasses.replace(cost, batch_size=size)
                rows.append(_Row(source=source, cost=sized, precision=precision, candidate=candidate))
    outcomes = interleaved.run(
        [row.candidate for row in rows],
        interleaved.Schedule(duration_s=plan.duration_s),
        interleaved.Listener(progress=progress),
    )
    return tuple(_place(row, outcome, found) for row, outcome in zip(rows, outcomes, strict=True))


def _place(row: _Row, outcome: Measurement | Failure, found: Peaks) -> Roofline:
    summed = summary.summarise(interleaved.measurement_or_raise(outcome))
    executed = _trace(row.candidate)
    return roofline.roofline(
        row.cost,
        found,
        row.precision,
        kernels_of=_nodes_of(executed, row.source),
        executed=executed,
        p50_s=summed.latency_s["p50"],
        p50_ci95_s=summed.p50_ci95_s,
        backend=row.candidate.backend,
        valid=summed.valid,
    )


def _trace(candidate: interleaved.Candidate) -> tuple[Layer, ...]:
    with Lane(candidate.backend) as lane:
        lane.open(candidate.artifact, candidate.execution, trace=True)
        lane.block(5, warmup=2, seconds=TRACED_S)
        return lane.layers()


def _nodes_of(executed: Sequence[Layer], source: Artifact) -> dict[str, tuple[str, ...]]:
    """Executed kernel -> the graph's nodes that it computes."""
    from resdeploy.graph import files, intent

    meant = intent.of(files.load_model(Path(source.path)))
    before = intent.began_with(meant)
    return {
        layer.name: intent.computed(layer.sources, meant, before, convolves="conv" in layer.kind.lower())
        for layer in executed
        if layer.role == "compute"
    }

"""`cost --roofline`: networks under the roofs of this machine or of a GPU, beside what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resdeploy.backends import choose
from resdeploy.cost.roofline import TracedRun, roofline
from resdeploy.deploy import candidates, executed, export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import refuse
from resdeploy.graph import files, intent
from resdeploy.measure import interleaved, summary
from resdeploy.records import PRECISIONS, Artifact, Cost, Layer, Peaks, Precision, Progress, Roofline, Summary
from resdeploy.verbs.bench import BenchPlan

TRACED_S = 1.0  # of traced queries, so that the cold first one does not weigh in the means


def put_under_roofs(
    sources: Sequence[tuple[Cost, Precision]],
    peaks: Peaks,
    precisions: Sequence[Precision],
    plan: BenchPlan,
) -> tuple[Roofline, ...]:
    """What the roofs allow every model x batch size x precision; nothing is run.

    Args:
        sources: the models' counts, and the precisions that they are in.
        peaks: the roofs.
        precisions: asked for; none: what a model is in already, else all that have a roof.
        plan: the batch sizes.

    Raises:
        UsageError: a precision without a roof was asked for.
    """
    refuse(*missing_roofs(peaks, precisions))
    rooflines: list[Roofline] = []
    for cost, own in sources:
        for size in plan.batch_sizes:
            sized = replace(cost, batch_size=size)
            rooflines += [roofline(sized, peaks, p) for p in _choose_precisions(own, peaks, precisions)]
    return tuple(rooflines)


def time_under_roofs(
    requests: Sequence[Request],
    peaks: Peaks,
    precisions: Sequence[Precision],
    plan: BenchPlan,
    *,
    progress: Progress,
) -> tuple[Roofline, ...]:
    """As `put_under_roofs`, with times: of the networks from one interleaved run, then of their kernels from traces.

    Raises:
        UsageError: a precision without a roof was asked for, or the roofs are not of this machine.
        ResdeployError: a network could not be timed.
    """
    refuse(
        (not peaks.measured, f"what is measured here says nothing of {peaks.name}", "Use --roofline machine"),
        *missing_roofs(peaks, precisions),
    )
    rows: list[_Row] = []
    for request in requests:
        original = export.to_onnx(request, progress=progress)
        for precision in _choose_precisions(original.precision, peaks, precisions):
            rows += _build(request, precision, plan, progress)
    outcomes = interleaved.run(
        [row.candidate for row in rows],
        interleaved.Schedule(duration_s=plan.duration_s),
        interleaved.Listener(progress=progress),
    )
    rooflines = []
    for row, outcome in zip(rows, outcomes, strict=True):
        run = _trace(row, summary.summarise(interleaved.measurement_or_raise(outcome)))
        rooflines.append(roofline(row.cost, peaks, row.precision, run))
    return tuple(rooflines)


def missing_roofs(peaks: Peaks, precisions: Sequence[Precision]) -> list[tuple[object, str, str]]:
    """What `refuse` is told of precisions that have no roof."""
    return [
        (
            precision not in peaks.roofs,
            f"{peaks.name} has no roof in {precision}: {peaks.missing.get(precision, 'nobody gives a figure')}",
            f"It has {', '.join(peaks.roofs)}",
        )
        for precision in precisions
    ]


def _choose_precisions(own: Precision, peaks: Peaks, asked: Sequence[Precision]) -> tuple[Precision, ...]:
    if asked:
        return tuple(asked)
    if own != "fp32" and own in peaks.roofs:
        return (own,)
    return tuple(p for p in PRECISIONS if p in peaks.roofs)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A network to time."""

    source: Artifact
    cost: Cost
    precision: Precision
    candidate: interleaved.Candidate


def _build(request: Request, precision: Precision, plan: BenchPlan, progress: Progress) -> list[_Row]:
    """The network in one precision at each batch size."""
    backend, _ = choose.pick(plan.backends[0], precision)
    source = candidates.source_for(request, backend, precision, CalibrationPlan(seed=plan.seed), progress=progress)
    cost = candidates.cost_of(source)
    rows = []
    for size in plan.batch_sizes:
        label = f"{request.model} {precision} b{size}"
        candidate = candidates.candidate(source, backend, label=label, batch_size=size, threads=plan.threads[0])
        sized = replace(cost, batch_size=size)
        rows.append(_Row(source=source, cost=sized, precision=precision, candidate=candidate))
    return rows


def _trace(row: _Row, timing: Summary) -> TracedRun:
    """The network's kernels from a traced run, beside its time from one without."""
    candidate = row.candidate
    kernels = executed.layers_of(candidate, 5, warmup=2, seconds=TRACED_S)
    return TracedRun(
        backend=candidate.backend,
        kernels=kernels,
        layers_of=_layers_of(kernels, row.source),
        p50_s=timing.latency_s["p50"],
        p50_ci95_s=timing.p50_ci95_s,
        valid=timing.steady,
    )


def _layers_of(kernels: Sequence[Layer], source: Artifact) -> dict[str, tuple[str, ...]]:
    """Kernel -> the graph's nodes that it computes."""
    graph_intent = intent.of(files.load_model(Path(source.path)))
    before = intent.kernel_starts(graph_intent)
    return {
        kernel.name: intent.computed_nodes(
            kernel.sources, graph_intent, before, convolves="conv" in kernel.kind.lower()
        )
        for kernel in kernels
        if kernel.role == "compute"
    }

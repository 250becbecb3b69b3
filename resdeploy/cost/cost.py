"""`cost`: counts of networks and files; beside them other tools' counts, other networks, and the roofs of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdeploy import external
from resdeploy.cost import conventions, counterfactuals, peaks, under_roofs
from resdeploy.cost.conventions import ToolCount
from resdeploy.cost.counterfactuals import BasicCounterfactual, NaiveCounterfactual
from resdeploy.deploy import export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError, refuse
from resdeploy.graph import counts, files
from resdeploy.measure.one_run import Bench
from resdeploy.records import Cost, ModelSpec, Peaks, Precision, Progress, Roofline
from resdeploy.verbs.bench import BenchPlan, bench

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """What to put beside the counts."""

    convention: str | None = None  # of another tool
    against: Literal["basic", "naive"] | None = None  # the same networks without 1x1 convolutions
    machine: str | None = None  # whose roofs; None: no roofs
    precisions: tuple[Precision, ...] = ()  # under those roofs; (): all that have one
    refresh: bool = False  # measure this machine's roofs again
    measured: bool = False  # time the networks: under this machine's roofs, else beside their counterparts
    timing: BenchPlan = field(default_factory=BenchPlan)  # the batch sizes counted, too


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """The counts, and what was asked for beside them; what was not is empty or None."""

    costs: tuple[Cost, ...]  # a network at a batch size each
    tool_counts: tuple[ToolCount, ...] = ()  # one per cost
    basic: tuple[BasicCounterfactual, ...] = ()  # one per network, as the next
    naive: tuple[NaiveCounterfactual, ...] = ()
    timing: Bench | None = None  # a network and its counterparts of basic blocks
    peaks: Peaks | None = None
    rooflines: tuple[Roofline, ...] = ()  # a network at a batch size in a precision each


def cost(requests: Sequence[Request], plan: CostPlan, *, progress: Progress) -> CostReport:
    """Counts from the ONNX graph of each model at each batch size, and what else the plan asks for.

    Raises:
        UsageError: options that do not go together, a precision without a roof, or no counterparts.
        UnknownName: no such machine.
        ResdeployError: a network could not be timed.
    """
    _refuse_contradictions(requests, plan)
    sources = [_open(request, plan, progress) for request in requests]
    report = CostReport(
        costs=tuple(replace(s.cost, batch_size=size) for s in sources for size in plan.timing.batch_sizes)
    )
    if plan.machine is not None:
        threads = (
            plan.timing.threads[0] if plan.measured else None
        )  # a network is held against roofs of its own threads
        roofs = peaks.of_machine(plan.machine, refresh=plan.refresh, threads=threads, progress=progress)
        rooflines = (
            under_roofs.time_under_roofs(requests, roofs, plan.precisions, plan.timing, progress=progress)
            if plan.measured
            else under_roofs.put_under_roofs(
                [(s.cost, s.precision) for s in sources], roofs, plan.precisions, plan.timing
            )
        )
        report = replace(report, peaks=roofs, rooflines=rooflines)
    if plan.against == "basic":
        report = replace(report, basic=tuple(counterfactuals.compare_basic_blocks(s.graph, s.spec) for s in sources))
    if plan.against == "naive":
        report = replace(report, naive=tuple(counterfactuals.compare_naive_modules(s.graph, s.spec) for s in sources))
    if plan.measured and plan.machine is None:
        report = replace(report, timing=time_counterfactuals(requests[0], plan.timing, progress=progress))
    if plan.convention is not None:
        convention = conventions.CONVENTIONS[plan.convention]
        report = replace(report, tool_counts=tuple(map(convention.apply, report.costs)))
    return report


def _refuse_contradictions(requests: Sequence[Request], plan: CostPlan) -> None:
    """Finds options that do not go together before any network is made.

    Raises:
        UsageError: they do not, or a GPU has no roof in a precision.
        UnknownName: no such machine.
    """
    roofs, measured, refresh = plan.machine is not None, plan.measured, plan.refresh
    gpu = None
    if plan.machine is not None:
        peaks.refuse_unknown(plan.machine)
        gpu = peaks.of_machine(plan.machine) if plan.machine != peaks.MACHINE else None
    refuse(
        *(
            (
                gpu is not None and value,
                f"{option} measures this machine, which says nothing of {plan.machine}",
                "Use --roofline machine",
            )
            for option, value in (("--measure", measured), ("--refresh", refresh))
        ),
        *(under_roofs.missing_roofs(gpu, plan.precisions) if gpu is not None else ()),
        (
            roofs and measured and plan.against == "basic",
            "--measure times a network beside networks of basic blocks, or under its roofs, and not both at once",
            "Ask for --against basic --measure and for --roofline machine --measure in two commands",
        ),
        *(
            (not roofs and value, f"{option} belongs to --roofline", "Add --roofline machine")
            for option, value in (("--refresh", refresh), ("--precision", plan.precisions))
        ),
        (
            not roofs and measured and (plan.against != "basic" or len(requests) != 1),
            "--measure times one network beside networks of basic blocks, or under this machine's roofs",
            "Name one model and add --against basic, or add --roofline machine",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A network that is counted."""

    graph: onnx.ModelProto
    spec: ModelSpec
    precision: Precision
    cost: Cost


def _open(request: Request, plan: CostPlan, progress: Progress) -> _Source:
    """The graph of a request: of the file that will be timed, where one will, so that it is exported once."""
    artifact = None if plan.measured else export.to_blank(request, progress=progress)
    if artifact is not None:
        graph = external.parse(Path(artifact.path))  # ours, and signed: it would not pass as a stranger's
    else:
        artifact = export.to_onnx(request, progress=progress)
        graph = files.load_model(Path(artifact.path))
    assert artifact.model is not None
    cost = counts.count(graph, artifact.model)
    return _Source(graph=graph, spec=artifact.model, precision=artifact.precision, cost=cost)


def time_counterfactuals(request: Request, plan: BenchPlan, *, progress: Progress) -> Bench:
    """Times a network of bottlenecks and the real networks of basic blocks, all in one interleaved run.

    Raises:
        UsageError: nobody built the counterparts of that network.
    """
    from resdeploy.models import zoo

    if request.model not in zoo.COUNTERFACTUALS:
        raise UsageError(
            f"there are no networks of basic blocks to measure beside {request.model}",
            fix=f"--measure knows {', '.join(zoo.COUNTERFACTUALS)}; without it the counts are shown",
        )
    others = [replace(request, model=name) for name in zoo.COUNTERFACTUALS[request.model]]
    return bench([request, *others], plan, CalibrationPlan(seed=plan.seed), progress=progress)

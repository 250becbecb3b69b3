"""`cost`: counts of networks and files; beside them other tools' counts, other networks, and the roofs of a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdeploy.cost import conventions, counterfactuals, peaks, under_roofs
from resdeploy.cost.conventions import ToolCount
from resdeploy.cost.counterfactuals import BasicCounterfactual, NaiveCounterfactual
from resdeploy.deploy import candidates, export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError, refuse
from resdeploy.graph import files
from resdeploy.measure.one_run import Bench
from resdeploy.records import Artifact, Cost, ModelSpec, Peaks, Precision, Progress, Roofline
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
    sources = [export.to_onnx(request, progress=progress) for request in requests]
    counted = map(candidates.cost_of, sources)
    report = CostReport(
        costs=tuple(replace(each, batch_size=size) for each in counted for size in plan.timing.batch_sizes)
    )
    if plan.machine is not None:
        threads = (
            plan.timing.threads[0] if plan.measured else None
        )  # a network is held against roofs of its own threads
        roofs = peaks.of_machine(plan.machine, refresh=plan.refresh, threads=threads, progress=progress)
        rooflines = (
            under_roofs.time_under_roofs(requests, roofs, plan.precisions, plan.timing, progress=progress)
            if plan.measured
            else under_roofs.put_under_roofs(sources, roofs, plan.precisions, plan.timing)
        )
        report = replace(report, peaks=roofs, rooflines=rooflines)
    if plan.against == "basic":
        graphs = _read(sources)
        report = replace(report, basic=tuple(starmap(counterfactuals.compare_basic_blocks, graphs)))
    if plan.against == "naive":
        graphs = _read(sources)
        report = replace(report, naive=tuple(starmap(counterfactuals.compare_naive_modules, graphs)))
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


def _read(sources: Sequence[Artifact]) -> Iterator[tuple[onnx.ModelProto, ModelSpec]]:
    for artifact in sources:
        assert artifact.model is not None
        yield files.load_model(Path(artifact.path)), artifact.model


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

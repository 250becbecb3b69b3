"""`cost`: counts of networks and files, what 1x1 convolutions save in them, on paper and on the clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resdeploy import store
from resdeploy.errors import UsageError
from resdeploy.measure import summary
from resdeploy.pipeline import bench, make, sources
from resdeploy.pipeline.request import Request
from resdeploy.records import Cost, Failure, Precision, Progress


@dataclass(frozen=True, kw_only=True)
class RoofPlan:
    """Under whose roofs to put the networks, and what to draw."""

    machine: str | None = None  # None: under none
    precisions: tuple[Precision, ...] = ()  # (): all that have a roof
    refresh: bool = False
    measured: bool = False
    per_layer: bool = False
    chart: Path | None = None


def refuse(requests: Sequence[Request], wanted: RoofPlan, against: Literal["basic", "naive"] | None) -> None:
    """Finds options that do not go together before any network is made.

    Raises:
        UsageError: they do not.
        UnknownName: no such machine.
    """
    from resdeploy.pipeline import roofline

    if wanted.machine is not None:
        roofline.refuse_unknown(wanted.machine)
        if wanted.measured and against == "basic":
            raise UsageError(
                "--measure times a network beside networks of basic blocks, or under its roofs, and not both at once",
                fix="Ask for --against basic --measure and for --roofline machine --measure in two commands",
            )
    elif wanted.refresh or wanted.precisions:
        option = "--refresh" if wanted.refresh else "--precision"
        raise UsageError(f"{option} belongs to --roofline", fix="Add --roofline machine")
    elif wanted.measured and (against != "basic" or len(requests) != 1):
        raise UsageError(
            "--measure times one network beside networks of basic blocks, or under this machine's roofs",
            fix="Name one model and add --against basic, or add --roofline machine",
        )


def counts(requests: Iterable[Request], *, batch_sizes: Sequence[int] = (1,), progress: Progress) -> tuple[Cost, ...]:
    """Counts from the ONNX graph of each model, at each batch size."""
    counted = [bench.cost_of(make.onnx_fp32(request, progress=progress)) for request in requests]
    return tuple(dataclasses.replace(cost, batch_size=size) for cost in counted for size in batch_sizes)


def roofed(
    requests: Sequence[Request], counted: Sequence[Cost], wanted: RoofPlan, plan: bench.BenchPlan, *, progress: Progress
) -> dict[str, Any]:
    """The networks under their roofs, as parts of the document; the chart is written here.

    Raises:
        UsageError: a precision that has no roof.
    """
    from resdeploy.pipeline import costcharts, roofline
    from resdeploy.report import costcharts as drawn
    from resdeploy.report import costing

    if wanted.machine is None:
        if wanted.chart is not None:
            store.write_bytes(wanted.chart, costcharts.over_macs(counted).encode())
        return {}
    peaks = roofline.roofs(wanted.machine, refresh=wanted.refresh, progress=progress)
    found = roofline.under(requests, peaks, wanted.precisions, plan, measured=wanted.measured, progress=progress)
    if wanted.chart is not None:
        store.write_bytes(wanted.chart, drawn.roofline(found, peaks).encode())
    return costing.rooflines(found, peaks, per_layer=wanted.per_layer)


def reconciled(counted: Sequence[Cost], convention: str | None) -> dict[str, Any]:
    """What another tool would count, as parts of the document."""
    from resdeploy.graph import conventions
    from resdeploy.report import costing

    return costing.conventions(counted, conventions.CONVENTIONS[convention]) if convention else {}


def compared(
    requests: Sequence[Request],
    against: Literal["basic", "naive"] | None,
    plan: bench.BenchPlan | None,
    *,
    progress: Progress,
) -> dict[str, Any]:
    """The networks beside their counterparts without 1x1 convolutions, as parts of the document.

    Args:
        requests: the networks.
        against: which counterparts; None: none.
        plan: how to time the counterparts of `basic`; None: not at all.
        progress: told what is being done.

    Raises:
        UsageError: no counterparts, or none that could be timed.
    """
    from resdeploy.report import costing

    if against == "naive":
        return costing.naive([_read(request, progress, "naive") for request in requests])
    if against is None:
        return {}
    parts = costing.basic([_read(request, progress, "basic") for request in requests])
    if plan is not None:
        found = measured(requests[0], plan, progress=progress)
        outcomes = [o if isinstance(o, Failure) else summary.summarise(o) for o in found.outcomes]
        parts = joined(parts, costing.measured(outcomes, found.comparisons))
    return parts


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of one document; their notes follow each other."""
    tables = {key: value for part in parts for key, value in part.items()}
    return {**tables, "notes": [note for part in parts for note in part.get("notes", [])]}


def _read(request: Request, progress: Progress, against: Literal["basic", "naive"]) -> Any:
    from resdeploy.graph import against as comparisons
    from resdeploy.graph import files

    artifact = make.onnx_fp32(request, progress=progress)
    assert artifact.model is not None
    model = files.load_model(Path(artifact.path))
    compare = {"basic": comparisons.basic, "naive": comparisons.naive}[against]
    return compare(model, artifact.model)


def measured(request: Request, plan: bench.BenchPlan, *, progress: Progress) -> bench.Bench:
    """Times a network of bottlenecks and the real networks of basic blocks, all in one interleaved run.

    Raises:
        UsageError: nobody built the counterparts of that network.
    """
    from resdeploy.models import zoo

    if sources.format_of(request.model) or request.model not in zoo.COUNTERFACTUALS:
        raise UsageError(
            f"there are no networks of basic blocks to measure beside {request.model}",
            fix=f"--measure knows {', '.join(zoo.COUNTERFACTUALS)}; without it the counts are shown",
        )
    others = [dataclasses.replace(request, model=name) for name in zoo.COUNTERFACTUALS[request.model]]
    return bench.bench([request, *others], plan, make.CalibrationPlan(seed=plan.seed), progress=progress)

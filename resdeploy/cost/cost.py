"""`cost`: counts of networks and files, what 1x1 convolutions save in them, on paper and on the clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resdeploy import store
from resdeploy.deploy import calibration, candidates, export, model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import UsageError
from resdeploy.measure import summary
from resdeploy.measure.one_run import Bench
from resdeploy.records import Cost, Failure, Precision, Progress
from resdeploy.verbs.bench import BenchPlan, bench


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
    from resdeploy.cost import under_roofs

    if wanted.machine is not None:
        under_roofs.refuse_unknown(wanted.machine)
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


def count(requests: Iterable[Request], *, batch_sizes: Sequence[int] = (1,), progress: Progress) -> tuple[Cost, ...]:
    """Counts from the ONNX graph of each model, at each batch size."""
    counted = [candidates.cost_of(export.to_onnx(request, progress=progress)) for request in requests]
    return tuple(dataclasses.replace(cost, batch_size=size) for cost in counted for size in batch_sizes)


def put_under_roofs(
    requests: Sequence[Request], counted: Sequence[Cost], wanted: RoofPlan, plan: BenchPlan, *, progress: Progress
) -> dict[str, Any]:
    """The networks under their roofs, as parts of the document; the chart is written here.

    Raises:
        UsageError: a precision that has no roof.
    """
    from resdeploy.cost import charts, json_parts, under_roofs

    if wanted.machine is None:
        if wanted.chart is not None:
            store.write_bytes(wanted.chart, charts.over_macs(counted).encode())
        return {}
    peaks = under_roofs.roofs(wanted.machine, refresh=wanted.refresh, progress=progress)
    found = under_roofs.time_under_roofs(
        requests, peaks, wanted.precisions, plan, measured=wanted.measured, progress=progress
    )
    if wanted.chart is not None:
        store.write_bytes(wanted.chart, charts.roofline(found, peaks).encode())
    return json_parts.rooflines(found, peaks, per_layer=wanted.per_layer)


def reconcile(counted: Sequence[Cost], convention: str | None) -> dict[str, Any]:
    """What another tool would count, as parts of the document."""
    from resdeploy.cost import conventions, json_parts

    return json_parts.conventions(counted, conventions.CONVENTIONS[convention]) if convention else {}


def compare(
    requests: Sequence[Request],
    against: Literal["basic", "naive"] | None,
    plan: BenchPlan | None,
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
    from resdeploy.cost import json_parts

    if against == "naive":
        return json_parts.naive([_read(request, progress, "naive") for request in requests])
    if against is None:
        return {}
    parts = json_parts.basic([_read(request, progress, "basic") for request in requests])
    if plan is not None:
        found = time_counterfactuals(requests[0], plan, progress=progress)
        outcomes = [o if isinstance(o, Failure) else summary.summarise(o) for o in found.outcomes]
        parts = join(parts, json_parts.timing_tables(outcomes, found.comparisons))
    return parts


def join(*parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of one document; their notes follow each other."""
    tables = {key: value for part in parts for key, value in part.items()}
    return {**tables, "notes": [note for part in parts for note in part.get("notes", [])]}


def _read(request: Request, progress: Progress, against: Literal["basic", "naive"]) -> Any:
    from resdeploy.cost import counterfactuals
    from resdeploy.graph import files

    artifact = export.to_onnx(request, progress=progress)
    assert artifact.model is not None
    model = files.load_model(Path(artifact.path))
    compare = {"basic": counterfactuals.basic, "naive": counterfactuals.naive}[against]
    return compare(model, artifact.model)


def time_counterfactuals(request: Request, plan: BenchPlan, *, progress: Progress) -> Bench:
    """Times a network of bottlenecks and the real networks of basic blocks, all in one interleaved run.

    Raises:
        UsageError: nobody built the counterparts of that network.
    """
    from resdeploy.models import zoo

    if model_string.format_of(request.model) or request.model not in zoo.COUNTERFACTUALS:
        raise UsageError(
            f"there are no networks of basic blocks to measure beside {request.model}",
            fix=f"--measure knows {', '.join(zoo.COUNTERFACTUALS)}; without it the counts are shown",
        )
    others = [dataclasses.replace(request, model=name) for name in zoo.COUNTERFACTUALS[request.model]]
    return bench([request, *others], plan, calibration.CalibrationPlan(seed=plan.seed), progress=progress)

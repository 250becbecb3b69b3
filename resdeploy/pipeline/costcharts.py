"""Charts of the zoo's published accuracies over MACs, or over the latencies of a saved bench."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from resdeploy.errors import UsageError
from resdeploy.measure import results
from resdeploy.models import zoo
from resdeploy.records import Cost
from resdeploy.report import costcharts

IMAGENET_CLASSES = 1000


def over_macs(costs: Iterable[Cost]) -> str:
    """Accuracy over MACs of networks of the zoo."""
    found = ((cost.model, cost.macs / cost.batch_size / 1e9) for cost in costs)
    return _drawn(dict(found), "MACs, G an image")


def of_entries(entries: Iterable[zoo.Entry]) -> str:
    """Accuracy over MACs of rows of the zoo: those on ImageNet where there are any."""
    rows = [entry for entry in entries if _figure(entry)]
    wide = [entry for entry in rows if entry.classes == IMAGENET_CLASSES] or rows
    return _drawn({entry.name: entry.macs / 1e9 for entry in wide}, "MACs, G an image")


def over_latency(path: Path) -> str:
    """Accuracy over the median latency of the rows of a saved bench, all from one run.

    Raises:
        UsageError: a row is INVALID, or the rows differ in more than their model.
    """
    saved = results.load(path)
    kinds = {(row.backend, row.precision, row.batch_size, row.scenario) for row in saved.rows}
    if len(kinds) != 1:
        raise UsageError(f"{path} has rows of several backends, precisions or batch sizes", fix="Chart a run of one")
    invalid = [row.label for row in saved.rows if not row.valid]
    if invalid:
        raise UsageError(f"{path} has INVALID rows: {', '.join(invalid)}", fix="Measure again on a quiet machine")
    backend, precision, batch_size, _ = kinds.pop()
    times = {row.model: float(np.median(np.concatenate(row.blocks_s))) * 1e3 for row in saved.rows}
    return _drawn(times, f"median ms an image, {backend} {precision} batch {batch_size}")


def _drawn(costs: dict[str, float], x: str) -> str:
    entries = (zoo.ENTRIES[name] for name in costs if name in zoo.ENTRIES)
    known = [(entry, figure) for entry in entries if (figure := _figure(entry))]
    sizes = {entry.classes for entry, _ in known}
    if len(sizes) > 1:
        raise UsageError("accuracies on ImageNet and on CIFAR-10 do not belong in one chart", fix="Chart one of them")
    return costcharts.accuracy(
        (
            costcharts.Scored(
                name=entry.name,
                family=entry.family,
                top1=figure.top1,
                one_crop=figure.one_crop,
                cost=costs[entry.name],
            )
            for entry, figure in known
        ),
        x=x,
        data="ImageNet" if sizes == {IMAGENET_CLASSES} else "CIFAR-10",
    )


def _figure(entry: zoo.Entry) -> zoo.Published | None:
    """The first accuracy taken at the size that the costs are of."""
    return next((figure for figure in entry.published if not figure.crop), None)

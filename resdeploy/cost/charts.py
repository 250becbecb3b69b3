"""Charts of costs: kernels under their roofs, and accuracy over what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.errors import UsageError
from resdeploy.measure import results
from resdeploy.models import zoo
from resdeploy.records import Cost, LayerRoof, Peaks, Precision, Roofline
from resdeploy.report import chart

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network with a published accuracy, and what it costs in some unit."""

    name: str
    family: str
    top1: float  # percent
    one_crop: bool  # the centre crop; else as a paper did, often with ten
    cost: float


def roofline(found: Sequence[Roofline], peaks: Peaks) -> str:
    """FLOPs a second over FLOPs a byte: a roof a precision, and a dot a kernel; kernels not measured lie on their roof.

    Raises:
        UsageError: nothing multiplies.
    """
    reach = [layer.flops / layer.moved_bytes for one in found for layer in _kernels(one)]
    if not reach:
        raise UsageError("no network has a layer that multiplies, so there is nothing to draw")
    precisions: Mapping[Precision, None] = dict.fromkeys(one.precision for one in found)
    ridges = [peaks.roofs[p].rate / peaks.bandwidth.rate for p in precisions]
    low, high = min([*reach, *ridges]) / 2, max([*reach, *ridges]) * 2
    unit, prefix = (1e12, "T") if max(roof.rate for roof in peaks.roofs.values()) > 1e13 else (1e9, "G")
    names = dict.fromkeys(f"{prefix}OP/s" if precision == "int8" else f"{prefix}FLOP/s" for precision in precisions)
    roofs = []
    for precision, ridge in zip(precisions, ridges, strict=True):
        top = peaks.roofs[precision].rate / unit
        xs = [low, ridge, high]
        roofs.append(chart.Line(name=f"{precision} roof", xs=xs, ys=[low * peaks.bandwidth.rate / unit, top, top]))
    return chart.lines(
        [*roofs, *(_dots(one, unit) for one in found)],
        title=f"{', '.join(dict.fromkeys(one.model for one in found))} under the roofs of {peaks.name}",
        x="FLOPs a byte",
        y=", ".join(names),
        log_x=True,
        log_y=True,
    )


def _kernels(one: Roofline) -> list[LayerRoof]:
    """Those that multiply; where some were measured, those."""
    layers = [layer for layer in one.layers if layer.flops and layer.moved_bytes]
    return [layer for layer in layers if layer.measured_s] or layers


def _dots(one: Roofline, unit: float) -> chart.Line:
    layers = _kernels(one)
    name = f"{one.model} {one.precision}"
    return chart.Line(
        name=name if one.batch_size == 1 else f"{name} b{one.batch_size}",
        xs=[layer.flops / layer.moved_bytes for layer in layers],
        ys=[layer.flops / (layer.measured_s or layer.allowed_s) / unit for layer in layers],
        dots=True,
    )


def accuracy(networks: Iterable[Scored], *, x: str, data: str) -> str:
    """Published top-1 over a cost, a colour a family.

    Args:
        networks: with an accuracy.
        x: the cost, with its unit.
        data: the data set that the accuracies are of.

    Raises:
        UsageError: none of them.
    """
    groups: dict[tuple[str, bool], list[Scored]] = {}
    for network in networks:
        groups.setdefault((network.family, network.one_crop), []).append(network)
    if not groups:
        raise UsageError("no network here has a published accuracy", fix="`resdeploy models` lists those that have")
    curves = [
        chart.Line(
            name=family,
            xs=[one.cost for one in members],
            ys=[one.top1 for one in members],
            labels=[one.name for one in members],
            dots=True,
            hollow=not one_crop,
        )
        for (family, one_crop), members in groups.items()
    ]
    rings = " (rings: as its paper evaluated)" if any(not one_crop for _, one_crop in groups) else ""
    title = f"Published top-1 on {data} over {x.partition(',')[0]}{rings}"
    return chart.lines(curves, title=title, x=x, y="top-1 %", log_x=True, zero=False)


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
    return accuracy(
        (
            Scored(
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

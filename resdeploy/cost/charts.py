"""Charts of costs: kernels under their roofs, and published accuracy over what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import UsageError
from resdeploy.measure.results import SavedBench
from resdeploy.models import zoo
from resdeploy.records import Cost, LayerRoof, Peaks, Precision, Roofline
from resdeploy.report import chart

if TYPE_CHECKING:
    from resdeploy.cost.cost import CostReport

IMAGENET_CLASSES = 1000
NAMED = 12  # kernels of a network that are named in a chart, those that take longest, where there is room
GIGA_MACS = "MACs, G per image"


def draw_report(report: CostReport) -> str:
    """What `cost --chart` shows: kernels under the roofs, where there are any, else accuracy over MACs.

    Raises:
        UsageError: nothing to draw.
    """
    if report.peaks is not None:
        return draw_roofline(report.rooflines, report.peaks)
    return draw_over_macs(report.costs)


def draw_roofline(rooflines: Sequence[Roofline], peaks: Peaks) -> str:
    """FLOPs per second over FLOPs per byte: a line per roof, a dot per kernel; one not measured lies on its roof.

    Raises:
        UsageError: nothing multiplies.
    """
    reach = [layer.flops / layer.moved_bytes for each in rooflines for layer in _kernels(each)]
    if not reach:
        raise UsageError("no network has a layer that multiplies, so there is nothing to draw", fix="Leave --chart out")
    precisions: Mapping[Precision, None] = dict.fromkeys(each.precision for each in rooflines)
    ridges = [peaks.roofs[p].rate / peaks.bandwidth.rate for p in precisions]
    low, high = min([*reach, *ridges]) / 2, max([*reach, *ridges]) * 2
    unit, prefix = (1e12, "T") if max(roof.rate for roof in peaks.roofs.values()) > 1e13 else (1e9, "G")
    names = dict.fromkeys(f"{prefix}OP/s" if precision == "int8" else f"{prefix}FLOP/s" for precision in precisions)
    roofs = []
    for k, (precision, ridge) in enumerate(zip(precisions, ridges, strict=True)):
        top = peaks.roofs[precision].rate / unit
        xs = [low, ridge, high]
        ys, dashes = [low * peaks.bandwidth.rate / unit, top, top], chart.DASHES[k % len(chart.DASHES)]
        roofs.append(chart.Line(name=f"{precision} roof", xs=xs, ys=ys, dashes=dashes))
    measured = any(layer.measured_s for each in rooflines for layer in each.layers)
    models = ", ".join(dict.fromkeys(each.model for each in rooflines))
    unmeasured = "" if measured else " (rings: not measured, so at their roofs)"
    return chart.lines(
        [*roofs, *(_dots(each, unit) for each in rooflines)],
        title=f"{models} under the roofs of {peaks.name}{unmeasured}",
        x="FLOPs per byte",
        y=", ".join(names),
        log_x=True,
        log_y=True,
    )


def _kernels(roofline: Roofline) -> list[LayerRoof]:
    """Those that multiply; where some were measured, those."""
    layers = [layer for layer in roofline.layers if layer.flops and layer.moved_bytes]
    return [layer for layer in layers if layer.measured_s] or layers


def _dots(roofline: Roofline, unit: float) -> chart.Line:
    layers = _kernels(roofline)
    longest = sorted(layers, key=lambda layer: layer.measured_s or layer.allowed_s, reverse=True)[:NAMED]
    name = f"{roofline.model} {roofline.precision}"
    return chart.Line(
        name=name if roofline.batch_size == 1 else f"{name} b{roofline.batch_size}",
        xs=[layer.flops / layer.moved_bytes for layer in layers],
        ys=[layer.flops / (layer.measured_s or layer.allowed_s) / unit for layer in layers],
        dots=True,
        hollow=not any(layer.measured_s for layer in layers),
        labels=[layer.name if layer in longest else "" for layer in layers],
    )


def draw_over_macs(costs: Iterable[Cost]) -> str:
    """Accuracy over MACs of networks of the zoo.

    Raises:
        UsageError: none of them has a published accuracy, or they are of several data sets.
    """
    return _draw({cost.model: cost.macs / cost.batch_size / 1e9 for cost in costs}, GIGA_MACS)


def draw_entries(entries: Iterable[zoo.Entry]) -> str:
    """Accuracy over MACs of rows of the zoo: those on ImageNet where there are any.

    Raises:
        UsageError: as `draw_over_macs`.
    """
    candidates = [entry for entry in entries if _published_accuracy(entry)]
    on_imagenet = [entry for entry in candidates if entry.classes == IMAGENET_CLASSES]
    return _draw({entry.name: entry.macs / 1e9 for entry in on_imagenet or candidates}, GIGA_MACS)


def draw_over_latency(bench: SavedBench) -> str:
    """Accuracy over the median latency of the rows of a bench, all from one run.

    Raises:
        UsageError: a row is INVALID, or the rows differ in more than their model; or as `draw_over_macs`.
    """
    kinds = {(row.backend, row.precision, row.batch_size, row.scenario) for row in bench.rows}
    if len(kinds) != 1:
        raise UsageError(
            f"{bench.path} has rows of several backends, precisions or batch sizes", fix="Chart a run of one"
        )
    invalid = [row.label for row in bench.rows if not row.valid]
    if invalid:
        raise UsageError(f"{bench.path} has INVALID rows: {', '.join(invalid)}", fix="Measure again on a quiet machine")
    backend, precision, batch_size, _ = kinds.pop()
    times_ms = {row.model: float(np.median(np.concatenate(row.blocks_s))) * 1e3 for row in bench.rows}
    return _draw(times_ms, f"median ms per image, {backend} {precision} batch {batch_size}")


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network with a published accuracy, and what it costs in some unit."""

    name: str
    family: str
    top1: float  # percent
    one_crop: bool  # the centre crop; else as a paper did, often with ten
    cost: float


def _draw(costs: Mapping[str, float], x: str) -> str:
    """Published top-1 over a cost, a colour per family.

    Args:
        costs: of each network; those without a published accuracy are left out.
        x: the cost, with its unit.
    """
    entries = (zoo.ENTRIES[name] for name in costs if name in zoo.ENTRIES)
    accuracies = [(entry, accuracy) for entry in entries if (accuracy := _published_accuracy(entry))]
    classes = {entry.classes for entry, _ in accuracies}
    if not accuracies:
        raise UsageError("no network here has a published accuracy", fix="`resdeploy models` lists those that have")
    if len(classes) > 1:
        raise UsageError("accuracies on ImageNet and on CIFAR-10 do not belong in one chart", fix="Chart one of them")
    networks = [
        _Network(
            name=entry.name,
            family=entry.family,
            top1=accuracy.top1,
            one_crop=accuracy.one_crop,
            cost=costs[entry.name],
        )
        for entry, accuracy in accuracies
    ]
    data = "ImageNet" if classes == {IMAGENET_CLASSES} else "CIFAR-10"
    rings = "" if all(network.one_crop for network in networks) else " (rings: as its paper evaluated)"
    title = f"Published top-1 on {data} over {x.partition(',')[0]}{rings}"
    return chart.lines(_families(networks), title=title, x=x, y="top-1 %", log_x=True, zero=False)


def _published_accuracy(entry: zoo.Entry) -> zoo.Published | None:
    """The first accuracy taken at the size that the costs are of."""
    return next((published for published in entry.published if not published.crop), None)


def _families(networks: Iterable[_Network]) -> list[chart.Line]:
    """The dots of each family; rings where its accuracies are of many crops."""
    families: dict[tuple[str, bool], list[_Network]] = {}
    for network in networks:
        families.setdefault((network.family, network.one_crop), []).append(network)
    return [
        chart.Line(
            name=family,
            xs=[member.cost for member in members],
            ys=[member.top1 for member in members],
            labels=[member.name for member in members],
            dots=True,
            hollow=not one_crop,
        )
        for (family, one_crop), members in families.items()
    ]

"""Parts of the JSON of `cost`: other tools' conventions, and networks without 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from resdeploy.records import PRECISIONS, Comparison, Cost, Failure, Peaks, Roofline, Summary
from resdeploy.report import documents

if TYPE_CHECKING:
    from resdeploy.cost.conventions import Convention
    from resdeploy.cost.counterfactuals import Counterfactual, Modules, Size

Json = dict[str, Any]

AGAINST = (
    "(a) and (b) answer different questions: (a) is what bottlenecks save where as many channels are carried from one "
    "block to the next; (b) is why ResNet-50 costs about what ResNet-34 does"
)


def conventions(costs: Iterable[Cost], convention: Convention) -> Json:
    """The counts as another tool would give them, with a note where that is not known."""
    found = [(counted, convention.doubt(counted)) for counted in costs]
    notes = (f"{counted.model}: no figure of {convention.name}: {doubt}" for counted, doubt in found if doubt)
    return {
        "conventions": [
            {
                "model": counted.model,
                "convention": convention.name,
                "count": None if doubt else convention.count(counted),
                "formula": convention.formula,
            }
            for counted, doubt in found
        ],
        "notes": list(dict.fromkeys(notes)),
    }


def _exact(ratio: Fraction) -> str:
    """`288/17` where that is short; else nothing, since the decimal says more."""
    return f"{ratio.numerator}/{ratio.denominator}" if max(ratio.numerator, ratio.denominator) < 1000 else ""


def basic(found: Iterable[Counterfactual]) -> Json:
    """`--against basic`: both comparisons, apart: a row per stage, and one for the network."""
    rows: dict[str, list[Json]] = {"outer": [], "quarter": []}
    for network in found:
        stages = dict.fromkeys(block.stage for block in network.blocks)
        for side, listed in rows.items():
            for stage in stages:
                listed.append(_stage(network, side, stage))
            listed.append(_whole(network, side))
    return {
        "against_outer_width": rows["outer"],
        "against_quarter_width": rows["quarter"],
        "notes": [AGAINST],
    }


def _stage(network: Counterfactual, side: str, stage: str) -> Json:
    blocks = [block for block in network.blocks if block.stage == stage]
    identity = next((block for block in blocks if block.identity), None)
    own, other = (sum(getattr(block, name).macs for block in blocks) for name in ("own", side))
    row: Json = {"model": network.model, "scope": stage, "blocks": len(blocks)}
    if identity is not None:
        basic_block: Size = getattr(identity, side)
        ratio = Fraction(basic_block.macs, identity.own.macs)
        row |= {
            "block_macs": identity.own.macs,
            "basic_block_macs": basic_block.macs,
            "block_weights": identity.own.weights,
            "basic_block_weights": basic_block.weights,
            "block_ratio": float(ratio),
            "block_ratio_exact": _exact(ratio),
            "block_share": float(1 / ratio),
            "block_share_exact": _exact(1 / ratio),
        }
    return row | {"macs": own, "basic_macs": other, "ratio": other / own}


def _whole(network: Counterfactual, side: str) -> Json:
    macs: int = getattr(network, f"{side}_macs")
    params: int | None = getattr(network, f"{side}_params")
    return {
        "model": network.model,
        "scope": "network",
        "blocks": len(network.blocks),
        "macs": network.own_macs,
        "basic_macs": macs,
        "ratio": macs / network.own_macs,
        "params": network.own_params,
        "basic_params": params,
        "params_ratio": params / network.own_params if params and network.own_params else None,
    }


def naive(found: Iterable[Modules]) -> Json:
    """`--against naive`: each 1x1 reduction, and each Inception module, with and without."""
    networks = list(found)
    return {
        "reductions": [
            {
                "model": network.model,
                "module": r.module,
                "name": r.name,
                "before": list(r.readers),
                "weights": r.reduced.weights,
                "direct_weights": r.direct.weights,
                "macs": r.reduced.macs,
                "direct_macs": r.direct.macs,
                "ratio": r.direct.macs / r.reduced.macs,
            }
            for network in networks
            for r in network.reductions
        ],
        "modules": [
            {
                "model": network.model,
                "module": m.name,
                "weights": m.own.weights,
                "naive_weights": m.naive.weights,
                "macs": m.own.macs,
                "naive_macs": m.naive.macs,
                "ratio": m.naive.macs / m.own.macs,
            }
            for network in networks
            for m in network.modules
        ],
    }


def timing_tables(outcomes: Iterable[Summary | Failure], comparisons: Iterable[Comparison]) -> Json:
    """`--measure`: latencies of one interleaved run, and how they compare."""
    document = documents.bench(outcomes, comparisons, {})
    return {"measured": document["results"], "comparisons": document["comparisons"], "notes": document["notes"]}


def rooflines(found: Iterable[Roofline], peaks: Peaks, *, per_layer: bool) -> Json:
    """`--roofline`: the roofs, each network under them, and with `per_layer` each kernel."""
    networks = list(found)
    notes = [f"{peaks.name}: {note}" for note in peaks.notes]
    if not peaks.valid:
        notes.append("roofs marked INVALID were not timed steadily: stop other programs and add --refresh")
    if any((layer.reached or 0.0) > 1 for network in networks for layer in network.layers):
        notes.append("above 100 %: the kernel's tensors came from a cache, and not from the memory that its roof is of")
    notes += dict.fromkeys(
        f"{one.model}: {one.unknown} operators cannot be counted, so the time that its roofs allow is a lower bound"
        for one in networks
        if one.unknown
    )
    parts: Json = {"roofs": _roofs(peaks), "rooflines": [_roofline(one) for one in networks], "notes": notes}
    if per_layer:
        parts["roofline_layers"] = [row for one in networks for row in _roofline_layers(one)]
    return parts


def _roofs(peaks: Peaks) -> list[Json]:
    rows: list[Json] = []
    for precision in PRECISIONS:
        row: Json = {"machine": peaks.name, "source": peaks.source, "of": f"arithmetic in {precision}"}
        if roof := peaks.roofs.get(precision):
            interval = None if roof.ci95 is None else [bound / 1e9 for bound in roof.ci95]
            unit = "GOP/s" if precision == "int8" else "GFLOP/s"
            row |= {"rate": roof.rate / 1e9, "ci95": interval, "unit": unit, "by": roof.by, "valid": roof.valid}
        else:
            row["missing"] = peaks.missing.get(precision, "not known")
        rows.append(row)
    band = peaks.bandwidth
    interval = None if band.ci95 is None else [bound / 1e9 for bound in band.ci95]
    row = {"machine": peaks.name, "source": peaks.source, "of": "memory", "rate": band.rate / 1e9, "ci95": interval}
    return [*rows, {**row, "unit": "GB/s", "by": band.by, "valid": band.valid}]


def _roofline(one: Roofline) -> Json:
    bounds = [layer.bound for layer in one.layers]
    interval = None if one.p50_ci95_s is None else [1e3 * bound for bound in one.p50_ci95_s]
    return {
        "model": one.model,
        "batch_size": one.batch_size,
        "precision": one.precision,
        "machine": one.peaks.name,
        "backend": one.backend or None,
        "compute_bound": bounds.count("compute"),
        "memory_bound": bounds.count("memory"),
        "allowed_ms": 1e3 * one.allowed_s,
        "p50_ms": None if one.p50_s is None else 1e3 * one.p50_s,
        "p50_ci95_ms": interval,
        "reached_percent": None if one.reached is None else 100 * one.reached,
        "other_kernels_ms": None if one.other_s is None else 1e3 * one.other_s,
        "state": None if one.p50_s is None else "ok" if one.valid else "INVALID",
    }


def _roofline_layers(one: Roofline) -> list[Json]:
    return [
        {
            "model": one.model,
            "batch_size": one.batch_size,
            "precision": one.precision,
            "name": layer.name,
            "op": layer.op,
            "flops": layer.flops,
            "bytes": layer.moved_bytes,
            "intensity": layer.flops / layer.moved_bytes if layer.moved_bytes else None,
            "bound": layer.bound,
            "allowed_ms": 1e3 * layer.allowed_s,
            "measured_ms": None if layer.measured_s is None else 1e3 * layer.measured_s,
            "reached_percent": None if layer.reached is None else 100 * layer.reached,
        }
        for layer in one.layers
    ]

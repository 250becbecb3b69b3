"""The document of `cost`: a `CostReport` as plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from resdeploy.measure.one_run import Bench, summaries
from resdeploy.records import PRECISIONS, Cost, LayerCost, LayerRoof, Peaks, Precision, Roof, Roofline
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json

if TYPE_CHECKING:
    from resdeploy.cost.conventions import ToolCount
    from resdeploy.cost.cost import CostReport
    from resdeploy.cost.counterfactuals import BasicCounterfactual, NaiveCounterfactual, Size

Side = Literal["outer", "quarter"]
AGAINST = (
    "(a) and (b) answer different questions: (a) is what bottlenecks save where as many channels are carried from one "
    "block to the next; (b) is why ResNet-50 costs about what ResNet-34 does"
)


def cost_document(report: CostReport, environment: Environment, *, per_layer: bool = False) -> Json:
    """`cost`: counts of each model, stage and block, and what was asked for beside them.

    Args:
        report: what was found out.
        environment: of this machine.
        per_layer: whether to list layers, and with roofs kernels.
    """
    parts = [_counts(report.costs, per_layer=per_layer)]
    if report.basic:
        parts.append(_basic(report.basic))
    if report.naive:
        parts.append(_naive(report.naive))
    if report.timing is not None:
        parts.append(_timing(report.timing))
    if report.tool_counts:
        parts.append(_tool_counts(report.tool_counts))
    if report.peaks is not None:
        parts.append(_rooflines(report.rooflines, report.peaks, per_layer=per_layer))
    tables = {key: value for part in parts for key, value in part.items()}
    tables["notes"] = [note for part in parts for note in part.get("notes", [])]
    return documents.document("cost", environment, **tables)


def _counts(costs: Sequence[Cost], *, per_layer: bool) -> Json:
    parts: Json = {
        "results": [_count(cost) for cost in costs],
        "stages": [row for cost in costs for row in _sums(cost, "stage")],
        "notes": [
            f"{cost.model}: {len(cost.unknown)} operators cannot be counted, so its MACs and FLOPs are lower bounds: "
            f"{', '.join(cost.unknown[:5])}{' ...' if len(cost.unknown) > 5 else ''}"
            for cost in costs
            if cost.unknown
        ],
    }
    if per_layer:
        parts["layers"] = [
            _layer(cost, layer) for cost in costs for layer in cost.layers if layer.params or layer.moved_elements
        ]
    return parts


def _count(cost: Cost) -> Json:
    return {
        "model": cost.model,
        "batch_size": cost.batch_size,
        "params": cost.params,
        "params_deployed": cost.params_deployed,
        "macs": cost.macs,
        "flops": cost.flops,
        "activations": cost.activations,
        "bytes": {p: _bytes(cost, p) for p in PRECISIONS},
        "input_shape": list(cost.input_shape),
        "stages": _sums(cost, "stage"),
        "blocks": _sums(cost, "block"),
        "unknown": list(cost.unknown),
    }


def _layer(cost: Cost, layer: LayerCost) -> Json:
    return {
        "model": cost.model,
        "name": layer.name,
        "op": layer.op,
        "block": layer.block,
        "stage": layer.stage,
        "params": layer.params,
        "macs": cost.batch_size * layer.macs,
        "macs_percent": 100 * cost.batch_size * layer.macs / cost.macs if cost.macs else None,
        "output_shape": [cost.batch_size * layer.output_shape[0], *layer.output_shape[1:]],
        "bytes": {p: _bytes(layer, p, cost.batch_size) for p in PRECISIONS},
    }


def _bytes(cost: Cost | LayerCost, precision: Precision, batch_size: int = 1) -> Json:
    """Weights, activations read and written, and FLOPs per byte of both."""
    weights, activations = cost.weight_bytes(precision), batch_size * cost.activation_bytes(precision)
    flops = cost.flops if isinstance(cost, Cost) else 2 * batch_size * cost.macs
    moved = weights + activations
    return {"weights": weights, "activations": activations, "intensity": flops / moved if moved else None}


def _sums(cost: Cost, kind: Literal["stage", "block"]) -> list[Json]:
    """Sums of each stage or block, in the order of the graph; layers outside them count under their own name."""
    sums: dict[str, Json] = {}
    for layer in cost.layers:
        if not layer.macs and not layer.params:
            continue
        name = (layer.stage if kind == "stage" else layer.block) or layer.name
        row = sums.setdefault(name, {"model": cost.model, kind: name, "layers": 0, "params": 0, "macs": 0})
        row["layers"] += 1
        row["params"] += layer.params
        row["macs"] += cost.batch_size * layer.macs
    for row in sums.values():
        row["macs_percent"] = 100 * row["macs"] / cost.macs if cost.macs else None
    return list(sums.values())


def _tool_counts(counts: Sequence[ToolCount]) -> Json:
    """`--convention`: the counts as another tool would give them, with a note where that is not known."""
    notes = (f"{each.model}: no figure of {each.convention}: {each.doubt}" for each in counts if each.doubt)
    return {
        "conventions": [
            {
                "model": each.model,
                "convention": each.convention,
                "count": each.count,
                "formula": each.formula,
                "state": "not known; why is said below" if each.doubt else None,
            }
            for each in counts
        ],
        "notes": list(dict.fromkeys(notes)),
    }


def _basic(networks: Iterable[BasicCounterfactual]) -> Json:
    """`--against basic`: both comparisons, apart: a row per stage, and one for the network."""
    rows: dict[Side, list[Json]] = {"outer": [], "quarter": []}
    for network in networks:
        stages = dict.fromkeys(block.stage for block in network.blocks)
        for side, side_rows in rows.items():
            side_rows += [_stage(network, side, stage) for stage in stages]
            side_rows.append(_network(network, side))
    return {
        "against_outer_width": rows["outer"],
        "against_quarter_width": rows["quarter"],
        "notes": [AGAINST],
    }


def _stage(network: BasicCounterfactual, side: Side, stage: str) -> Json:
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


def _network(network: BasicCounterfactual, side: Side) -> Json:
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


def _exact(ratio: Fraction) -> str:
    """`288/17` where that is short; else nothing, since the decimal says more."""
    return f"{ratio.numerator}/{ratio.denominator}" if max(ratio.numerator, ratio.denominator) < 1000 else ""


def _naive(networks: Sequence[NaiveCounterfactual]) -> Json:
    """`--against naive`: each 1x1 reduction, and each Inception module, with and without."""
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


def _timing(bench: Bench) -> Json:
    """`--measure`: latencies of one interleaved run, and how they compare."""
    document = documents.bench(summaries(bench.outcomes), bench.comparisons, {})
    return {"measured": document["results"], "comparisons": document["comparisons"], "notes": document["notes"]}


def _rooflines(rooflines: Sequence[Roofline], peaks: Peaks, *, per_layer: bool) -> Json:
    """`--roofline`: the roofs, each network under them, and with `per_layer` each kernel."""
    notes = [f"{peaks.name}: {note}" for note in peaks.notes]
    if not peaks.valid:
        notes.append("roofs marked unsteady were timed on a restless machine: stop other programs and add --refresh")
    if any((layer.reached or 0.0) > 1 for each in rooflines for layer in each.layers):
        notes.append("above 100 %: the kernel's tensors came from a cache, and not from the memory that its roof is of")
    notes += dict.fromkeys(
        f"{each.model}: {each.unknown} operators cannot be counted, so the time that its roofs allow is a lower bound"
        for each in rooflines
        if each.unknown
    )
    parts: Json = {"roofs": _roofs(peaks), "rooflines": [_roofline(each) for each in rooflines], "notes": notes}
    if per_layer:
        parts["roofline_layers"] = [_kernel(each, layer) for each in rooflines for layer in each.layers]
    return parts


def _roofs(peaks: Peaks) -> list[Json]:
    """A row for each precision, whether it has a roof or not, and one for the memory."""
    machine = {"machine": peaks.name, "source": peaks.source}
    rows: list[Json] = []
    for precision in PRECISIONS:
        row: Json = {**machine, "of": f"arithmetic in {precision}"}
        if roof := peaks.roofs.get(precision):
            rows.append(row | _rate(roof, "GOP/s" if precision == "int8" else "GFLOP/s"))
        else:
            rows.append(row | {"missing": peaks.missing.get(precision, "not known")})
    return [*rows, {**machine, "of": "memory", **_rate(peaks.bandwidth, "GB/s")}]


def _rate(roof: Roof, unit: str) -> Json:
    interval = None if roof.ci95 is None else [bound / 1e9 for bound in roof.ci95]
    return {"rate": roof.rate / 1e9, "ci95": interval, "unit": unit, "by": roof.by, "valid": roof.valid}


def _roofline(roofline: Roofline) -> Json:
    bounds = [layer.bound for layer in roofline.layers]
    interval_s = roofline.p50_ci95_s
    return {
        "model": roofline.model,
        "batch_size": roofline.batch_size,
        "precision": roofline.precision,
        "machine": roofline.peaks.name,
        "backend": roofline.backend or None,
        "compute_bound": bounds.count("compute"),
        "memory_bound": bounds.count("memory"),
        "allowed_ms": 1e3 * roofline.allowed_s,
        "p50_ms": _scale(roofline.p50_s, 1e3),
        "p50_ci95_ms": None if interval_s is None else [1e3 * bound for bound in interval_s],
        "reached_percent": _scale(roofline.reached, 100),
        "other_kernels_ms": _scale(roofline.other_s, 1e3),
        "state": None if roofline.p50_s is None else "ok" if roofline.valid else "unsteady",
    }


def _kernel(roofline: Roofline, layer: LayerRoof) -> Json:
    return {
        "model": roofline.model,
        "batch_size": roofline.batch_size,
        "precision": roofline.precision,
        "name": layer.name,
        "op": layer.op,
        "flops": layer.flops,
        "bytes": layer.moved_bytes,
        "intensity": layer.flops / layer.moved_bytes if layer.moved_bytes else None,
        "bound": layer.bound,
        "allowed_ms": 1e3 * layer.allowed_s,
        "measured_ms": _scale(layer.measured_s, 1e3),
        "reached_percent": _scale(layer.reached, 100),
    }


def _scale(value: float | None, by: float) -> float | None:
    return None if value is None else by * value

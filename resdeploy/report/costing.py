"""What `cost` can say beside the counts: other tools' conventions, and networks without 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from resdeploy.records import Comparison, Cost, Failure, Summary
from resdeploy.report import documents

if TYPE_CHECKING:
    from resdeploy.graph.against import Counterfactual, Modules, Size
    from resdeploy.graph.conventions import Convention

Json = dict[str, Any]

AGAINST = (
    "(a) and (b) answer different questions: (a) is what bottlenecks save where as many channels are carried from one "
    "block to the next; (b) is why ResNet-50 costs about what ResNet-34 does"
)


def conventions(costs: Iterable[Cost], convention: Convention) -> Json:
    """The counts as another tool would give them, with a note where the file cannot tell."""
    costs = list(costs)
    doubtful = [c.model for c in costs if convention.counts_norms and not c.norms_known]
    return {
        "conventions": [
            {
                "model": counted.model,
                "convention": convention.name,
                "count": None if counted.model in doubtful else convention.count(counted),
                "formula": convention.formula,
            }
            for counted in costs
        ],
        "notes": [
            f"{model}: {convention.name} counts batch norms or biases, and the file does not say which of its biases "
            "were batch norms before they were folded; name the network, or export it with resdeploy"
            for model in doubtful
        ],
    }


def _exact(ratio: Fraction) -> str:
    """`288/17` where that is short; else nothing, since the decimal says more."""
    return f"{ratio.numerator}/{ratio.denominator}" if max(ratio.numerator, ratio.denominator) < 1000 else ""


def basic(found: Iterable[Counterfactual]) -> Json:
    """`--against basic`: both comparisons, apart: a row a stage, and one for the network."""
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


def measured(outcomes: Iterable[Summary | Failure], comparisons: Iterable[Comparison]) -> Json:
    """`--measure`: latencies of one interleaved run, and how they compare."""
    document = documents.bench(outcomes, comparisons, {})
    return {"measured": document["results"], "comparisons": document["comparisons"], "notes": document["notes"]}

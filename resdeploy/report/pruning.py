"""The document of `prune`, as `documents` has those of the other commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resdeploy.records import Comparison, Cost, Failure, Lesion, Score, Summary, Verdict
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json, bench_row, check_row, comparison_row, finite_interval, reported_row, score_row


def prune(
    removed: Sequence[str],
    lesions: Sequence[Lesion],
    path: Sequence[Lesion],
    tuned: Lesion | None,
    costs: tuple[Cost, Cost],
    times: tuple[Summary | Failure, Summary | Failure],
    comparisons: Sequence[Comparison],
    scores: tuple[Score, Score],
    verdict: Verdict,
    environment: Environment,
) -> Json:
    """`prune`: the network before and after, what each block is worth, the path, and the verdict."""
    rows = []
    blocks = len(lesions)
    for name, cost, time, score in zip(("before", "after"), costs, times, scores, strict=True):
        left = blocks if name == "before" else blocks - len(removed)
        rows.append(
            {
                **bench_row(time),
                "network": name,
                "blocks": left,
                "params": cost.params_deployed,
                "macs": cost.macs,
                **score_row(score),
            }
        )
    notes = [f"removed, in this order: {', '.join(removed)}" if removed else "no block could be shown to be within it"]
    notes += scores[0].repeats.told
    if tuned is not None:
        notes.append(
            f"after the fine-tuning the drop on the images to choose on was {tuned.drop_pp:+.2f} points "
            f"[{tuned.interval_pp[0]:+.2f}, {tuned.interval_pp[1]:+.2f}]"
        )
    return documents.document(
        "prune",
        environment,
        rows,
        removed=list(removed),
        lesions=[_lesion(lesion) for lesion in lesions],
        path=[{**_lesion(lesion), "removed": lesion.block in removed} for lesion in path],
        tuned=None if tuned is None else _lesion(tuned),
        comparisons=[comparison_row(one) for one in comparisons],
        checks=[check_row(check) for check in verdict.checks],
        reported=[reported_row(row) for row in verdict.reported],
        verdict=verdict.state,
        notes=notes,
    )


def _lesion(lesion: Lesion) -> Json:
    return {**dataclasses.asdict(lesion), "interval_pp": finite_interval(lesion.interval_pp)}

"""The document of `prune`, as `documents` has those of the other commands."""

from __future__ import annotations

import dataclasses

from resdeploy.records import Lesion, PruneOutcome, PruneSide
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json, bench_row, check_row, comparison_row, finite_interval, reported_row, score_row


def prune_document(outcome: PruneOutcome, environment: Environment) -> Json:
    """`prune`: the network before and after, what each block is worth, the path, and the verdict."""
    removed, blocks = outcome.removed, len(outcome.lesions)
    return documents.document(
        "prune",
        environment,
        [_row("before", blocks, outcome.before), _row("after", blocks - len(removed), outcome.after)],
        removed=list(removed),
        lesions=[_lesion(lesion) for lesion in outcome.lesions],
        path=[{**_lesion(lesion), "removed": lesion.block in removed} for lesion in outcome.path],
        tuned=None if outcome.tuned is None else _lesion(outcome.tuned),
        comparisons=[comparison_row(each) for each in outcome.comparisons],
        checks=[check_row(check) for check in outcome.verdict.checks],
        reported=[reported_row(each) for each in outcome.verdict.reported],
        verdict=outcome.verdict.state,
        notes=_notes(outcome),
    )


def _row(name: str, blocks: int, side: PruneSide) -> Json:
    return {
        **bench_row(side.timing),
        "network": name,
        "blocks": blocks,
        "params": side.cost.params_deployed,
        "macs": side.cost.macs,
        **score_row(side.score),
    }


def _lesion(lesion: Lesion) -> Json:
    return {**dataclasses.asdict(lesion), "interval_pp": finite_interval(lesion.interval_pp)}


def _notes(outcome: PruneOutcome) -> list[str]:
    notes = [f"removed, in this order: {', '.join(outcome.removed)}"]
    notes += outcome.before.score.repeats.notes
    notes += documents.kernel_notes(outcome.comparisons)
    if outcome.tuned is not None:
        low, high = outcome.tuned.interval_pp
        notes.append(
            "after the fine-tuning the drop on the images to choose on was "
            f"{outcome.tuned.drop_pp:+.2f} points [{low:+.2f}, {high:+.2f}]"
        )
    return notes

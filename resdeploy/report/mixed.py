"""The documents of `quantize --sensitivity` and `quantize --max-drop`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from resdeploy.records import Check, Mixed, Sensitivity
from resdeploy.report import documents


def sensitivity(model: str, found: Iterable[Sensitivity], environment: Mapping[str, Any]) -> dict[str, Any]:
    """A row for each layer and each block, the most disturbing of them first."""
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "command": "quantize --sensitivity",
        "environment": dict(environment),
        "model": model,
        "results": _tried(found),
    }


def search(
    model: str, candidates: Iterable[Mixed], layers: Iterable[Sensitivity], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """A row for each candidate, the most exact first, and what each layer costs."""
    rows = [_candidate(candidate, environment) for candidate in candidates]
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "command": "quantize --max-drop",
        "environment": dict(environment),
        "model": model,
        "found": any(row["chosen"] and row["state"] == "pass" for row in rows),
        "results": rows,
        "layers": _tried(layers),
        "notes": [f"{row['label']}: {row['check']['note']}" for row in rows if row["check"] is not None],
    }


def _tried(found: Iterable[Sensitivity]) -> list[dict[str, Any]]:
    rows = [
        {
            "name": trial.name,
            "kind": trial.kind,
            "layers": list(trial.layers),
            "images": trial.images,
            "changed": trial.changed,
            "changed_percent": 100 * trial.changed / trial.images,
            "sqnr_db": trial.sqnr_db if math.isfinite(trial.sqnr_db) else None,
            "noise": trial.noise,
        }
        for trial in found
    ]
    return sorted(rows, key=lambda row: -row["noise"])


def _check(check: Check) -> dict[str, Any]:
    """An open end of the interval is null."""
    ends = None if check.interval is None else [end if math.isfinite(end) else None for end in check.interval]
    return {**dataclasses.asdict(check), "interval": ends}


def _candidate(candidate: Mixed, environment: Mapping[str, Any]) -> dict[str, Any]:
    timing = speedup = None
    check = None if candidate.check is None else _check(candidate.check)
    if candidate.summary is not None:
        comparisons = () if candidate.speedup is None else (candidate.speedup,)
        document = documents.bench([candidate.summary], comparisons, environment)
        timing, speedup = document["results"][0], next(iter(document["comparisons"]), None)
    return {
        "label": candidate.label,
        "precision": candidate.precision,
        "keep_float": list(candidate.keep_float),
        "noise_share_percent": 100 * candidate.noise_share,
        "state": "not judged" if check is None else check["state"],
        "drop_pp": check and check["observed"],
        "drop_ci_pp": check and check["interval"],
        "limit_pp": check and check["limit"],
        "check": check,
        "timing": timing,
        "speedup": speedup and speedup["speedup"],
        "speedup_ci95": speedup and speedup["speedup_ci95"],
        "chosen": candidate.chosen,
    }

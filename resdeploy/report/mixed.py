"""The documents of `quantize --sensitivity` and `--max-drop`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from resdeploy.records import Check, Mixed, Sensitivity
from resdeploy.report import documents
from resdeploy.report.documents import Environment
from resdeploy.report.rows import Json, finite_interval


def sensitivity(model: str, trials: Iterable[Sensitivity], environment: Environment) -> Json:
    """A row for each layer and each block, the most disturbing of them first."""
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "command": "quantize --sensitivity",
        "environment": dict(environment),
        "model": model,
        "results": _sensitivity_rows(trials),
    }


def search(model: str, candidates: Iterable[Mixed], layers: Iterable[Sensitivity], environment: Environment) -> Json:
    """A row for each candidate, the most exact first, and what each layer costs."""
    rows = [_candidate(candidate, environment) for candidate in candidates]
    return {
        "schema_version": documents.SCHEMA_VERSION,
        "command": "quantize --max-drop",
        "environment": dict(environment),
        "model": model,
        "found": any(row["chosen"] and row["state"] == "pass" for row in rows),
        "results": rows,
        "layers": _sensitivity_rows(layers),
        "notes": [f"{row['label']}: {row['check']['note']}" for row in rows if row["check"] is not None],
    }


def _sensitivity_rows(trials: Iterable[Sensitivity]) -> list[Json]:
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
        for trial in trials
    ]
    return sorted(rows, key=lambda row: -row["noise"])


def _check(check: Check) -> Json:
    """An open end of the interval is null."""
    return {**dataclasses.asdict(check), "interval": finite_interval(check.interval)}


def _candidate(candidate: Mixed, environment: Environment) -> Json:
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
        "speedup_ci99": speedup and speedup["speedup_ci99"],
        "chosen": candidate.chosen,
    }

"""Rows of documents: one measured, judged or compared thing each, shared by the commands that list them.

A number that does not exist is null, never NaN. A candidate that failed is a row like the others, with nulls.
"""

from __future__ import annotations

import math
import re
from typing import Any

from resdeploy.records import Check, Comparison, Failure, Reported, Score, Summary
from resdeploy.report import sentences

LATENCIES = ("p50", "p90", "p95", "p99", "mean", "std", "min", "max")

# MLPerf Inference rules, section "Scenarios": what each is judged by.
HEADLINES = {"single-stream": "p90_ms", "multi-stream": "p99_ms", "offline": "throughput_ips"}

Json = dict[str, Any]


def bench_row(outcome: Summary | Failure) -> Json:
    """A row of `bench`; what tables and CI read is there whether it could be measured or not."""
    return _failed_row(outcome) if isinstance(outcome, Failure) else _measured_row(outcome)


def _file_name(label: str, backend: str, precision: str) -> str:
    """A label without what other columns say: `r50.int8 openvino int8 b8 t2` is about `r50.int8`."""
    words = label.split(" ")
    while len(words) > 1 and (words[-1] in (backend, precision) or re.fullmatch(r"[bt]\d+", words[-1])):
        words.pop()
    return " ".join(words)


def _failed_row(failure: Failure) -> Json:
    return {
        "label": failure.label,
        "name": _file_name(failure.label, failure.backend, failure.precision),
        "model": failure.model,
        "backend": failure.backend,
        "precision": failure.precision,
        "batch_size": failure.batch_size,
        "scenario": None,
        "latency_ms": dict.fromkeys(LATENCIES),
        "p50_ci95_ms": None,
        "throughput_ips": None,
        "params": None,
        "macs": None,
        "weights": None,
        "calibration": None,
        "settings": {},
        "valid": False,
        "state": f"failed ({failure.error_code})",
        "notes": [],
        "warnings": [failure.message],
        "unsteady": [],
        "samples_ms": [],
        "error": {"code": failure.error_code, "message": failure.message},
    }


def _measured_row(outcome: Summary) -> Json:
    m = outcome.measurement
    return {
        "label": m.label,
        "name": _file_name(m.label, m.backend, m.precision),
        "model": m.model,
        "backend": m.backend,
        "precision": m.precision,
        "batch_size": m.batch_size,
        "scenario": m.scenario,
        "threads": m.execution.threads,
        "streams": m.execution.streams,
        "hint": m.execution.hint,
        "latency_ms": {name: ms(outcome.latency_s[name]) for name in LATENCIES},
        "p50_ci95_ms": finite_interval(outcome.p50_ci95_s, 1e3),
        "scope": m.scope,
        "metric": {"name": HEADLINES[m.scenario], "value": _headline(outcome)},
        "end_to_end_p50_ms": ms(outcome.end_to_end_p50_s),
        "throughput_ips": finite(outcome.throughput_ips),
        "params": m.params,
        "macs": m.macs,
        "size_bytes": m.size_bytes,
        "peak_rss_bytes": m.peak_rss_bytes or None,  # before the first block nobody has looked
        "load_s": m.load_s,
        "first_ms": ms(m.first_s),
        "cpu_ms_per_image": ms(outcome.cpu_s_per_image),
        "energy_j_per_image": finite(outcome.energy_j_per_image),
        "instructions_per_image": finite(outcome.instructions_per_image),
        "cycles_per_image": finite(outcome.cycles_per_image),
        "sha256": m.sha256,
        "weights": m.weights,
        "calibration": m.calibration,
        "settings": dict(m.settings),
        "valid": outcome.valid,
        "state": _state(outcome),
        "notes": list(m.notes),
        "warnings": list(outcome.warnings),
        "unsteady": list(outcome.unsteady),
        # Which samples belong to one block, and so are not independent, is in block_sizes.
        "samples_ms": [ms(time_s) for time_s in outcome.samples_s],
        "block_sizes": [len(block.run_s) for block in m.blocks],
        "block_walls_s": [block.wall_s for block in m.blocks],
        "block_processes": [block.process for block in m.blocks],
    }


def _headline(outcome: Summary) -> float | None:
    """The number that MLPerf Inference takes for the scenario."""
    name = HEADLINES[outcome.measurement.scenario]
    return finite(outcome.throughput_ips) if name == "throughput_ips" else ms(outcome.latency_s[name[:-3]])


def _state(outcome: Summary) -> str:
    if not outcome.valid:
        return "INVALID"
    return "unsteady" if outcome.unsteady else "ok"


def score_row(score: Score | None) -> Json:
    """Accuracy, nulls where there is none."""
    if score is None:
        return dict.fromkeys(("top1", "top5", "correct", "total", "top1_ci95"))
    return {
        "top1": score.top1,
        "top5": score.top5,
        "correct": score.correct,
        "total": score.total,
        "top1_ci95": finite_interval(score.top1_ci95),
    }


def comparison_row(comparison: Comparison) -> Json:
    """A speed-up, and what may be said of it."""
    return {
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "speedup": finite(comparison.speedup),
        "speedup_ci95": finite_interval(comparison.speedup_ci95),
        "speedup_ci99": finite_interval(comparison.speedup_ci99),
        "cpu_ratio": finite(comparison.cpu_ratio),
        "cpu_ratio_ci99": finite_interval(comparison.cpu_ratio_ci99),
        "instructions_ratio": finite(comparison.instructions_ratio),
        "instructions_ratio_ci99": finite_interval(comparison.instructions_ratio_ci99),
        "pairs": comparison.pairs,
        "needed_s": finite(comparison.needed_s),
        "valid": comparison.valid,
        "verdict": comparison.verdict,
        "finding": sentences.finding(comparison),
        "answer": sentences.answer(comparison),
        "reasons": list(comparison.invalid),
        "kernels": comparison.kernels,
    }


def check_row(check: Check) -> Json:
    """One judged quantity."""
    return {
        "name": check.name,
        "state": check.state,
        "observed": finite(check.observed),
        "limit": finite(check.limit),
        "interval": finite_interval(check.interval),
        "unit": check.unit,
        "note": check.note,
    }


def reported_row(reported: Reported) -> Json:
    """One quantity that nobody judged: no state, no limit."""
    return {
        "name": reported.name,
        "observed": reported.observed,
        "interval": finite_interval(reported.interval),
        "unit": reported.unit,
        "note": reported.note,
    }


def finite(value: float | None) -> float | None:
    """The number; null where it is none."""
    return value if value is not None and math.isfinite(value) else None


def ms(time_s: float | None) -> float | None:
    """Milliseconds to the nanosecond, the clock's own step."""
    return None if time_s is None or not math.isfinite(time_s) else round(time_s * 1e3, 6)


def finite_interval(interval: tuple[float, float] | None, scale: float = 1.0) -> list[float | None] | None:
    """Low and high; an open end is null."""
    if interval is None:
        return None
    return [bound * scale if math.isfinite(bound) else None for bound in interval]

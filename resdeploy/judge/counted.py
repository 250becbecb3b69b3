"""Limits on what is counted, not estimated: the size of a file, the memory of a process, the fusion of blocks.

There is nothing to infer here, so there is no interval, and no `inconclusive` but "it could not be found out".
"""

from __future__ import annotations

import dataclasses
import math

from resdeploy.errors import UsageError
from resdeploy.records import Audit, Check

MB = 1e6


def check_size(size_bytes: int, *, max_mb: float) -> Check:
    """The model file with its companions (an XML's weights, external data), in MB of 1,000,000; 0: unknown."""
    if size_bytes <= 0:
        return _leave_open("size", max_mb, "The size of the file is not known.")
    return _check_bound("size", size_bytes / MB, max_mb, "The file and what belongs to it take")


def check_memory(peak_rss_bytes: int, *, max_mb: float) -> Check:
    """Peak resident memory of the process that loaded and ran the model; 0 where the system does not tell it."""
    if peak_rss_bytes <= 0:
        return _leave_open("memory", max_mb, "The system does not tell the memory of the process that ran the model.")
    return _check_bound("memory", peak_rss_bytes / MB, max_mb, "The process that loaded and ran the model took at most")


def check_fusion(audit: Audit) -> tuple[Check, ...]:
    """The fusion audit's checks as the gate's own."""
    return tuple(
        dataclasses.replace(
            check,
            name=f"fused: {check.name}",
            note=f"{check.note or 'As asked for'}.",
        )
        for check in audit.verdict.checks
    )


def _check_bound(name: str, observed_mb: float, max_mb: float, what: str) -> Check:
    _refuse_no_limit(name, max_mb)
    within = observed_mb <= max_mb
    note = f"{what} {observed_mb:.3g} MB: {'within' if within else 'over'} the limit of {max_mb:g} MB."
    return Check(
        name=name,
        limit=max_mb,
        observed=observed_mb,
        interval=None,
        state="pass" if within else "fail",
        unit="MB",
        note=note,
    )


def _leave_open(name: str, max_mb: float, note: str) -> Check:
    _refuse_no_limit(name, max_mb)
    return Check(name=name, limit=max_mb, observed=None, interval=None, state="inconclusive", unit="MB", note=note)


def _refuse_no_limit(name: str, max_mb: float) -> None:
    if not 0 < max_mb < math.inf:
        raise UsageError(f"{max_mb} MB is no limit of {name}", fix="Choose a number above 0")

"""Limits of `gate` and `run`: what a candidate may lose or take, and the checks that judge it by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resdeploy.judge import budgets, speed
from resdeploy.measure import summary
from resdeploy.records import Check, Measurement


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate may lose or take; None: not judged."""

    drop_pp: float | None = None
    top5_drop_pp: float | None = None
    slowdown_pct: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    fused: bool = False  # as the fusion audit finds it

    @property
    def of_accuracy(self) -> bool:
        return self.drop_pp is not None or self.top5_drop_pp is not None

    @property
    def of_runs(self) -> bool:
        return self.slowdown_pct is not None or self.memory_mb is not None


def check_runs(
    timed: Sequence[tuple[Measurement | None, Measurement]], limits: Limits, *, confidence: float, seed: int
) -> tuple[tuple[Check, ...], ...]:
    """The checks of speed and memory of measured candidates, each with its baseline from the same run."""
    checks: list[list[Check]] = [[] for _ in timed]
    if limits.slowdown_pct is not None:
        both = [(own, old, new) for own, (old, new) in zip(checks, timed, strict=True) if old is not None]
        slowdowns = speed.judge_many(
            [(summary.per_image_s(old), summary.per_image_s(new)) for _, old, new in both],
            max_slowdown_pct=limits.slowdown_pct,
            confidence=confidence,
            seed=seed,
            doubts=[tuple(dict.fromkeys((*old.disturbances, *new.disturbances))) for _, old, new in both],
        )
        for (own, _, _), check in zip(both, slowdowns, strict=True):
            own.append(check)
        for own, (old, _) in zip(checks, timed, strict=True):
            if old is None:  # asked for and not seen: no pass
                own.append(speed.untimed(limits.slowdown_pct, "The baseline was not timed on this backend"))
    if limits.memory_mb is not None:
        for own, (_, new) in zip(checks, timed, strict=True):
            own.append(budgets.memory(new.peak_rss_bytes, max_mb=limits.memory_mb))
    return tuple(map(tuple, checks))


def compares_nothing(name: str) -> str:
    """The note on a candidate that is the baseline itself: a slip in a CI job that would always pass."""
    return f"{name} and the baseline are the same: this compares nothing"

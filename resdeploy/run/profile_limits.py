"""The limits of a profile, and what a run of its models must tell for them to be judged."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.measure import interleaved, one_run
from resdeploy.records import Profile
from resdeploy.verbs import judge_limits
from resdeploy.verbs.judge_limits import Limits


def limits_of(profile: Profile) -> Limits:
    """What every candidate may lose or take."""
    return Limits(
        drop_pp=profile.max_drop_pp,
        top5_drop_pp=profile.max_top5_drop_pp,
        slowdown_pct=profile.max_slowdown_pct,
        cpu_slowdown_pct=profile.max_cpu_slowdown_pct,
        memory_mb=profile.max_memory_mb,
        size_mb=profile.max_size_mb,
        fused=profile.require_fused,
    )


def questions(table: Sequence[one_run.Row], profile: Profile) -> tuple[interleaved.Question, ...]:
    """How fast each row is against its baseline, and whether it is within the limit where there is one."""
    sides = [(baseline, row.candidate.label) for row in table for baseline in row.baselines]
    return (
        *(interleaved.Question(baseline=baseline, candidate=candidate) for baseline, candidate in sides),
        *judge_limits.questions(sides, limits_of(profile), confidence=profile.confidence),
    )

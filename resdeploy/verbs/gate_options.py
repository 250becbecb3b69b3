"""What `gate` is asked: its plan, and how the options of the command line, or of a pytest fixture, become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.deploy.model_string import PreprocessingOverride, SightOptions
from resdeploy.errors import UsageError
from resdeploy.verbs.judge_limits import Limits
from resdeploy.vocabulary import MAX_TIME_S, OnInconclusive

if TYPE_CHECKING:
    from typing import Unpack  # from Python 3.11 on


@dataclass(frozen=True, kw_only=True)
class GatePlan:
    """Who is compared with whom, on what, and how."""

    baseline: str
    candidates: tuple[str, ...]
    limits: Limits
    data: str | None = None
    override: PreprocessingOverride = field(default_factory=PreprocessingOverride)
    skip_bad: bool = False
    sequential: bool = False  # images in random order until the drop is decided
    confidence: float = 0.95
    backends: tuple[str, ...] = ("auto",)
    batch_size: int = 32
    threads: int | None = None
    duration_s: float = 3.0
    max_time_s: float = MAX_TIME_S
    seed: int = 0
    update_baseline: bool = False
    trust_engine: bool = False  # run engines although they were downloaded
    on_inconclusive: OnInconclusive = "fail"


class GateOptions(SightOptions, total=False):
    """Limits and options by the names that the command line gives them."""

    max_drop: float | None
    max_top5_drop: float | None
    max_slowdown: float | None
    max_cpu_slowdown: float | None
    max_size: float | None
    max_memory: float | None
    require_fused: bool
    data: str | None
    sequential: bool
    confidence: float
    backend: str
    batch_size: int
    duration: float
    max_time: float
    threads: int | None
    skip_bad: bool
    seed: int
    update_baseline: bool
    trust_engine: bool
    on_inconclusive: OnInconclusive


def plan_of(baseline: str, candidates: Sequence[str], **options: Unpack[GateOptions]) -> GatePlan:
    """The plan that options of the command line's names describe.

    Raises:
        UsageError: an option of no such name; `on_inconclusive` or `channels` that are none of their words.
    """
    if unknown := sorted(options.keys() - GateOptions.__annotations__):
        raise UsageError(f"gate has no option {', '.join(unknown)}", fix="`resdeploy gate --help` lists them")
    on_inconclusive = options.get("on_inconclusive", GatePlan.on_inconclusive)
    if on_inconclusive not in ("fail", "warn"):  # a fixture takes any text
        raise UsageError(f"on_inconclusive is {on_inconclusive!r}", fix="Choose fail or warn")
    limits = Limits(
        drop_pp=options.get("max_drop"),
        top5_drop_pp=options.get("max_top5_drop"),
        slowdown_pct=options.get("max_slowdown"),
        cpu_slowdown_pct=options.get("max_cpu_slowdown"),
        size_mb=options.get("max_size"),
        memory_mb=options.get("max_memory"),
        fused=options.get("require_fused", False),
    )
    return GatePlan(
        baseline=baseline,
        candidates=tuple({Path(name).resolve(): name for name in candidates}.values()),  # one named twice is one
        limits=limits,
        data=options.get("data"),
        override=PreprocessingOverride.of(options),
        skip_bad=options.get("skip_bad", False),
        sequential=options.get("sequential", False),
        confidence=options.get("confidence", GatePlan.confidence),
        backends=tuple(dict.fromkeys((options.get("backend") or "auto").split(","))),
        batch_size=options.get("batch_size", GatePlan.batch_size),
        threads=options.get("threads"),
        duration_s=options.get("duration", GatePlan.duration_s),
        max_time_s=options.get("max_time", GatePlan.max_time_s),
        seed=options.get("seed", GatePlan.seed),
        update_baseline=options.get("update_baseline", False),
        trust_engine=options.get("trust_engine", False),
        on_inconclusive=on_inconclusive,
    )

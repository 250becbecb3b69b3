"""What a candidate may lose or take, and the verdict on what was seen of it: the one place where limits are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resdeploy.judge import accuracy, counted, speed
from resdeploy.judge.pairs import Pair
from resdeploy.measure import interleaved, summary
from resdeploy.records import Audit, Check, Measurement, Verdict

OF_TIMES = frozenset(("slowdown", "cpu-slowdown"))  # the checks that another run may decide


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate may lose or take; None: not judged."""

    drop_pp: float | None = None
    top5_drop_pp: float | None = None
    slowdown_pct: float | None = None
    cpu_slowdown_pct: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    fused: bool = False  # as the fusion audit finds it

    @property
    def of_accuracy(self) -> bool:
        return self.drop_pp is not None or self.top5_drop_pp is not None

    @property
    def of_runs(self) -> bool:
        return self.of_times or self.memory_mb is not None

    @property
    def of_times(self) -> bool:
        """Whether the baseline is to be timed too."""
        return bool(self.slowdowns)

    @property
    def slowdowns(self) -> dict[speed.Quantity, float]:
        """The limits on times, percent, by what they limit."""
        limits: tuple[tuple[speed.Quantity, float | None], ...] = (
            ("time", self.slowdown_pct),
            ("cpu", self.cpu_slowdown_pct),
        )
        return {of: limit for of, limit in limits if limit is not None}


def times_of_run(baseline: Measurement | None, candidate: Measurement) -> dict[speed.Quantity, speed.Sides]:
    """What the speed is judged by, of one interleaved run; nothing where the baseline was not timed on this backend."""
    if baseline is None:
        return {}
    faults = summary.compare(baseline, candidate).invalid
    return {
        "time": speed.InTurns(pairs=summary.process_pairs(baseline, candidate), faults=faults),
        "cpu": speed.InTurns(pairs=summary.cpu_pairs(baseline, candidate), faults=faults),
    }


def questions(
    sides: Sequence[tuple[str, str]], limits: Limits, *, confidence: float
) -> tuple[interleaved.Question, ...]:
    """What a run must tell for the limits on times to be judged, of labels of baselines and candidates.

    Each at its share of the error: what is sure at Bonferroni's level is so at Holm's.
    """
    return tuple(
        interleaved.Question(
            baseline=baseline,
            candidate=candidate,
            of=of,
            limit=1 + limit_pct / 100,
            equal_within=None,
            error=2 * (1 - confidence) / len(sides),
        )
        for baseline, candidate in sides
        for of, limit_pct in limits.slowdowns.items()
    )


def confidence_of_attempt(confidence: float) -> float:
    """The confidence of each of two attempts, of which the second is made where the first is inconclusive.

    Half of the error each (Bonferroni): a candidate passes wrongly if the first attempt passes it wrongly or, left open
    by that, the second does. At the whole error each, who may try twice would be wrong nearly twice as often.
    """
    return 1 - (1 - confidence) / 2


def is_open(verdict: Verdict) -> bool:
    """Whether a limit on times was not decided."""
    return any(check.name in OF_TIMES and check.state == "inconclusive" for check in verdict.checks)


def judge_again(
    firsts: Sequence[Verdict], seconds: Sequence[Evidence], limits: Limits, *, confidence: float
) -> tuple[Verdict, ...]:
    """The verdicts on candidates that were left open and measured a second time: what the second says counts.

    Holm's correction is over these candidates alone. The second attempt knows nothing of the first one's times, so that
    whatever luck chose them, a wrong verdict among them is as rare as if they had been all there are.

    Args:
        firsts: of the first attempt.
        seconds: the times of the second.
        limits: as for the first.
        confidence: of this attempt (`confidence_of_attempt`).
    """
    judged = []
    for first, checks in zip(firsts, _judge_times(seconds, limits, confidence=confidence), strict=True):
        again = {check.name: check for check in checks}
        judged.append(
            dataclasses.replace(
                first,
                checks=tuple(
                    _second(check, again[check.name])
                    if check.name in again and check.state == "inconclusive"
                    else check
                    for check in first.checks
                ),
            )
        )
    return tuple(judged)


def _second(first: Check, second: Check) -> Check:
    """With a note that says which attempt it is, and what the first one saw."""
    saw = "" if first.interval is None else f" ({first.interval[0]:+.2f} % to {first.interval[1]:+.2f} %)"
    why = f"This is a second attempt, alone with its baseline: beside the other candidates nothing was decided{saw}."
    return dataclasses.replace(second, note=f"{second.note} {why}")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was seen of one candidate beside its baseline; None: not looked at."""

    accuracy: Verdict | None = None  # of `judge_answers`
    times: Mapping[speed.Quantity, speed.Sides] = field(default_factory=dict)
    untimed: str = "The baseline was not timed on this backend"  # why one of the times is not there
    size_bytes: int | None = None
    peak_rss_bytes: int | None = None
    audit: Audit | None = None


def judge_answers(answers: Sequence[Pair | None], limits: Limits, *, confidence: float) -> tuple[Verdict, ...]:
    """The accuracy of each candidate, by its answers and its baseline's; what needs no measuring comes first.

    Raises:
        UsageError: a limit or a confidence outside its range, or top-5 where a side names fewer classes.
    """
    answered = [pair for pair in answers if pair is not None]
    drops = {"max_drop_pp": limits.drop_pp, "max_top5_drop_pp": limits.top5_drop_pp}
    judged = iter(accuracy.judge_many(answered, **drops, confidence=confidence) if answered else ())
    return tuple(_without_answers(limits) if pair is None else next(judged) for pair in answers)


def judge(evidence: Sequence[Evidence], limits: Limits, *, confidence: float) -> tuple[Verdict, ...]:
    """A verdict on each candidate; Holm's correction over all of them, for each quantity.

    Args:
        evidence: of each candidate.
        limits: what each may lose or take.
        confidence: of the intervals; 1 minus the chance that any of several verdicts is wrong.

    Raises:
        UsageError: a limit or a confidence outside its range.
    """
    slowdowns = _judge_times(evidence, limits, confidence=confidence)
    judged = []
    for seen, slowdown in zip(evidence, slowdowns, strict=True):
        of_accuracy = seen.accuracy or Verdict(checks=())
        checks = (*of_accuracy.checks, *slowdown, *_judge_budgets(seen, limits))
        judged.append(dataclasses.replace(of_accuracy, checks=checks))
    return tuple(judged)


def _without_answers(limits: Limits) -> Verdict:
    """A limit that was asked for and could not be judged does not pass; `run` alone goes on to this."""
    asked = (("top1", limits.drop_pp), ("top5", limits.top5_drop_pp))
    note = "FP32 or this model has no predictions to compare: it failed on the images."
    return Verdict(
        checks=tuple(
            Check(name=name, limit=limit, observed=None, interval=None, state="inconclusive", unit="points", note=note)
            for name, limit in asked
            if limit is not None
        )
    )


def _judge_times(evidence: Sequence[Evidence], limits: Limits, *, confidence: float) -> list[tuple[Check, ...]]:
    """For each, one check a limit on times."""
    checks: list[list[Check]] = [[] for _ in evidence]
    for of, limit in limits.slowdowns.items():
        timed = [seen.times[of] for seen in evidence if of in seen.times]
        judged = iter(speed.judge_many(timed, max_slowdown_pct=limit, confidence=confidence, of=of))
        for own, seen in zip(checks, evidence, strict=True):
            own.append(next(judged) if of in seen.times else speed.check_untimed(limit, seen.untimed, of=of))
    return [tuple(own) for own in checks]


def _judge_budgets(seen: Evidence, limits: Limits) -> tuple[Check, ...]:
    """What is counted and not estimated: memory, size, and the fusion of blocks."""
    checks: list[Check] = []
    if limits.memory_mb is not None:
        checks.append(counted.check_memory(seen.peak_rss_bytes or 0, max_mb=limits.memory_mb))
    if limits.size_mb is not None:
        checks.append(counted.check_size(seen.size_bytes or 0, max_mb=limits.size_mb))
    if limits.fused and seen.audit is not None:
        checks += counted.check_fusion(seen.audit)
    return tuple(checks)


def compares_nothing(name: str) -> str:
    """The note on a candidate that is the baseline itself: a slip in a CI job that would always pass."""
    return f"{name} and the baseline are the same: this compares nothing"

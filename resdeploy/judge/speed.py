"""The speed gate: is the candidate at most so much slower, beyond what the noise of the machine explains?

As for accuracy there are three answers. Times that took turns in one run are judged by the interval of their ratio,
however the times themselves wandered; of two runs, each by itself, nothing tells what the machine did in between, and
one that wandered is `inconclusive`. CPU time per image is judged by the same rule, as a quantity of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from resdeploy import stats
from resdeploy.errors import refuse
from resdeploy.records import Check, State
from resdeploy.records.times import LEAST_PAIRS
from resdeploy.stats import looks, timing, validity

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

TAIL_DRAWS = 20  # a bound is no extreme of its resamples: at least so many lie beyond it
FURTHEST = 30  # of the room up to the limit: it would take 900 times as long

Blocks = Sequence["ArrayLike"]
Interval = tuple[float, float, float]  # a slowdown and its two bounds, percent
Quantity = Literal["time", "cpu"]  # seconds per image, by the clock or of all threads

CHECKS: dict[Quantity, str] = {"time": "slowdown", "cpu": "cpu-slowdown"}
WORDS: dict[Quantity, str] = {"time": "time", "cpu": "CPU time"}


class Sides(Protocol):
    """The times of a candidate and of its baseline."""

    @property
    def reasons(self) -> Sequence[str]:
        """Why nothing can be said of them."""

    @property
    def enough(self) -> bool:
        """Whether they are enough for an interval."""

    def slowdown(self, tail: float) -> stats.Estimate:
        """The ratio of their times, each end of the interval missing the truth in `tail` of all cases."""

    def would_decide(self, factor: float) -> str:
        """What to do for an interval that is narrower by the square root of `factor`."""


@dataclass(frozen=True, kw_only=True)
class InTurns:
    """Both of one interleaved run: seconds per image of the baseline and of the candidate in each pair of processes.

    By the clock, turn by turn, or CPU seconds of each process.
    """

    pairs: Sequence[tuple[Blocks, Blocks]]
    faults: Sequence[str] = ()  # what makes a time wrong

    @property
    def reasons(self) -> Sequence[str]:
        if self.enough:
            return self.faults
        return (*self.faults, f"{len(self.pairs)} pairs of processes were timed, {LEAST_PAIRS} are needed")

    @property
    def enough(self) -> bool:
        return len(self.pairs) >= LEAST_PAIRS

    def slowdown(self, tail: float) -> stats.Estimate:
        """As `stats.ratio_of_pairs`, at a level that allows for the looks at the growing run."""
        pairs = [(after, before) for before, after in self.pairs]
        return stats.ratio_of_pairs(pairs, confidence=looks.confidence(2 * tail))

    def would_decide(self, factor: float) -> str:
        needed = max(math.ceil(len(self.pairs) * factor), len(self.pairs) + 1)
        if needed > looks.PAIRS[-1]:
            return f"more than the {looks.PAIRS[-1]} pairs of processes of a run would be needed to decide"
        how = "raise --max-time (in a profile max_time_s)"
        return f"about {needed} pairs of processes instead of {len(self.pairs)} would decide: {how}"


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Each of a run of its own: seconds per image, one array per block, in the order of measurement."""

    baseline: Blocks
    candidate: Blocks
    seed: int = 0  # of resampling
    known: Sequence[str] = ()  # what else speaks against comparing the two, such as another machine

    @property
    def reasons(self) -> Sequence[str]:
        own = [
            f"{role}: {doubt.kind} ({doubt.observed:.3g}, limit {doubt.limit:g})"
            for role, blocks in (("baseline", self.baseline), ("candidate", self.candidate))
            for doubt in stats.doubts(blocks)
        ]
        return (*self.known, *own)

    @property
    def enough(self) -> bool:
        return min(len(self.baseline), len(self.candidate)) >= validity.MIN_BLOCKS

    def slowdown(self, tail: float) -> stats.Estimate:
        """As `stats.ratio_of_medians`."""
        resamples = max(timing.RESAMPLES, math.ceil(TAIL_DRAWS / tail))
        return stats.ratio_of_medians(
            self.candidate, self.baseline, confidence=1 - 2 * tail, seed=self.seed, resamples=resamples
        )

    def would_decide(self, factor: float) -> str:
        blocks = min(len(self.baseline), len(self.candidate))
        needed = max(math.ceil(blocks * factor), blocks + 1)
        return f"about {needed} blocks instead of {blocks} would decide: raise the duration"


def judge(sides: Sides, *, max_slowdown_pct: float, confidence: float = 0.95, of: Quantity = "time") -> Check:
    """Judges the slowdown: the ratio of the times, less one, in percent.

    Args:
        sides: the times.
        max_slowdown_pct: how much slower the candidate may be, above -100.
        confidence: one-sided, of the pass and of the fail.
        of: what the sides hold; the check is named after it.

    Raises:
        UsageError: the limit is no limit.
    """
    return judge_many([sides], max_slowdown_pct=max_slowdown_pct, confidence=confidence, of=of)[0]


def judge_many(
    several: Sequence[Sides], *, max_slowdown_pct: float, confidence: float = 0.95, of: Quantity = "time"
) -> tuple[Check, ...]:
    """Judges several candidates, each against its own baseline; the chance of any wrong pass stays `1 - confidence`.

    Holm's step-down over those that can be judged, for the passes and for the fails each: with m claims left, one
    holds if its bound at `(1 - confidence) / m` is on its side of the limit. Intervals are each candidate's alone.

    Raises:
        UsageError: as `judge`.
    """
    refuse(
        (
            not -100 < max_slowdown_pct < math.inf,
            f"a slowdown of {max_slowdown_pct} % is no limit",
            "Choose a percentage such as 3",
        ),
        (not 0.5 < confidence < 1, f"{confidence} is not a confidence", "Choose a share such as 0.95"),
    )

    @functools.cache
    def percent(k: int, tail: float) -> Interval:
        ratio = several[k].slowdown(tail)
        return 100 * (ratio.value - 1), 100 * (ratio.low - 1), 100 * (ratio.high - 1)

    can_be_judged = [k for k, sides in enumerate(several) if not sides.reasons]
    tail = 1 - confidence
    within = _holm(can_be_judged, tail, lambda k, part: percent(k, part)[2] <= max_slowdown_pct)
    beyond = _holm(can_be_judged, tail, lambda k, part: percent(k, part)[1] > max_slowdown_pct)
    checks = []
    for k, sides in enumerate(several):
        if not sides.enough:
            checks.append(check_untimed(max_slowdown_pct, f"{'; '.join(sides.reasons)}: measure longer", of=of))
            continue
        state: State = "pass" if k in within else "fail" if k in beyond else "inconclusive"
        value, low, high = percent(k, tail)
        decisive = percent(k, tail / max(len(can_be_judged), 1))  # Holm's smallest level
        note = _note(sides, state, (value, low, high), decisive, max_slowdown_pct, confidence, WORDS[of])
        if len(several) > 1:
            note += f". Holm's correction for {len(several)} candidates was applied; the interval is this one's alone"
        checks.append(_check(of, max_slowdown_pct, value, (low, high), state, note))
    return tuple(checks)


def _holm(reliable: Sequence[int], tail: float, holds: Callable[[int, float], bool]) -> set[int]:
    """Holm's step-down by bounds instead of p-values (Holm, Scand. J. Statist. 6 (1979) 65-70)."""
    left = list(reliable)
    while left:
        held = next((k for k in left if holds(k, tail / len(left))), None)
        if held is None:
            break
        left.remove(held)
    return set(reliable) - set(left)


def _note(
    sides: Sides,
    state: State,
    slowdown: Interval,
    decisive: Interval,
    limit: float,
    confidence: float,
    what: str,
) -> str:
    """The interval in words, and what follows from it; `decisive` is the wider one that has to be on one side."""
    if sides.reasons:
        return f"Nothing can be said of the times: {'; '.join(sides.reasons)}. Measure again"
    _, low, high = slowdown
    said = f"The {what} changes by {low:+.2f} % to {high:+.2f} %, each end at {100 * confidence:g} % confidence"
    if state != "inconclusive":
        return f"{said}: {'within' if state == 'pass' else 'beyond'} the limit of {limit:g} %"
    # An interval narrows with the square root of the time; the half towards the limit has to become shorter.
    value, low, high = decisive
    reach, room = (high - value, limit - value) if value < limit else (value - low, value - limit)
    if room <= 0 or reach > FURTHEST * room:
        return f"{said}; that is the limit of {limit:g} % itself: no sensible time decides"
    return f"{said}; {sides.would_decide((reach / room) ** 2)}"


def check_untimed(max_slowdown_pct: float, why: str, *, of: Quantity = "time") -> Check:
    """A limit on times that are not there."""
    return _check(of, max_slowdown_pct, None, None, "inconclusive", why)


def _check(
    of: Quantity,
    limit: float,
    observed: float | None,
    interval: tuple[float, float] | None,
    state: State,
    note: str,
) -> Check:
    return Check(
        name=CHECKS[of], limit=limit, observed=observed, interval=interval, state=state, unit="%", note=f"{note}."
    )

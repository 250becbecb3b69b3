"""What the first processes of a run tell of the machine: how long a turn should be, and how many a process is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resdeploy import stats
from resdeploy.measure import summary
from resdeploy.records import Measurement

# Lengths that the first processes try, one each. Shorter turns spend their time on what another lane's traces take to
# fade; in longer ones the machine wanders (benchmarks/traces.py).
TURNS_S = (0.05, 0.1, 0.2)
CLEARLY = 0.5  # of the variance for the same time: what a few dozen turns can tell for sure
LEAST_TURNS, MOST_TURNS = 4, 32
PLANNED = 0.85  # of the time, until the first look: processes take longer than they should, and it must not be missed

Sides = Sequence[tuple[Measurement, Measurement]]  # baseline and candidate of every question


class Pace:
    """What a run's time allows: the first look comes first, and what is left after it goes into what pays.

    Args:
        longest_s: of the run.
        first_look: processes of every candidate until then.
    """

    def __init__(self, longest_s: float, first_look: int) -> None:
        self.longest_s, self.first_look = longest_s, first_look
        self.spent_s, self.processes = 0.0, 0

    @property
    def process_s(self) -> float:
        """Seconds of one process of every candidate, in the mean."""
        return self.spent_s / max(self.processes, 1)

    @property
    def share_s(self) -> float:
        """Seconds that the next process may take, loading included, for the first look to come in time."""
        missing = self.first_look - self.processes
        return (PLANNED * self.longest_s - self.spent_s) / missing if missing > 0 else self.longest_s - self.spent_s

    def allows_another(self) -> bool:
        """Whether one process more of every candidate ends before the time does; the first one always may begin."""
        return not self.processes or self.spent_s + self.process_s <= self.longest_s

    def note(self, process_s: float) -> None:
        """Remembers what a process took."""
        self.spent_s, self.processes = self.spent_s + process_s, self.processes + 1


def best_turn_s(sides: Sides, usual_s: float) -> float:
    """The length of a turn that tells most for its time, by the first processes, of which each tried one.

    What counts is the variance of a turn's ratio times the seconds that it takes: of half as many turns with half of
    the variance the mean is as exact.
    """
    if not sides:
        return usual_s
    price = {length_s: _price(sides, process) for process, length_s in enumerate(TURNS_S)}
    best_s = min(price, key=price.__getitem__)
    return best_s if price[best_s] < CLEARLY * price[usual_s] else usual_s


def worthwhile_turns(sides: Sides, *, process_s: float) -> int | None:
    """How many turns of a pair of processes make the ratio most exact for its time; None: nothing tells.

    More turns tell nothing of what a restart changes, and fewer leave most of the time to loading and warming up. The
    best number is `sqrt(setup_s / turn_s * within / between)`, with the variances of a turn's ratio within and of a
    pair's ratio between pairs (Cochran, *Sampling Techniques*, 3rd ed. 1977, section 10.6).

    Args:
        sides: what has been measured; of one process alone nothing tells.
        process_s: seconds that one process of every candidate takes, loading included.
    """
    numbers = []
    for baseline, candidate in sides:
        turns = _turns(baseline, candidate)
        if len(turns) < 2:
            continue
        count = float(np.mean([len(one) for one in turns]))
        within = float(np.mean([_variance(one) for one in turns]))
        # Of the medians' variance pi / 2 of that of a mean is the turns' own.
        between = float(np.var([np.median(one) for one in turns], ddof=1)) - math.pi / 2 * within / count
        turn_s = float(np.median([_turn_s(baseline, candidate, process) for process in range(len(turns))]))
        setup_s = max(process_s - count * turn_s, 0.0)
        numbers.append(math.sqrt(setup_s / turn_s * within / between) if between > 0 else math.inf)
    return round(min(max(float(np.mean(numbers)), LEAST_TURNS), MOST_TURNS)) if numbers else None


def _price(sides: Sides, process: int) -> float:
    """Variance of a turn's ratio times its seconds, the geometric mean over what is asked."""
    prices = [max(_variance(_turns(*pair)[process]), 1e-12) * _turn_s(*pair, process) for pair in sides]
    return float(np.exp(np.mean(np.log(prices))))


def _turns(baseline: Measurement, candidate: Measurement) -> list[np.ndarray]:
    """The log ratios of the turns of each pair of processes, as they are judged."""
    return [stats.log_ratios(above, below) for below, above in summary.process_pairs(baseline, candidate)]


def _variance(turns: np.ndarray) -> float:
    """Of one turn, robustly: a burst of other load is no reason to measure longer than the rest asks for."""
    return float((1.4826 * np.median(np.abs(turns - np.median(turns)))) ** 2)


def _turn_s(baseline: Measurement, candidate: Measurement, process: int) -> float:
    """How long a turn of the two takes, from block to block."""
    blocks = (*baseline.blocks, *candidate.blocks)
    starts = sorted(block.started_s for block in blocks if block.process == process)
    return 2 * (starts[-1] - starts[0]) / max(len(starts) - 1, 1)

"""Times candidates in turns: one interleaved run of everything that is to be compared.

A machine's speed wanders over seconds (clocks, heat, neighbours) and settles differently in every process (memory
layout, thread placement). So candidates take turns in short blocks, in random order and then the same backwards, which
spreads the wandering over all of them and lets what is compared be compared turn by turn; each gets fresh processes in
the course of the run, so that no figure rests on one alone; and one lane runs at a time.

Where a question is asked (is one faster than the other?), the run goes on pair of processes by pair of processes until
its answer is sure, or the time is over: `stats.looks` says when it is looked at. What a restart changes against what
wanders within a process decides how many turns a process is worth. Statistics are not done here: `measure.summary`
derives them from the raw times.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resdeploy import stats
from resdeploy.backends.lane import Lane
from resdeploy.errors import ResdeployError, UsageError, revive
from resdeploy.measure import environment, pilot, quiet, summary, traced
from resdeploy.measure.entrant import MAX_QUERIES, MAX_QUERIES_A_TURN, SWITCH_S, Entrant
from resdeploy.records import (
    Artifact,
    BackendName,
    Execution,
    Failure,
    Measurement,
    Progress,
    Scenario,
    Scope,
)
from resdeploy.records.times import LEAST_PAIRS
from resdeploy.stats import looks
from resdeploy.vocabulary import EQUAL_WITHIN, MAX_TIME_S

BLOCKS = 16  # per candidate; trends and intervals need at least 8 (stats.validity.MIN_BLOCKS)
PROCESSES = 2  # where nothing is asked
# Where something is asked: after how many pairs of processes the answer is looked for, and until `pilot` knows better
# the length of a turn and how many a process makes.
LOOKS, TURN_S, TURNS = looks.PAIRS, 0.1, 8
CALL_S = 0.02  # what a block takes besides: the question to the child, its answer, Python's garbage
# What has been measured of a row so far, after each of its blocks; and how many blocks of all are done.
Watch = Callable[["Measurement | Failure", int, int], None]
# The label of the row that is run from now on.
Starting = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of a bench: a built file and how to run it. `label` tells it from the others.

    Without a `scenario` one stream is single-stream and several are offline. The scope `jpeg` needs `images`.
    """

    label: str
    backend: BackendName
    artifact: Artifact
    execution: Execution
    macs: int | None = None
    scenario: Scenario | None = None
    scope: Scope = "compute"
    images: tuple[Path, ...] = ()

    @property
    def model(self) -> str:
        return self.artifact.model.name if self.artifact.model else Path(self.artifact.path).stem


@dataclass(frozen=True, kw_only=True)
class Question:
    """Whether a candidate is slower than a baseline, or than it may be: answered when its interval tells.

    That is when the interval of the ratio of their times, or of their CPU times, leaves out `limit`, or lies within
    `equal_within` of 1.
    """

    baseline: str  # labels
    candidate: str
    of: Literal["time", "cpu"] = "time"  # per image
    limit: float = 1.0  # of the candidate's over the baseline's
    equal_within: float | None = EQUAL_WITHIN  # None: equality is no answer
    error: float = summary.ERROR  # two-sided, how often all looks together may miss the truth

    def answered(self, baseline: Measurement, candidate: Measurement) -> bool:
        """Whether what has been measured so far tells."""
        pairs_of = summary.cpu_pairs if self.of == "cpu" else summary.process_pairs
        pairs = pairs_of(candidate, baseline)
        if len(pairs) < LEAST_PAIRS:
            return False
        ratio = stats.ratio_of_pairs(pairs, confidence=looks.confidence(self.error))
        if not ratio.low <= self.limit <= ratio.high:
            return True
        return self.equal_within is not None and max(ratio.high, 1 / ratio.low) <= 1 + self.equal_within


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to time, in how many turns."""

    duration_s: float = 3.0  # of timed queries per candidate, at least, or about MAX_QUERIES queries per block
    seed: int = 0  # of the order of blocks
    blocks: int = BLOCKS  # per candidate, spread over its processes, where nothing is asked
    processes: int = PROCESSES  # fresh ones per candidate, where nothing is asked
    max_time_s: float = MAX_TIME_S  # for each two that are compared, loading and warming up included
    kernels: bool = True  # afterwards look which kernels ran, of each row that a question compares on its own backend


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told how a run goes on."""

    progress: Progress | None = None  # of what is being done
    watch: Watch | None = None  # of every block as soon as it is timed, and of every failure
    starting: Starting | None = None  # of which candidate is next, before its lane is opened and before each block


def run(
    candidates: Sequence[Candidate],
    schedule: Schedule = Schedule(),
    listener: Listener = Listener(),
    *,
    questions: Sequence[Question] = (),
    open_lane: Callable[[BackendName], Lane] = Lane,
    look: Callable[[], environment.Snapshot] = environment.snapshot,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Measurement | Failure, ...]:
    """Times all candidates in one interleaved run.

    A candidate whose backend fails becomes a `Failure`; the others go on.

    Args:
        candidates: with labels that differ.
        schedule: how long, in how many turns.
        listener: who is told of it.
        questions: what the run is to tell; it ends as soon as all are answered, and a candidate leaves it with its
            last one.
        open_lane: makes lanes.
        look: reads the machine's counters.
        clock: of the schedule's seconds.

    Returns:
        One result per candidate, in their order.

    Raises:
        UsageError: labels that are not unique, or none.
        ResdeployError: all candidates failed; of the first one's class.
    """
    labels = [candidate.label for candidate in candidates]
    if not labels or len(set(labels)) != len(labels):
        raise UsageError(f"candidates need different names: {', '.join(labels) or 'there are none'}")
    entrants = {candidate.label: Entrant(candidate) for candidate in candidates}
    timing = _Timing(entrants, schedule, listener, open_lane, random.Random(schedule.seed), clock)
    before = look()
    _time_until_answered(timing, questions)
    _time_the_others(timing, questions)
    disturbances = environment.disturbances(before, look())
    for entrant in entrants.values():
        entrant.disturbances = disturbances
    _raise_if_all_failed(tuple(entrants.values()))
    compared = _compared_on_one_backend(entrants, questions) if schedule.kernels else set()
    trace = traced.Trace(open_lane)
    return tuple(
        entrant.failure()
        if entrant.error
        else traced.look_into(entrant.measurement(), entrant.candidate, trace, kernels_too=label in compared)
        for label, entrant in entrants.items()
    )


def _time_blocks(timing: _Timing, entrants: Sequence[Entrant]) -> None:
    """As many blocks of each as the schedule says, in as many processes."""
    schedule = timing.schedule
    rounds = math.ceil(schedule.blocks / schedule.processes)
    made = min((len({block.process for block in entrant.blocks}) for entrant in entrants), default=schedule.processes)
    for process in range(made, schedule.processes):
        generation = _Generation(
            process=process,
            rounds=rounds,
            block_s=schedule.duration_s / schedule.blocks,
            planned=schedule.processes * rounds,
        )
        timing.time_generation(entrants, generation)


def _time_until_answered(timing: _Timing, questions: Sequence[Question]) -> None:
    """Process by process of every candidate; looks when LOOKS says, and ends before the time is over."""
    unanswered = [one for one in questions if {one.baseline, one.candidate} <= timing.entrants.keys()]
    compared = {(question.baseline, question.candidate) for question in unanswered}
    pace = pilot.Pace(timing.schedule.max_time_s * len(compared), LOOKS[0])
    turns = _Turns(TURN_S, max(TURNS, math.ceil(timing.schedule.duration_s / LOOKS[0] / TURN_S)))
    for process in range(LOOKS[-1]):
        if not unanswered or not pace.allows_another():
            return
        asked = {label for question in unanswered for label in (question.baseline, question.candidate)}
        running = [entrant for label, entrant in timing.entrants.items() if label in asked]
        generation = turns.generation(process, share_s=pace.share_s)
        pace.note(timing.time_generation(running, generation))
        measured = {label: entrant.measurement() for label, entrant in timing.entrants.items() if not entrant.error}
        unanswered = [one for one in unanswered if {one.baseline, one.candidate} <= measured.keys()]
        sides = [(measured[one.baseline], measured[one.candidate]) for one in unanswered]
        turns = turns.after(process, sides, pace.process_s)
        if process + 1 in LOOKS:
            unanswered = [one for one, pair in zip(unanswered, sides, strict=True) if not one.answered(*pair)]


@dataclass(frozen=True)
class _Turns:
    """How long a turn is and how many a process makes: at first as usual, then as the pilot and the looks advise."""

    length_s: float
    count: int

    def generation(self, process: int, *, share_s: float) -> _Generation:
        """The next one; those of the pilot try other lengths, and take as long."""
        length_s = pilot.TURNS_S[process] if process < len(pilot.TURNS_S) else self.length_s
        rounds = round(self.count * self.length_s / length_s)
        planned = self.count * next(size for size in LOOKS if size > process)
        return _Generation(process=process, rounds=rounds, block_s=length_s, planned=planned, share_s=share_s)

    def after(self, process: int, sides: Sequence[tuple[Measurement, Measurement]], process_s: float) -> _Turns:
        """What follows a process, by all that was measured; `process_s` are the seconds that opening takes."""
        length_s, count = self.length_s, self.count
        if process + 1 == len(pilot.TURNS_S):
            length_s = pilot.best_turn_s(sides, TURN_S)
            count = max(1, round(count * TURN_S / length_s))
        if process + 1 in LOOKS:
            count = pilot.worthwhile_turns(sides, process_s=process_s) or count
        return _Turns(length_s, count)


def _time_the_others(timing: _Timing, questions: Sequence[Question]) -> None:
    """Candidates that nothing is asked of, or nothing any more since what they were compared with has failed."""
    running = {label for label, entrant in timing.entrants.items() if entrant.error is None}
    asked = {
        label
        for one in questions
        if {one.baseline, one.candidate} <= running
        for label in (one.baseline, one.candidate)
    }
    _time_blocks(timing, [timing.entrants[label] for label in timing.entrants if label in running - asked])


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """One process of every row that is run, and its turns."""

    process: int
    rounds: int
    block_s: float
    planned: int  # rounds that the whole run is told to have
    share_s: float | None = None  # that opening and turns may take, where something is asked


@dataclass(frozen=True)
class _Timing:
    """A run: who takes part, and how its processes and turns are made."""

    entrants: Mapping[str, Entrant]  # by their labels
    schedule: Schedule
    listener: Listener
    open_lane: Callable[[BackendName], Lane]
    order: random.Random
    clock: Callable[[], float]

    def time_generation(self, entrants: Sequence[Entrant], generation: _Generation) -> float:
        """A fresh process for every entrant, then its turns.

        Returns:
            Seconds that it took.
        """
        begun = self.clock()
        with contextlib.ExitStack() as stack:
            self._open(entrants, generation, stack)
            left_s = None if generation.share_s is None else generation.share_s - (self.clock() - begun)
            self._take_turns(entrants, generation, left_s)
        return self.clock() - begun

    def _open(self, entrants: Sequence[Entrant], generation: _Generation, stack: contextlib.ExitStack) -> None:
        """Starts the interpreters side by side, and loads the models one by one."""
        order = self._order_of_opening(generation.process, entrants)
        opening = [entrant for entrant in order if entrant.error is None]
        lanes = [stack.enter_context(self.open_lane(entrant.candidate.backend)) for entrant in opening]
        for entrant, lane in zip(opening, lanes, strict=True):
            with _record_failure(entrant):
                lane.start(entrant.candidate.artifact, entrant.candidate.execution)
        for entrant, lane in zip(opening, lanes, strict=True):
            self._name(entrant)
            with _record_failure(entrant):
                entrant.open(lane, generation.process)
            self._tell(entrant, generation.planned)

    def _take_turns(self, entrants: Sequence[Entrant], generation: _Generation, left_s: float | None) -> None:
        """Rounds of a block each: in random order, then the same backwards.

        So a machine that gets slower and slower meanwhile is as slow for each in the mean. Where something is asked
        (`left_s`), there are fewer rounds where the seconds left are too few for them, and more while too many turns
        were disturbed and the seconds allow it.
        """
        order, rounds, most, queries = list(entrants), generation.rounds, 0, MAX_QUERIES
        if left_s is not None:
            most, queries = self._affordable_rounds(entrants, generation.block_s, left_s), MAX_QUERIES_A_TURN
            rounds = max(quiet.LEAST_TURNS, min(rounds, most))
        number = 0
        while number < rounds or (number < most and self._want_quiet_turns(generation.process, entrants, rounds)):
            if number % 2:
                order.reverse()
            else:
                self.order.shuffle(order)
            for entrant in [entrant for entrant in order if entrant.error is None]:
                self._name(entrant)
                with _record_failure(entrant):
                    entrant.time_block(generation.block_s, queries)
                self._tell(entrant, generation.planned)
            number += 1

    def _order_of_opening(self, process: int, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Another one for every second process, and backwards for the one after it.

        Of two copies of a file the one that is opened later was found up to 1 % faster.
        """
        order = random.Random(f"{self.schedule.seed} {process // 2}").sample(entrants, len(entrants))
        return order[::-1] if process % 2 else order

    @staticmethod
    def _affordable_rounds(entrants: Sequence[Entrant], block_s: float, left_s: float) -> int:
        """How many blocks of each fit into so many seconds, by what a query of each takes."""
        round_s = sum(max(block_s, one.query_s) + max(SWITCH_S, one.query_s) + CALL_S for one in entrants)
        return max(0, int(left_s / round_s))

    def _want_quiet_turns(self, process: int, entrants: Sequence[Entrant], rounds: int) -> bool:
        running = [entrant for entrant in entrants if entrant.error is None]
        if not running:
            return False
        blocks = [[block for block in entrant.blocks if block.process == process] for entrant in running]
        return quiet.turns_to_come(blocks, rounds)

    def _name(self, entrant: Entrant) -> None:
        """Says which row is next."""
        if self.listener.starting is not None:
            self.listener.starting(entrant.candidate.label)

    def _tell(self, entrant: Entrant, planned: int) -> None:
        """Says what has been done, after each block and each failure."""
        running = [one for one in self.entrants.values() if one.error is None]
        most = max((len(one.blocks) for one in running), default=0)
        done, total = sum(len(one.blocks) for one in running), len(running) * max(planned, most)
        if self.listener.progress is not None and running:
            self.listener.progress("timing", done, total)
        if self.listener.watch is not None:
            self.listener.watch(entrant.failure() if entrant.error else entrant.measurement(), done, total)


def measurement_or_raise(outcome: Measurement | Failure) -> Measurement:
    """The measurement, where nothing can be said without it.

    Raises:
        ResdeployError: the failure, with the code and exit status of the error that it was.
    """
    if isinstance(outcome, Failure):
        raise revive(outcome.error_code, outcome.exit_status, outcome.message)
    return outcome


def _compared_on_one_backend(entrants: Mapping[str, Entrant], questions: Sequence[Question]) -> set[str]:
    """Labels of the rows that a question compares with another on the same backend, both of which were timed."""
    backends = {label: entrant.candidate.backend for label, entrant in entrants.items() if not entrant.error}
    sides = [(one.baseline, one.candidate) for one in questions if {one.baseline, one.candidate} <= backends.keys()]
    return {label for pair in sides for label in pair if len({backends[side] for side in pair}) == 1}


@contextlib.contextmanager
def _record_failure(entrant: Entrant) -> Iterator[None]:
    """A failure ends the candidate, not the run."""
    try:
        yield
    except ResdeployError as e:
        entrant.error = e


def _raise_if_all_failed(entrants: Sequence[Entrant]) -> None:
    errors = [entrant.error for entrant in entrants if entrant.error is not None]
    if len(errors) < len(entrants):
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    reasons = "; ".join(f"{entrant.candidate.label}: {entrant.error.what}" for entrant in entrants if entrant.error)
    raise type(first)(f"no candidate could be timed: {reasons}", cause=first.cause, fix=first.fix, code=first.code)

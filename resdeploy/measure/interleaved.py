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
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resdeploy import stats, store
from resdeploy.backends.lane import Lane
from resdeploy.errors import ResdeployError, UsageError, revive
from resdeploy.measure import environment, pilot, quiet, summary, traced
from resdeploy.records import (
    Artifact,
    BackendName,
    Block,
    Execution,
    Failure,
    Measurement,
    Progress,
    Replay,
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
SWITCH_S = 0.02  # untimed queries after another lane ran: caches refill and clocks settle in a few ms
# Steady: a window no faster than the best before it, within what asv and criterion call no change.
WARM_WINDOW_S, WARM_LIMIT_S, WARM_WINDOWS, WARM_GAIN = 0.05, 3.0, 40, 0.01
# With several streams a block ends when the last of them does; at 8 queries per stream the idle tail is below 1/16.
QUERIES_PER_STREAM = 8
MAX_QUERIES, MAX_QUERIES_A_TURN = 5000, 500  # a block, and a turn, of which there are more; others only fill memory
# To find cached results: in the first processes, queries of fresh inputs and as many of one repeated.
REPLAYED, REPLAY_QUERIES, REPLAY_S = 2, 10, 0.2

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
    entrants = {candidate.label: _Entrant(candidate) for candidate in candidates}
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


def _time_blocks(timing: _Timing, entrants: Sequence[_Entrant]) -> None:
    """As many blocks of each as the schedule says, in as many processes."""
    schedule = timing.schedule
    rounds = math.ceil(schedule.blocks / schedule.processes)
    made = min((len({block.process for block in entrant.blocks}) for entrant in entrants), default=schedule.processes)
    for process in range(made, schedule.processes):
        timing.generation(process, entrants, rounds, schedule.duration_s / schedule.blocks, schedule.processes * rounds)


def _time_until_answered(timing: _Timing, questions: Sequence[Question]) -> None:
    """Process by process of every candidate; looks when LOOKS says, and ends before the time is over."""
    unanswered = [one for one in questions if {one.baseline, one.candidate} <= timing.entrants.keys()]
    compared = {(question.baseline, question.candidate) for question in unanswered}
    pace = pilot.Pace(timing.schedule.max_time_s * len(compared), LOOKS[0])
    turn_s, turns = TURN_S, max(TURNS, math.ceil(timing.schedule.duration_s / LOOKS[0] / TURN_S))
    for process in range(LOOKS[-1]):
        if not unanswered or not pace.allows_another():
            return
        asked = {label for question in unanswered for label in (question.baseline, question.candidate)}
        running = [entrant for label, entrant in timing.entrants.items() if label in asked]
        if process < len(pilot.TURNS_S):  # which all take as long
            length_s = pilot.TURNS_S[process]
            rounds = round(turns * TURN_S / length_s)
        else:
            length_s, rounds = turn_s, turns
        planned = turns * next(size for size in LOOKS if size > process)
        pace.note(timing.generation(process, running, rounds, length_s, planned, share_s=pace.share_s))
        measured = {label: entrant.measurement() for label, entrant in timing.entrants.items() if not entrant.error}
        unanswered = [one for one in unanswered if {one.baseline, one.candidate} <= measured.keys()]
        sides = [(measured[one.baseline], measured[one.candidate]) for one in unanswered]
        if process + 1 == len(pilot.TURNS_S):
            turn_s = pilot.best_turn_s(sides, TURN_S)
            turns = max(1, round(turns * TURN_S / turn_s))
        if process + 1 in LOOKS:
            turns = pilot.worthwhile_turns(sides, process_s=pace.process_s) or turns
            unanswered = [one for one, pair in zip(unanswered, sides, strict=True) if not one.answered(*pair)]


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


@dataclass(frozen=True)
class _Timing:
    """A run: who takes part, and how its processes and turns are made."""

    entrants: Mapping[str, _Entrant]  # by their labels
    schedule: Schedule
    listener: Listener
    open_lane: Callable[[BackendName], Lane]
    order: random.Random
    clock: Callable[[], float]

    def generation(
        self,
        process: int,
        entrants: Sequence[_Entrant],
        rounds: int,
        block_s: float,
        planned: int,
        *,
        share_s: float | None = None,
    ) -> float:
        """A fresh process for every entrant, then `rounds` blocks of each: in random order, then in the same backwards.

        So a machine that gets slower and slower meanwhile is as slow for each in the mean. They are opened in such an
        order too, process by process: of two copies the one that is opened later is faster by up to 1 %. `planned` are
        the rounds that the run is told to have. Where something is asked, `share_s` are the seconds that all may take:
        fewer rounds where they are too few, more for want of quiet ones where they allow it.

        Returns:
            Seconds that it took.
        """
        begun = self.clock()
        starting = self.listener.starting or _unheard
        with contextlib.ExitStack() as stack:
            opening = [entrant for entrant in self._order_of_opening(process, entrants) if entrant.error is None]
            lanes = [stack.enter_context(self.open_lane(entrant.candidate.backend)) for entrant in opening]
            for entrant, lane in zip(opening, lanes, strict=True):  # interpreters side by side, models one by one
                with _recorded(entrant):
                    lane.start(entrant.candidate.artifact, entrant.candidate.execution)
            for entrant, lane in zip(opening, lanes, strict=True):
                starting(entrant.candidate.label)
                with _recorded(entrant):
                    entrant.open(lane, process)
                self._tell(entrant, planned)
            order, number, most = list(entrants), 0, 0
            if share_s is not None:
                most = self._affordable_rounds(entrants, block_s, share_s - (self.clock() - begun))
                rounds = max(quiet.LEAST_TURNS, min(rounds, most))
            while number < rounds or (number < most and self._want_quiet_turns(process, entrants, rounds)):
                if number % 2:
                    order.reverse()
                else:
                    self.order.shuffle(order)
                for entrant in [entrant for entrant in order if entrant.error is None]:
                    starting(entrant.candidate.label)
                    with _recorded(entrant):
                        entrant.time_block(block_s, MAX_QUERIES if share_s is None else MAX_QUERIES_A_TURN)
                    self._tell(entrant, planned)
                number += 1
        return self.clock() - begun

    def _order_of_opening(self, process: int, entrants: Sequence[_Entrant]) -> list[_Entrant]:
        """Another one for every second process, and backwards for the one after it."""
        order = random.Random(f"{self.schedule.seed} {process // 2}").sample(entrants, len(entrants))
        return order[::-1] if process % 2 else order

    @staticmethod
    def _affordable_rounds(entrants: Sequence[_Entrant], block_s: float, left_s: float) -> int:
        """How many blocks of each fit into so many seconds, by what a query of each takes."""
        round_s = sum(max(block_s, one.query_s) + max(SWITCH_S, one.query_s) + CALL_S for one in entrants)
        return max(0, int(left_s / round_s))

    def _want_quiet_turns(self, process: int, entrants: Sequence[_Entrant], rounds: int) -> bool:
        running = [entrant for entrant in entrants if entrant.error is None]
        if not running:
            return False
        blocks = [[block for block in entrant.blocks if block.process == process] for entrant in running]
        return quiet.turns_to_come(blocks, rounds)

    def _tell(self, entrant: _Entrant, planned: int) -> None:
        """Says what has been done, after each block and each failure."""
        running = [one for one in self.entrants.values() if one.error is None]
        most = max((len(one.blocks) for one in running), default=0)
        done, total = sum(len(one.blocks) for one in running), len(running) * max(planned, most)
        if self.listener.progress is not None and running:
            self.listener.progress("timing", done, total)
        if self.listener.watch is not None:
            self.listener.watch(entrant.failure() if entrant.error else entrant.measurement(), done, total)


@dataclass
class _Entrant:
    """A candidate in the run, with what has been gathered of it."""

    candidate: Candidate
    blocks: list[Block] = field(default_factory=list)
    lane: Lane | None = None
    query_s: float = 0.0  # of the steady state, to size blocks
    load_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    uncounted: str = ""
    peak_rss_bytes: int = 0
    replays: list[Replay] = field(default_factory=list)
    disturbances: tuple[str, ...] = ()
    process: int = 0  # the one that runs now
    error: ResdeployError | None = None

    def open(self, lane: Lane, process: int) -> None:
        """Opens the model and runs it until it gets no faster."""
        self.process = process
        opened = lane.open(self.candidate.artifact, self.candidate.execution)
        self.load_s.append(opened.load_s)
        self.first_s.append(opened.first_s)
        self.settings, self.uncounted = dict(opened.settings), opened.uncounted
        self.query_s = warm_up(lane)
        if process < REPLAYED:
            self.replays.append(lane.replay(REPLAY_QUERIES, REPLAY_S))
        if self.candidate.scope == "jpeg":
            self._decode(lane)
        self.lane = lane

    def _decode(self, lane: Lane) -> None:
        model = self.candidate.artifact.model
        if not self.candidate.images or model is None or model.preprocessing is None:
            raise UsageError(
                f"{self.candidate.label}: timing from files needs images, and a model that says how to preprocess them",
                fix="Name a folder of JPEG files with --data, and a model exported by resdeploy",
            )
        lane.decode(self.candidate.images, model.preprocessing)
        warm_up(lane)
        window = lane.block(2, seconds=WARM_WINDOW_S)
        self.query_s = window.wall_s / len(window.run_s)

    def time_block(self, seconds: float, most: int) -> None:
        """One block of so long or about `most` queries, after as many as another lane's traces take to fade."""
        assert self.lane is not None
        streams = self.candidate.execution.streams
        least = QUERIES_PER_STREAM * streams if streams > 1 else 1
        warmup = min(max(1, round(SWITCH_S / self.query_s)), 1000)
        longest_s = most * self.query_s / streams
        if self.candidate.scope == "jpeg":  # all files once: files differ, and both sides of a turn must read the same
            least, longest_s = (
                max(least, math.ceil(len(self.candidate.images) / self.candidate.execution.batch_size)),
                0.0,
            )
        block = self.lane.block(least, warmup=warmup, seconds=min(seconds, longest_s))
        self.blocks.append(dataclasses.replace(block, process=self.process))
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.lane.peak_rss_bytes())

    def measurement(self) -> Measurement:
        """What has been measured so far."""
        candidate, artifact = self.candidate, self.candidate.artifact
        return Measurement(
            label=candidate.label,
            model=candidate.model,
            backend=candidate.backend,
            precision=artifact.precision,
            batch_size=candidate.execution.batch_size,
            scenario=candidate.scenario or ("single-stream" if candidate.execution.streams == 1 else "offline"),
            scope=candidate.scope,
            replays=tuple(self.replays),
            disturbances=self.disturbances,
            sha256=artifact.sha256,
            execution=candidate.execution,
            blocks=tuple(self.blocks),
            load_s=statistics.median(self.load_s),
            first_s=statistics.median(self.first_s),
            peak_rss_bytes=self.peak_rss_bytes,
            size_bytes=store.size_bytes(Path(artifact.path)),
            params=artifact.model.params if artifact.model else None,
            macs=candidate.macs,
            weights=artifact.weights.source if artifact.weights else None,
            calibration=artifact.calibration.data if artifact.calibration else None,
            settings=self.settings,
            uncounted=self.uncounted,
        )

    def failure(self) -> Failure:
        """Why there is no measurement."""
        assert self.error is not None
        return failure(self.candidate, self.error)


def failure(candidate: Candidate, error: ResdeployError) -> Failure:
    """The row of a candidate that `error` kept from being measured."""
    return Failure.of(
        error,
        label=candidate.label,
        model=candidate.model,
        backend=candidate.backend,
        precision=candidate.artifact.precision,
        batch_size=candidate.execution.batch_size,
    )


def warm_up(lane: Lane) -> float:
    """Runs windows of queries until one is no faster than the best before it; the best window's seconds per query.

    Noise makes windows slower, warming makes them faster: so steadiness is the end of getting faster, not equality.
    """
    best_s, spent_s = math.inf, 0.0
    for _ in range(WARM_WINDOWS):
        window = lane.block(1, seconds=WARM_WINDOW_S)
        query_s = statistics.median(window.run_s)
        spent_s += window.wall_s
        if query_s > best_s * (1 - WARM_GAIN) or spent_s > WARM_LIMIT_S:
            return max(min(best_s, query_s), 1e-9)
        best_s = query_s
    return best_s


def measurement_or_raise(outcome: Measurement | Failure) -> Measurement:
    """The measurement, where nothing can be said without it.

    Raises:
        ResdeployError: the failure, with the code and exit status of the error that it was.
    """
    if isinstance(outcome, Failure):
        raise revive(outcome.error_code, outcome.exit_status, outcome.message)
    return outcome


def _unheard(_label: str) -> None:
    """Nobody asked which row is next."""


def _compared_on_one_backend(entrants: Mapping[str, _Entrant], questions: Sequence[Question]) -> set[str]:
    """Labels of the rows that a question compares with another on the same backend, both of which were timed."""
    backends = {label: entrant.candidate.backend for label, entrant in entrants.items() if not entrant.error}
    sides = [(one.baseline, one.candidate) for one in questions if {one.baseline, one.candidate} <= backends.keys()]
    return {label for pair in sides for label in pair if len({backends[side] for side in pair}) == 1}


@contextlib.contextmanager
def _recorded(entrant: _Entrant) -> Iterator[None]:
    """A failure ends the candidate, not the run."""
    try:
        yield
    except ResdeployError as e:
        entrant.error = e


def _raise_if_all_failed(entrants: Sequence[_Entrant]) -> None:
    errors = [entrant.error for entrant in entrants if entrant.error is not None]
    if len(errors) < len(entrants):
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    reasons = "; ".join(f"{entrant.candidate.label}: {entrant.error.what}" for entrant in entrants if entrant.error)
    raise type(first)(f"no candidate could be timed: {reasons}", cause=first.cause, fix=first.fix, code=first.code)

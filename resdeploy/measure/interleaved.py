"""Times candidates in turns: one interleaved run of everything that is to be compared.

A machine's speed wanders over seconds (clocks, heat, neighbours) and settles differently in every process (memory
layout, thread placement). So candidates take turns in blocks of random order, which spreads the wandering over all of
them and lets what is compared be compared turn by turn; each gets fresh processes in the course of the run, so that no
figure rests on one alone; and one lane runs at a time. Statistics are not done here: `measure.summary` derives them
from the raw times.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.errors import ResdeployError, UsageError, revive
from resdeploy.measure import environment
from resdeploy.measure.summary import doubts
from resdeploy.records import (
    PRECISIONS,
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

BLOCKS = 16  # per candidate; trends and intervals need at least 8 (stats.validity.MIN_BLOCKS)
PROCESSES = 2
EXTENSIONS = 3  # an unstable run goes on at most this often
SWITCH_S = 0.02  # untimed queries after another lane ran: caches refill and clocks settle in a few ms
# Steady: a window no faster than the best before it, within what asv and criterion call no change.
WARM_WINDOW_S, WARM_LIMIT_S, WARM_WINDOWS, WARM_GAIN = 0.05, 3.0, 40, 0.01
# With several streams a block ends when the last of them does; at 8 queries per stream the idle tail is below 1/16.
QUERIES_PER_STREAM = 8
MAX_QUERIES = 5000  # a block; more would only fill memory
REPLAY_QUERIES, REPLAY_S = 10, 0.2  # a process, each of fresh inputs and of one repeated, to find cached results

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
class Schedule:
    """How long to time, in how many turns."""

    duration_s: float = 3.0  # of timed queries per candidate, at least, or about MAX_QUERIES queries per block
    seed: int = 0  # of the order of blocks
    blocks: int = BLOCKS  # per candidate, spread over its processes
    processes: int = PROCESSES  # fresh ones per candidate
    extensions: int = EXTENSIONS  # further processes for all, as long as a run is unreliable (`summary.doubts`)


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
    open_lane: Callable[[BackendName], Lane] = Lane,
    look: Callable[[], environment.Snapshot] = environment.snapshot,
) -> tuple[Measurement | Failure, ...]:
    """Times all candidates in one interleaved run.

    A candidate whose backend fails becomes a `Failure`; the others go on.

    Args:
        candidates: with labels that differ.
        schedule: how long, in how many turns.
        listener: who is told of it.
        open_lane: makes lanes.
        look: reads the machine's counters.

    Returns:
        One result per candidate, in their order.

    Raises:
        UsageError: labels that are not unique, or none.
        ResdeployError: all candidates failed; of the first one's class.
    """
    labels = [candidate.label for candidate in candidates]
    if not labels or len(set(labels)) != len(labels):
        raise UsageError(f"candidates need different names: {', '.join(labels) or 'there are none'}")
    entrants = [_Entrant(candidate) for candidate in candidates]
    order = random.Random(schedule.seed)
    processes = schedule.processes
    rounds = math.ceil(schedule.blocks / processes)
    before = look()
    for generation in range(processes + schedule.extensions):
        if generation >= processes and not any(entrant.unstable for entrant in entrants):
            break
        what = "timing" if generation < processes else "timing again, unstable so far"
        tell = _teller(entrants, rounds * processes, what, listener)
        block_s = schedule.duration_s / schedule.blocks
        _generation(entrants, rounds, block_s, order, open_lane, listener.starting or _unheard, tell)
        found = environment.disturbances(before, look())
        for entrant in entrants:
            entrant.disturbances = found
    _raise_if_all_failed(entrants)
    return tuple(
        entrant.failure()
        if entrant.error
        else dataclasses.replace(entrant.measurement(), notes=_arithmetic(entrant.candidate, open_lane))
        for entrant in entrants
    )


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
    peak_rss_bytes: int = 0
    replays: list[Replay] = field(default_factory=list)
    disturbances: tuple[str, ...] = ()
    error: ResdeployError | None = None

    @property
    def unstable(self) -> bool:
        """Whether going on may help; against other programs and throttling it does not."""
        return self.error is None and bool(doubts(dataclasses.replace(self.measurement(), disturbances=())))

    def open(self, lane: Lane) -> None:
        """Opens the model and runs it until it gets no faster."""
        opened = lane.open(self.candidate.artifact, self.candidate.execution)
        self.load_s.append(opened.load_s)
        self.first_s.append(opened.first_s)
        self.settings = dict(opened.settings)
        self.query_s = warm_up(lane)
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
        self.query_s = warm_up(lane)

    def time_block(self, seconds: float) -> None:
        """One block, after as many untimed queries as another lane's traces take to fade."""
        assert self.lane is not None
        streams = self.candidate.execution.streams
        least = QUERIES_PER_STREAM * streams if streams > 1 else 1
        warmup = min(max(1, round(SWITCH_S / self.query_s)), 1000)
        longest_s = MAX_QUERIES * self.query_s / streams
        self.blocks.append(self.lane.block(least, warmup=warmup, seconds=min(seconds, longest_s)))
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


def _generation(
    entrants: Sequence[_Entrant],
    rounds: int,
    block_s: float,
    order: random.Random,
    open_lane: Callable[[BackendName], Lane],
    starting: Starting,
    tell: Callable[[_Entrant], None],
) -> None:
    """A fresh process for every candidate, then `rounds` blocks of each, every round in another order."""
    with contextlib.ExitStack() as stack:
        opening = [entrant for entrant in entrants if entrant.error is None]
        for entrant in opening:
            starting(entrant.candidate.label)
            with _recorded(entrant):
                entrant.open(stack.enter_context(open_lane(entrant.candidate.backend)))
            tell(entrant)
        for _ in range(rounds):
            running = [entrant for entrant in entrants if entrant.error is None]
            order.shuffle(running)
            for entrant in running:
                starting(entrant.candidate.label)
                with _recorded(entrant):
                    entrant.time_block(block_s)
                tell(entrant)


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


def _arithmetic(candidate: Candidate, open_lane: Callable[[BackendName], Lane]) -> tuple[str, ...]:
    """Notes on a half-precision file whose convolutions run in another precision, as a traced lane's kernels show.

    Backends do so silently: in FP32 on CPUs without half-precision arithmetic (the file is smaller, the time FP32's),
    and OpenVINO computes an FP16 file in BF16 where the CPU has that alone, with three bits less of each value.
    """
    stored = candidate.artifact.precision
    if stored not in ("fp16", "bf16"):
        return ()
    try:
        with open_lane(candidate.backend) as lane:
            lane.open(candidate.artifact, candidate.execution, trace=True)
            convolutions = [layer for layer in lane.layers() if layer.kind.startswith("Conv")]
    except ResdeployError as e:
        return (f"in which precision it computes could not be seen: {e.what}",)
    executed = collections.Counter(layer.precision for layer in convolutions)
    return tuple(
        f"stored in {stored.upper()}, computed in {precision.upper()} by {candidate.backend} on this machine "
        f"({executed[precision]} of {len(convolutions)} convolutions)"
        for precision in sorted(executed)
        if precision in PRECISIONS and precision != stored  # what a runtime does not tell is unknown
    )


@contextlib.contextmanager
def _recorded(entrant: _Entrant) -> Iterator[None]:
    """A failure ends the candidate, not the run."""
    try:
        yield
    except ResdeployError as e:
        entrant.error = e


def _teller(entrants: Sequence[_Entrant], rounds: int, what: str, listener: Listener) -> Callable[[_Entrant], None]:
    """Says what has been done, after each block and each failure."""

    def tell(entrant: _Entrant) -> None:
        running = [e for e in entrants if e.error is None]
        done = sum(len(e.blocks) for e in running)
        # An extension adds rounds that nobody could plan for.
        per_entrant = max(rounds, *(len(e.blocks) for e in running)) if running else rounds
        if listener.progress is not None and running:
            listener.progress(what, done, len(running) * per_entrant)
        if listener.watch is not None:
            outcome = entrant.failure() if entrant.error else entrant.measurement()
            listener.watch(outcome, done, len(running) * per_entrant)

    return tell


def _raise_if_all_failed(entrants: Sequence[_Entrant]) -> None:
    errors = [entrant.error for entrant in entrants if entrant.error is not None]
    if len(errors) < len(entrants):
        return
    first = errors[0]
    if len(errors) == 1:
        raise first
    reasons = "; ".join(f"{entrant.candidate.label}: {entrant.error.what}" for entrant in entrants if entrant.error)
    raise type(first)(f"no candidate could be timed: {reasons}", cause=first.cause, fix=first.fix, code=first.code)

"""One row of a run while it is timed: its lane, and what has been gathered of it in one process after another."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.errors import ResdeployError, UsageError
from resdeploy.records import Block, Failure, Measurement, Replay

if TYPE_CHECKING:
    from resdeploy.measure.interleaved import Candidate

SWITCH_S = 0.02  # untimed queries after another lane ran: caches refill and clocks settle in a few ms
# Steady: a window no faster than the best before it, within what asv and criterion call no change.
WARM_WINDOW_S, WARM_LIMIT_S, WARM_WINDOWS, WARM_GAIN = 0.05, 3.0, 40, 0.01
# With several streams a block ends when the last of them does; at 8 queries per stream the idle tail is below 1/16.
QUERIES_PER_STREAM = 8
MAX_QUERIES, MAX_QUERIES_A_TURN = 5000, 500  # a block, and a turn, of which there are more; others only fill memory
# To find cached results: in the first processes, queries of fresh inputs and as many of one repeated.
REPLAYED, REPLAY_QUERIES, REPLAY_S = 2, 10, 0.2


@dataclass
class Entrant:
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

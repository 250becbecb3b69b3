"""The layers that a runtime really executes, beside what its graph asks for."""

from __future__ import annotations

from resdeploy.backends.lane import Lane
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Layer

# Enough runs that a kernel's mean is not its first, cold run.
TIMED_RUNS = 20


def layers_of(
    candidate: Candidate, runs: int = TIMED_RUNS, *, warmup: int = 0, seconds: float | None = None
) -> tuple[Layer, ...]:
    """What the backend executed in some traced queries, with mean times; `seconds` goes on at least that long.

    Nothing is run where the compiler listed the layers when it built them; they then have no times.
    """
    if candidate.artifact.layers:
        return candidate.artifact.layers
    with Lane(candidate.backend) as lane:
        lane.open(candidate.artifact, candidate.execution, trace=True)
        lane.block(runs, warmup=warmup, seconds=seconds)
        return lane.layers()

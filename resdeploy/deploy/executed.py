"""The layers that a runtime really executes, beside what its graph asks for."""

from __future__ import annotations

from pathlib import Path

from resdeploy.backends.lane import Lane
from resdeploy.graph import files, intent
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Layer

# Enough runs that a kernel's mean is not its first, cold run.
TIMED_RUNS = 20


def layers_of(
    candidate: Candidate, runs: int = TIMED_RUNS, *, warmup: int = 0, seconds: float | None = None
) -> tuple[Layer, ...]:
    """What the backend executed in some traced queries, with mean times; `seconds` goes on at least that long."""
    with Lane(candidate.backend) as lane:
        lane.open(candidate.artifact, candidate.execution, trace=True)
        lane.block(runs, warmup=warmup, seconds=seconds)
        return lane.layers()


def intent_of(graph: str | None) -> intent.Intent | None:
    """What an ONNX file asks for; None where none is named."""
    return None if graph is None else intent.of(files.load_model(Path(graph)))

"""What a row really executed: looked at in a traced lane, once it has been timed."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resdeploy.backends.lane import Lane
from resdeploy.errors import ResdeployError
from resdeploy.measure import kernels
from resdeploy.records import PRECISIONS, BackendName, Layer, Measurement

if TYPE_CHECKING:
    from resdeploy.measure.interleaved import Candidate

TRACED = 5  # queries, that the length of a kernel is not that of its first, cold run


@dataclass
class Trace:
    """Traced lanes, one for each file and way to run it, opened when they are asked for."""

    open_lane: Callable[[BackendName], Lane]
    seen: dict[tuple[object, ...], tuple[Layer, ...] | ResdeployError] = field(default_factory=dict)

    def layers(self, candidate: Candidate) -> tuple[Layer, ...] | ResdeployError:
        """What is executed, or why that could not be seen."""
        artifact, execution = candidate.artifact, candidate.execution
        key = (candidate.backend, artifact.path, artifact.sha256, execution)
        if key not in self.seen:
            try:
                with self.open_lane(candidate.backend) as lane:
                    lane.open(artifact, execution, trace=True)
                    lane.block(TRACED)
                    self.seen[key] = tuple(lane.layers())
            except ResdeployError as e:
                self.seen[key] = e
        return self.seen[key]


def look_into(measurement: Measurement, candidate: Candidate, trace: Trace, *, kernels_too: bool) -> Measurement:
    """The measurement with what a traced run tells of the row, where anybody asks for it."""
    notes = _arithmetic(candidate, trace)
    # TensorRT's provider is one kernel to ONNX Runtime, whatever it runs.
    layers = trace.layers(candidate) if kernels_too and candidate.execution.provider != "tensorrt" else ()
    executed = () if isinstance(layers, ResdeployError) else kernels.of_layers(layers)
    return dataclasses.replace(measurement, notes=notes, kernels=executed)


def _arithmetic(candidate: Candidate, trace: Trace) -> tuple[str, ...]:
    """Notes on a file whose convolutions run in another precision than it has, as a traced lane's kernels show.

    Backends do so silently: in FP32 on CPUs without half-precision arithmetic (the file is smaller, the time FP32's),
    and OpenVINO computes an FP16 file in BF16 where the CPU has that alone, with three bits less of each value.
    """
    stored = candidate.artifact.precision
    if stored == "fp32":
        return ()
    layers = trace.layers(candidate)
    if isinstance(layers, ResdeployError):
        return (f"in which precision it computes could not be seen: {layers.what}",)
    convolutions = kernels.convolutions(layers)
    executed = collections.Counter(layer.precision for layer in convolutions)
    if stored == "int8":
        words = f"{executed['int8']} of {len(convolutions)} convolutions in INT8 by {candidate.backend} on this machine"
        return (words,) if executed["int8"] < len(convolutions) else ()
    return tuple(
        f"stored in {stored.upper()}, computed in {precision.upper()} by {candidate.backend} on this machine "
        f"({executed[precision]} of {len(convolutions)} convolutions)"
        for precision in sorted(executed)
        if precision in PRECISIONS and precision != stored  # what a runtime does not tell is unknown
    )

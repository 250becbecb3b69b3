"""What of an INT8 file runs in float in a runtime, said before anything is timed or judged there."""

from __future__ import annotations

import logging
from pathlib import Path

from resdeploy import backends
from resdeploy.deploy import executed
from resdeploy.errors import ResdeployError
from resdeploy.measure import kernels
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact

log = logging.getLogger(__name__)


def warn(source: Artifact, candidate: Candidate) -> None:
    """Logs, before anything is timed or judged, that an INT8 file's convolutions run in float in this runtime.

    By the kernels of one traced query. A file that was made for this very runtime is not looked at again.

    Args:
        source: the file that was built.
        candidate: what runs.
    """
    target = backends.load(candidate.backend).TARGET
    if source.precision != "int8" or source.target == target or source.format != "onnx" or target is None:
        return
    if words := _float_words(Path(source.path), candidate):
        log.warning("%s", words)


def _float_words(path: Path, candidate: Candidate) -> str:
    """What is to be said of a file; "" where all that it has in INT8 runs so, or where that cannot be seen."""
    from resdeploy.graph import files, int8_losses, intent

    model = files.load_model(path)
    asked = intent.of(model).quantized_convolutions
    try:
        layers = executed.layers_of(candidate, 1)
    except ResdeployError:  # whoever runs it will be told
        return ""
    convolutions = kernels.convolutions(layers)
    found = sum(layer.precision == "int8" for layer in convolutions)
    if not convolutions or found >= len(asked):
        return ""
    target = backends.load(candidate.backend).TARGET
    reasons = int8_losses.reasons(model, target)
    return (
        f"{path.name}: {found} of {len(asked)} convolutions in INT8 in {candidate.backend}"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        + f": quantize it with --target {target}"
    )

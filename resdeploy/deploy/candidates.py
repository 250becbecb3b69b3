"""From a MODEL to the ONNX file for a backend, and the settings to run it with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from resdeploy import backends, packages, store
from resdeploy.deploy import calibration, export, lower, model_files, model_string
from resdeploy.deploy.model_string import Request
from resdeploy.errors import BackendMissing, UsageError
from resdeploy.records import (
    Artifact,
    BackendName,
    Cost,
    Execution,
    Precision,
    Progress,
    Target,
)


def cost_of(artifact: Artifact) -> Cost:
    """Counts from an ONNX file."""
    from resdeploy.graph import counts, files

    assert artifact.model is not None
    return counts.count(files.load_model(Path(artifact.path)), artifact.model)


def source_for(
    request: Request,
    backend: BackendName,
    precision: Precision | None,
    calibration: calibration.CalibrationPlan,
    *,
    target: Target | None = None,
    progress: Progress,
) -> Artifact:
    """The file that `backend` builds from, in the precision asked for (None: what the model is).

    INT8 follows the fusion rules of `target` (None: the backend's own).
    """
    if model_string.format_of(request.model) in ("openvino", "engine"):
        path = Path(request.model)
        if model_string.format_of(request.model) == "engine" and path.is_file() and not store.sidecar(path).is_file():
            return model_files.foreign_engine(request, precision)
        compiled = model_files.open_model(request)
        if precision not in (None, compiled.precision):
            raise UsageError(
                f"{request.model} is compiled in {compiled.precision} and cannot become {precision}",
                fix="Name the ONNX file it was made from",
            )
        return compiled
    if backends.load(backend).SOURCE == "checkpoint":
        if not model_string.can_give(request, "checkpoint"):
            if not any(backends.load(name).available().ok for name in ("tensorrt", "openvino", "onnxruntime")):
                raise BackendMissing(
                    f"nothing here runs {request.model}: no runtime for ONNX files is installed",
                    fix=f"Run `{packages.install('openvino', 'onnxruntime')}`",
                )
            raise UsageError(
                f"{backend} runs networks and checkpoints, and {request.model} is neither",
                fix="Choose another --backend",
            )
        artifact = export.to_checkpoint(request)
        return dataclasses.replace(artifact, precision=precision or artifact.precision)
    artifact = export.to_onnx(request, progress=progress)
    target = target or lower.TARGETS[backend]
    return lower.lower(artifact, precision or artifact.precision, target, calibration, progress=progress)


def execution_for(source: Artifact, *, batch_size: int, threads: int | None, streams: int = 1) -> Execution:
    """How to run `source`: what its graph leaves in FP32 runs in FP32, or in the half precision it is in."""
    assert source.model is not None
    return Execution(
        batch_size=batch_size,
        threads=threads,
        streams=streams,
        hint="latency" if streams == 1 else "throughput",
        precision="fp32" if source.precision == "int8" else source.precision,
        input_shape=source.model.input_shape,
    )

"""From a MODEL to what can be timed: the file for a backend, built, with the settings to run it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from resdeploy import backends, packages, store
from resdeploy.backends import choose, machine
from resdeploy.deploy import build, export, lower, model_files, model_string
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import OnnxFile, Request
from resdeploy.errors import BackendMissing, ResdeployError, UsageError
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import (
    Artifact,
    BackendName,
    Cost,
    Execution,
    Precision,
    Progress,
    Scenario,
    Target,
)
from resdeploy.registered_backends import PREFERENCE


def cost_of(artifact: Artifact) -> Cost:
    """Counts from an ONNX file."""
    from resdeploy.graph import counts, files

    assert artifact.model is not None
    return counts.count(files.load_model(Path(artifact.path)), artifact.model)


def pick_backend(request: Request, asked: str, precision: Precision | None, *, running: bool = True) -> BackendName:
    """The backend `asked` for; `auto` is the one that built a compiled file, else the first here that will do.

    Without a precision it is one for that of the file. Where nothing is to run (`running`), it need only build here.

    Raises:
        UnknownName, UsageError, BackendMissing: as `choose.pick`.
    """
    if asked != "auto":
        return choose.pick(asked, precision or "fp32", running=running)[0]
    precision = precision or precision_of(request) or "fp32"
    return choose.pick(request.compiler or asked, precision, running=running)[0]


def precision_of(request: Request) -> Precision | None:
    """The precision of an ONNX file, by its record or its graph; None of all else, and of one that cannot be opened."""
    if isinstance(request.named, OnnxFile):
        with contextlib.suppress(ResdeployError):  # whoever needs the file is told why
            return model_files.open_model(request).precision
    return None


def source_for(
    request: Request,
    backend: BackendName,
    precision: Precision | None,
    calibration: CalibrationPlan,
    *,
    target: Target | None = None,
    progress: Progress,
) -> Artifact:
    """The file that `backend` builds from, in the precision asked for (None: what the model is).

    INT8 follows the fusion rules of `target` (None: the backend's own).

    Raises:
        UsageError: a compiled file in another precision, or a model that the backend cannot build from.
        BackendMissing: nothing here runs it.
    """
    if request.compiler is not None:
        return _compiled_source(request, backends.load(request.compiler), precision)
    module = backends.load(backend)
    if module.SOURCE == "checkpoint":
        _refuse_without_checkpoint(request, backend)
        artifact = export.to_checkpoint(request)
        return dataclasses.replace(artifact, precision=precision or artifact.precision)
    artifact = export.to_onnx(request, progress=progress)
    target = target or module.TARGET
    return lower.lower(artifact, precision or artifact.precision, target, calibration, progress=progress)


def _compiled_source(request: Request, compiler: backends.Backend, precision: Precision | None) -> Artifact:
    """A compiled file as it is, from elsewhere too where its compiler runs such."""
    path = Path(request.model)
    if compiler.FOREIGN and path.is_file() and not store.sidecar(path).is_file():
        return model_files.foreign_engine(request, precision)
    compiled = model_files.open_model(request)
    if precision not in (None, compiled.precision):
        raise UsageError(
            f"{request.model} is compiled in {compiled.precision} and cannot become {precision}",
            fix="Name the ONNX file it was made from",
        )
    return compiled


def _refuse_without_checkpoint(request: Request, backend: BackendName) -> None:
    """A backend that builds from checkpoints needs a model that gives one."""
    if request.can_give("checkpoint"):
        return
    runtimes = [each for each in map(backends.load, PREFERENCE) if each.SOURCE == "onnx"]
    if not any(each.available().ok for each in runtimes):
        raise BackendMissing(
            f"nothing here runs {request.model}: no runtime for ONNX files is installed",
            fix=f"Run `{packages.install(*choose.SUGGESTED)}`",
        )
    raise UsageError(
        f"{backend} runs networks and checkpoints, and {request.model} is neither", fix="Choose another --backend"
    )


def candidate(
    source: Artifact,
    backend: BackendName,
    *,
    label: str | None = None,
    batch_size: int = 1,
    threads: int | None = None,
    execution: Execution | None = None,
    make: Callable[[Artifact, BackendName, Execution], Artifact] = build.build,
) -> Candidate:
    """`source` built for a backend, and how to run it.

    Args:
        source: the file to build from.
        backend: what is to run it.
        label: its name among others; None: the file's stem and the backend.
        batch_size: images per query.
        threads: of one stream; None: what the backend chooses.
        execution: all of how to run it, where batch size and threads are not enough.
        make: builds it; by default a file in the cache.

    Raises:
        UsageError: a precision or a file that the backend cannot run.
    """
    execution = execution or execution_for(source, batch_size=batch_size, threads=threads)
    return Candidate(
        label=label or f"{model_string.stem(source.path)} {backend}",
        backend=backend,
        artifact=make(source, backend, execution),
        execution=execution,
    )


def streams_of(scenario: Scenario | None, streams: int | None, threads: int | None) -> int:
    """How many queries at a time: as asked, else one per core for `offline`, else one."""
    return streams or ((threads or machine.usable_cores()) if scenario == "offline" else 1)


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

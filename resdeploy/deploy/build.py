"""What a backend runs, built in a lane from a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy import backends
from resdeploy.backends import machine
from resdeploy.deploy import engines
from resdeploy.errors import UsageError
from resdeploy.records import (
    Artifact,
    BackendName,
    Execution,
    Progress,
)

if TYPE_CHECKING:
    pass
from resdeploy.deploy import reuse

SUFFIX = {"checkpoint": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "engine": ".engine"}


def build(
    source: Artifact,
    backend: BackendName,
    execution: Execution,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Artifact:
    """What `backend` runs, made from `source` in a lane; a compiled file is taken as it is.

    Raises:
        UsageError: a precision or file that the backend cannot run.
    """
    from resdeploy.backends.lane import Lane

    module = backends.load(backend)
    if source.format != module.SOURCE and suffix_of(backend) == SUFFIX[source.format]:
        return source
    if source.format != module.SOURCE:
        raise UsageError(
            f"{backend} does not run {source.path}", fix=f"It builds from a file in format {module.SOURCE}"
        )
    if source.precision not in module.ACCEPTS:
        able = [name for name in backends.PREFERENCE if source.precision in backends.load(name).ACCEPTS]
        raise UsageError(f"{backend} does not run {source.precision}", fix=f"Choose --backend {' or '.join(able)}")

    def make(path: Path) -> Artifact:
        if backend == "tensorrt":
            return engines.build_engine(source, execution, path, progress)
        with Lane(backend) as lane:
            return lane.build(source, execution, path, progress=progress)

    return reuse.make_or_reuse(build_key(source, backend, execution), suffix_of(backend), out, make)


def build_key(source: Artifact, backend: BackendName, execution: Execution) -> Any:
    """Everything that `built` depends on."""
    found = backends.load(backend).available()
    return (
        "built",
        backend,
        found.version,
        found.devices,
        machine.isa_name(),
        reuse.identity(source),
        execution,
        reuse.versions(),
    )


def suffix_of(backend: BackendName) -> str:
    """The file suffix of what a backend's build makes."""
    return {"tensorrt": ".engine", "openvino": ".xml", "torch": ".safetensors"}.get(backend, ".onnx")

"""What a backend runs, built in a lane from a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resdeploy import backends
from resdeploy.backends import machine
from resdeploy.deploy import reuse
from resdeploy.errors import UsageError
from resdeploy.records import (
    Artifact,
    BackendName,
    Execution,
    Progress,
)
from resdeploy.registered_backends import PREFERENCE


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
    module = backends.load(backend)
    if source.format == module.FORMAT != module.SOURCE:
        return source
    if source.format != module.SOURCE:
        raise UsageError(
            f"{backend} does not run {source.path}", fix=f"It builds from a file in format {module.SOURCE}"
        )
    if source.precision not in module.ACCEPTS:
        able = [name for name in PREFERENCE if source.precision in backends.load(name).ACCEPTS]
        raise UsageError(f"{backend} does not run {source.precision}", fix=f"Choose --backend {' or '.join(able)}")

    def make(path: Path) -> Artifact:
        return build_in_lane(source, backend, execution, path, progress=progress)

    return reuse.make_or_reuse(build_key(source, backend, execution), suffix_of(backend), out, make)


def build_in_lane(
    source: Artifact, backend: BackendName, execution: Execution, out: Path, *, progress: Progress | None = None
) -> Artifact:
    """As `build`, from a file that the backend can build from, at `out` and without a sidecar.

    Raises:
        BackendMissing, MalformedInput, UsageError: as the backend's `prepare` and `build`.
    """
    from resdeploy.backends.lane import Lane

    with backends.load(backend).prepare(source, execution) as (prepared, settings), Lane(backend) as lane:
        return lane.build(prepared, settings, out, progress=progress)


def build_key(source: Artifact, backend: BackendName, execution: Execution) -> Any:
    """Everything that the file of `build` depends on."""
    runtime = backends.load(backend).available()
    return (
        "built",
        backend,
        runtime.version,
        runtime.devices,
        machine.isa_name(),
        reuse.identity(source),
        execution,
        reuse.versions(),
    )


def suffix_of(backend: BackendName) -> str:
    """The file suffix of what a backend's build makes."""
    return backends.load(backend).SUFFIXES[0]

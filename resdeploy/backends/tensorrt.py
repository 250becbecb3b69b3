"""TensorRT on NVIDIA GPUs, 8.6 to 11: what `trt_builder` builds and `trt_runner` runs, behind the backends' protocol.

The driver is asked before TensorRT itself is touched (`cuda`). An engine is a program: `resdeploy.store` signs what
goes into the cache, and only what its owner vouches for comes here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy import packages, store
from resdeploy.backends import cuda, installed_version, no_check, plan_header, require, trt_builder, trt_log
from resdeploy.errors import EnvironmentFailure, IntegrityError
from resdeploy.records import Artifact, Availability, EngineOptions, Execution, Format, Precision, Target

if TYPE_CHECKING:
    from resdeploy.backends import Loaded

VENDOR = "tensorrt"
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
PACKAGES: tuple[str, ...] = (*DISTRIBUTIONS, "cuda-bindings")
SOURCE: Format = "onnx"
FORMAT: Format = "engine"
SUFFIXES: tuple[str, ...] = (".engine", ".plan")
TAG = plan_header.TENSORRT
PROGRAM = FOREIGN = True
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "int8"})
TARGET: Target | None = "tensorrt"
HEEDS = frozenset(field.name for field in dataclasses.fields(EngineOptions)) - {"targets"}
check = no_check

UNKNOWN_VERSION = "unknown"  # `backends.installed_version` of a package without metadata
INSTALL = packages.install(VENDOR)
DRIVER_HINT = "Install NVIDIA's driver, and in a container start it with --gpus all"
REFIT = "Put them back: resdeploy build F.onnx --backend tensorrt --refit-from THIS.engine -o WHOLE.engine"
# CUDA major that each TensorRT major's wheels are built for, at the least.
CUDA_NEEDED = {8: 11, 10: 12, 11: 13}


def available() -> Availability:
    """Whether the package, a driver new enough for it and a device are here."""
    version, driver = installed_version(VENDOR, *DISTRIBUTIONS), cuda.driver()
    if version == UNKNOWN_VERSION and not driver.problem:
        version = _imported_version()
    devices = tuple(map(str, driver.devices))
    if version is None:
        also = f"; besides, {driver.problem}" if driver.problem else ""
        return Availability(ok=False, reason=f"the package tensorrt is not installed{also}", install=INSTALL)
    if driver.problem:
        return Availability(ok=False, version=version, reason=driver.problem, install=DRIVER_HINT)
    needed = CUDA_NEEDED.get(major_of(version), 0)
    if driver.cuda // 1000 < needed:
        return Availability(
            ok=False,
            version=version,
            reason=f"the driver supports CUDA {driver.cuda_text}, TensorRT {version} needs {needed}",
            install="Update NVIDIA's driver, or install an older tensorrt",
            devices=devices,
        )
    if installed_version("cuda.bindings", "cuda-bindings") is None:
        reason = "the package cuda-bindings, through which engines are run, is not installed"
        return Availability(ok=False, version=version, reason=reason, install=INSTALL, devices=devices)
    return Availability(ok=True, version=version, devices=devices)


def _imported_version() -> str:
    """The module's own word where its package has no metadata (unpacked wheels): lowering depends on the version."""
    try:
        import tensorrt as trt

        return str(trt.__version__)
    except Exception:  # a library that it links is missing: opening it says which
        return UNKNOWN_VERSION


def major_of(version: str) -> int:
    """The first number of a version; 0 where there is none."""
    head = version.split(".", maxsplit=1)[0]
    return int(head) if head.isdigit() else 0


def capabilities() -> dict[str, bool] | None:
    """What the installed version can do of what not every version can; None where it is not installed or fails to load.

    Its import needs no GPU, only its constructors do.
    """
    if installed_version(VENDOR, *DISTRIBUTIONS) is None:
        return None
    try:
        import tensorrt as trt

        return trt_builder.capabilities(trt)
    except Exception:  # a library that it links is missing
        return None


def prepare(source: Artifact, execution: Execution) -> AbstractContextManager[tuple[Artifact, Execution]]:
    """The ONNX file lowered for the TensorRT that is here, and the shared timing cache.

    Raises:
        BackendMissing: TensorRT or a GPU is not here.
        MalformedInput, UsageError: as `trt_prepare.prepare`.
    """
    availability = available()
    require(availability, VENDOR)
    from resdeploy.backends import trt_prepare

    version = availability.version or ""
    return trt_prepare.prepare(source, execution, version, major_of(version), availability.devices[0])


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Builds an engine for this machine's first GPU.

    Raises:
        BackendMissing: TensorRT or a GPU is not here.
        MalformedInput, UsageError, OutOfMemory, BackendCrash: as `trt_builder.build`.
    """
    require(available(), VENDOR)
    import tensorrt as trt

    engine = _build_or_refit(trt, source, execution)
    with store.disk_errors(out):
        out.write_bytes(engine.plan)
    device, options = cuda.driver().devices[0], execution.engine
    machines = {"none": str(device), "ampere_plus": None, "same_compute_capability": device.architecture}
    marks = {"version_compatible": "yes"} if options.version_compatible else {}
    marks |= {"refit": "identical"} if options.strip and not options.refit else {}
    return store.derive(
        source,
        out,
        format="engine",
        machine=machines[options.hardware_compatible],
        checks=dict(engine.facts),
        notes=(*source.notes, *engine.notes),
        tools={**source.tools, "tensorrt": str(trt.__version__), **marks},
    )


def _build_or_refit(trt: Any, source: Artifact, execution: Execution) -> trt_builder.Built:
    refit_from = execution.engine.refit_from
    if refit_from is None:
        return trt_builder.build(trt, trt_log.logger(trt), source, execution)
    from resdeploy.backends import trt_refit

    with store.disk_errors(Path(refit_from)):
        plan = Path(refit_from).read_bytes()
    return trt_refit.refit(trt, trt_log.logger(trt), plan, refit_from, source)


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[Loaded]:  # noqa: A001
    """Deserialises an engine and opens it for one batch and image size.

    Raises:
        BackendMissing: TensorRT or a GPU is not here.
        EnvironmentFailure: it was built for another GPU or by another TensorRT.
        IntegrityError: it is not the file its record describes.
        UsageError: a size that it was not built for.
        OutOfMemory, BackendCrash: as `trt_runner` and `cuda`.
    """
    require(available(), VENDOR)
    plan = Path(built.path).read_bytes()
    if hashlib.sha256(plan).hexdigest() != built.sha256:  # of the bytes that are loaded, not of a second reading
        raise IntegrityError(f"{built.path} changed while it was being opened", fix="Build it again")
    import tensorrt as trt

    from resdeploy.backends import trt_runner

    _refuse_strangers(built, plan, str(trt.__version__))
    log = trt_log.logger(trt)
    engine = trt_runner.deserialize(trt, log, plan, built.path, host_code=_version_compatible(built))
    with contextlib.closing(trt_runner.Loaded(trt, engine, execution, trace=trace)) as loaded:
        yield loaded


def _refuse_strangers(built: Artifact, plan: bytes, version: str) -> None:
    """Says in words why an engine cannot run here, where TensorRT would refuse it in its own or crash."""
    again = "Build it again here: resdeploy build F.onnx --backend tensorrt"
    device = cuda.driver().devices[0]
    if built.machine not in (None, str(device), device.architecture):
        raise EnvironmentFailure(f"{built.path} was built for {built.machine}; this machine has {device}", fix=again)
    if any("stripped" in note for note in built.notes):
        raise EnvironmentFailure(f"{built.path} was built without its weights and cannot run as it is", fix=REFIT)
    writer = built.tools.get("tensorrt") or plan_header.version(plan)
    if not _version_compatible(built) and writer and major_of(writer) != major_of(version):
        raise EnvironmentFailure(f"{built.path} was written by TensorRT {writer}; this is {version}", fix=again)


def _version_compatible(built: Artifact) -> bool:
    return built.tools.get("version_compatible") == "yes"

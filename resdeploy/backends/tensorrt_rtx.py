"""TensorRT-RTX: NVIDIA's compiler for GeForce RTX, which builds on machines without a GPU, and says what it fused.

It is not the compiler for data centre GPUs: an engine of it runs on no H100 or H200, and what it fuses says nothing of
them. Its API is TensorRT 11's, so that `trt_prepare` and `trt_builder` do the work. While it builds it tells the log
every layer of the engine (`rtx_layers`), which go into the record: nothing need run for an audit.

The same file gives the same bytes with the same version, whatever the machine.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy import packages, store
from resdeploy.backends import (
    inspector,
    installed_version,
    no_check,
    plan_header,
    require,
    rtx_layers,
    trt_builder,
    trt_log,
    trt_prepare,
)
from resdeploy.errors import BackendMissing
from resdeploy.records import Artifact, Availability, Execution, Format, Precision, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resdeploy.backends import Loaded

NAME = "tensorrt-rtx"
PRODUCT = "TensorRT-RTX"
VENDOR = "tensorrt_rtx_bindings"
DISTRIBUTIONS = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
PACKAGES: tuple[str, ...] = ("tensorrt-rtx-cu13-libs", *DISTRIBUTIONS)
SOURCE: Format = "onnx"
FORMAT: Format = "tensorrt-rtx"
SUFFIXES: tuple[str, ...] = (".engine",)
TAG = plan_header.TENSORRT_RTX
PROGRAM, FOREIGN = True, False
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16", "int8"})
TARGET: Target | None = "tensorrt-rtx"
# The builder takes others too, and makes the same bytes (level, tactics) or nothing of them: they are refused.
HEEDS = frozenset({"batch_range", "workspace_mib", "targets"})
check = no_check

LOWERED_FOR = 11  # the major version of TensorRT whose rules its parser follows
OLDEST = (1, 7)  # the first that builds INT8 convolutions
GPUS = "GeForce RTX (SM75, 80, 86, 89, 120, 121; not H100 or H200)"
LICENCE = "NVIDIA's licence"
INSTALL = f"{packages.install(VENDOR)} (installing accepts {LICENCE})"
LAST_RESORT = "the FP16 file (resdeploy quantize F.onnx --precision fp16), or other --targets, may build"


def available() -> Availability:
    """Whether it builds here; nothing runs here yet."""
    version = installed_version(VENDOR, *DISTRIBUTIONS)
    if version is None:
        return Availability(ok=False, reason=f"the package {DISTRIBUTIONS[0]} is not installed", install=INSTALL)
    if installed_version("tensorrt_rtx_libs") is None:
        reason = "the package tensorrt-rtx-cu13-libs, whose bindings are here, is not installed"
        return Availability(ok=False, version=version, reason=reason, install=INSTALL)
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        reason = f"version {version} is older than {oldest}, and builds no INT8 convolutions"
        return Availability(ok=False, version=version, reason=reason, install=INSTALL)
    return Availability(
        ok=False,
        builds=True,
        version=version,
        reason=f"builds for {GPUS} under {LICENCE}, and audits what it built; running that is not supported",
        install="Use it with build, audit and gate --require-fused; run the ONNX file with another --backend",
    )


def prepare(source: Artifact, execution: Execution) -> AbstractContextManager[tuple[Artifact, Execution]]:
    """The ONNX file lowered as for TensorRT 11.

    Raises:
        BackendMissing: it is not installed.
        UsageError: the graph holds what a target cannot do, or there is no such target.
        MalformedInput: as `trt_prepare.lowered_for`.
    """
    require(available(), NAME, running=False)
    return _prepare(source, execution)


@contextlib.contextmanager
def _prepare(source: Artifact, execution: Execution) -> Iterator[tuple[Artifact, Execution]]:
    from resdeploy.graph import rtx_targets

    examine = functools.partial(rtx_targets.refuse, targets=execution.engine.targets, path=source.path)
    with trt_prepare.lowered_for(source, LOWERED_FOR, examine=examine) as lowered:
        yield lowered, execution


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Builds an engine for the targets, and takes down its layers.

    Raises:
        BackendMissing: it is not installed.
        MalformedInput, UsageError, OutOfMemory, BackendCrash: as `trt_builder.build`.
    """
    require(available(), NAME, running=False)
    import tensorrt_rtx_bindings as trt

    log = trt_log.logger(trt, PRODUCT, keep=True)
    engine = trt_builder.build(trt, log, source, execution, last_resort=LAST_RESORT)
    with store.disk_errors(out):
        out.write_bytes(engine.plan)
    targets = ", ".join(name.upper() for name in execution.engine.targets)
    return store.derive(
        source,
        out,
        format=FORMAT,
        machine=targets or None,
        checks=dict(engine.facts),
        notes=(*source.notes, *engine.notes, f"for GeForce RTX ({targets or 'SM80 and later'}), not for H100 or H200"),
        tools={**source.tools, NAME: plan_header.version(engine.plan) or str(trt.__version__)},
        layers=inspector.parse(rtx_layers.read("\n".join(log.told)), f"what {PRODUCT} tells of {source.path}").layers,
    )


def open(  # noqa: A001
    built: Artifact, execution: Execution, *, trace: bool = False
) -> AbstractContextManager[Loaded]:
    """Refuses: nothing of it has ever been run here.

    Raises:
        BackendMissing: always.
    """
    state = available()
    raise BackendMissing(f"backend {NAME} cannot run here: {state.reason}", fix=state.install)

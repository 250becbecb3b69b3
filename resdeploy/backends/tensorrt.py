"""TensorRT on NVIDIA GPUs: for now, precisely why it cannot be used.

Both facts are asked before TensorRT itself is touched: `tensorrt.Runtime` segfaults on a machine with no CUDA driver,
and `tensorrt.Builder` raises a TypeError that says nothing.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.backends import installed, require
from resdeploy.errors import BackendMissing
from resdeploy.records import Artifact, Availability, Execution, Format, Precision

if TYPE_CHECKING:
    from resdeploy.backends import Loaded

SOURCE: Format = "onnx"
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "fp16", "int8"})
VENDOR = "tensorrt"

INSTALL = "pip install 'resdeploy[gpu]'"
DRIVER_HINT = "Install NVIDIA's driver, and in a container start it with --gpus all"
# CUDA major that each TensorRT major's wheels are built for, at the least.
CUDA_NEEDED = {8: 11, 10: 12, 11: 13}
CUDA_ERRORS = {100: "no CUDA device", 34: "a stub driver library", 803: "driver and library versions that differ"}


def available() -> Availability:
    """Whether the package, a driver new enough for it and a device are here."""
    version = installed(VENDOR, "tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
    problem, cuda, devices = _driver()
    if version is None:
        also = f"; besides, {problem}" if problem else ""
        return Availability(ok=False, reason=f"the package tensorrt is not installed{also}", install=INSTALL)
    if problem:
        return Availability(ok=False, version=version, reason=problem, install=DRIVER_HINT)
    major = int(version.split(".")[0]) if version[0].isdigit() else 0
    needed = CUDA_NEEDED.get(major, 0)
    if cuda // 1000 < needed:
        return Availability(
            ok=False,
            version=version,
            reason=f"the driver supports CUDA {cuda // 1000}.{cuda % 1000 // 10}, TensorRT {version} needs {needed}",
            install="Update NVIDIA's driver, or install an older tensorrt",
            devices=devices,
        )
    return Availability(
        ok=False,
        version=version,
        reason="resdeploy does not build or run TensorRT engines yet",
        install="Use --backend openvino or onnxruntime",
        devices=devices,
    )


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Not yet.

    Raises:
        BackendMissing: always, with the reason.
    """
    require(available(), VENDOR)
    raise BackendMissing("resdeploy does not build TensorRT engines yet", fix="Use --backend openvino or onnxruntime")


def open(built: Artifact, execution: Execution, *, trace: bool = False) -> AbstractContextManager[Loaded]:  # noqa: A001
    """Not yet.

    Raises:
        BackendMissing: always, with the reason.
    """
    require(available(), VENDOR)
    raise BackendMissing("resdeploy does not run TensorRT engines yet", fix="Use --backend openvino or onnxruntime")


def _driver() -> tuple[str, int, tuple[str, ...]]:
    """What is wrong with the CUDA driver ("" if nothing), its CUDA version (12040 is 12.4), and its devices."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no CUDA driver (libcuda.so.1)", 0, ()
    if status := cuda.cuInit(0):
        meaning = CUDA_ERRORS.get(status, "see CUresult in CUDA's documentation")
        return f"the CUDA driver does not start: error {status}, {meaning}", 0, ()
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, 256, device)
        names.append(name.value.decode(errors="replace"))
    return ("" if names else "the CUDA driver sees no device"), version.value, tuple(names)

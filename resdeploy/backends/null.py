"""A backend that computes nothing: it takes a known time and gives known answers.

It drives every command and every statistic in tests, and shows what the harness itself costs. The class of an image
is a hash of its content. Told by the environment, which a lane's child inherits:

    RESDEPLOY_NULL_SLEEP_S    seconds that each run takes (default 0), to some microseconds
    RESDEPLOY_NULL_FAULT      crash, abort, hang, oom, raise or kill, at the next run; `build:crash` at the next build
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import __version__, store
from resdeploy.backends import Tensor, no_check, no_preparation
from resdeploy.errors import MissingInput
from resdeploy.records import PRECISIONS, Artifact, Availability, Execution, Format, Layer, Precision, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.backends import Arrays

VENDOR = ""
PACKAGES: tuple[str, ...] = ()
SOURCE: Format = "onnx"
FORMAT: Format = "onnx"
SUFFIXES: tuple[str, ...] = (".onnx",)
TAG = b""
PROGRAM = FOREIGN = False
ACCEPTS: frozenset[Precision] = frozenset(PRECISIONS)
TARGET: Target | None = "onnxruntime"
HEEDS: frozenset[str] = frozenset()
check, prepare = no_check, no_preparation

SPIN_S = 1e-3  # the end of a sleep, waited for in a loop: the kernel wakes a sleeper some 0.1 ms late


def available() -> Availability:
    """Always."""
    return Availability(ok=True, version=__version__, devices=("CPU",))


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """Copies the file.

    Raises:
        MissingInput: no such file.
    """
    _fault("build")
    try:
        data = Path(source.path).read_bytes()
    except OSError as e:
        raise MissingInput(f"cannot read {source.path}: {e.strerror}", fix="Check the path") from e
    store.write_bytes(out, data)
    return dataclasses.replace(
        source, path=str(out), sha256=store.digest(out), parent=source.sha256, tools={"resdeploy": __version__}
    )


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[_Loaded]:  # noqa: A001
    """The built file; needs an input shape from its sidecar or the execution.

    Raises:
        MissingInput: neither says the input shape.
    """
    _fault("open")
    shape = execution.input_shape or (built.model.input_shape if built.model else None)
    if shape is None:
        raise MissingInput(f"nothing says what {built.path} takes", fix="Give --img-size")
    classes = built.model.classes if built.model else 10
    yield _Loaded((execution.batch_size, *shape), classes)


class _Loaded:
    settings: Mapping[str, str] = {}

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.inputs = {"input": Tensor(shape=shape, dtype="float32")}
        self.outputs = {"logits": Tensor(shape=(shape[0], classes), dtype="float32")}

    def session(self) -> _Session:
        return _Session(self.inputs["input"].shape, self.outputs["logits"].shape)

    def layers(self) -> Sequence[Layer]:
        return (Layer(name="null", kind="Null", precision="fp32", sources=()),)


class _Session:
    def __init__(self, shape: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        self.buffer: NDArray[np.float32] = np.zeros(shape, np.float32)
        self.logits: NDArray[np.float32] = np.zeros(outputs, np.float32)
        self.sleep_s = float(os.environ.get("RESDEPLOY_NULL_SLEEP_S", "0"))

    def put(self, inputs: Arrays) -> None:
        np.copyto(self.buffer, inputs["input"])

    def run(self) -> None:
        until = time.perf_counter() + self.sleep_s
        _fault("run")
        classes = self.logits.shape[1]
        self.logits[:] = 0
        for row, image in zip(self.logits, self.buffer, strict=True):
            row[zlib.crc32(image) % classes] = 1
        if self.sleep_s:
            time.sleep(max(0.0, self.sleep_s - SPIN_S))
            while time.perf_counter() < until:
                pass

    def get(self) -> Arrays:
        return {"logits": self.logits}

    def device_time_s(self) -> float | None:
        return None


def _fault(where: str) -> None:
    """Fails as the environment demands."""
    fault = os.environ.get("RESDEPLOY_NULL_FAULT", "")
    at, _, kind = fault.rpartition(":")
    if not kind or (at or "run") != where:
        return
    if kind == "crash":
        ctypes.string_at(1)  # reads an address that nobody owns
    if kind == "abort":
        os.abort()
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        signal.pause()
    if kind == "oom":
        np.ones(1 << 44)  # 128 TiB
    msg = f"RESDEPLOY_NULL_FAULT={fault}"
    raise RuntimeError(msg)

"""A whole backend in one file: ONNX's own reference implementation, exact and slow.

As `resdeploy/backends/toy.py`, and with the line `"toy",` in `registered_backends.BackendName`, it is one. How that
is done says docs/extending.md, and `tests/backends/test_toy_backend.py` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy import packages, store
from resdeploy.backends import Tensor, input_shape, installed_version, no_preparation
from resdeploy.errors import MalformedInput
from resdeploy.records import Artifact, Availability, Execution, Format, Layer, Precision, Target

if TYPE_CHECKING:
    from resdeploy.backends import Arrays

VENDOR = "onnx"
PACKAGES: tuple[str, ...] = ("onnx",)
SOURCE: Format = "onnx"
FORMAT: Format = "toy"  # what `build` writes: TAG and the ONNX file
SUFFIXES: tuple[str, ...] = (".toy",)
TAG = b"toy\n"
PROGRAM = FOREIGN = False
ACCEPTS: frozenset[Precision] = frozenset({"fp32", "int8"})
TARGET: Target | None = "onnxruntime"
HEEDS: frozenset[str] = frozenset()
prepare = no_preparation


def available() -> Availability:
    """Whether the package is installed."""
    version = installed_version(VENDOR)
    if version is None:
        return Availability(ok=False, reason="the package onnx is not installed", install=packages.install(VENDOR))
    return Availability(ok=True, version=version, devices=("CPU",))


def check(path: Path) -> None:
    """Looks for the tag."""
    _model(path)


def build(source: Artifact, execution: Execution, out: Path) -> Artifact:
    """The ONNX file behind a tag."""
    store.write_bytes(out, TAG + Path(source.path).read_bytes())
    return dataclasses.replace(
        source,
        path=str(out),
        format=FORMAT,
        sha256=store.digest(out),
        parent=source.sha256,
        checks={},
        tools={**source.tools, "onnx": installed_version(VENDOR) or ""},
    )


@contextlib.contextmanager
def open(built: Artifact, execution: Execution, *, trace: bool = False) -> Iterator[_Loaded]:  # noqa: A001
    """Reads the graph; tracing needs no preparation."""
    from onnx.reference import ReferenceEvaluator

    yield _Loaded(ReferenceEvaluator(_model(Path(built.path))), built, execution)


def _model(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(TAG):
        raise MalformedInput(f"{path} is no toy", fix="Build it again: resdeploy build F.onnx --backend toy")
    return data.removeprefix(TAG)


class _Loaded:
    settings: Mapping[str, str] = {"op_run": "reference"}

    def __init__(self, evaluator: Any, built: Artifact, execution: Execution) -> None:
        self.evaluator = evaluator
        (value,) = evaluator.proto_.graph.input
        declared = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        shape = input_shape(declared, built, execution)
        self.inputs = {value.name: Tensor(shape=shape, dtype="float32")}
        classes = evaluator.proto_.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        self.outputs = {evaluator.output_names[0]: Tensor(shape=(shape[0], classes), dtype="float32")}

    def session(self) -> _Session:
        return _Session(self.evaluator)

    def layers(self) -> Sequence[Layer]:
        """Every node is a kernel of its own."""
        return [
            Layer(name=node.name, kind=node.op_type, precision="fp32", sources=(node.name,))
            for node in self.evaluator.proto_.graph.node
        ]


class _Session:
    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator
        self.given: dict[str, Any] = {}
        self.found: dict[str, Any] = {}

    def put(self, inputs: Arrays) -> None:
        self.given = {name: value.copy() for name, value in inputs.items()}

    def run(self) -> None:
        values = self.evaluator.run(None, self.given)
        self.found = dict(zip(self.evaluator.output_names, values, strict=True))

    def get(self) -> Arrays:
        return self.found

    def device_time_s(self) -> float | None:
        return None

"""What the double of TensorRT serializes, and how weights are taken out of a plan and put back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.numpy_helper

if TYPE_CHECKING:
    from tests.doubles.tensorrt_double import Double


class Memory:
    """IHostMemory: a buffer."""

    def __init__(self, data: bytes) -> None:
        self.data, self.nbytes = data, len(data)

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.data)

    def __bytes__(self) -> bytes:
        return self.data


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of the model as zeros."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(value), tensor.name))
    return bare


def refitter(double: Double, self: Any, engine: Any, logger: Any) -> None:
    if not engine._own["head"]["refittable"]:
        raise TypeError("tensorrt.Refitter: factory function returned nullptr")
    self._own.update({"engine": engine, "missing": ["w0"], "model": None})


def refit(double: Double, parser: Any, model: str) -> bool:
    target = parser._own["arguments"][0]
    engine, given = target._own["engine"], onnx.load(model)
    sizes = {t.name: tuple(t.dims) for t in given.graph.initializer}
    wanted = {t.name: tuple(t.dims) for t in engine._own["model"].graph.initializer}
    target._own["missing"] = [name for name, dims in wanted.items() if sizes.get(name) != dims]
    target._own["model"] = given
    return True


def refit_engine(double: Double, self: Any) -> bool:
    self._own["engine"]._own["model"] = self._own["model"]
    return not self._own["missing"]


def clear_flag(double: Double, config: Any, flag: Any) -> bool:
    config._own["flags"].discard(flag.name)
    return True


def serialize(double: Double, engine: Any, config: Any) -> Any:
    bare = "EXCLUDE_WEIGHTS" in config._own["flags"]
    model = stripped(engine._own["model"]) if bare else engine._own["model"]
    return plan(double, engine._own["head"] | {"stripped": bare, "refittable": bare}, model)


def plan(double: Double, head: Mapping[str, Any], model: onnx.ModelProto) -> Any:
    text = json.dumps(head).encode()
    numbers = bytes(int(part) for part in double.version.split("."))
    plan = double.tag + bytes(20) + numbers.ljust(4, b"\0") + len(text).to_bytes(8, "little") + text
    return Memory(plan + model.SerializeToString())

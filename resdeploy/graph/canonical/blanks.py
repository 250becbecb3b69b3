"""Weights that are not there: a type and a shape, for graphs that are counted and never run.

A blank tensor is a `TensorProto` of floats without values. Passes see it as an array of one number in every place,
which takes no memory (all strides are 0) and stays blank wherever a pass only reshapes or rescales it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from resdeploy.graph import files

_NUMBER = 2.0**-6  # in every place: not zero, since random weights are not


class Blank(np.ndarray):
    """An array of one number; what is computed from it has strides, and is blank no more."""


def is_blank(array: NDArray[np.generic]) -> bool:
    """Whether the array has no values of its own."""
    return isinstance(array, Blank) and not any(array.strides)


def proto(name: str, data_type: int, shape: Sequence[int]) -> onnx.TensorProto:
    """A tensor without values."""
    return onnx.TensorProto(name=name, data_type=data_type, dims=shape)


def holds_none(tensor: onnx.TensorProto) -> bool:
    """Whether a stored tensor is blank: what `proto` made is, and no file's, since one without values is refused.

    Tensors that keep their values in another field (FP16 in `int32_data`) or another file are none.
    """
    inside = tensor.HasField("raw_data") or tensor.HasField("data_location") or tensor.float_data
    return tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > files.SMALL and not inside


class BlankTensor(ir.serde.TensorProtoTensor):
    """onnx-ir's view of one, which it writes as it is."""

    def numpy(self) -> NDArray[np.generic]:
        number = np.array(_NUMBER, dtype=self.dtype.numpy())
        return np.broadcast_to(number, tuple(self.shape.numpy())).view(Blank)


def tensor(array: NDArray[np.generic], name: str) -> ir.serde.TensorProtoTensor | ir.Tensor[Any]:
    """onnx-ir's view of an array, blank where that is."""
    if not is_blank(array):
        return ir.Tensor(array, name=name)
    return BlankTensor(proto(name, ir.DataType.from_numpy(array.dtype), array.shape))

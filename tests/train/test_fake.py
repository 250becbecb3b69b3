"""Every operator in torch gives what ONNX Runtime gives, however it is asked for, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from resdeploy.errors import UsageError
from resdeploy.graph import program
from resdeploy.train.fake import Graph

X = np.random.default_rng(0).normal(size=(2, 3, 9, 11)).astype(np.float32)
OTHERS: Mapping[str, Any] = {
    "w": np.random.default_rng(1).normal(size=(4, 3, 3, 2)).astype(np.float32),
    "low": np.float32(-0.5),
    "high": np.float32(0.25),
    "pads": np.array([0, 0, 1, 2, 0, 0, 3, 0]),
    "two": np.array([1, -2, 3, 4]),
    "axes": np.array([3, 2]),
    "starts": np.array([1, 0]),
    "ends": np.array([2, 100]),
    "steps": np.array([1, 2]),
}


def model_of(kind: str, inputs: Sequence[str], opset: int = 18, **attributes: Any) -> onnx.ModelProto:
    """One operator on `x`."""
    node = helper.make_node(kind, ["x", *inputs], ["y"], **attributes)
    constants = [numpy_helper.from_array(np.asarray(OTHERS[name]), name) for name in inputs if name]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", X.shape), ("y", None))]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agrees(kind: str, *inputs: str, opset: int = 18, **attributes: Any) -> None:
    model = model_of(kind, inputs, opset, **attributes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": X})
    with torch.no_grad():
        found = Graph(program.read(model))(torch.from_numpy(X)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


PADDING: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 0, 1, 1]},
    {"pads": [1, 0, 0, 1]},
    {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("padding", PADDING, ids=str)
def test_padding_is_onnx_runtimes(padding: dict[str, Any], strides: int) -> None:
    """Of convolutions and both poolings: symmetric, on one side only, and automatic."""
    both = {**padding, "strides": [strides, strides]}
    agrees("Conv", "w", **both)
    agrees("MaxPool", kernel_shape=[3, 2], **both)
    agrees("AveragePool", kernel_shape=[3, 2], **both)
    agrees("AveragePool", kernel_shape=[3, 2], count_include_pad=1, **both)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (2, 3), (3, 4)])
def test_pooling_that_rounds_up_is_onnx_runtimes(pads: list[int], kernel: int, stride: int) -> None:
    """The last window reaches over the edge, and what is there counts for nothing."""
    asked: dict[str, Any] = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads}
    asked["ceil_mode"] = 1
    agrees("MaxPool", **asked)
    agrees("AveragePool", **asked)
    agrees("AveragePool", count_include_pad=1, **asked)


def test_dilations_are_onnx_runtimes() -> None:
    """With padding on one side, too; automatic padding to the same size ONNX Runtime refuses."""
    for padding in PADDING[:5]:
        agrees("Conv", "w", dilations=[2, 1], **padding)
    agrees("MaxPool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 0, 1])


def test_an_input_that_is_left_out_leaves_the_others_in_their_place() -> None:
    """Clip without its minimum is no maximum; a bias, a value and axes between others likewise."""
    agrees("Clip", "low", "high")
    agrees("Clip", "", "high")
    agrees("Clip", "low")
    agrees("Clip", "low", "")
    agrees("Clip")
    agrees("Clip", opset=10, min=-0.5, max=0.25)
    agrees("Conv", "w", "")
    agrees("Pad", "pads")
    agrees("Pad", "two", "", "axes")
    agrees("Pad", "two", "high", "axes")
    agrees("Slice", "starts", "ends", "", "steps")
    agrees("Slice", "starts", "ends", "axes")


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flattening_leaves_two_axes(axis: int) -> None:
    """Whichever the axis is."""
    agrees("Flatten", axis=axis)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (model_of("Pad", ["pads"], mode="reflect"), "Pad in mode reflect"),
        (model_of("AveragePool", [], opset=19, kernel_shape=[2, 2], dilations=[2, 2]), "AveragePool with dilations"),
        (model_of("MaxPool", [], kernel_shape=[2, 2, 2]), "MaxPool of 3 dimensions"),
        (model_of("Erf", []), "Erf"),
    ],
)
def test_what_is_not_computed_here_is_refused_before_training(model: onnx.ModelProto, named: str) -> None:
    """By name."""
    with pytest.raises(UsageError, match=named):
        Graph(program.read(model))

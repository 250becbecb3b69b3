"""What FP16 cannot hold is found by running images, and stays in FP32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import MissingInput
from resdeploy.graph import cast
from resdeploy.graph.canonical import form
from resdeploy.quantize import overflow
from tests.quantize.test_ptq import here
from tests.quantize.test_sensitivity import network


def loud(gain: float) -> onnx.ModelProto:
    """A network whose first block multiplies by `gain` and whose second divides by it: FP32 gives ordinary logits."""
    model = network()
    scale = {"w1": gain, "b1": gain, "w2": 1.0, "w3": 1.0, "w5": 1.0}
    for tensor in model.graph.initializer:
        if tensor.name in scale:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(scale[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        if tensor.name == "w6":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / np.float32(gain), "w6"))
    return form.canonicalise(model)


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """By ONNX's reference, which rounds every value to its type; ONNX Runtime on a CPU computes FP16 in FP32."""
    with np.errstate(all="ignore"):
        found: Any = ReferenceEvaluator(model).run(None, {"input": images})
        return np.asarray(found[0])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((6, 3, 12, 12)).astype(np.float32)


def test_makers_and_readers_of_what_overflows_are_named(images: np.ndarray) -> None:
    """The layers around the loud tensors, with the largest magnitude; the quiet stem is not among them."""
    model = loud(3e4)
    found = overflow.find_overflowing(model, [images[:4], images[4:]], run=here)
    assert {"one.conv1", "one.relu1", "one.conv2", "one.add", "two.conv1", "avgpool", "fc"} <= set(found)
    assert not {"stem", "relu0"} & set(found)
    assert min(found.values()) > cast.FP16_MAX / overflow.HEADROOM


def test_the_kept_nodes_make_the_cast_model_right_again(images: np.ndarray) -> None:
    """Without them FP16 gives infinities or nonsense; with them the logits are those of FP32 to FP16's precision."""
    model = loud(3e4)
    exact = logits(model, images)
    broken = logits(cast.to_half(model, "fp16"), images)
    assert not np.allclose(broken, exact, rtol=0.05, atol=0.05)
    kept = overflow.find_overflowing(model, [images], run=here)
    mended = cast.to_half(model, "fp16", keep=kept)
    assert set(cast.nodes_in_fp32(mended)) == set(kept)
    np.testing.assert_allclose(logits(mended, images), exact, rtol=0.01, atol=0.01 * np.abs(exact).max())


def test_an_ordinary_network_keeps_nothing(images: np.ndarray) -> None:
    """All of it is cast."""
    assert overflow.find_overflowing(loud(1.0), [images], run=here) == {}


def test_no_images_are_refused() -> None:
    """Nothing would be known."""
    with pytest.raises(MissingInput):
        overflow.find_overflowing(loud(1.0), [], run=here)

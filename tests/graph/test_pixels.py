"""Networks that see pixels: the function is kept, and what INT8 reads of an image is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy.data import preprocess
from resdeploy.errors import UsageError
from resdeploy.graph import pixels
from resdeploy.graph.canonical import form
from resdeploy.records import Preprocessing
from tests.sessions import session

SEEN = Preprocessing(size=(9, 9))


def network(
    random: np.random.Generator, *, kernel: int = 3, pad: int = 1, stride: int = 1, channels: int = 3, between: str = ""
) -> onnx.ModelProto:
    """One convolution (after `between`, where given), pooling and a classifier."""

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    first = [node(between, ["input"], ["x"])] if between else []
    conv = node("Conv", ["x" if between else "input", "w", "b"], ["y"], "stem", pads=[pad] * 4, strides=[stride] * 2)
    rest = [
        node("Relu", ["y"], ["z"]),
        node("GlobalAveragePool", ["z"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        [*first, conv, *rest],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", channels, 9, 9])],
        [value("logits", TensorProto.FLOAT, ["batch", 4])],
        [weight("w", 5, channels, kernel, kernel), weight("b", 5), weight("v", 4, 5)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return form.canonicalise(model)


def run(model: onnx.ModelProto, images: NDArray[np.generic], tensor: str = "logits") -> NDArray[np.float32]:
    """The value of any tensor, without the runtime's optimisations."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    if tensor != "logits":
        del wider.graph.output[:]
        wider.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    opened = session(wider, exactly=True)
    return np.asarray(opened.run([tensor], {opened.get_inputs()[0].name: images})[0])


def both(random: np.random.Generator, spec: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Random pictures as pixels and normalised, each (2, C, 9, 9)."""
    pictures = random.integers(0, 256, (2, 9, 9, len(spec.mean)), np.uint8)
    return pictures.transpose(0, 3, 1, 2), np.stack([preprocess.normalise(p, spec) for p in pictures])


unit = st.floats(0.0, 1.0).map(lambda value: round(value, 3))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kernel=st.sampled_from([1, 3, 5]),
    pad=st.integers(0, 2),
    stride=st.integers(1, 2),
    mean=st.tuples(unit, unit, unit),
    std=st.tuples(*[st.floats(0.05, 2.0)] * 3),
    signed=st.booleans(),
)
def test_pixels_in_give_the_logits_of_normalised_floats(
    seed: int,
    kernel: int,
    pad: int,
    stride: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    signed: bool,
) -> None:
    """With uint8 input, and in the form that is quantized, whatever the convolution and the normalisation."""
    random = np.random.default_rng(seed)
    model = network(random, kernel=kernel, pad=pad, stride=stride)
    spec = Preprocessing(size=(9, 9), mean=mean, std=std)
    raw, normalised = both(random, spec)
    expected = run(model, normalised)
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4 * float(np.abs(expected).max())}
    taking_pixels = pixels.to_pixels(model, spec)
    onnx.checker.check_model(taking_pixels, full_check=True)
    np.testing.assert_allclose(run(taking_pixels, raw), expected, **near)
    # Its canonical form is quantized, so the structure must survive that.
    again = form.canonicalise(taking_pixels)
    for start, images in ((model, normalised), (again, raw)):
        exact = pixels.to_whole_pixels(start, spec, signed=signed)
        assert exact is not None
        onnx.checker.check_model(exact.model, full_check=True)
        np.testing.assert_allclose(run(exact.model, images), expected, **near)


@pytest.mark.parametrize("signed", [False, True])
def test_what_int8_reads_of_an_image_is_its_pixels(signed: bool) -> None:
    """On a scale of 1 and zero point 0; the border alone is rounded, to the nearest colour."""
    random = np.random.default_rng(5)
    model = network(random)
    raw, normalised = both(random, SEEN)
    for start, images in ((model, normalised), (pixels.to_pixels(model, SEEN), raw)):
        exact = pixels.to_whole_pixels(start, SEEN, signed=signed)
        assert exact is not None
        (tensor,) = exact.tensors
        read = run(exact.model, images, tensor)
        offset = 128 if signed else 0
        inside = np.rint(read[:, :, 1:-1, 1:-1])
        np.testing.assert_array_equal(inside, raw.astype(np.float32) - offset)
        np.testing.assert_allclose(read[:, :, 1:-1, 1:-1], inside, atol=1e-3)
        colour = 255 * np.array(SEEN.mean) - offset
        np.testing.assert_allclose(read[:, :, 0, :], np.broadcast_to(colour[:, None], (2, 3, 11)), atol=1e-3)


def test_an_input_that_no_convolution_reads_is_normalised_in_the_graph() -> None:
    """Nothing to fold into: the function is kept all the same, and exact quantization is not claimed."""
    random = np.random.default_rng(6)
    model = network(random, between="Sigmoid")
    raw, normalised = both(random, SEEN)
    made = pixels.to_pixels(model, SEEN)
    np.testing.assert_allclose(run(made, raw), run(model, normalised), rtol=1e-4, atol=1e-4)
    assert pixels.to_whole_pixels(made, SEEN, signed=False) is None
    assert pixels.to_whole_pixels(model, SEEN, signed=False) is None


def test_a_float_input_is_not_exact_where_its_normalisation_is_unknown() -> None:
    assert pixels.to_whole_pixels(network(np.random.default_rng(7)), None, signed=True) is None


def test_an_input_that_is_uint8_already_or_has_other_channels_is_refused() -> None:
    model = network(np.random.default_rng(8))
    with pytest.raises(UsageError, match="UINT8 already"):
        pixels.to_pixels(pixels.to_pixels(model, SEEN), SEEN)
    with pytest.raises(UsageError, match="4 channels, its preprocessing normalises 3"):
        pixels.to_pixels(network(np.random.default_rng(9), channels=4), SEEN)

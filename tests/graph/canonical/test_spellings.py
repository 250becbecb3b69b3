"""One network in many spellings is one canonical graph, and one INT8 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.canonical import form
from resdeploy.quantize.fidelity import snr_db
from resdeploy.records import Target
from tests.sessions import session
from tests.spellings import OPSETS, assert_one_form, in_int8, quantize, respell, small_net


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), opset=st.sampled_from(OPSETS))
def test_every_spelling_has_the_same_canonical_graph(seed: int, opset: int) -> None:
    """Bit for bit but for names: constants anywhere, norms apart, pads apart, layouts, sums, bounds, opsets 7 to 22."""
    assert_one_form(seed, opset)


@pytest.mark.parametrize("target", get_args(Target))
def test_every_spelling_has_the_same_int8_file(target: Target, tmp_path: Path) -> None:
    """The same nodes, scales and integers but for names: the spelling costs no accuracy whatever the target."""
    plain = small_net(5)
    assert in_int8(respell(form.canonicalise(plain), 5, 13), target, tmp_path) == in_int8(plain, target, tmp_path)


def of_elsewhere(*, plain: bool) -> onnx.ModelProto:
    """A network as the pieces of many exporters would write it, or plainly.

    Scale layers with wide factors, weights that the graph standardizes, a residual Sum, a padded max pool (-1e4 behind
    Relu), and a product with a bias (1, N).
    """
    random, node = np.random.default_rng(1), helper.make_node
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 16, 3, 3), "fc": (16, 10), "fcb": (1, 10), "b0": (16, 1, 1)}
    weights = {k: random.normal(0, np.sqrt(2 / np.prod(s[1:])), s).astype(np.float32) for k, s in shapes.items()}
    weights["s0"] = np.exp(random.normal(0, 1.2, (16, 1, 1))).astype(np.float32)
    mean, deviation = (f(weights["w1"], axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    known = {
        "w0": weights["w0"] * weights["s0"][..., None],
        "b0": weights["b0"].ravel(),
        "w1": (weights["w1"] - mean) / deviation / 12,
        "fc": weights["fc"].T.copy(),
        "fcb": weights["fcb"].ravel(),
    }
    pool: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
    if plain:
        stem = [node("Conv", ["x", "w0", "b0"], ["a"], "c0", pads=[1] * 4), node("Relu", ["a"], ["r"])]
        stem += [
            node("MaxPool", ["r"], ["p"], pads=[0, 0, 1, 1], **pool),
            node("Conv", ["p", "w1"], ["c"], "c1", pads=[1] * 4),
        ]
        stem += [node("Add", ["c", "p"], ["sum"])]
        end = [node("Gemm", ["f", "fc", "fcb"], ["y"], "fc", transB=1)]
    else:
        stem = [
            node("Conv", ["x", "w0"], ["c0"], pads=[1] * 4),
            node("Mul", ["c0", "s0"], ["m"]),
            node("Add", ["m", "b0"], ["a"]),
        ]
        stem += [
            node("Relu", ["a"], ["r"]),
            node("Pad", ["r", "pads", "low"], ["q"]),
            node("MaxPool", ["q"], ["p"], **pool),
        ]
        stem += [node("ReduceMean", ["w1"], ["mean"], axes=[1, 2, 3]), node("Sub", ["w1", "mean"], ["z"])]
        stem += [node("Mul", ["z", "z"], ["zz"]), node("ReduceMean", ["zz"], ["var"], axes=[1, 2, 3])]
        stem += [node("Sqrt", ["var"], ["sd"]), node("Div", ["z", "sd"], ["n"]), node("Div", ["n", "twelve"], ["k"])]
        stem += [node("Conv", ["p", "k"], ["c"], pads=[1] * 4), node("Sum", ["c", "p"], ["sum"])]
        end = [node("MatMul", ["f", "fc"], ["mm"]), node("Add", ["mm", "fcb"], ["y"])]
        known = weights | {"pads": np.array([0] * 6 + [1, 1]), "low": np.float32(-1e4), "twelve": np.float32(12)}
    nodes = [
        *stem,
        node("Relu", ["sum"], ["t"]),
        node("GlobalAveragePool", ["t"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        *end,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(array, array.dtype), name) for name, array in known.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("target", get_args(Target))
def test_files_from_elsewhere_lose_no_more_in_int8_than_plain_ones(target: Target, tmp_path: Path) -> None:
    """Signal to noise of the logits on images that calibration did not see, in ONNX Runtime, within 1 dB."""
    images = np.random.default_rng(2).normal(size=(32, 3, 16, 16)).astype(np.float32)

    def logits(model: onnx.ModelProto) -> np.ndarray:
        return session(model, exactly=True).run(None, {model.graph.input[0].name: images})[0]

    exact, ratios = logits(of_elsewhere(plain=True)), []
    for plain in (True, False):
        model = of_elsewhere(plain=plain)
        assert np.allclose(logits(model), exact, rtol=1e-4, atol=1e-4)
        ratios.append(snr_db(exact, logits(quantize(model, target, tmp_path))) or 0.0)
    assert min(ratios) > 20
    assert ratios[1] == pytest.approx(ratios[0], abs=1)

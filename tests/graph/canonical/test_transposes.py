"""Graphs written for images whose channels come last, as converters from TensorFlow leave them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.canonical import form
from tests.sessions import session

node = helper.make_node
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def channels_last(*, readable: bool = True) -> onnx.ModelProto:
    """A residual block whose norms, padding and sum are between Transposes; or a mean over the height alone."""
    random = np.random.default_rng(0)
    weights = {
        **{f"w{k}": random.normal(size=(4, c, 3, 3)).astype(np.float32) for k, c in enumerate((3, 4))},
        **{name: random.uniform(0.5, 2, 4).astype(np.float32) for name in ("s0", "s1", "b0", "b1")},
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
        "fc": random.normal(size=(4, 5)).astype(np.float32),
    }
    nodes = []
    for k, image in enumerate(("x", "turned")):
        nodes += [
            node("Conv", [image, f"w{k}"], [f"c{k}"], pads=[1 - k] * 4),
            node("Transpose", [f"c{k}"], [f"t{k}"], perm=LAST),
            node("Mul", [f"t{k}", f"s{k}"], [f"m{k}"]),
            node("Add", [f"m{k}", f"b{k}"], [f"a{k}"]),
        ]
        if k == 0:
            nodes += [
                node("Relu", ["a0"], ["r0"]),
                node("Pad", ["r0", "pads"], ["padded"]),
                node("Transpose", ["padded"], ["turned"], perm=FIRST),
            ]
    nodes += [
        node("Sum", ["a1", "r0"], ["sum"]),
        node("Relu", ["sum"], ["r1"]),
        node("ReduceMean", ["r1"], ["mean"], axes=[1, 2] if readable else [1], keepdims=0),
        node("MatMul", ["mean", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(model: onnx.ModelProto) -> np.ndarray:
    opened = session(model, exactly=True)
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    return opened.run(None, {opened.get_inputs()[0].name: x})[0]


def test_a_region_between_transposes_is_computed_with_channels_first() -> None:
    """Norms fold, the padding is the convolution's, the sum is a residual one, and no Transpose is left."""
    raw = channels_last()
    model = form.canonicalise(raw)
    expected = {"Conv": 2, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert Counter(n.op_type for n in model.graph.node) == expected
    assert np.allclose(outputs(model), outputs(raw), rtol=1e-5, atol=1e-5)
    assert form.canonicalise(model).SerializeToString() == model.SerializeToString()


def test_a_region_in_which_the_layout_matters_stays() -> None:
    """A mean over the height alone keeps width and channels in their own order."""
    raw = channels_last(readable=False)
    model = form.canonicalise(raw)
    assert Counter(n.op_type for n in model.graph.node)["Transpose"] == 3
    assert np.allclose(outputs(model), outputs(raw), rtol=1e-5, atol=1e-5)

"""What depends on no input is computed, whatever its operators, as long as it is not too large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import MalformedInput
from resdeploy.graph import files
from resdeploy.graph.canonical import form
from tests.sessions import session

node = helper.make_node
RANDOM = np.random.default_rng(4)
WEIGHT = RANDOM.normal(size=(4, 2, 3, 3)).astype(np.float32)


def model_of(nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray], opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    opened = session(model, exactly=True)
    return opened.run(None, {opened.get_inputs()[0].name: x})[0]


FLAT = {"flat": np.array([1, 4, -1]), "back": np.array([4, 2, 3, 3])}
TURNED = {"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}
TURNED["v"] = TURNED["s"] + 1
# As timm's StdConv2d does it (BatchNormalization in training), as an InstanceNormalization, and spelled out.
STANDARDIZED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "training": (
        [
            node("Reshape", ["w", "flat"], ["f"]),
            node("BatchNormalization", ["f", "s", "b", "m", "v"], ["n", "mean", "var"], training_mode=1, epsilon=1e-6),
            node("Reshape", ["n", "back"], ["k"]),
        ],
        FLAT | TURNED,
    ),
    "instance": (
        [
            node("Reshape", ["w", "flat"], ["f"]),
            node("InstanceNormalization", ["f", "s", "b"], ["n"], epsilon=1e-6),
            node("Reshape", ["n", "back"], ["k"]),
        ],
        FLAT | TURNED,
    ),
    "spelled": (
        [
            node("ReduceMean", ["w"], ["mean"], axes=[1, 2, 3]),
            node("Sub", ["w", "mean"], ["z"]),
            node("ReduceL2", ["z"], ["norm"], axes=[1, 2, 3]),
            node("Div", ["z", "norm"], ["n"]),
            node("Einsum", ["n", "gain"], ["k"], equation="oihw,o->oihw"),
        ],
        {"gain": RANDOM.uniform(1, 2, 4).astype(np.float32)},
    ),
}


@pytest.mark.parametrize("kind", STANDARDIZED)
def test_standardized_weights_are_numbers(kind: str) -> None:
    """Weights that the graph computes from others are stored, and the convolution can then be quantized."""
    nodes, constants = STANDARDIZED[kind]
    raw = model_of([*nodes, node("Conv", ["x", "k"], ["y"])], {"w": WEIGHT, **constants})
    model = form.canonicalise(raw)
    assert ops(model) == {"Conv": 1}
    assert [list(t.dims) for t in model.graph.initializer] == [[4, 2, 3, 3]]
    x = RANDOM.normal(size=(2, 2, 5, 5)).astype(np.float32)
    assert np.allclose(run(model, x), run(raw, x), rtol=1e-4, atol=1e-5)


def test_what_is_drawn_too_large_or_too_slow_is_left_to_the_runtime() -> None:
    """Random numbers are not decided by inputs; a product of hours and an outer sum of gigabytes are not begun."""
    image = node("Add", ["x", "z"], ["y"])
    many = np.ones((1 << 12, 1), np.float32)
    left: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
        "RandomNormalLike": ([node("RandomNormalLike", ["w"], ["k"])], {"w": WEIGHT}),
        "Add": ([node("Add", ["w", "t"], ["k"])], {"w": many, "t": many.T}),
        "Gemm": ([node("MatMul", ["w", "t"], ["k"])], {"w": many, "t": many.T}),
        "Resize": ([node("Resize", ["w", "", "s"], ["k"])], {"w": WEIGHT, "s": np.array([1, 1, 40, 40], np.float32)}),
    }
    for op, (nodes, weights) in left.items():
        model = form.canonicalise(model_of([*nodes, node("ReduceMax", ["k"], ["z"], keepdims=0), image], weights))
        assert ops(model)[op] == (2 if op == "Add" else 1)


def test_integers_stay_integers() -> None:
    """What dequantizes weights is not computed away: it says in which precision the convolution runs."""
    weights: dict[str, np.ndarray] = {
        "w": np.ones((4, 2, 3, 3), np.int8),
        "s": np.ones(4, np.float32),
        "z": np.zeros(4, np.int8),
    }
    nodes = [node("DequantizeLinear", ["w", "s", "z"], ["k"], axis=0), node("Conv", ["x", "k"], ["y"])]
    assert ops(form.canonicalise(model_of(nodes, weights))) == {"DequantizeLinear": 1, "Conv": 1}


def test_infinity_is_a_pads_value_and_no_weight(tmp_path: Path) -> None:
    """One infinity is a bound or a filler; a tensor with one among its numbers is damaged, and NaN always."""
    nodes = [node("Pad", ["x", "p", "v"], ["q"]), node("MaxPool", ["q"], ["y"], kernel_shape=[2, 2])]
    weights = {"p": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "v": np.float32(-np.inf)}
    path = tmp_path / "m.onnx"
    onnx.save(model_of(nodes, {k: np.asarray(v) for k, v in weights.items()}), path)
    assert ops(form.canonicalise(files.load_model(path))) == {"MaxPool": 1}
    for bad in (np.full(1, np.nan, np.float32), np.array([1, np.inf], np.float32)):
        onnx.save(model_of([node("Mul", ["x", "v"], ["y"])], {"v": bad.reshape(-1, 1, 1)}), path)
        with pytest.raises(MalformedInput, match="NaN or infinity"):
            files.load_model(path)

"""8-bit Q/DQ for TensorRT: rewritten where INT8 with zero point 0 is the same function, refused elsewhere.

The oracle is ONNX Runtime, its optimisations off: operators run as ONNX defines them, and outputs are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import MalformedInput
from resdeploy.graph import for_tensorrt
from resdeploy.graph.qdq_placement import PAIR
from resdeploy.graph.symmetric import to_symmetric
from tests.backends.conftest import tiny_network
from tests.graph.test_intent import quantized
from tests.sessions import session

SIGNED, ZERO, MIDDLE = np.int8(0), np.uint8(0), np.uint8(128)


def network(
    *,
    activation: Any = SIGNED,
    weight: Any = None,
    stored: Any = None,
    opset: int = 17,
    attributes: Mapping[str, Any] | None = None,
    between: str = "",
) -> onnx.ModelProto:
    """input -> Q -> [an operator] -> DQ -> Conv -> logits.

    Args:
        activation: zero point of the data; None: none is given.
        weight: zero points of the weights; None: none is given.
        stored: the weights as integers; None: as floats on the grid [-60, 60] / 100 with a quantizer.
        opset: the file's.
        attributes: of the data's quantizer.
        between: an operator between the data's quantizer and dequantizer.
    """
    rng = np.random.default_rng(5)
    held: dict[str, Any] = {"s": np.float32(0.05), "ws": np.full(4, 0.01, np.float32)}
    held["b"] = rng.normal(size=4).astype(np.float32)
    zero, middle, weights = ["z"] if activation is not None else [], "q", []
    if activation is not None:
        held["z"] = np.asarray(activation)
    wz = ["wz"] if weight is not None else []
    if weight is not None:
        held["wz"] = np.asarray(weight)
    if stored is None:
        held["w"] = (rng.integers(-60, 61, (4, 3, 3, 3)) * np.float32(0.01)).astype(np.float32)
        weights = [helper.make_node("QuantizeLinear", ["w", "ws", *wz], ["wq"], "w/Q", axis=0)]
    else:
        held["wq"] = np.asarray(stored)
    nodes = [helper.make_node("QuantizeLinear", ["input", "s", *zero], ["q"], "x/Q", **(attributes or {}))]
    if between:
        middle = "moved"
        nodes.append(helper.make_node(between, ["q"], [middle], "between", kernel_shape=[1, 1]))
    nodes += [
        helper.make_node("DequantizeLinear", [middle, "s", *zero], ["d"], "x/DQ"),
        *weights,
        helper.make_node("DequantizeLinear", ["wq", "ws", *wz], ["wd"], "w/DQ", axis=0),
        helper.make_node("Conv", ["d", "wd", "b"], ["logits"], "conv", pads=[1, 1, 1, 1]),
    ]
    shape = [2, 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 4, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)


def answers(model: onnx.ModelProto) -> np.ndarray:
    opened = session(model, exactly=True)
    # Beyond the range on both sides, and exact halves of the scale.
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)) * 8
    images[0] = np.arange(192).reshape(3, 8, 8) * 0.025 - 2
    return np.asarray(opened.run(None, {"input": images.astype(np.float32)})[0])


def integers(low: int, high: int, kind: type) -> np.ndarray:
    return np.random.default_rng(2).integers(low, high + 1, (4, 3, 3, 3)).astype(kind)


EXACT: dict[str, dict[str, Any]] = {
    "activations at 128": {"activation": MIDDLE, "weight": np.zeros(4, np.int8)},
    "float weights at 128": {"weight": np.full(4, 128, np.uint8)},
    "float weights at another middle": {"weight": np.array([128, 100, 90, 130], np.uint8)},
    "float weights in INT8 off zero": {"weight": np.array([5, -3, 0, 1], np.int8)},
    "stored weights at 128": {"weight": np.full(4, 128, np.uint8), "stored": integers(0, 255, np.uint8)},
    "stored weights at 0 below 128": {"weight": np.zeros(4, np.uint8), "stored": integers(0, 127, np.uint8)},
    "stored weights without a zero point": {"stored": integers(0, 127, np.uint8)},
    "stored weights in INT8 off zero": {"weight": np.full(4, 7, np.int8), "stored": integers(-121, 127, np.int8)},
}


@pytest.mark.parametrize("case", EXACT)
def test_what_int8_at_zero_holds_is_rewritten_bit_by_bit(case: str) -> None:
    model = network(**EXACT[case])
    found = to_symmetric(model)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_array_equal(answers(found), answers(model))
    types = {t.name: t for t in found.graph.initializer}
    assert not any(t.data_type == TensorProto.UINT8 for t in types.values())
    pairs = [node for node in found.graph.node if node.op_type in PAIR]
    assert not any(numpy_helper.to_array(types[node.input[2]]).any() for node in pairs if len(node.input) > 2)
    assert to_symmetric(found) is found


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activations at 0": ({"activation": ZERO}, r"node x/Q \(QuantizeLinear\) has UINT8 with a zero point of 0"),
    "activations without a zero point": ({"activation": None}, r"x/Q .* has UINT8 with a zero point of 0"),
    "the type in an attribute": (
        {"activation": None, "opset": 21, "attributes": {"output_dtype": TensorProto.UINT8}},
        r"x/Q .* has UINT8",
    ),
    "activations at 114": ({"activation": np.uint8(114)}, r"x/Q .* has UINT8 with a zero point of 114"),
    "activations in INT8 off zero": ({"activation": np.int8(-11)}, r"x/Q .* has INT8 with a zero point of -11"),
    "an operator between": ({"activation": MIDDLE, "between": "MaxPool"}, r"x/Q .* has UINT8"),
    "stored weights above 127": (
        {"weight": np.zeros(4, np.uint8), "stored": integers(0, 128, np.uint8)},
        r"node w/DQ \(DequantizeLinear\) has UINT8",
    ),
    "negative weights at 0": ({"weight": np.zeros(4, np.uint8)}, r"node w/Q \(QuantizeLinear\) has UINT8"),
    "weights without a zero point": ({"weight": None}, r"node w/Q \(QuantizeLinear\) has UINT8"),
}


@pytest.mark.parametrize("major", [8, 10, 11])
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_equal_is_refused_with_the_next_command(case: str, major: int) -> None:
    how, words = REFUSED[case]
    with pytest.raises(MalformedInput, match=words) as refused:
        for_tensorrt.lower(network(**{"weight": np.zeros(4, np.int8), **how}), major)
    assert "quantize F.onnx --target tensorrt" in refused.value.fix


def test_unsigned_files_differ_from_what_the_parser_makes_of_them() -> None:
    """Why they are refused: the same scales in INT8 cut off what lies above 127 of them, a change of whole units."""
    meant, taken = (answers(network(activation=z, weight=np.zeros(4, np.int8))) for z in (ZERO, SIGNED))
    assert np.abs(meant - taken).max() > 1


@pytest.mark.parametrize("major", [8, 10])
def test_quantizers_of_ours_for_tensorrt_pass_as_they_are(major: int) -> None:
    model = quantized(onnx.shape_inference.infer_shapes(tiny_network()), "tensorrt")
    assert to_symmetric(model) is model
    for_tensorrt.lower(model, major)


@pytest.mark.parametrize("how", ["an input", "a cast"])
def test_a_zero_point_that_is_computed_is_refused(how: str) -> None:
    model = network(activation=MIDDLE, weight=np.zeros(4, np.int8))
    del model.graph.initializer[[t.name for t in model.graph.initializer].index("z")]
    if how == "an input":
        model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.UINT8, []))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.float32), "zf"))
        model.graph.node.insert(0, helper.make_node("Cast", ["zf"], ["z"], "cast", to=TensorProto.UINT8))
    with pytest.raises(MalformedInput, match="has UINT8 with a zero point that is computed"):
        to_symmetric(model)


def with_integer_bias(kind: type, *, stored: bool = True) -> onnx.ModelProto:
    """The bias behind a DequantizeLinear, as onnxruntime's quantize_static stores it by default."""
    model = network(weight=np.zeros(4, np.int8), opset=21)
    bias = helper.make_node("DequantizeLinear", ["bq", "ws"], ["bd"], "b/DQ", axis=0)
    model.graph.node.insert(0, bias)
    model.graph.node[-1].input[2] = "bd"
    values: np.ndarray = np.array([-70_000, 3, 12_345, 1 << 24], np.int64).astype(kind)
    if stored:
        model.graph.initializer.append(numpy_helper.from_array(values, "bq"))
    else:
        model.graph.input.append(
            helper.make_tensor_value_info("bq", helper.np_dtype_to_tensor_dtype(values.dtype), [4])
        )
    return model


def test_a_bias_in_int32_becomes_the_floats_that_it_means() -> None:
    model = with_integer_bias(np.int32)
    found = to_symmetric(model)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_array_equal(answers(found), answers(model))
    assert "b/DQ" not in {node.name for node in found.graph.node}
    assert to_symmetric(found) is found


@pytest.mark.parametrize(("kind", "stored"), [(np.int32, False), (np.int16, True), (np.uint16, True)])
def test_quantizers_in_wider_integers_are_refused(kind: type, stored: bool) -> None:
    with pytest.raises(MalformedInput, match=r"node b/DQ \(DequantizeLinear\) has U?INT") as refused:
        to_symmetric(with_integer_bias(kind, stored=stored))
    assert "--target tensorrt" in refused.value.fix


def test_integer_operators_are_refused_with_the_next_command() -> None:
    model = tiny_network()
    next(node for node in model.graph.node if node.name == "conv2").op_type = "QLinearConv"
    with pytest.raises(MalformedInput, match=r"node conv2 \(QLinearConv\) computes in integers") as refused:
        for_tensorrt.lower(model, 11)
    assert "--target tensorrt" in refused.value.fix


def test_typed_networks_get_the_rewritten_pairs() -> None:
    """For 10 and 11 the same file goes on to FP16 around its Q/DQ."""
    lowered = for_tensorrt.lower(network(activation=MIDDLE, weight=np.zeros(4, np.int8)), 10)
    held = {t.name: t.data_type for t in lowered.graph.initializer}
    assert all(held[n.input[2]] == TensorProto.INT8 for n in lowered.graph.node if n.op_type in PAIR)
    assert TensorProto.FLOAT16 in held.values()

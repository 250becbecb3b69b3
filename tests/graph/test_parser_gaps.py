"""What NVIDIA's parser takes for something else is rewritten, and computes the same by ONNX's own evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import MalformedInput
from resdeploy.graph import for_tensorrt, parser_gaps
from tests.sessions import session

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def one(
    operator: str,
    *more: str,
    held: Any = None,
    opset: int = 17,
    kind: int = FLOAT,
    shape: Any = (1, 2, 6, 6),
    **how: Any,
) -> onnx.ModelProto:
    """A graph of one node that reads x, and what is held."""
    node = helper.make_node(operator, ["x", *more], ["y"], "it", **how)
    value = helper.make_tensor_value_info
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in (held or {}).items()]
    graph = helper.make_graph([node], "g", [value("x", kind, shape)], [value("y", kind, [None] * 4)], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def answers(model: onnx.ModelProto, evaluator: str = "onnx") -> np.ndarray:
    declared = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value or 6 for dim in declared.shape.dim]
    x = np.random.default_rng(3).normal(size=shape).astype(helper.tensor_dtype_to_np_dtype(declared.elem_type))
    if evaluator == "onnx":
        (value,) = ReferenceEvaluator(model).run(None, {"x": x})
        return np.asarray(value)
    return np.asarray(session(model, exactly=True).run(None, {"x": x})[0])


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kind", [HALF, FLOAT])
def test_a_mean_is_a_sum_divided(kind: int) -> None:
    """Three operands; in FP16 the parser's third is 0, and FP32 graphs are brought to FP16 later."""
    held = {"z": np.full((1, 2, 6, 6), 0.7, helper.tensor_dtype_to_np_dtype(kind))}
    model = one("Mean", "z", "x", held=held, kind=kind)
    found = for_tensorrt.lower(model, 11)
    assert kinds(found) == ["Sum", "Div"]
    np.testing.assert_array_equal(answers(found), answers(model))
    assert answers(found).dtype == helper.tensor_dtype_to_np_dtype(kind)


def test_selu_is_told_onnx_defaults() -> None:
    model = one("Selu")
    found = parser_gaps.close(model)
    schema = onnx.defs.get_schema("Selu", 17)
    told = {a.name: a.f for a in found.graph.node[0].attribute}
    assert told == {name: np.float32(schema.attributes[name].default_value.f) for name in ("alpha", "gamma")}
    np.testing.assert_array_equal(answers(found), answers(model))
    assert parser_gaps.close(found) is found


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_global_lp_pool_reads_absolute_values(p: int) -> None:
    """ONNX's evaluator has none: the oracle is ONNX Runtime. Without them a sum of signed values differs."""
    model = one("GlobalLpPool", p=p)
    found = parser_gaps.close(model)
    assert kinds(found) == ["Abs", "GlobalLpPool"]
    np.testing.assert_allclose(answers(found, "ort"), answers(model, "ort"), rtol=1e-6)


def test_a_clip_with_its_ends_reversed_gives_its_max() -> None:
    for model in (
        one("Clip", "low", "high", held={"low": np.float32(1), "high": np.float32(-1)}),
        one("Clip", min=1.0, max=-1.0, opset=6),
    ):
        found = parser_gaps.close(model)
        np.testing.assert_array_equal(answers(found), np.full((1, 2, 6, 6), -1, np.float32))
        np.testing.assert_array_equal(answers(model), answers(found))
        (clip,) = found.graph.node
        assert {a.f for a in clip.attribute} <= {-1.0}
        assert list(clip.input[1:]) in ([], ["high", "high"])
    usual = one("Clip", "low", "high", held={"low": np.float32(0), "high": np.float32(6)})
    assert parser_gaps.close(usual) is usual


POOLS: Mapping[str, tuple[str, dict[str, Any], list[str]]] = {
    "a window behind the input": ("MaxPool", {"kernel_shape": [1, 1], "strides": [2, 2]}, ["MaxPool"]),
    "a window in the padding": (
        "MaxPool", {"kernel_shape": [2, 2], "strides": [4, 3], "pads": [1, 1, 1, 1]}, ["MaxPool"],
    ),
    "a mean without padding": (
        "AveragePool", {"kernel_shape": [2, 2], "strides": [3, 4], "pads": [1, 0, 1, 1]}, ["AveragePool"],
    ),
    "a mean that counts padding": (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        ["Pad", "AveragePool"],
    ),
    "a mean that counts padding and stands over on one side": (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 4], "pads": [0, 1, 0, 1], "count_include_pad": 1},
        ["Pad", "AveragePool"],
    ),
    "a mean that counts padding and stands over nowhere": (
        "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "count_include_pad": 1}, ["AveragePool"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("size", [6, 7])
def test_pools_that_round_up_are_padded_as_they_round(case: str, size: int) -> None:
    operator, how, expected = POOLS[case]
    model = one(operator, ceil_mode=1, opset=19, shape=("n", 2, size, size), **how)
    found = parser_gaps.close(model)
    assert set(kinds(found)) <= set(expected)
    assert not any(a.name == "ceil_mode" for node in found.graph.node for a in node.attribute)
    np.testing.assert_allclose(answers(found), answers(model), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(answers(found, "ort"), answers(model, "ort"), rtol=1e-6, atol=1e-7)
    onnx.checker.check_model(found, full_check=True)


def test_pools_that_mean_the_same_either_way_stay() -> None:
    """GoogLeNet's, whatever the image's size: fused pools are fast, and padding would be in the way."""
    shape = ("n", 2, "h", "w")
    for model in (
        one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, shape=shape),
        one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, shape=shape),
        one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, shape=shape),
    ):
        assert parser_gaps.close(model) is model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (one("MaxPool", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1, shape=(1, 2, "h", "w")), "size is not known"),
        (one("LpPool", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1, opset=18), "it is not said how"),
    ],
)
def test_pools_of_which_too_little_is_known_are_refused(model: onnx.ModelProto, why: str) -> None:
    with pytest.raises(MalformedInput, match=rf"node it \({model.graph.node[0].op_type}\) .*{why}"):
        for_tensorrt.lower(model, 11)

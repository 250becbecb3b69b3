"""Counts against published ones, and half precision against FP32."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import MalformedInput, UnknownName, UsageError
from resdeploy.graph import cast, counts, metadata
from resdeploy.graph.canonical import form
from resdeploy.records import ModelSpec
from tests.sessions import session

# facts/resnet.md section 1: asserted equal to torch.utils.flop_counter / 2 there.
MACS = {"resnet20": 40_551_040, "resnet56": 125_485_696, "resnet34": 3_663_761_408, "resnext50_32x4d": 4_230_479_872}


def network(op: str = "Relu", scale: float = 1.0) -> onnx.ModelProto:
    """conv -> `op` -> global pooling -> fc, canonical, seeded."""
    rng = np.random.default_rng(0)
    weights = {
        "c.weight": rng.normal(size=(4, 3, 3, 3)) * scale,
        "c.bias": rng.normal(size=4),
        "fc.weight": rng.normal(size=(5, 4)),
        "fc.bias": rng.normal(size=5),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["c"], name="c", pads=[1, 1, 1, 1]),
            helper.make_node(op, ["c"], ["r"], name="r"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="p"),
            helper.make_node("Flatten", ["p"], ["f"], name="f"),
            helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 5))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return form.canonicalise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def spec_of(model: onnx.ModelProto, tmp_path: Path) -> ModelSpec:
    return metadata.spec_of(model, tmp_path / "m.onnx")


def run(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    opened = session(model)
    return opened.run(None, {"input": inputs})[0]


@pytest.mark.parametrize("name", MACS)
def test_multiply_accumulates_equal_the_facts(name: str) -> None:
    """Strided, grouped, with shortcut options A and B."""
    torch = pytest.importorskip("torch")
    from resdeploy.models import zoo

    spec = zoo.spec(name)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, *spec.input_shape)
        torch.onnx.export(zoo.create(spec), (image,), buffer, dynamo=False, opset_version=17)
    model = form.canonicalise(onnx.load_from_string(buffer.getvalue()))
    counted = counts.count(model, spec)
    assert counted.macs == MACS[name] == zoo.find(name).macs
    assert counted.unknown == ()


def test_a_quantized_graph_costs_what_its_original_costs(tmp_path: Path) -> None:
    """Scales and zero points are no parameters, and Q/DQ multiplies nothing."""
    model = network()
    spec, original = spec_of(model, tmp_path), counts.count(model, spec_of(model, tmp_path))
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    conv = next(n for n in quantized.graph.node if n.op_type == "Conv")
    weight = next(t for t in quantized.graph.initializer if t.name == conv.input[1])
    codes = np.clip(np.rint(numpy_helper.to_array(weight) * 40), -127, 127).astype(np.int8)
    scale = numpy_helper.from_array(np.full(4, 1 / 40, np.float32), "s")
    zero = numpy_helper.from_array(np.zeros(4, np.int8), "z")
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    quantized.graph.initializer.extend([scale, zero])
    dequantize = helper.make_node("DequantizeLinear", [weight.name, "s", "z"], ["dq"], name="dq", axis=0)
    conv.input[1] = "dq"
    quantized.graph.node.insert(0, dequantize)
    counted = counts.count(quantized, spec)
    assert counted.layers == original.layers
    assert counted.params_deployed == original.params_deployed == 4 * 27 + 4 + 20 + 5


def test_another_image_size_is_counted_or_refused(tmp_path: Path) -> None:
    """The spec's size decides; one that the graph contradicts is an error, not a count."""
    model = network()
    spec = spec_of(model, tmp_path)
    doubled = counts.count(model, dataclasses.replace(spec, input_shape=(3, 16, 16)))
    assert doubled.macs == 16 * 16 * 4 * 27 + 20
    with pytest.raises(MalformedInput):
        counts.count(model, dataclasses.replace(spec, input_shape=(4, 8, 8)))


def test_a_symbolic_image_size_is_asked_for(tmp_path: Path) -> None:
    """A file that takes any size has no costs until one is given: not zero."""
    model = network()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    spec = spec_of(model, tmp_path)
    with pytest.raises(UsageError, match="--img-size"):
        counts.count(model, spec)
    assert counts.count(model, dataclasses.replace(spec, input_shape=(3, 8, 8))).macs == 8 * 8 * 4 * 27 + 20


def test_an_operator_we_cannot_count_is_named(tmp_path: Path) -> None:
    """A total that is a lower bound says so."""
    model = network()
    relu = model.graph.node[1]
    relu.CopyFrom(helper.make_node("Einsum", relu.input, relu.output, name="e", equation="nchw->nchw"))
    assert counts.count(model, spec_of(model, tmp_path)).unknown == ("e (Einsum)",)


@pytest.mark.parametrize("keep", [(), ("c",), ("r", "p"), ("fc",), ("c", "r", "p", "f", "fc")])
def test_kept_nodes_run_in_fp32(keep: tuple[str, ...]) -> None:
    """Any set of nodes can stay FP32; results stay within FP16 rounding and the ends stay FP32."""
    model = network()
    half = cast.to_half(model, "fp16", keep=keep)
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    found, expected = run(half, x), run(model, x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    assert set(cast.nodes_in_fp32(half)) == set(keep)
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert (types.get("fc.weight") == TensorProto.FLOAT16) == ("fc" not in keep)
    if len(keep) == 5:
        assert np.array_equal(found, expected)


def test_weights_over_65504_stay_in_fp32_and_are_named() -> None:
    """FP16 would turn them into infinity."""
    model = network(scale=1e6)
    half = cast.to_half(model, "fp16")
    assert cast.nodes_in_fp32(half) == ("c",)
    types = {t.name: t.data_type for t in half.graph.initializer}
    assert types["c.weight.fp32"] == TensorProto.FLOAT


def test_bf16_is_valid_at_opset_22() -> None:
    """Conv takes BF16 from opset 22 on; ONNX's own reference agrees with FP32 to BF16's 8 bits."""
    model = network()
    half = cast.to_half(model, "bf16")
    assert {o.domain: o.version for o in half.opset_import} == {"": 22}
    onnx.checker.check_model(half, full_check=True)
    weights = {t.name: t for t in half.graph.initializer}
    assert weights["fc.weight"].data_type == TensorProto.BFLOAT16
    original = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = numpy_helper.to_array(weights["fc.weight"]).astype(np.float32)
    assert np.abs(found / original["fc.weight"] - 1).max() <= 2**-8


def test_impossible_casts_are_refused() -> None:
    """A node that is not there, and a quantized graph."""
    model = network()
    with pytest.raises(UnknownName, match="nowhere"):
        cast.to_half(model, "fp16", keep=("nowhere",))
    model.graph.node[0].op_type = "QuantizeLinear"
    with pytest.raises(UsageError, match="quantized"):
        cast.to_half(model, "fp16")

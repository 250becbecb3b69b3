"""FP64, sparse constants, half-precision storage and files that ONNX Runtime has optimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import MalformedInput
from resdeploy.graph import cast, counts, dtypes, files, int8_losses, intent, metadata
from resdeploy.graph.canonical import form
from tests.backends.conftest import tiny_network
from tests.graph.test_intent import quantized
from tests.sessions import session

assert_allclose: Any = np.testing.assert_allclose
IMAGES = np.random.default_rng(2).standard_normal((2, 3, 32, 32)).astype(np.float32)


def in_double() -> onnx.ModelProto:
    model = tiny_network()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def answer(model: onnx.ModelProto) -> NDArray[np.float32]:
    answers: NDArray[np.float32] = session(model, exactly=True).run(None, {"input": IMAGES})[0]
    return answers


def test_double_becomes_single_and_computes_the_same() -> None:
    """Against onnx's reference in float64; what is made of it in FP16 holds FP16, and no double."""
    model = in_double()
    (expected,) = ReferenceEvaluator(model).run(None, {"input": IMAGES.astype(np.float64)})
    canonical = form.canonicalise(model)
    assert_allclose(answer(canonical), expected, rtol=1e-4, atol=1e-5)
    assert dtypes.holds_double(model)
    assert not dtypes.holds_double(canonical)
    assert files.precision_of(model) == "fp32"
    half = cast.to_half(canonical, "fp16")
    assert {t.data_type for t in half.graph.initializer if len(t.dims) == 4} == {TensorProto.FLOAT16}
    too_large = model.graph.initializer[0]
    too_large.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(too_large) * 1e40, too_large.name))
    with pytest.raises(MalformedInput, match=r"FP64 and holds values over 3\.4e38"):
        form.canonicalise(model)


def test_weights_stored_in_half_and_cast_are_computed_in_fp32() -> None:
    model = tiny_network()
    casts = []
    for tensor in model.graph.initializer:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert files.precision_of(model) == "fp32"
    assert set(intent.of(model).asked.values()) == {"fp32"}
    assert files.precision_of(cast.to_half(form.canonicalise(model), "fp16")) == "fp16"


@pytest.mark.parametrize("indices", ["flat", "by axis"])
def test_a_sparse_constant_is_read(tmp_path: Path, indices: str) -> None:
    model = tiny_network()
    dense = next(t for t in model.graph.initializer if t.name == "wf")
    values = numpy_helper.to_array(dense) * (np.arange(80).reshape(10, 8) % 3 == 0).astype(np.float32)
    dense.CopyFrom(numpy_helper.from_array(values, "wf"))
    expected = answer(model)
    places = np.flatnonzero(values) if indices == "flat" else np.argwhere(values)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values[values != 0], "wf"), numpy_helper.from_array(places, "at"), [10, 8]
    )
    model.graph.initializer.remove(dense)
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, tmp_path / "f.onnx")
    assert_allclose(answer(form.canonicalise(files.load_model(tmp_path / "f.onnx"))), expected, rtol=1e-5, atol=1e-6)
    sparse.dims[:] = [1 << 30, 1 << 20]
    with pytest.raises(MalformedInput, match="claims the shape"):
        dtypes.fill_sparse(helper.make_model(onnx.GraphProto(sparse_initializer=[sparse])), Path("f.onnx"))


def test_what_onnx_runtime_has_optimised_is_named(tmp_path: Path) -> None:
    """Fused operators are counted, not rewritten; files in a CPU's own layout are refused where they are read."""
    levels = {"extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED}
    levels["all"] = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for name, level in levels.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        model = tiny_network(channels=16)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = files.load_model(tmp_path / "extended.onnx")
    spec = metadata.spec_of(fused, Path("f.onnx"))
    assert counts.count(fused, spec).macs == counts.count(tiny_network(channels=16), spec).macs
    with pytest.raises(MalformedInput, match=r"FusedConv of com\.microsoft: ONNX Runtime has optimised this file"):
        form.canonicalise(fused)
    with pytest.raises(MalformedInput, match=r"com\.microsoft\.nchwc: ONNX Runtime has optimised.*made from"):
        files.load_model(tmp_path / "all.onnx")


def test_pairs_of_16_bits_and_of_com_microsoft_are_counted_and_named() -> None:
    plain = onnx.shape_inference.infer_shapes(tiny_network())
    spec = metadata.spec_of(plain, Path("f.onnx"))
    model = quantized(plain, "onnxruntime")
    activations = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in activations:
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.uint16), tensor.name))
    for node in model.graph.node:
        node.domain = "com.microsoft" if node.op_type.endswith("uantizeLinear") else node.domain
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    cost = counts.count(model, spec)
    assert (cost.macs, cost.unknown) == (counts.count(plain, spec).macs, ())
    found = intent.of(model)
    assert (found.asked["conv2"], len(found.quantized_convolutions)) == ("int16", 2)
    (of_openvino,) = int8_losses.reasons(model, "openvino")
    assert "6 tensors are quantized in 16 bits: OpenVINO drops such pairs" in of_openvino
    assert any("16 bits: no kernel" in reason for reason in int8_losses.reasons(model, "onnxruntime"))
    assert any("com.microsoft's" in reason for reason in int8_losses.reasons(model, "tensorrt"))


def test_what_a_runtime_leaves_in_float_is_told_from_the_graph() -> None:
    plain = onnx.shape_inference.infer_shapes(tiny_network())
    assert int8_losses.reasons(quantized(plain, "onnxruntime"), "openvino") == ()
    assert int8_losses.reasons(quantized(plain, "onnxruntime"), "onnxruntime") == ()
    (of_ort,) = int8_losses.reasons(quantized(plain, "tensorrt"), "onnxruntime")
    assert "are int8" in of_ort
    model = quantized(plain, "openvino")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.INT8:  # weights, and their zero points
            values = (numpy_helper.to_array(tensor).astype(np.int16) + 128).astype(np.uint8)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    (of_openvino,) = int8_losses.reasons(model, "openvino")
    assert of_openvino.startswith("3 weights are uint8")

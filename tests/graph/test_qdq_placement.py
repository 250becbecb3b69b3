"""Where Q/DQ pairs go, and what the graph computes with them."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.graph import qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.graph.index import Index, node_name
from resdeploy.models import zoo
from resdeploy.records import Target

pytest.importorskip("torch")

import torch

TARGETS = get_args(Target)


def exported(module: torch.nn.Module, size: int) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, 3, size, size),), buffer, dynamo=False, opset_version=17)
    return form.canonicalise(onnx.load_from_string(buffer.getvalue()))


@pytest.fixture(scope="module")
def networks(torchvision: ModuleType) -> dict[str, onnx.ModelProto]:
    """One network of each kind of shortcut and block."""
    return {
        "resnet18": exported(torchvision.models.resnet18(weights=None), 64),
        "resnet50": exported(torchvision.models.resnet50(weights=None), 64),
        "resnet20": exported(zoo.create(zoo.spec("resnet20")), 32),
    }


def quantized(model: onnx.ModelProto, target: Target, **options: Any) -> onnx.ModelProto:
    """With parameters that are plausible and calibrated on nothing."""
    plan = qdq_placement.plan(model, target, **options)
    index = Index(model)
    signed = target == "tensorrt"
    activations = {}
    for tensor in plan.observed:
        made = index.maker(tensor)
        positive = made is not None and made.op_type in ("Relu", "GlobalAveragePool")
        activations[tensor] = qdq_placement.Activation(
            scale=0.02 if positive else 0.05, zero_point=0 if signed or positive else 128, signed=signed
        )
    return qdq_placement.insert(model, plan, activations, weights_of(index, plan))


def maker(index: Index, tensor: str) -> str:
    """The operator of the node that makes a tensor."""
    made = index.maker(tensor)
    assert made is not None
    return made.op_type


def weights_of(index: Index, plan: qdq_placement.Placement) -> dict[str, qdq_placement.Weight]:
    found = {}
    for site in plan.weights:
        stored = index.value(site.tensor)
        assert stored is not None
        values = numpy_helper.to_array(stored)
        others = tuple(i for i in range(values.ndim) if i != site.axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, 1e-6).astype(np.float32)
        scale = np.full_like(scale, scale.max()) if plan.one_scale else scale
        found[site.node] = qdq_placement.Weight(values=np.rint(values / scale).astype(np.int8), scale=scale.ravel())
    return found


def session(
    model: onnx.ModelProto, *, optimised: bool = False, save: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("target", TARGETS)
def test_files_are_valid_and_every_weighted_operator_reads_integers(
    networks: dict[str, onnx.ModelProto], target: Target
) -> None:
    """The full checker passes, and data and weights of every operator come out of a DequantizeLinear."""
    for model in networks.values():
        result = quantized(model, target)
        onnx.checker.check_model(result, full_check=True)
        index = Index(result)
        weighted = [node for node in result.graph.node if node.op_type in ("Conv", "Gemm")]
        assert len(weighted) == sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
        for node in weighted:
            sources: list[Any] = [index.maker(name) for name in node.input[:2]]
            if target == "openvino":  # max pooling may lie between: it computes on integers as it is
                while sources[0].op_type in qdq_placement.TRANSPARENT:
                    sources[0] = index.maker(sources[0].input[0])
            assert [source.op_type for source in sources] == ["DequantizeLinear"] * 2


def test_tensorrt_adds_read_one_convolution_as_it_is_and_one_quantized_skip(
    networks: dict[str, onnx.ModelProto],
) -> None:
    """NVIDIA's rule for Conv+Add+ReLU fusion; the global pooling reads integers too."""
    for model in networks.values():
        result = quantized(model, "tensorrt")
        index = Index(result)
        for node in result.graph.node:
            if node.op_type == "Add":
                assert sorted(maker(index, name) for name in node.input) == ["Conv", "DequantizeLinear"]
            if node.op_type == "GlobalAveragePool":
                assert maker(index, node.input[0]) == "DequantizeLinear"
            if node.op_type == "MaxPool":  # it runs inside the convolution before it, one pair after both
                assert maker(index, node.input[0]) == "Relu"


def test_tensorrt_rtx_adds_in_float_and_weights_have_one_scale(networks: dict[str, onnx.ModelProto]) -> None:
    """What its compiler needs for the sum to be inside the convolution: neither operand rounded, no scale per channel.

    Counted on its layer lists (`benchmarks/rtx_placements.py`).
    """
    for model in networks.values():
        result = quantized(model, "tensorrt-rtx")
        index = Index(result)
        for node in result.graph.node:
            if node.op_type in ("Add", "GlobalAveragePool"):
                assert "DequantizeLinear" not in {maker(index, name) for name in node.input}
            if node.op_type == "DequantizeLinear" and node.input[0] in index.initializers:
                assert index.array(node.input[0]).dtype == np.int8
                assert index.array(node.input[1]).shape == ()


def test_tensorrt_files_hold_no_zero_point_but_zero(networks: dict[str, onnx.ModelProto]) -> None:
    """Its parser refuses others, and unsigned activations."""
    for model in networks.values():
        result = quantized(model, "tensorrt")
        index = Index(result)
        for node in result.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                stored = index.value(node.input[2])
                assert stored is not None
                zero_point = numpy_helper.to_array(stored)
                assert zero_point.dtype == np.int8
                assert not zero_point.any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_onnxruntime_runs_every_layer_on_integers(
    networks: dict[str, onnx.ModelProto], name: str, tmp_path: Path
) -> None:
    """In ONNX Runtime's own optimised graph no float convolution, addition or pooling is left."""
    model = networks[name]
    session(quantized(model, "onnxruntime"), optimised=True, save=tmp_path / "optimised.onnx")
    before = Counter(node.op_type for node in model.graph.node)
    after = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert after["QLinearConv"] == before["Conv"]
    assert after["QLinearAdd"] == before["Add"]
    assert after["QLinearGlobalAveragePool"] == after["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm", "GlobalAveragePool"} & after.keys()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet20"])
def test_openvino_runs_every_residual_add_inside_an_integer_convolution(
    networks: dict[str, onnx.ModelProto], torchvision: ModuleType, name: str
) -> None:
    """In OpenVINO's executed graph the Adds are part of INT8 convolutions, and those write integers."""
    openvino = pytest.importorskip("openvino")
    model = networks.get(name) or exported(getattr(torchvision.models, name)(weights=None), 64)
    core = openvino.Core()
    network = core.read_model(quantized(model, "openvino").SerializeToString())
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    network.reshape([1, 3, size, size])
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    told = [
        {
            key: str(layer[key].value)
            for key in ("layerType", "primitiveType", "originalLayersNames", "outputPrecisions")
        }
        for layer in layers
    ]
    adds = {node.name for node in model.graph.node if node.op_type == "Add"}
    convolutions = [layer for layer in told if layer["layerType"] == "Convolution"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in model.graph.node)
    assert all("I8" in layer["primitiveType"] and layer["outputPrecisions"] == "u8" for layer in convolutions)
    inside = {name for layer in convolutions for name in layer["originalLayersNames"].split(",")}
    assert adds <= inside


def test_a_tensor_that_only_moves_shares_its_sources_scale(networks: dict[str, onnx.ModelProto]) -> None:
    """Max pooling, slicing, padding with zeros and flattening must not requantize."""
    plan = qdq_placement.plan(networks["resnet18"], "onnxruntime")
    pooled = next(node.output[0] for node in networks["resnet18"].graph.node if node.op_type == "MaxPool")
    assert plan.activations[pooled] != pooled
    padded = [node for node in networks["resnet20"].graph.node if node.op_type == "Pad"]
    plan = qdq_placement.plan(networks["resnet20"], "tensorrt")
    sources = {block.source for block in plan.blocks if block.shortcut == "padding"}
    assert {plan.activations[node.output[0]] for node in padded} == sources


@pytest.mark.parametrize("target", TARGETS)
def test_all_blocks_of_ordinary_networks_can_fuse(networks: dict[str, onnx.ModelProto], target: Target) -> None:
    """The check before writing finds nothing to complain about."""
    for model in networks.values():
        plan = qdq_placement.plan(model, target)
        assert plan.blocks
        assert not plan.unfusable
        assert not plan.kept_float


def test_a_layer_kept_in_float_is_reported_with_the_block_it_breaks(networks: dict[str, onnx.ModelProto]) -> None:
    """First and last layer stay in float only on request; a block's last convolution costs the block its fusion."""
    model = networks["resnet18"]
    plan = qdq_placement.plan(model, "tensorrt", keep_float=["conv1", "layer1.0.conv2"])
    assert plan.kept_float == dict.fromkeys(("conv1", "layer1.0.conv2"), "kept in float on request")
    (block,) = [block for block in plan.blocks if block.last_conv == "layer1.0.conv2"]
    assert list(plan.unfusable) == [block.add]
    assert "layer1.0.conv2 stays in float" in plan.unfusable[block.add]
    index = Index(quantized(model, "tensorrt", keep_float=["conv1"]))
    conv = next(node for node in index.nodes if node_name(node) == "conv1")
    assert conv.input[0] == "input"
    assert conv.input[1] in index.initializers


def test_what_cannot_be_quantized_is_refused(networks: dict[str, onnx.ModelProto]) -> None:
    """A quantized file, a file without weighted operators, an unknown layer, an old opset."""
    model = networks["resnet20"]
    with pytest.raises(UsageError, match="quantized already"):
        qdq_placement.plan(quantized(model, "openvino"), "openvino")
    with pytest.raises(UsageError, match="called stem"):
        qdq_placement.plan(model, "openvino", keep_float=["stem"])
    value = helper.make_tensor_value_info
    relu = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([relu], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])])
    opsets = [helper.make_opsetid("", 17)]
    with pytest.raises(UsageError, match="nothing to quantize"):
        qdq_placement.plan(helper.make_model(graph, opset_imports=opsets), "openvino")
    opsets[0].version = 12
    with pytest.raises(MalformedInput, match="opset 12"):
        qdq_placement.plan(helper.make_model(graph, opset_imports=opsets), "openvino")


def test_a_bias_that_would_overflow_is_refused() -> None:
    """It would otherwise wrap around and be found in production."""
    model = random_network(np.random.default_rng(0), [(2, False)], channels=4)
    plan = qdq_placement.plan(model, "onnxruntime")
    weights = {
        name: qdq_placement.Weight(values=w.values, scale=w.scale * 1e-9)
        for name, w in weights_of(Index(model), plan).items()
    }
    activations = {name: qdq_placement.Activation(scale=0.01, zero_point=128, signed=False) for name in plan.observed}
    with pytest.raises(ValueError, match="does not fit into int32"):
        qdq_placement.insert(model, plan, activations, weights)


def random_network(random: np.random.Generator, blocks: list[tuple[int, bool]], channels: int) -> onnx.ModelProto:
    """Convolution, residual blocks of (convolutions, projected), global pooling, classifier; weights random."""
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []

    def weighted(op: str, name: str, data: str, shape: tuple[int, ...], **attributes: Any) -> str:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        stored.append(numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), f"{name}.w"))
        stored.append(numpy_helper.from_array(random.standard_normal(shape[0]).astype(np.float32) / 4, f"{name}.b"))
        nodes.append(helper.make_node(op, [data, f"{name}.w", f"{name}.b"], [name], name=name, **attributes))
        return name

    def relu(data: str) -> str:
        nodes.append(helper.make_node("Relu", [data], [f"{data}.relu"]))
        return f"{data}.relu"

    at = relu(weighted("Conv", "stem", "input", (channels, 3, 3, 3), pads=[1, 1, 1, 1]))
    for i, (convs, projected) in enumerate(blocks):
        skip = weighted("Conv", f"p{i}", at, (channels, channels, 1, 1)) if projected else at
        main = at
        for j in range(convs):
            main = weighted("Conv", f"c{i}.{j}", main, (channels, channels, 3, 3), pads=[1, 1, 1, 1])
            main = relu(main) if j + 1 < convs else main
        nodes.append(helper.make_node("Add", [main, skip], [f"a{i}"], name=f"a{i}"))
        at = relu(f"a{i}")
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    weighted("Gemm", "logits", "flat", (5, channels), transB=1)
    value = helper.make_tensor_value_info
    inputs = [value("input", TensorProto.FLOAT, ["batch", 3, 6, 6])]
    graph = helper.make_graph(nodes, "g", inputs, [value("logits", TensorProto.FLOAT, ["batch", 5])], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Reference:
    """The float graph's meaning with integers where a placement says so, in exact integer and float64 arithmetic."""

    def __init__(
        self,
        model: onnx.ModelProto,
        plan: qdq_placement.Placement,
        activations: dict[str, qdq_placement.Activation],
        weights: dict[str, qdq_placement.Weight],
    ) -> None:
        self.model, self.plan, self.activations, self.weights = model, plan, activations, weights
        self.stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        values: dict[str, np.ndarray] = {}
        self._keep(values, "input", x.astype(np.float64))
        for node in self.model.graph.node:
            self._keep(values, node.output[0], self._compute(node, values))
        return values["logits"]

    def _keep(self, values: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
        source = self.plan.activations.get(name)
        if source is None:
            values[name] = value
            return
        values[f"{name}/float"] = value
        how = self.activations[source]
        low, high = (-128, 127) if how.signed else (0, 255)
        integers = np.clip(np.rint(value / np.float32(how.scale)) + how.zero_point, low, high).astype(np.int64)
        values[f"{name}/int"] = integers - how.zero_point
        values[name] = (integers - how.zero_point) * np.float64(np.float32(how.scale))

    def _compute(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> np.ndarray:
        if node.op_type == "Relu":
            return np.maximum(values[node.input[0]], 0)
        if node.op_type == "Add":
            left, right = (
                values[name] if self.plan.target != "tensorrt-rtx" else values.get(f"{name}/float", values[name])
                for name in node.input
            )
            return left + right
        if node.op_type == "GlobalAveragePool":
            return values[node.input[0]].mean((2, 3), keepdims=True)
        if node.op_type == "Flatten":
            if f"{node.input[0]}/int" in values:  # moving integers needs no second rounding
                integers = values[f"{node.input[0]}/int"]
                values[f"{node.output[0]}/int"] = integers.reshape(len(integers), -1)
            return values[node.input[0]].reshape(len(values[node.input[0]]), -1)
        integers, weight = values[f"{node.input[0]}/int"], self.weights[node.name]
        products = (
            conv(integers, weight.values) if node.op_type == "Conv" else integers @ weight.values.T.astype(np.int64)
        )
        channels = (-1, 1, 1) if node.op_type == "Conv" else (-1,)
        source = self.plan.activations.get(node.input[0]) or self.plan.activations["pooled"]
        scale = weight.scale.astype(np.float64) * np.float32(self.activations[source].scale)
        bias = self.stored[node.input[2]].astype(np.float64)
        if self.plan.target == "onnxruntime":
            bias = np.rint(bias / scale) * scale
        return products * scale.reshape(channels) + bias.reshape(channels)


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Stride 1, the size kept: (n, c, h, w) * (o, c, k, k), in int64."""
    reach = w.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w.astype(np.int64))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.lists(st.tuples(st.integers(2, 3), st.booleans()), min_size=1, max_size=3),
    channels=st.sampled_from([1, 4, 8]),
    target=st.sampled_from(TARGETS),
)
def test_random_residual_graphs_compute_the_reference_integer_arithmetic(
    seed: int, blocks: list[tuple[int, bool]], channels: int, target: Target
) -> None:
    """ONNX Runtime without optimisations gives what exact integer arithmetic gives, to float32 rounding."""
    random = np.random.default_rng(seed)
    model = random_network(random, blocks, channels)
    plan = qdq_placement.plan(model, target)
    weights = weights_of(Index(model), plan)
    signed = target == "tensorrt"
    activations = {
        # An irrational step: values that lie exactly between two integers would be a matter of rounding noise.
        name: qdq_placement.Activation(
            scale=float(random.uniform(0.02, 0.04)),
            zero_point=0 if signed else int(random.integers(96, 160)),
            signed=signed,
        )
        for name in plan.observed
    }
    result = qdq_placement.insert(model, plan, activations, weights)
    onnx.checker.check_model(result, full_check=True)
    x = random.standard_normal((2, 3, 6, 6)).astype(np.float32)
    (found,) = session(result).run(None, {"input": x})
    expected = Reference(model, plan, activations, weights)(x)
    # One activation in many thousands rounds the other way in float32; it moves a logit by less than a step.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)

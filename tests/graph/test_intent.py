"""What a graph asks for, the same before and after Q/DQ and casts are put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import cast, intent, qdq_placement
from resdeploy.records import Target
from tests.backends.conftest import tiny_network

TARGETS: tuple[Target, ...] = ("tensorrt", "openvino", "onnxruntime")


def quantized(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """With pairs of any scale: only where they stand matters here."""
    placement = qdq_placement.plan(model, target)
    how = qdq_placement.Activation(scale=0.1, zero_point=0, signed=target == "tensorrt")
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {}
    for site in placement.weights:
        shape = held[site.tensor].shape
        weights[site.node] = qdq_placement.Weight(
            values=np.ones(shape, np.int8), scale=np.ones(shape[site.axis], np.float32)
        )
    return qdq_placement.insert(model, placement, dict.fromkeys(placement.observed, how), weights)


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(tiny_network())


@pytest.mark.parametrize("target", TARGETS)
def test_q_dq_changes_what_is_asked_and_no_block(model: onnx.ModelProto, target: Target) -> None:
    before, after = intent.of(model), intent.of(quantized(model, target))
    (one,), (other,) = before.blocks, after.blocks
    assert (one.add, one.relu, one.last_conv, one.convs, one.shortcut) == (
        other.add, other.relu, other.last_conv, other.convs, other.shortcut,
    )  # fmt: skip
    assert before.asked == {"conv1": "fp32", "conv2": "fp32", "add": "fp32"}
    assert after.asked == {"conv1": "int8", "conv2": "int8", "add": "int8"}
    assert after.followers == before.followers == {"conv1": ("relu1",), "conv2": ()}


def test_the_pair_at_the_input_is_an_edge(model: onnx.ModelProto) -> None:
    found = intent.of(quantized(model, "tensorrt"))
    assert "input/QuantizeLinear" in found.edges
    assert not {name for name in found.edges if name.startswith(("r1", "p"))}


def test_a_cast_graph_asks_for_half_precision(model: onnx.ModelProto) -> None:
    found = intent.of(cast.to_half(model, "fp16"))
    assert set(found.asked.values()) == {"fp16"}
    assert len(found.blocks) == 1


def test_a_kept_node_asks_for_fp32(model: onnx.ModelProto) -> None:
    found = intent.of(cast.to_half(model, "fp16", keep=["conv2"]))
    assert (found.asked["conv1"], found.asked["conv2"]) == ("fp16", "fp32")


def test_batch_normalisation_is_looked_through_and_followed(model: onnx.ModelProto, tmp_path: Path) -> None:
    """conv2 -> BN -> Add: the block still ends in conv2, and BN is to run inside it."""
    for name, values in (("g", np.ones(8)), ("b", np.zeros(8)), ("m", np.zeros(8)), ("v", np.ones(8))):
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "conv2")
    nodes[at].output[0] = "raw"
    nodes.insert(at + 1, helper.make_node("BatchNormalization", ["raw", "g", "b", "m", "v"], ["c2"], name="bn2"))
    graph = helper.make_graph(nodes, "t", model.graph.input, model.graph.output, model.graph.initializer)
    found = intent.of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert found.blocks[0].last_conv == "conv2"
    assert found.followers["conv2"] == ("bn2",)
    assert found.asked["add"] == "fp32"
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def gated_network(*, other: bool = False) -> onnx.ModelProto:
    """A convolution whose channels are weighed by two layers on their means; `other`: by means of something else."""
    rng = np.random.default_rng(0)

    def conv(given: str, name: str, size: int) -> onnx.NodeProto:
        return helper.make_node("Conv", [given, f"{name}.w"], [name], name=name, kernel_shape=[size, size])

    nodes = [
        conv("input", "wide", 3),
        helper.make_node("Relu", ["wide"], ["features"], name="relu"),
        helper.make_node("GlobalAveragePool", ["input" if other else "features"], ["mean"], name="mean"),
        conv("mean", "reduce", 1),
        helper.make_node("Relu", ["reduce"], ["squeezed"], name="relu2"),
        conv("squeezed", "expand", 1),
        helper.make_node("HardSigmoid", ["expand"], ["gate"], name="gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["gate", "features"], ["weighed"], name="weigh"),
        conv("weighed", "last", 1),
        helper.make_node("GlobalAveragePool", ["last"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flat"),
    ]
    shapes = {"wide": (8, 3, 3, 3), "reduce": (4, 3 if other else 8, 1, 1), "expand": (8, 4, 1, 1)}
    weights = {**shapes, "last": (4, 8, 1, 1)}
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{name}.w")
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_a_gate_is_what_weighs_channels_by_their_own_means(target: Target | None) -> None:
    """Q/DQ looked through; a product with means of something else is none, and a residual network has none."""
    plain = gated_network()
    found = intent.of(plain if target is None else quantized(plain, target))
    assert {name for name in found.gates if name in found.asked} == {"reduce", "expand"}
    assert "gate" in found.gates
    assert not {"wide", "last", "pool"} & found.gates
    assert intent.of(gated_network(other=True)).gates == frozenset()
    assert intent.of(tiny_network()).gates == frozenset()


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
def test_a_gated_activation_follows_its_convolution(model: onnx.ModelProto, gate: str) -> None:
    """conv1 -> x sigmoid(x): two nodes, both to run inside it; where a third reads conv1's output, neither is alone."""
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "relu1")
    source, result = nodes[at].input[0], nodes[at].output[0]
    nodes[at : at + 1] = [
        helper.make_node(gate, [source], ["s"], name="gate"),
        helper.make_node("Mul", [source, "s"], [result], name="product"),
    ]
    graph = helper.make_graph(nodes, "t", model.graph.input, model.graph.output, model.graph.initializer)
    gated = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert intent.of(gated).followers["conv1"] == ("gate", "product")
    gated.graph.node.append(helper.make_node("Neg", [source], ["other"], name="third"))
    assert intent.of(gated).followers["conv1"] == ()


@pytest.mark.parametrize("half", ["last", "first"])
def test_gelu_of_five_nodes_follows_its_convolution(model: onnx.ModelProto, half: str) -> None:
    """conv1 -> x/2 (1 + erf(x / sqrt 2)), halved before or after; where another reads a part of it, none is alone."""
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "relu1")
    source, result = nodes[at].input[0], nodes[at].output[0]
    halved = source if half == "first" else "whole"
    products = [
        helper.make_node("Mul", [halved, "half"], ["x/2" if half == "first" else result], name="halve"),
        helper.make_node(
            "Mul",
            ["x/2" if half == "first" else source, "sum"],
            [result if half == "first" else "whole"],
            name="product",
        ),
    ]
    nodes[at : at + 1] = [
        helper.make_node("Div", [source, "root"], ["scaled"], name="divide"),
        helper.make_node("Erf", ["scaled"], ["erf"], name="erf"),
        helper.make_node("Add", ["erf", "one"], ["sum"], name="plus"),
        *(products if half == "first" else reversed(products)),
    ]
    values = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    held = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "t", model.graph.input, model.graph.output, [*model.graph.initializer, *held])
    spelled = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(spelled, full_check=True)
    found = intent.of(spelled).followers["conv1"]
    assert sorted(found) == ["divide", "erf", "halve", "plus", "product"]
    assert found[-1] == ("product" if half == "first" else "halve")
    assert intent.of(quantized(spelled, "tensorrt")).requantizers["conv1"] == ("r1/QuantizeLinear",)
    spelled.graph.node.append(helper.make_node("Neg", ["erf"], ["other"], name="third"))
    assert intent.of(spelled).followers["conv1"] == ()


@pytest.mark.parametrize("kind", ["HardSwish", "LeakyRelu", "Elu"])
def test_other_activations_follow_their_convolution(model: onnx.ModelProto, kind: str) -> None:
    next(node for node in model.graph.node if node.name == "relu1").op_type = kind
    assert intent.of(model).followers["conv1"] == ("relu1",)


def test_quantizers_of_what_a_convolution_gives_are_known(model: onnx.ModelProto) -> None:
    """Behind its activation where it has one, and of the sum where it ends in one."""
    found = intent.of(quantized(model, "tensorrt")).requantizers
    assert found["conv1"] == ("r1/QuantizeLinear",)
    assert found["conv2"] == ()
    assert len(found["add"]) == 1

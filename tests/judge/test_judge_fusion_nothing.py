"""A check that saw nothing passes nothing: what was asked for and is not there, and kernels that say nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from onnx import helper

from resdeploy.backends import inspector
from resdeploy.graph import intent
from resdeploy.judge import counted, fusion
from resdeploy.records import Audit, Layer, Port
from tests.backends.conftest import tiny_network
from tests.graph.test_intent import gated_network, quantized

POOL = {"Name": "pool", "LayerType": "CaskPooling", "Inputs": [{"Name": "a"}], "Outputs": [{"Name": "b"}]}
REFORMAT = {"Name": "r", "LayerType": "Reformat", "Inputs": [{"Name": "a"}], "Outputs": [{"Name": "b"}]}
SUM = {"Name": "Add_1", "LayerType": "ElementWise", "Inputs": [], "Outputs": []}


def state(result: Audit, name: str) -> str:
    return next(check.state for check in result.verdict.checks if name in check.name)


def kernels(*names: str, precision: str = "fp32", writes: str = "") -> list[Layer]:
    """One kernel a convolution of `tiny_network`, the second with its sum and activation."""
    port = (Port(name="t", precision=writes or precision),)
    parts = {"conv1": ("conv1", "relu1"), "conv2": ("conv2", "add", "relu2"), "fc": ("fc",), "pool": ("pool",)}
    return [
        Layer(
            name=name, kind="Gemm" if name == "fc" else "Conv", precision=precision, sources=parts.get(name, (name,)),
            inputs=port, outputs=port,
        )
        for name in names
    ]  # fmt: skip


@pytest.mark.parametrize("asked", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("layers", [[], ["a", "b"], [POOL], [REFORMAT], [SUM], [POOL, SUM]], ids=json.dumps)
def test_no_check_passes_on_nothing(layers: list[Any], asked: Any) -> None:
    """Neither in `audit` nor in `gate --require-fused`, whatever was asked for; each says why."""
    result = fusion.judge("e", inspector.parse(json.dumps({"Layers": layers}), "e").layers, asked=asked)
    assert result.verdict.state != "pass"
    blind = [c for c in result.verdict.checks if c.observed == 0 and c.name != "Q/DQ left over as kernels"]
    assert blind
    for check in (*blind, *(c for c in counted.check_fusion(result) if c.name.endswith("precision asked for"))):
        assert check.state != "pass", check
        assert check.note, check


def test_layers_that_say_nothing_leave_q_dq_open() -> None:
    """Bare names tell of no kernel whether it only quantizes."""
    for layers in ([], ["Conv_1 + Relu_2", "Gemm_3"]):
        found = inspector.parse(json.dumps({"Layers": layers}), "e").layers
        assert state(fusion.judge("e", found, asked="int8"), "Q/DQ left over") == "inconclusive"


def test_int8_asked_of_a_graph_without_it_fails() -> None:
    """All convolutions run as the float graph has them, and none as was asked."""
    graph = intent.of(tiny_network())
    result = fusion.judge("f", kernels("conv1", "conv2", "fc", "pool"), intent=graph, asked="int8")
    assert result.verdict.state == "fail"
    check = next(c for c in result.verdict.checks if c.name.startswith("convolutions in"))
    assert (check.state, check.observed, check.limit) == ("fail", 0, 2)
    assert check.note == "the graph asks for fp32, not int8: conv1, conv2"
    assert state(result, "INT8 convolutions that write INT8") == "inconclusive"


def test_no_convolution_in_int8_is_no_pass_of_what_they_write() -> None:
    graph = intent.of(quantized(tiny_network(), "openvino"))
    result = fusion.judge("f", kernels("conv1", "conv2", "fc", "pool"), intent=graph, asked="int8", target="openvino")
    check = next(c for c in result.verdict.checks if c.name == "INT8 convolutions that write INT8")
    assert (check.state, check.observed, check.limit) == ("inconclusive", 0, 0)
    assert "no convolution is known to run in INT8" in check.note
    assert "--target openvino" in check.note


def test_a_network_without_residual_adds_passes_on_its_convolutions() -> None:
    """Nothing of a kind that the network does not have: no check of it, and a note."""
    model = tiny_network()
    nodes = [node for node in model.graph.node if node.name != "add"]
    next(node for node in nodes if node.name == "relu2").input[0] = "c2"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    layers = [
        *kernels("conv1", "fc", "pool"),
        Layer(name="c", kind="Conv", precision="fp32", sources=("conv2", "relu2")),
    ]
    result = fusion.judge("plain", layers, intent=intent.of(model), asked="fp32")
    assert result.verdict.state == "pass"
    assert not any("residual" in check.name for check in result.verdict.checks)
    assert "this network has no residual adds to judge" in result.notes


def test_a_network_without_convolutions_is_not_judged() -> None:
    """And is not sent to name the graph that it was judged against."""
    model = tiny_network()
    nodes = [helper.make_node("Flatten", ["input"], ["f"], name="flatten"), model.graph.node[-1]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result = fusion.judge("mlp", kernels("fc"), intent=intent.of(model), asked="fp32")
    assert result.verdict.state == "inconclusive"
    assert "the graph has no convolution" in result.verdict.checks[0].note
    assert "--against" not in result.verdict.checks[0].note


def quantizers(names: Sequence[str]) -> list[dict[str, Any]]:
    """As newer TensorRT tells of them: generated kernels whose metadata name the node, without a word on Q/DQ."""
    return [
        {
            "Name": f"__myl_RounMinMax_myl0_{i}", "LayerType": "kgen", "Metadata": f"[ONNX Layer: {name}]",
            "Inputs": [{"Name": f"i{i}", "Datatype": "Float"}], "Outputs": [{"Name": f"o{i}", "Datatype": "Int8"}],
        }
        for i, name in enumerate(names)
    ]  # fmt: skip


def test_kernels_that_only_quantize_are_counted_by_the_graph() -> None:
    """Whatever its author called the nodes."""
    model = quantized(tiny_network(), "tensorrt")
    for node in model.graph.node:
        node.name = node.name.replace("QuantizeLinear", "Q").replace("DequantizeLinear", "DQ")
    graph = intent.of(model)
    inner = sorted(graph.pairs - graph.edges)[:3]
    found = inspector.parse(json.dumps({"Layers": quantizers(inner)}), "e").layers
    result = fusion.judge(
        "e", [*kernels("conv1", "conv2", "fc", "pool", precision="int8"), *found], intent=graph, asked="int8"
    )
    assert [layer.sources[0] for layer in result.superfluous] == inner
    assert state(result, "Q/DQ left over") == "fail"


def test_kernels_that_only_quantize_are_counted_by_their_names() -> None:
    """Where no graph is at hand."""
    names = ["layer1.0/QuantizeLinear", "/conv1/DequantizeLinear_1", "QuantizeLinear_15_quantize_scale_node"]
    found = inspector.parse(json.dumps({"Layers": quantizers(names)}), "e").layers
    assert len(fusion.judge("e", found, asked="int8").superfluous) == 3


def test_float_adds_of_an_int8_file_are_not_called_int8() -> None:
    """A check of "residual adds in int8" that counted adds which nobody asked in INT8."""
    model = quantized(tiny_network(), "openvino")
    add = next(node for node in model.graph.node if node.name == "add")
    add.input[0], add.input[1] = "c2", "r1"
    graph = intent.of(model)
    assert graph.asked["add"] == "fp32"
    layers = [
        *kernels("conv1", "fc", "pool", precision="int8"),
        Layer(
            name="c", kind="Conv", precision="int8", sources=("conv2", "add", "relu2"),
            inputs=(Port(name="i", precision="int8"), Port(name="j", precision="fp32")),
            outputs=(Port(name="o", precision="int8"),),
        ),
    ]  # fmt: skip
    names = [check.name for check in fusion.judge("f", layers, intent=graph, asked="int8").verdict.checks]
    assert "residual adds in the precision asked for" in names
    assert "residual adds in int8" not in names


def test_integer_convolutions_ask_for_int8() -> None:
    """Of a file in operator form; without its word a float convolution beside them would answer for all."""
    model = tiny_network()
    next(node for node in model.graph.node if node.name == "conv2").op_type = "QLinearConv"
    assert intent.of(model).asked == {"conv1": "fp32", "conv2": "int8"}


def test_what_weighs_channels_may_write_floats_and_what_holds_images_may_not() -> None:
    """A gate of squeeze-and-excitation is one value a channel; it must still run in the precision asked for."""
    graph = intent.of(quantized(gated_network(), "openvino"))
    convolutions = ("wide", "reduce", "expand", "last")

    def judged(**writes: str) -> Audit:
        layers = [
            Layer(
                name=name, kind="Conv", precision="int8", sources=(name,),
                inputs=(Port(name=f"{name}.in", precision="int8"),),
                outputs=(Port(name=name, precision=writes.get(name, "int8")),),
            )
            for name in convolutions
        ]  # fmt: skip
        return fusion.judge("f", layers, intent=graph, asked="int8", target="openvino")

    name = "INT8 convolutions that write INT8"
    assert state(judged(expand="fp32"), name) == "pass"
    assert "2 convolutions of squeeze-and-excitation gates" in " ".join(judged().notes)
    assert state(judged(wide="fp32"), name) == "fail"
    (check,) = (check for check in judged().verdict.checks if check.name == name)
    assert (check.observed, check.limit) == (2, 2)

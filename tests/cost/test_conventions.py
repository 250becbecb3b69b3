"""graph/counts.py and cost/conventions.py against the tools themselves, other exporters, and closed forms."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.cost import conventions, json_parts
from resdeploy.cost.cost import CostReport
from resdeploy.graph import counts, metadata
from resdeploy.graph.canonical import form
from resdeploy.records import Cost, ModelSpec

FACTS = json.loads((Path(__file__).parents[1] / "counts.json").read_text())
# What each convention's figure is called among the facts, which the tools themselves printed.
PRINTED = {"fvcore": "fvcore_total", "thop": "thop", "ptflops": "ptflops_aten", "ptflops-pytorch": "ptflops_pytorch"}

# thop counts average pools that are modules and torchvision's are functions; ptflops sees a normalisation's own steps.
REFUSED = {
    "inception_v3": ["thop"],
    "inception_v4": ["thop"],
    "alexnet2012": ["ptflops-pytorch"],
    "googlenet2014": ["ptflops-pytorch"],
}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_other_tools_figures_are_reproduced(name: str, ours) -> None:
    """To the last digit, from the folded graph; torchvision's own metadata rounds the first."""
    from resdeploy.models import zoo

    counted = counts.count(ours(name), zoo.spec(name))
    found = {tool: conventions.CONVENTIONS[tool].count(counted) for tool in PRINTED}
    assert found == {tool: FACTS["tools"][name][key] for tool, key in PRINTED.items()}
    assert round(conventions.CONVENTIONS["torchvision"].count(counted) / 1e9, 3) == {"resnet18": 1.814}.get(name, 4.089)
    # fvcore's ActivationCountAnalysis and timm's table: outputs of convolutions and of the linear layer.
    assert counted.activations == FACTS["batch_norm_elements"][name] + 1000


@pytest.mark.parametrize("name", FACTS["tools_on_the_zoos_own_modules"])
def test_other_tools_figures_of_our_networks_are_reproduced_or_refused(name: str) -> None:
    """Option A's slices and pads, pre-activation, concatenation, grouped convolutions, Inception's average pools."""
    from tests.graph.test_zoo_counts import counted

    # The graph is of the whole network, whatever its biases look like.
    found = dataclasses.replace(counted(name), norms_known=True)
    printed = {tool: FACTS["tools_on_the_zoos_own_modules"][name][key] for tool, key in PRINTED.items()}
    for tool in REFUSED.get(name, ()):
        del printed[tool]
    told = {tool: conventions.CONVENTIONS[tool] for tool in PRINTED}
    assert {tool: one.count(found) for tool, one in told.items() if not one.doubt(found)} == printed


def test_clipped_activations_count_nothing_where_the_tool_counts_nothing(torchscript, torchvision) -> None:
    """MobileNet v2, whose figures the tools printed; thop and ptflops-pytorch are not asked."""
    net = torchvision.models.mobilenet_v2(weights=None).eval()
    spec = ModelSpec(name="m", family="x", classes=1000, input_shape=(3, 224, 224), preprocessing=None)
    found = counts.count(torchscript(net, spec.input_shape, folded=False), spec)
    assert sum(layer.op == "Clip" for layer in found.layers) == 35
    told = {name: one.count(found) for name, one in conventions.CONVENTIONS.items() if not one.doubt(found)}
    assert told == {"torchvision": 300_774_272, "fvcore": 314_193_216, "ptflops": 300_775_272}


def test_a_convention_says_nothing_of_operators_that_it_was_not_compared_on() -> None:
    """Named, as are those that nobody can count; torchvision's figure is our own count, and needs only the latter."""

    def made(op: str, **attributes: Any) -> Cost:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node(op, ["c"], ["y"], "it", **attributes),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 4))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        spec = ModelSpec(name="m", family="foreign", classes=2, input_shape=(3, 4, 4), preprocessing=None)
        return counts.count(model, spec)

    known, other, unknown = made("Relu"), made("Softmax"), made("Einsum", equation="nchw->nchw")
    for convention in conventions.CONVENTIONS.values():
        counted = tuple(map(convention.apply, (known, other, unknown)))
        document = json_parts.cost_document(CostReport(costs=(), tool_counts=counted), {})
        figures = [row["count"] for row in document["conventions"]]
        assert (figures[0] is None, figures[2]) == (False, None)
        assert any("Einsum" in note for note in document["notes"])
        assert (figures[1] is None) == (convention.name != "torchvision")
        assert (figures[1] is None) == any("Softmax" in note for note in document["notes"])


def test_pools_and_biases_that_folding_removed_are_remembered(ours) -> None:
    """AlexNet's adaptive pool does nothing at 224 pixels and is dropped, but fvcore and thop count it."""
    from resdeploy.models import zoo

    counted = counts.count(ours("alexnet"), zoo.spec("alexnet"))
    found = {tool: conventions.CONVENTIONS[tool].count(counted) for tool in PRINTED}
    assert found == {tool: FACTS["tools"]["alexnet"][key] for tool, key in PRINTED.items()}


def test_the_canonical_form_keeps_what_it_remembers(ours) -> None:
    """Its own canonical form is itself, with the record of what the first one folded."""
    model = ours("resnet18")
    removed = metadata.read_removed(model)
    assert removed is not None
    assert (len(removed.norms), removed.biased, removed.pools) == (20, (), ())
    assert form.canonicalise(model).SerializeToString() == model.SerializeToString()


@pytest.mark.acceptance
def test_other_exporters_files_cost_the_same(ours, torchscript, torchvision) -> None:
    """TorchScript's, dynamo's as users call it and its raw graph, timm's network: the same MACs, none unknown."""
    timm = pytest.importorskip("timm")
    import torch

    from resdeploy.graph import from_torch
    from resdeploy.models import zoo

    whole = zoo.spec("resnet18", input_shape=(3, 64, 64))
    spec = dataclasses.replace(whole, removed=("layer2.1", "layer3.1", "layer4.1"), params=None)
    foreign = dataclasses.replace(whole, params=None)
    net = zoo.create(spec)
    for module in net.modules():
        # As if trained: dynamo drops the zeros that an untrained one folds to.
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean += 1
    expected = counts.count(form.canonicalise(torchscript(net, spec.input_shape, folded=False), whole=True), spec)
    files = {
        "torchscript": torchscript(net, spec.input_shape),
        "dynamo": from_torch._trace(net, spec),
        "dynamo's default": dynamo(net, spec.input_shape),
        "timm": torchscript(timm.create_model("resnet18").eval(), spec.input_shape),
    }
    for name, file in files.items():
        found = counts.count(file, foreign)
        known = counts.count(ours("resnet18"), whole) if name == "timm" else expected
        assert (found.macs, found.unknown, found.activations) == (known.macs, (), known.activations), name
        assert found.params is None  # a folded graph cannot say
        blocks = {layer.block for layer in found.layers if layer.macs and layer.block.startswith("layer")}
        if "dynamo" not in name:  # whose node names tell nothing before they are made readable
            assert len(blocks) == (8 if name == "timm" else 5), name
    # The exporter folded the batch norms and nobody wrote that down, so fvcore's count is not to be had from its file.
    for name in ("torchscript", "dynamo's default"):
        assert not counts.count(files[name], foreign).norms_known
    assert counts.count(files["dynamo"], foreign).norms_known
    # The zeros that dynamo writes where a convolution has no bias are none: the linear layer alone has one.
    assert sum(layer.own_bias for layer in counts.count(files["dynamo"], foreign).layers) == 1
    unfolded = conventions.CONVENTIONS["fvcore"].count(counts.count(files["dynamo"], foreign))
    assert unfolded == conventions.CONVENTIONS["fvcore"].count(expected)


def dynamo(module, shape: tuple[int, ...]):
    """What `torch.onnx.export(module, args)` gives today: optimised, batch norms folded, the newest opset."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(module, (torch.zeros(1, *shape),), dynamo=True, verbose=False)
    return program.model_proto


@pytest.mark.acceptance
def test_bottlenecks_of_another_exporters_file_are_compared(torchscript) -> None:
    """Dynamo's default file of half a ResNet-50, its names telling nothing: our MACs, and no guess at parameters."""
    from resdeploy.cost import counterfactuals
    from resdeploy.models import zoo

    gone = tuple(f"layer{stage}.{n}" for stage, depth in enumerate((3, 4, 6, 3), 1) for n in range(2, depth))
    spec = dataclasses.replace(zoo.spec("resnet50", input_shape=(3, 64, 64)), removed=gone, params=None)
    net = zoo.create(spec)
    model = dynamo(net, spec.input_shape)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    found = counterfactuals.compare_basic_blocks(model, dataclasses.replace(spec, params=None))
    own = form.canonicalise(torchscript(net, spec.input_shape, folded=False), whole=True)
    expected = counterfactuals.compare_basic_blocks(own, spec)
    for side in ("own_macs", "outer_macs", "quarter_macs"):
        assert getattr(found, side) == getattr(expected, side)
    assert [(b.own, b.outer, b.quarter) for b in found.blocks] == [(b.own, b.outer, b.quarter) for b in expected.blocks]
    assert (found.own_params, found.outer_params) == (None, None)


def test_what_has_only_the_name_of_a_convolution_or_hides_one_is_unknown() -> None:
    """A Conv of somebody's own domain, and an If with convolutions in its branches: named, and counted as nothing."""
    value = helper.make_tensor_value_info
    branches = {
        key: helper.make_graph(
            [helper.make_node("Conv", ["theirs", "w"], [f"{key}.y"], f"{key}.conv")],
            key,
            [],
            [value(f"{key}.y", TensorProto.FLOAT, (1, 2, 4, 4))],
        )
        for key in ("then_branch", "else_branch")
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["ours"], "ours"),
        helper.make_node("Conv", ["ours", "w"], ["theirs"], "theirs", domain="com.example"),
        helper.make_node("ReduceMax", ["ours"], ["largest"], "largest", keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["positive"], "greater"),
        helper.make_node("If", ["positive"], ["y"], "branch", **branches),
    ]
    held = [numpy_helper.from_array(np.ones((2, c, 1, 1), np.float32), n) for n, c in (("w0", 3), ("w", 2))]
    held.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    inputs, outputs = [value("x", TensorProto.FLOAT, (1, 3, 4, 4))], [value("y", TensorProto.FLOAT, (1, 2, 4, 4))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    spec = ModelSpec(name="m", family="foreign", classes=2, input_shape=(3, 4, 4), preprocessing=None)
    counted = counts.count(helper.make_model(graph, opset_imports=opsets), spec)
    assert counted.unknown == ("theirs (Conv)", "branch (If)")
    assert counted.macs == 16 * 2 * 3


def test_a_file_whose_norms_were_folded_in_part_does_not_claim_to_know_them(torchscript) -> None:
    """Pre-activation: exporters fold the interior norms, the others stand; only the unfolded graph tells them all."""
    torch = pytest.importorskip("torch")
    from resdeploy.models import preact, resnet

    torch.manual_seed(0)
    net = preact.PreActResNet(preact.Variant(config=resnet.VARIANTS["resnet20"]), classes=10).eval()
    spec = ModelSpec(name="preresnet20", family="x", classes=10, input_shape=(3, 32, 32), preprocessing=None)
    folded, whole = (torchscript(net, spec.input_shape, folded=folded) for folded in (True, False))
    assert 0 < sum(node.op_type == "BatchNormalization" for node in folded.graph.node) < 19
    for partly in (folded, form.canonicalise(folded)):
        assert metadata.read_removed(partly) is None
        assert not counts.count(partly, spec).norms_known
    known = [counts.count(whole, spec), counts.count(form.canonicalise(whole), spec)]
    assert all(counted.norms_known for counted in known)
    # shared/facts: 40,551,040 MACs, 188,416 batch norm elements; the pool reads 64 x 8 x 8.
    expected = 40_551_040 + 2 * 188_416 + 64 * 8 * 8
    assert {conventions.CONVENTIONS["fvcore"].count(counted) for counted in known} == {expected}


def test_the_canonical_form_of_a_folded_file_claims_nothing(ours, torchscript) -> None:
    """Not even after a second pass, while ours keeps what it knows."""
    from resdeploy.models import zoo

    spec = zoo.spec("resnet18")
    once = form.canonicalise(torchscript(zoo.create(spec), spec.input_shape))
    assert metadata.read_removed(once) is None
    assert not counts.count(once, spec).norms_known
    assert form.canonicalise(once).SerializeToString() == once.SerializeToString()
    assert counts.count(ours("resnet18"), spec).norms_known


def test_bytes_and_intensity_follow_their_definition(ours) -> None:
    """A 1x1 convolution and an addition by hand; INT8 is a quarter but for biases; weights are read once a batch."""
    from resdeploy.models import zoo

    counted = counts.count(ours("resnet18"), zoo.spec("resnet18"))
    layers = {layer.name: layer for layer in counted.layers}
    projection = layers["layer2.0.downsample.0"]
    assert projection.macs == 28 * 28 * 128 * 64
    assert (projection.params, projection.biases) == (128 * 64 + 128, 128)
    assert projection.activation_bytes("fp32") == 4 * (64 * 56 * 56 + 128 * 28 * 28)
    assert projection.weight_bytes("int8") == 128 * 64 + 4 * 128
    additions = [layer for layer in counted.layers if layer.op == "Add"]
    assert additions[0].activation_bytes("fp16") == 2 * 64 * 56 * 56  # the skip; the sum stays in the kernel
    assert all(layer.moved_elements == 0 for layer in counted.layers if layer.op == "Relu")
    eight = dataclasses.replace(counted, batch_size=8)
    assert (eight.macs, eight.weight_bytes("fp32")) == (8 * counted.macs, counted.weight_bytes("fp32"))
    assert eight.intensity("fp32") > counted.intensity("fp32")
    assert counted.weight_bytes("fp32") == 4 * counted.params_deployed


@pytest.mark.parametrize("batch_size", [1, 8])
def test_outputs_are_counted_whatever_their_first_dimension_is(batch_size: int) -> None:
    """Windows, as in Swin: (images x windows, positions, channels), in a file for one image and in one for eight."""
    shape = numpy_helper.from_array(np.array([4 * batch_size, 16, 6], np.int64), "windows")
    weights = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("c", (6, 3, 1, 1)), ("m", (6, 5)))]
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["maps"], "conv"),
        helper.make_node("Reshape", ["maps", "windows"], ["w"], "reshape"),
        helper.make_node("MatMul", ["w", "m"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch_size, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4 * batch_size, 16, 5))],
        [shape, *weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    spec = ModelSpec(name="w", family="foreign", classes=5, input_shape=(3, 8, 8), preprocessing=None)
    counted = counts.count(model, spec)
    layers = {layer.name: layer for layer in counted.layers}
    assert (layers["conv"].output_shape, layers["product"].output_shape) == ((1, 6, 8, 8), (4, 16, 5))
    assert counted.activations == 64 * 6 + 64 * 5
    assert counted.macs == 64 * 6 * 3 + 64 * 5 * 6
    assert layers["product"].activation_bytes("int8") == 64 * 6 + 64 * 5


def test_quantized_operators_of_onnx_runtime_are_counted_as_their_originals() -> None:
    """QLinearConv: the weights at their own place, scales and zero points no parameters."""
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "w")
    scalars = [numpy_helper.from_array(np.array(v, t), n) for n, v, t in
               [("s", 0.1, np.float32), ("z", 0, np.uint8), ("zw", 0, np.int8)]]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q"),
        helper.make_node("QLinearConv", ["xq", "s", "z", "w", "s", "zw", "s", "z"], ["y"], "c", pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["f"], "d"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("f", TensorProto.FLOAT, (1, 4, 8, 8))],
        [weights, *scalars],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    spec = ModelSpec(name="q", family="foreign", classes=4, input_shape=(3, 8, 8), preprocessing=None)
    counted = counts.count(model, spec)
    assert (counted.macs, counted.params_deployed, counted.unknown) == (8 * 8 * 4 * 27, 108, ())


@pytest.mark.parametrize("int8", [False, True])
def test_files_that_onnx_runtime_has_optimised_cost_what_they_did(int8: bool, ours, tmp_path: Path) -> None:
    """Its own operators, at the size that the file has shapes for and at another."""
    import onnx
    import onnxruntime

    from resdeploy.models import zoo
    from tests.graph.test_intent import quantized

    spec, model = zoo.spec("resnet20"), ours("resnet20")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    source = quantized(model, "onnxruntime") if int8 else model
    onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    kinds = {node.op_type for node in optimised.graph.node if node.domain == "com.microsoft"}
    assert kinds >= ({"QLinearAdd", "QGemm", "QLinearGlobalAveragePool"} if int8 else {"FusedConv"})
    before, after = counts.count(model, spec), counts.count(optimised, spec)
    assert (after.macs, after.unknown) == (40_551_040, ())
    assert (after.params_deployed, after.activations) == (before.params_deployed, before.activations)
    larger = dataclasses.replace(spec, input_shape=(3, 64, 64))  # of which the shapes in the file say nothing
    assert counts.count(optimised, larger).macs == counts.count(model, larger).macs


def test_a_graph_of_ten_thousand_nodes_is_counted_exactly() -> None:
    """5,000 convolutions and activations: nothing in the counter grows faster than the graph."""
    nodes, held = [], [numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "w")]
    tensor = "x"
    for k in range(5000):
        nodes.append(helper.make_node("Conv", [tensor, "w"], [f"c{k}"], f"c{k}"))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"r{k}"))
        tensor = f"r{k}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4, 2, 2))],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ("n", 4, 2, 2))],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    spec = ModelSpec(name="deep", family="foreign", classes=4, input_shape=(4, 2, 2), preprocessing=None)
    counted = counts.count(model, spec)
    assert (counted.macs, counted.params_deployed, len(counted.layers)) == (5000 * 4 * 4 * 4, 16, 10_000)

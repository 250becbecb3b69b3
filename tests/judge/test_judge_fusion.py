"""The fusion audit on what TensorRT really printed, and on the same engines told in other schemas."""

from __future__ import annotations

import copy
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resdeploy.backends import inspector
from resdeploy.errors import MalformedInput
from resdeploy.graph.intent import Intent
from resdeploy.judge import fusion
from resdeploy.records import Audit, BlockAudit

DATA = Path(__file__).parents[1] / "data/inspector"
Json = dict[str, Any]


def load(variant: str, part: str = "graph") -> Any:
    return json.loads(gzip.decompress((DATA / f"resnet18-{variant}.{part}.json.gz").read_bytes()))


def audited(document: Any, variant: str | None = None, **options: Any) -> Audit:
    found = inspector.parse(json.dumps(document), "test")
    layers = found.layers
    if variant:
        layers = inspector.add_times(layers, json.dumps(load(variant, "profile")), "test")
    return fusion.judge("test", layers, bindings=found.bindings, **options)


def state(result: Audit, name: str) -> str:
    return next(check.state for check in result.verdict.checks if name in check.name)


def told(blocks: tuple[BlockAudit, ...]) -> list[tuple[bool | None, str, tuple[str, ...]]]:
    return [(block.fused, block.precision, block.conv_precisions) for block in blocks]


@pytest.mark.parametrize("variant", ["fp32", "fp16", "qat", "qat-residual"])
def test_layer_times_sum_to_the_profile(variant: str) -> None:
    total_ms = sum(row.get("averageMs", 0.0) for row in load(variant, "profile"))
    time_s = audited(load(variant), variant).time_s
    assert time_s is not None
    assert time_s * 1e3 == pytest.approx(total_ms, rel=1e-12)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_float_engine_has_all_eight_adds_fused(precision: str) -> None:
    result = audited(load(precision))
    assert result.verdict.state == "pass"
    assert [(b.fused, b.precision) for b in result.blocks] == [(True, precision)] * 8


def test_q_dq_on_convolutions_alone_fails() -> None:
    """NVIDIA's `qat`: sums are read and written in FP16, and Q/DQ stands as a kernel before every block."""
    result = audited(load("qat"), "qat")
    assert result.verdict.state == "fail"
    assert [(b.fused, b.precision) for b in result.blocks] == [(True, "fp16")] * 8
    assert state(result, "residual adds in int8") == "fail"
    assert [layer.name for layer in result.superfluous] == [
        f"QuantizeLinear_{n}" for n in (15, 40, 65, 101, 126, 162, 187, 223, 250)
    ]
    assert "QuantizeLinear_40" in result.blocks[0].reformats
    assert "skip in fp16" in result.blocks[0].reason
    assert "--target tensorrt" in result.blocks[0].remedy


def test_q_dq_on_the_residual_branch_adds_in_int8() -> None:
    """NVIDIA's `qat-residual`: all but the last sum, which the unquantized global pooling reads in FP32."""
    result = audited(load("qat-residual"), "qat-residual")
    assert [block.fused for block in result.blocks] == [True] * 8
    assert [block.precision for block in result.blocks] == ["int8"] * 7 + ["fp32"]
    assert result.blocks[-1].reason == (
        "its kernel multiplies in int8, reads its skip in fp32 from DequantizeLinear_291, "
        "writes its sum in fp32 for GlobalAveragePool_294"
    )
    assert result.blocks[-1].reformats == ("DequantizeLinear_291",)
    assert [layer.name for layer in result.superfluous] == ["DequantizeLinear_291", "QuantizeLinear_298"]


def test_block_names_come_from_the_weights() -> None:
    names = [block.name for block in audited(load("qat-residual")).blocks]
    assert names == [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]


def test_a_projection_belongs_to_its_block() -> None:
    kernels = [len(block.executed_as) for block in audited(load("fp16")).blocks]
    assert kernels == [2, 2, 3, 2, 3, 2, 3, 2]


@pytest.mark.parametrize(("variant", "asked"), [("fp16", "int8"), ("fp32", "fp16"), ("fp32", "int8")])
def test_another_precision_than_asked_fails(variant: str, asked: str) -> None:
    """roboflow/rf-detr#1453: a tool that silently built FP32 engines."""
    result = audited(load(variant), asked=asked)
    assert result.verdict.state == "fail"
    assert state(result, "convolutions in the precision") == "fail"


# One engine told in other words


def as_11(document: Json) -> Json:
    """The schema of TensorRT 11: I/O records, format and type apart, node names in the metadata."""
    layers = []
    for number, layer in enumerate(copy.deepcopy(document["Layers"])):
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            text = tensor.pop("Format/Datatype")
            tensor["Format"], tensor["Datatype"] = text, re.search(r"FP32|FP16|Int8", text)[0].upper()  # type: ignore[index]
        if layer["LayerType"] not in ("Reformat", "NoOp"):
            layer["Metadata"] = "\x1e".join(f"[ONNX Layer: {part}]" for part in layer["Name"].split(" + "))
            layer["Name"] = f"__myl_Fused_0x{number:08x}_myl0_{number}"
            layer["LayerType"] = "kgen"
        layers.append(layer)
    return {"Layers": layers, "I/O Tensors": [{"Name": name, "IOMode": "Input"} for name in document["Bindings"]]}


def lower_case(document: Any) -> Any:
    if isinstance(document, dict):
        return {key.lower(): lower_case(value) for key, value in document.items()}
    return [lower_case(value) for value in document] if isinstance(document, list) else document


@pytest.mark.parametrize("retell", [as_11, lower_case, lambda d: lower_case(as_11(d))])
@pytest.mark.parametrize("variant", ["fp16", "qat", "qat-residual"])
def test_every_schema_says_the_same(variant: str, retell: Callable[[Json], Json]) -> None:
    before, after = audited(load(variant)), audited(retell(load(variant)))
    assert told(after.blocks) == told(before.blocks)
    assert [b.name for b in after.blocks] == [b.name for b in before.blocks]
    assert len(after.superfluous) == len(before.superfluous)
    assert after.verdict.state == before.verdict.state


def test_a_sum_that_no_name_tells_of_is_found_by_structure() -> None:
    """Kernels without names or metadata: a convolution that reads a second tensor of its output's shape adds it."""
    document = load("qat-residual")
    for number, layer in enumerate(document["Layers"]):
        if layer["LayerType"] == "CaskConvolution":
            layer["Name"] = f"sm80_xmma_{number}"
    result = audited(document)
    assert [(b.fused, b.precision) for b in result.blocks] == [(True, "int8")] * 7 + [(True, "fp32")]


def test_names_alone_are_never_called_int8() -> None:
    """Without DETAILED verbosity layers are strings: fusion shows in them, precision does not."""
    document = {"Layers": [layer["Name"] for layer in load("qat-residual")["Layers"]], "Bindings": []}
    result = audited(document, asked="int8")
    assert {block.precision for block in result.blocks} == {"unknown"}
    assert result.verdict.state == "inconclusive"


def test_a_myelin_region_is_unknown_not_fused() -> None:
    document = {"Layers": [{"Name": "{ForeignNode[conv1...fc]}", "LayerType": "Myelin", "Inputs": [], "Outputs": []}]}
    result = audited(document, asked="fp16")
    assert not result.blocks
    assert result.verdict.state == "inconclusive"


def with_a_sum_apart(name: str) -> Json:
    """NVIDIA's FP16 engine with one fused convolution taken apart into convolution and addition."""
    document: Json = load("fp16")
    at = next(i for i, layer in enumerate(document["Layers"]) if layer["Name"] == "Conv_10 + Add_11 + Relu_12")
    conv = document["Layers"][at]
    adder = {**copy.deepcopy(conv), "Name": name, "LayerType": "PointWiseV2", "Activation": "NONE"}
    del adder["Weights"]
    conv["Name"], conv["Activation"], conv["HasReLU"] = "Conv_10", "NONE", 0
    inner = {**conv["Outputs"][0], "Name": "between"}
    adder["Inputs"], adder["Outputs"] = [inner, conv["Inputs"][1]], conv["Outputs"]
    conv["Inputs"], conv["Outputs"] = conv["Inputs"][:1], [inner]
    document["Layers"].insert(at + 1, adder)
    return document


@pytest.mark.parametrize("name", ["PWN(/stage1/sum, /stage1/act)", "node_17", "__myl_Plus_0x1a_myl0_3", "residual.5"])
def test_a_sum_of_another_name_that_runs_apart_is_never_passed(name: str) -> None:
    """Nothing says that it adds, nothing that it does not: it is named and the verdict is open."""
    result = audited(with_a_sum_apart(name))
    assert result.verdict.state == "inconclusive"
    note = next(check.note for check in result.verdict.checks if check.name == "kernels known not to add")
    assert name in note
    document = with_a_sum_apart(name)
    for layer in document["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            tensor.pop("Dimensions", None)  # layers share records
    assert audited(document).verdict.state == "inconclusive"


def renamed(document: Json) -> Json:
    """Every node under a name that says nothing, consistently: `Add_6` is `n6`, `layer1.0.conv2.weight` is `w3`."""
    words: dict[str, str] = {}
    for layer in document["Layers"]:
        if layer["LayerType"] in ("Reformat", "NoOp"):
            layer["Name"] = words.setdefault(layer["Name"], f"n{len(words)}")
            continue
        parts = layer["Name"].split(" + ")
        layer["Name"] = " + ".join(words.setdefault(part, f"n{len(words)}") for part in parts)
    return document


@pytest.mark.parametrize("variant", ["fp32", "fp16", "qat", "qat-residual"])
def test_engines_whose_nodes_say_nothing_are_judged_by_their_tensors(variant: str) -> None:
    before, after = audited(load(variant)), audited(renamed(load(variant)))
    assert [(b.fused, b.precision) for b in after.blocks] == [(b.fused, b.precision) for b in before.blocks]
    assert len(after.superfluous) == len(before.superfluous)
    assert after.verdict.state == before.verdict.state


def test_an_add_of_its_own_is_named() -> None:
    result = audited(with_a_sum_apart("PWN(Add_11, Relu_12)"))
    assert [block.name for block in result.blocks if block.fused is False] == ["Add_11"]
    assert result.verdict.state == "fail"
    assert "kernel of its own" in result.blocks[1].reason


def test_a_relu_of_its_own_is_named() -> None:
    document = load("fp16")
    at = next(i for i, layer in enumerate(document["Layers"]) if layer["Name"] == "Conv_3 + Relu_4")
    conv = document["Layers"][at]
    inner = {**conv["Outputs"][0], "Name": "between"}
    relu = {"Name": "PWN(Relu_4)", "LayerType": "PointWiseV2", "Inputs": [inner], "Outputs": conv["Outputs"]}
    conv |= {"Name": "Conv_3", "Activation": "NONE", "HasReLU": 0, "Outputs": [inner]}
    document["Layers"].insert(at + 1, relu)
    result = audited(document)
    assert (result.blocks[0].name, result.blocks[0].fused) == ("Add_6", False)
    assert "Relu_4" in result.blocks[0].reason


# Files that are no inspector's


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"Layers": 3}', '{"Layers": [1]}', "null"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(MalformedInput, match="F"):
        inspector.parse(text, "F.json")


def test_a_profile_of_another_engine_is_refused() -> None:
    layers = inspector.parse(json.dumps(load("fp16")), "a").layers
    for profile in ("[]", "{}", json.dumps([{"name": "elsewhere", "averageMs": 1.0}])):
        with pytest.raises(MalformedInput, match="none of its layers"):
            inspector.add_times(layers, profile, "b")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Conv_5 + Add_6 + Relu_7", ("Conv_5", "Add_6", "Relu_7")),
        ("PWN(Add_36, Relu_37)", ("Add_36", "Relu_37")),
        ("PWN(PWN(Sigmoid_1), Mul_2)", ("Sigmoid_1", "Mul_2")),
        ("Conv_1 + PWN(Clip_16)", ("Conv_1", "Clip_16")),
        ("conv1 [profile 1]", ("conv1",)),
        ("{ForeignNode[a/b...c/d]}", ("a/b", "c/d")),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", ()),
    ],
)
def test_names_are_taken_apart(name: str, parts: tuple[str, ...]) -> None:
    found = inspector.parse(json.dumps({"Layers": [name]}), "x").layers[0].sources
    assert found == parts


LOOP = {"Name": "r", "LayerType": "Reformat", "Inputs": [{"Name": "t"}], "Outputs": [{"Name": "t"}]}
SUM = {"Name": "Add_1", "LayerType": "ElementWise", "Inputs": [{"Name": "t"}, {"Name": "u"}], "Outputs": []}
CONV = {"Name": "Conv_0", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": [{"Name": "t"}]}


def test_a_reformat_that_reads_its_own_output_ends_the_walk() -> None:
    """Back from the sum, and on from the convolution; the sum stays a kernel of its own."""
    assert audited({"Layers": [CONV, LOOP, SUM]}).verdict.state != "pass"


@pytest.mark.parametrize(
    "text",
    [
        '{"Layers": [{"Name": "", "LayerType": "CaskConvolution"}]}',
        '{"Layers": [""]}',
        '{"Layers": [{"Name": "Conv_0", "Inputs": 5}]}',
        '{"Layers": [{"Name": "Conv_0", "Inputs": [{"Name": "t", "Dimensions": 5}]}]}',
        '{"Layers": [{"Name": ["Conv_0"]}]}',
        '{"Layers": [], "Bindings": 5}',
        '{"Layers": ["PWN(' + ")" * 80_000 + '"]}',
        "[" * 200_000,
    ],
    ids=lambda text: text[:48],
)
def test_what_no_inspector_prints_is_refused(text: str) -> None:
    """Hostile or damaged: one error with the file's name, never a crash."""
    with pytest.raises(MalformedInput, match=r"it\.json is not"):
        inspector.parse(text, "it.json")


@pytest.mark.parametrize("name", ["PWN(" + ")" * 60_000, "ForeignNode[" + "..." * 20_000, "a" + " " * 60_000 + "b"])
def test_long_names_are_read_in_linear_time(name: str) -> None:
    """The quadratic way took half a minute."""
    started = time.process_time()
    inspector.parse(json.dumps({"Layers": [name] * 3}), "it.json")
    assert time.process_time() - started < 2


def test_a_convolution_that_names_no_node_is_not_known() -> None:
    reformat = {**CONV, "Name": "Reformatting CopyNode for a tensor", "LayerType": "CaskConvolution"}
    assert audited({"Layers": [{**CONV, "Name": "PWN()"}, reformat]}).verdict.state == "inconclusive"


def test_the_graph_of_another_network_is_refused() -> None:
    """NVIDIA's ResNet-18 held against a graph none of whose nodes it has."""
    other = Intent(
        blocks=(), asked={"head.conv": "int8"}, followers={}, producers={"head.out": "head.conv"},
        nodes=frozenset({"head.conv"}), pairs=frozenset(), edges=frozenset(),
    )  # fmt: skip
    with pytest.raises(MalformedInput, match="was not made from the graph given"):
        audited(load("qat"), intent=other)

"""Three graphs of sixteenths: the kernels that the compiler lists, and the bytes of the engine."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import pytest

from resdeploy.backends import machine, tensorrt_rtx
from resdeploy.graph import intent
from resdeploy.judge import fusion
from resdeploy.records import Artifact, EngineOptions, Execution
from tests.backends.conftest import artifact_of
from tests.rtx.fixed_graphs import GRAPHS, SIZE, gelu, int8_block

TARGETS = ("sm86", "sm89", "sm120")
NAMED = ("Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Gemm")
# A kernel a line: its kind, what it computes of the graph, and the types it reads and writes.
KERNELS = {
    "stem and classifier": [
        ("kgen", "", "fp32", "fp32"),
        ("correlation", "relu stem", "fp32", "fp32"),
        ("maxpool", "pool", "fp32", "fp32"),
        ("kgen", "mean", "fp32", "fp32"),
        ("kgen", "fc", "fp32", "fp32"),
        ("kgen", "fc", "fp32", "fp32"),
    ],
    "half block": [
        ("kgen", "", "fp32", "fp16"),
        ("correlation", "conv1 relu1", "fp16", "fp16"),
        ("correlation", "add conv2 relu2", "fp16 fp16", "fp16"),
        ("kgen", "", "fp16", "fp32"),
    ],
    "int8 block": [
        ("kgen", "", "fp32", "int8 fp16"),
        ("correlation", "conv1 relu1", "int8", "fp16"),
        ("kgen", "", "fp16", "int8"),
        ("correlation", "add conv2 relu2", "int8 fp16", "fp16"),
        ("kgen", "", "fp16", "fp32"),
    ],
}
# Of these files, for these targets, by this version; seen on one processor alone.
VERSION, SEEN_ON = "1.7.1.116", ("Intel(R) Xeon(R) Processor", "amx")
DIGESTS = {
    "stem and classifier": "ea7922eb7a626180aee346210bc13ff09e4eaa842438af4237ce13e5915b8745",
    "half block": "e32818260a1cc7223eff47ac2c657fa09d0cd2e96759c1fbc79daac63674631f",
    "int8 block": "1f1e96a6130f36146fd1baeb911f9e7196e4ccfa0248101767b0dddd5f9fcac3",
}


def built(model: onnx.ModelProto, folder: Path) -> Artifact:
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(exist_ok=True)
    path = folder / "fixed.onnx"
    onnx.save(model, path)
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    execution = Execution(input_shape=(channels, SIZE, SIZE), engine=EngineOptions(targets=TARGETS))
    return tensorrt_rtx.build(artifact_of(path), execution, folder / "fixed.engine")


@pytest.mark.parametrize("name", GRAPHS)
def test_the_kernels_of_a_fixed_graph(name: str, tmp_path: Path) -> None:
    """Sum and activation are inside the convolution in FP16, and in INT8 with one scale a weight tensor."""
    named = {node.name for node in GRAPHS[name]().graph.node if node.op_type in NAMED}
    found = [
        (
            layer.kind,
            " ".join(sorted(named & set(layer.sources))),
            " ".join(port.precision for port in layer.inputs),
            " ".join(port.precision for port in layer.outputs),
        )
        for layer in built(GRAPHS[name](), tmp_path).layers
    ]
    assert found == KERNELS[name]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_bytes_of_a_fixed_graph(name: str, tmp_path: Path) -> None:
    """Twice the same from two folders, and those that were seen; on another processor a difference is only said."""
    first, second = (built(GRAPHS[name](), tmp_path / which) for which in ("one", "two"))
    assert first.sha256 == second.sha256
    if first.tools["tensorrt-rtx"] != VERSION:
        pytest.skip(f"digests are of {VERSION}, and {first.tools['tensorrt-rtx']} is here")
    here = (machine.cpu().model, machine.isa_name())
    if here == SEEN_ON or first.sha256 == DIGESTS[name]:
        assert first.sha256 == DIGESTS[name]
    else:
        warnings.warn(f"{name}: {first.sha256} on {here}, {DIGESTS[name]} on {SEEN_ON}", stacklevel=1)


@pytest.mark.parametrize("main", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_pair_on_the_main_operand_of_a_sum_keeps_it_out_of_the_convolution(
    tmp_path: Path, main: bool, skip: bool
) -> None:
    """One on the skip does not: what `judge.remedies` advises."""
    model = int8_block(main=main, skip=skip)
    layers = built(model, tmp_path).layers
    assert [layer.kind for layer in layers if "add" in layer.sources] == ["kgen" if main else "correlation"]
    (block,) = fusion.judge("block", layers, intent=intent.of(model), target="tensorrt-rtx").blocks
    assert (block.fused, "belongs on neither operand" in block.remedy) == (not main, main)


def test_gelu_of_five_nodes_runs_inside_its_convolution(tmp_path: Path) -> None:
    """As one activation of one convolution."""
    model = gelu()
    found = fusion.judge("gelu", built(model, tmp_path).layers, intent=intent.of(model), target="tensorrt-rtx")
    (check,) = [check for check in found.verdict.checks if check.name == "activations inside their convolution"]
    assert (check.state, check.observed, check.limit) == ("pass", 1, 1)

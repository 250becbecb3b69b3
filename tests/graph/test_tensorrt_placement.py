"""Where Q/DQ goes for TensorRT: exactly where NVIDIA's fastest ResNet-18 has it, in every ResNet of the zoo.

The oracle is an engine: what its inspector lists as Int8 at each convolution's inputs, read straight from the JSON. Its
variant without Q/DQ before the global pooling is the one at hand (`qat-residual`); with it (`+pool`, 0.500 against
0.546 ms) one more tensor is quantized, and the last block's sum with it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from resdeploy.graph import qdq_placement
from resdeploy.graph.index import Index
from resdeploy.models import zoo
from tests.graph.test_intent import quantized

resnet = pytest.importorskip("resdeploy.models.resnet", exc_type=ImportError)
ENGINE = Path(__file__).parents[1] / "data/inspector/resnet18-qat-residual.graph.json.gz"
RESNETS = [name for name, entry in zoo.ENTRIES.items() if name in resnet.VARIANTS and "plain" not in name]


def network(name: str) -> onnx.ModelProto:
    """The zoo's network as `export` writes it, node for node, its weights of one value each."""
    config = resnet.VARIANTS[name]
    nodes: list[onnx.NodeProto] = []
    held = [numpy_helper.from_array(np.zeros(1, np.int64), "zero")]

    def op(kind: str, path: str, *reads: str, **attributes: Any) -> str:
        if kind in ("Conv", "Gemm"):
            weight = np.ones((1, 1, 1, 1) if kind == "Conv" else (1, 1), np.float32)
            held.append(numpy_helper.from_array(weight, f"{path}.weight"))
            reads = (*reads, f"{path}.weight")
        if kind in ("Slice", "Pad"):
            reads = (*reads, "zero")
        nodes.append(helper.make_node(kind, reads, [f"{path}.out"], name=path, **attributes))
        return f"{path}.out"

    def shortcut(x: str, path: str, *, changes: bool) -> str:
        if not changes:
            return x
        if config.shortcut == "A":
            return op("Pad", f"{path}.downsample.pad", op("Slice", f"{path}.downsample.slice", x))
        return op("Conv", f"{path}.downsample.0", x)

    x = op("Relu", "relu", op("Conv", "conv1", "input"))
    if config.stem == "imagenet":
        x = op("MaxPool", "maxpool", x, kernel_shape=[3, 3])
    convs = 3 if config.block.expansion == 4 else 2
    for stage, depth in enumerate(config.depths, 1):
        for i in range(depth):
            path = f"layer{stage}.{i}"
            y = x
            for number in range(1, convs):
                y = op("Relu", f"{path}.relu{number}", op("Conv", f"{path}.conv{number}", y))
            y = op("Conv", f"{path}.conv{convs}", y)
            changes = i == 0 and (stage > 1 or config.block.expansion == 4)
            x = op("Relu", f"{path}.relu{convs}", op("Add", f"{path}.add", y, shortcut(x, path, changes=changes)))
    x = op("Flatten", "flatten", op("GlobalAveragePool", "avgpool", x))
    x = op("Gemm", "fc", x, transB=1)
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("input", x)]
    graph = helper.make_graph(nodes, name, value[:1], value[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def expected(model: onnx.ModelProto) -> Iterator[str]:
    """By names alone: the data of all convolutions and of fc, the skip of each sum, the input of the global pooling."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "GlobalAveragePool"):
            yield node.input[0]
        if node.op_type == "Add":
            block = node.name.removesuffix(".add")
            (skip,) = (name for name in node.input if not name.startswith(f"{block}.conv"))
            yield skip


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_of_the_zoo_has_pairs_there_and_nowhere_else(name: str) -> None:
    model = network(name)
    placement = qdq_placement.plan(model, "tensorrt")
    assert set(placement.activations) == set(expected(model))
    convs = sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    assert len(placement.weights) == convs
    assert not placement.kept_float
    assert not placement.unfusable
    depths = resnet.VARIANTS[name].depths
    assert len(placement.blocks) == sum(depths)


def test_resnet18_has_pairs_exactly_where_nvidias_engine_reads_int8() -> None:
    """Each convolution's data and each sum's skip, and what each of them writes, layer by layer."""
    engine = _int8_of(json.loads(gzip.decompress(ENGINE.read_bytes()))["Layers"])
    ours = dict(_int8_ours(network("resnet18")))
    assert ours.keys() == engine.keys()
    # The one difference is the pair before the global pooling: with it the last sum is written in int8.
    assert engine.pop("layer4.1.conv2") == (True, True, False)
    assert ours.pop("layer4.1.conv2") == (True, True, True)
    assert ours == engine


def _int8_of(layers: list[dict[str, Any]]) -> dict[str, tuple[bool, bool | None, bool]]:
    """Convolution -> (int8 data, int8 skip or None, int8 output), leftover dequantizing copies looked through."""

    def is_int8(tensor: dict[str, Any]) -> bool:
        return "Int8" in tensor["Format/Datatype"]

    copies = [layer for layer in layers if layer.get("Origin") == "QDQ" and is_int8(layer["Inputs"][0])]
    dequantized = {layer["Outputs"][0]["Name"]: layer["Inputs"][0] for layer in copies}
    found = {}
    for layer in layers:
        weights = [part for part in layer["Name"].split(" + ") if part.endswith(".weight")]
        if layer["LayerType"] != "NoOp" and not layer["Name"].startswith("Reformatting") and weights:
            int8 = [is_int8(dequantized.get(tensor["Name"], tensor)) for tensor in layer["Inputs"]]
            skip = int8[1] if len(int8) > 1 else None
            found[weights[0].removesuffix(".weight")] = (int8[0], skip, is_int8(layer["Outputs"][0]))
    return found


def _int8_ours(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[bool, bool | None, bool]]]:
    result = quantized(model, "tensorrt")
    index = Index(result)

    def from_pair(tensor: str) -> bool:
        maker = index.maker(tensor)
        return maker is not None and maker.op_type == "DequantizeLinear"

    for node in index.nodes:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        end, skip = node, None
        while (reader := index.only_reader(end.output[0])) is not None and reader.op_type in ("Add", "Relu", "MaxPool"):
            if reader.op_type == "Add":
                skip = from_pair(next(name for name in reader.input if name != end.output[0]))
            end = reader
        readers = [index.nodes[i].op_type for i in index.readers[end.output[0]]]
        yield node.name, (from_pair(node.input[0]), skip, bool(readers) and set(readers) == {"QuantizeLinear"})


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet50", 64), ("resnet20", 32), ("resnet20_b", 32)])
def test_the_graphs_here_are_the_exported_ones(name: str, size: int) -> None:
    from tests.graph.test_qdq_placement import exported

    real = exported(zoo.create(zoo.spec(name)), size)
    assert [(n.op_type, n.name) for n in network(name).graph.node] == [(n.op_type, n.name) for n in real.graph.node]

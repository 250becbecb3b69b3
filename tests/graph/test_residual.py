"""Residual blocks found from structure."""

from __future__ import annotations

import dataclasses
import io
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.canonical import form
from resdeploy.graph.residual import find_blocks
from resdeploy.models import zoo

pytest.importorskip("torch")

import torch


def exported(module: torch.nn.Module, size: int = 64) -> onnx.ModelProto:
    """In the canonical form, from the exporter that most ONNX files came from."""
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, 3, size, size),), buffer, dynamo=False, opset_version=17)
    return form.canonicalise(onnx.load_from_string(buffer.getvalue()))


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, every name in it replaced by a number."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    numbers: dict[str, str] = {"": ""}
    graph = result.graph
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = numbers.setdefault(name, f"t{len(numbers)}")
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = numbers.setdefault(value.name, f"t{len(numbers)}")
    del graph.value_info[:]
    return result


@pytest.mark.parametrize(
    ("name", "identity", "projection", "convs"),
    [("resnet18", 5, 3, 2), ("resnet34", 13, 3, 2), ("resnet50", 12, 4, 3), ("resnext50_32x4d", 12, 4, 3)],
)
def test_torchvision_networks_have_their_published_blocks(
    torchvision: ModuleType, name: str, identity: int, projection: int, convs: int
) -> None:
    """Counts and shortcut kinds follow table 1 of He et al.; every main branch has the block's convolutions."""
    blocks = find_blocks(exported(getattr(torchvision.models, name)(weights=None)))
    kinds = [block.shortcut for block in blocks]
    assert (kinds.count("identity"), kinds.count("projection"), len(kinds)) == (
        identity,
        projection,
        identity + projection,
    )
    assert all(len(block.convs) == convs and block.last_conv == block.convs[-1] for block in blocks)
    assert all(block.relu is not None for block in blocks)


def test_a_bottleneck_block_names_its_layers(torchvision: ModuleType) -> None:
    """In the canonical form the nodes carry torch's module names."""
    first, second = find_blocks(exported(torchvision.models.resnet50(weights=None)))[:2]
    assert first.convs == ("layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3")
    assert first.projection == "layer1.0.downsample.0"
    assert second.skip == second.source == first.output
    assert second.projection is None


def test_option_a_shortcuts_are_padding() -> None:
    """Slice and pad are as many nodes as the main branch has, yet it is the convolutions that make it the main one."""
    blocks = find_blocks(exported(zoo.create(zoo.spec("resnet20")), 32))
    assert [block.shortcut for block in blocks] == ["identity"] * 3 + ["padding", "identity", "identity"] * 2
    assert all(len(block.convs) == 2 for block in blocks)


def test_a_plain_network_has_no_blocks() -> None:
    """Adding a constant, or a tensor to itself, is no residual block."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x) + torch.arange(4.0).reshape(4, 1, 1)
            return (y + y).mean((2, 3))

    assert find_blocks(exported(Plain())) == ()


def test_names_do_not_matter(torchvision: ModuleType) -> None:
    """A graph of numbered, unnamed nodes has the same blocks."""
    model = exported(torchvision.models.resnet18(weights=None))
    before, after = find_blocks(model), find_blocks(renamed(model))
    assert [(b.shortcut, len(b.convs), b.last_conv is None) for b in before] == [
        (b.shortcut, len(b.convs), b.last_conv is None) for b in after
    ]


def test_the_spelling_of_a_sum_does_not_matter(torchvision: ModuleType) -> None:
    """`x + f(x)` is the same block as `f(x) + x`, and as Sum of both."""
    model = exported(torchvision.models.resnet18(weights=None))
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    for node in swapped.graph.node:
        if node.op_type == "Add":
            node.input[0], node.input[1] = node.input[1], node.input[0]
            node.op_type = "Sum"
    assert find_blocks(swapped) == find_blocks(model)


def test_a_gated_branch_is_a_block_without_a_last_convolution() -> None:
    """Squeeze-and-excitation: the branch reconverges inside, and what reaches the Add is a product."""
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Relu", ["input"], ["x"]),
            node("Conv", ["x", "w"], ["a"], name="a"),
            node("GlobalAveragePool", ["a"], ["pooled"]),
            node("Conv", ["pooled", "w"], ["gate"], name="gate"),
            node("Sigmoid", ["gate"], ["open"]),
            node("Mul", ["a", "open"], ["gated"]),
            node("Add", ["gated", "x"], ["output"], name="add"),
        ],
        "gated",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")],
    )
    (block,) = find_blocks(helper.make_model(graph))
    assert (block.source, block.main, block.skip, block.last_conv) == ("x", "gated", "x", None)
    assert block.convs == ("a", "gate")


@dataclasses.dataclass(frozen=True)
class Recipe:
    convs: int
    projected: bool
    relu: bool
    swapped: bool


recipes = st.builds(Recipe, st.integers(2, 4), st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(recipes, min_size=1, max_size=6))
def test_random_chains_of_blocks_are_recovered(chain: list[Recipe]) -> None:
    """Whatever blocks a graph is built of, those are found, in order."""
    nodes, at = [helper.make_node("Relu", ["input"], ["t0"])], "t0"
    for i, recipe in enumerate(chain):
        skip, main = at, at
        for j in range(recipe.convs):
            nodes.append(helper.make_node("Conv", [main, "w"], [f"c{i}.{j}"], name=f"c{i}.{j}"))
            main = f"c{i}.{j}"
            if j + 1 < recipe.convs:
                nodes.append(helper.make_node("Relu", [main], [f"r{i}.{j}"]))
                main = f"r{i}.{j}"
        if recipe.projected:
            nodes.append(helper.make_node("Conv", [skip, "w"], [f"p{i}"], name=f"p{i}"))
            skip = f"p{i}"
        operands = [skip, main] if recipe.swapped else [main, skip]
        nodes.append(helper.make_node("Add", operands, [f"a{i}"], name=f"a{i}"))
        at = f"a{i}"
        if recipe.relu:
            nodes.append(helper.make_node("Relu", [at], [f"o{i}"], name=f"o{i}"))
            at = f"o{i}"
    value = helper.make_tensor_value_info
    inputs, outputs = [value("input", TensorProto.FLOAT, None)], [value(at, TensorProto.FLOAT, None)]
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    blocks = find_blocks(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight])))
    assert [block.add for block in blocks] == [f"a{i}" for i in range(len(chain))]
    for i, (block, recipe) in enumerate(zip(blocks, chain, strict=True)):
        assert block.convs == tuple(f"c{i}.{j}" for j in range(recipe.convs))
        assert block.projection == (f"p{i}" if recipe.projected else None)
        assert block.relu == (f"o{i}" if recipe.relu else None)

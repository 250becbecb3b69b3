"""Rescaling channels keeps the function; which channels are tied follows the network's structure."""

from __future__ import annotations

import io
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import channels
from resdeploy.graph.canonical import form
from resdeploy.models import zoo

pytest.importorskip("torch")

import torch


def exported(module: torch.nn.Module, size: int) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, 3, size, size),), buffer, dynamo=False, opset_version=17)
    return form.canonicalise(onnx.load_from_string(buffer.getvalue()))


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return opened.run(None, {"input": images})[0]


def check_kept(model: onnx.ModelProto, size: int, seed: int = 0) -> channels.Ties:
    """The function under random factors between 1/8 and 8."""
    random = np.random.default_rng(seed)
    tied = channels.ties(model)
    factors = np.exp2(random.uniform(-3, 3, tied.count))
    factors[channels.PINNED] = 1.0
    images = random.standard_normal((2, 3, size, size)).astype(np.float32)
    expected = logits(model, images)
    made = channels.rescale(model, tied, factors)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(logits(made, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    return tied


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_any_factors_keep_the_function(torchvision: ModuleType, name: str) -> None:
    """Concatenations in one, depthwise convolutions, ReLU6 and residual additions in the other."""
    torch.manual_seed(1)
    model = exported(getattr(torchvision.models, name)(weights=None), 64)
    tied = check_kept(model, 64)
    assert tied.count > 1


def test_a_residual_stream_is_one_tie_a_channel_and_inner_channels_are_their_own() -> None:
    """Option A shortcuts carry the stream through a whole CIFAR ResNet: channels are tied through slice and pad."""
    model = exported(zoo.create(zoo.spec("resnet20")), 32)
    tied = check_kept(model, 32)
    blocks = [node.output[0] for node in model.graph.node if node.op_type == "Add"]
    inner = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    assert len(blocks) == 9
    assert all(np.array_equal(tied.tensors[name], tied.tensors[blocks[0]]) for name in blocks[1:3])
    middle = tied.tensors[blocks[3]]
    assert middle.size == 32
    assert set(tied.tensors[blocks[0]]) < set(middle)
    first = tied.tensors[inner[1]]
    assert not set(first) & set(tied.tensors[blocks[0]])
    assert len(set(first)) == 16


def test_inputs_outputs_and_what_is_not_homogeneous_keep_their_scale() -> None:
    """A sigmoid pins the channels on both of its sides, and all that is added to them."""
    node, value = helper.make_node, helper.make_tensor_value_info
    random = np.random.default_rng(2)
    stored = [
        numpy_helper.from_array(random.standard_normal((4, n, 1, 1)).astype(np.float32), f"w{i}")
        for i, n in enumerate((3, 4, 4))
    ]
    graph = helper.make_graph(
        [
            node("Conv", ["input", "w0"], ["a"], "a"),
            node("Relu", ["a"], ["b"], "b"),
            node("Conv", ["b", "w1"], ["c"], "c"),
            node("Sigmoid", ["c"], ["d"], "d"),
            node("Add", ["b", "d"], ["e"], "e"),
            node("Conv", ["e", "w2"], ["f"], "f"),
            node("GlobalAveragePool", ["f"], ["g"], "g"),
            node("Flatten", ["g"], ["logits"], "h"),
        ],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["batch", 4])],
        stored,
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    assert channels.ties(model).count == 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), groups=st.sampled_from([1, 2, 4]), flat=st.booleans(), trans=st.booleans())
def test_random_small_networks_keep_their_function(seed: int, groups: int, flat: bool, trans: bool) -> None:
    """Grouped convolutions, a Gemm in either orientation, behind pooling or on the flattened map itself."""
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    width = 8 * 16 if flat else 8
    kernel: dict[str, Any] = {"kernel_shape": [1, 1]} if flat else {}
    graph = helper.make_graph(
        [
            node("Conv", ["input", "w0", "b0"], ["a"], "a", strides=[2, 2]),
            node("Relu", ["a"], ["b"], "b"),
            node("Conv", ["b", "w1"], ["c"], "c", pads=[1, 1, 1, 1], group=groups),
            node(
                "MaxPool" if flat else "GlobalAveragePool",
                ["c"],
                ["d"],
                "d",
                **kernel,
            ),
            node("Flatten", ["d"], ["e"], "e"),
            node("Gemm", ["e", "w2", "b2"], ["f"], "f", transB=int(trans)),
            node("Relu", ["f"], ["g"], "g"),
            node("Gemm", ["g", "w3"], ["logits"], "h", transB=1),
        ],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["batch", 4])],
        [
            *(weight("w0", 8, 3, 1, 1), weight("b0", 8), weight("w1", 8, 8 // groups, 3, 3)),
            *(weight("w2", *((6, width) if trans else (width, 6))), weight("b2", 6), weight("w3", 4, 6)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tied = check_kept(onnx.shape_inference.infer_shapes(model), 8, seed % 1000)
    assert tied.count == 1 + 8 + 8 + 6

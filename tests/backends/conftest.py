"""Small real models for the backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.records import Artifact, ModelSpec

SPEC = ModelSpec(name="tiny", family="tiny", classes=10, input_shape=(3, 32, 32))


def tiny_network(batch: int | str = "batch", channels: int = 8) -> onnx.ModelProto:
    """Conv-Relu, a residual block, pooling and a linear layer at CIFAR's size."""
    rng = np.random.default_rng(7)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    c = channels
    weights = [
        *(constant("w1", c, 3, 3, 3), constant("b1", c)),
        *(constant("w2", c, c, 3, 3), constant("b2", c)),
        *(constant("wf", 10, c), constant("bf", 10)),
    ]
    conv: dict[str, Any] = {"pads": [1, 1, 1, 1], "strides": [1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], name="conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", **conv),
        helper.make_node("Add", ["c2", "r1"], ["a2"], name="add"),
        helper.make_node("Relu", ["a2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wf", "bf"], ["logits"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def artifact_of(path: Path) -> Artifact:
    return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=SPEC)


@pytest.fixture
def tiny(tmp_path: Path) -> Artifact:
    """An ONNX file with a free batch size."""
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_network(), path)
    return artifact_of(path)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Five images."""
    return np.random.default_rng(3).standard_normal((5, 3, 32, 32)).astype(np.float32)

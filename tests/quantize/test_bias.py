"""Bias correction, on real graphs in a real runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import qdq_placement
from resdeploy.graph.index import Index
from resdeploy.quantize import bias, ranges
from resdeploy.records import Target
from tests.sessions import session

Images = NDArray[np.float32]
TARGETS = get_args(Target)


def outputs(model: onnx.ModelProto, images: Images, names: list[str]) -> list[NDArray[np.float32]]:
    """Values of inner tensors, without any of the runtime's optimisations."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    del wider.graph.output[:]
    wider.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    opened = session(wider, exactly=True)
    return [np.asarray(found) for found in opened.run(names, {"input": images})]


@contextlib.contextmanager
def here(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Callable[[Images], Images]]:
    opened = session(model)
    size = opened.get_inputs()[0].shape[0]
    yield lambda images: np.concatenate(
        [opened.run(None, {"input": images[i : i + size]})[0] for i in range(0, len(images), size)]
    )


@pytest.fixture
def model() -> onnx.ModelProto:
    """A residual block between a stem and a classifier; its middle convolution has no bias."""
    random = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(
            (random.standard_normal(shape) / np.sqrt(shape[-1] * 9)).astype(np.float32), name
        )

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["input", "w0", "b0"], ["stem"], "stem", pads=[1, 1, 1, 1]),
            node("Relu", ["stem"], ["x"], "relu0"),
            node("Conv", ["x", "w1"], ["middle"], "middle", pads=[1, 1, 1, 1], group=2),
            node("Relu", ["middle"], ["y"], "relu1"),
            node("Conv", ["y", "w2", "b2"], ["last"], "last", pads=[1, 1, 1, 1]),
            node("Add", ["last", "x"], ["sum"], "add"),
            node("Relu", ["sum"], ["z"], "relu2"),
            node("GlobalAveragePool", ["z"], ["pooled"], "pool"),
            node("Flatten", ["pooled"], ["flat"], "flatten"),
            node("Gemm", ["flat", "w3", "b3"], ["logits"], "fc", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [
            *(weight("w0", 6, 3, 3, 3), weight("b0", 6), weight("w1", 6, 3, 3, 3), weight("w2", 6, 6, 3, 3)),
            *(weight("b2", 6), weight("w3", 5, 6), weight("b3", 5)),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def coarse(model: onnx.ModelProto, target: Target, images: Images) -> tuple[qdq_placement.Placement, dict, dict]:
    """Placement and parameters that clip hard and leave few weight levels, so that every layer's mean shifts."""
    placement = qdq_placement.plan(model, target)
    tensors = list(placement.observed)
    inner = [name for name in tensors if name != "input"]
    found = dict(zip(inner, outputs(model, images, inner), strict=True)) | {"input": images}
    activations = {
        name: ranges.activation(ranges.Range(lo=float(v.min()) / 3, hi=float(v.max()) / 3), target)
        for name, v in found.items()
    }
    index = Index(model)
    weights = {}
    for site in placement.weights:
        values = index.value(site.tensor)
        assert values is not None
        weights[site.node] = ranges.weight(
            numpy_helper.to_array(values), site.axis, limit=3, one_scale=placement.one_scale
        )
    return placement, activations, weights


@pytest.mark.parametrize("target", TARGETS)
def test_every_layers_mean_becomes_that_of_the_float_network(model: onnx.ModelProto, target: Target) -> None:
    """Channel by channel, through a residual addition, with groups, with and without a bias before."""
    images = (np.random.default_rng(4).standard_normal((32, 3, 8, 8)) + 0.5).astype(np.float32)
    placement, activations, weights = coarse(model, target, images)
    quantized = qdq_placement.insert(model, placement, activations, weights)
    by = bias.correction(model, quantized, placement, weights, list(images), here).shifts
    corrected = qdq_placement.insert(bias.shift_biases(model, by), placement, activations, weights)
    onnx.checker.check_model(corrected, full_check=True)
    names = ["stem", "middle", "last", "logits"]
    pairs = zip(
        outputs(model, images, names), outputs(quantized, images, names), outputs(corrected, images, names), strict=True
    )
    for exact, before, after in pairs:
        axes = (0, 2, 3) if exact.ndim == 4 else (0,)
        spread = exact.std()
        assert np.abs((before - exact).mean(axis=axes)).max() > 0.02 * spread
        assert np.abs((after - exact).mean(axis=axes)).max() < 0.002 * spread  # int32 biases are rounded


def test_the_reservoir_is_bounded_seeded_and_drawn_from_the_whole_stream() -> None:
    """A stream of ten times its size leaves a sample whose mean is the stream's, the same for the same seed."""
    size = bias.IMAGE_ELEMENTS // 160_000
    stream = [np.full((5, 1, 400, 400), i, np.float32) for i in range(2 * size)]
    kept = []
    for seed in (0, 0, 1):
        reservoir = bias.Reservoir(seed)
        assert sum(len(batch) for batch in reservoir.watch(stream)) == 10 * size
        assert len(reservoir.images) == size
        kept.append([float(image[0, 0, 0]) for image in reservoir.images])
    assert kept[0] == kept[1] != kept[2]
    assert abs(np.mean(kept[0]) - size) < 4 * (2 * size / np.sqrt(12)) / np.sqrt(size)

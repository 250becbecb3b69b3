"""Graphs that do nothing but one thing: multiply, or move memory. What a machine reaches on them is its roof.

`chain` is a row of equal large convolutions, in FP32 or with Q/DQ: every backend runs it through the same kernels as a
network, so that its speed is a peak that a deployment could reach and not one of hand-written assembly. `stream` is one
addition of tensors larger than the caches (McCalpin's STREAM, "Add": two arrays read, one written).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import metadata, qdq_placement
from resdeploy.records import ModelSpec, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET, IR_VERSION = 17, 8
# 256 channels at 28 x 28 are ResNet-50's middle: maps of 0.8 MB, weights of 2.4 MB in FP32, 0.46 GMACs per layer.
CHANNELS, SIZE, DEPTH, KERNEL = 256, 28, 4, 3
# Which shape is fastest differs by backend and precision: a peak is the best of these (channels, size, depth, kernel).
SHAPES = ((256, 28, 4, 3), (128, 28, 8, 3), (256, 28, 16, 1))
WEIGHT_LIMIT = 64  # weights in 7 bits are exact on CPUs without VNNI too (`quantize.ranges.REDUCED_RANGE`)


def spec(channels: int = CHANNELS, size: int = SIZE, depth: int = DEPTH, kernel: int = KERNEL) -> ModelSpec:
    """What `chain` makes, described."""
    name = f"peak-{depth}x{kernel}x{kernel}-{channels}c-{size}px"
    return ModelSpec(name=name, family="peak", classes=channels, input_shape=(channels, size, size))


def chain(
    channels: int = CHANNELS, size: int = SIZE, depth: int = DEPTH, kernel: int = KERNEL, *, seed: int = 0
) -> onnx.ModelProto:
    """`depth` convolutions `channels` -> `channels` with ReLU, same padding, then an average over positions.

    Input (batch, channels, size, size), output (batch, channels); `depth * channels^2 * kernel^2 * size^2`
    multiply-accumulates per image. Weights are `integers * scale`, as `quantize` keeps them.
    """
    integers, scale = _weights(channels, depth, kernel, seed)
    weights = [numpy_helper.from_array(w.astype(np.float32) * scale, f"conv{i}.weight") for i, w in enumerate(integers)]
    nodes, tensor = [], "input"
    for i in range(depth):
        pads = [kernel // 2] * 4
        nodes += [
            helper.make_node("Conv", [tensor, f"conv{i}.weight"], [f"conv{i}"], name=f"conv{i}", pads=pads),
            helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], name=f"relu{i}"),
        ]
        tensor = f"relu{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["output"], name="flatten"),
    ]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, size, size])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", channels])
    model = _model(helper.make_graph(nodes, "peak", [image], [output], weights))
    metadata.attach(model, spec(channels, size, depth, kernel))
    return model


def quantize(model: onnx.ModelProto, target: Target, *, seed: int = 0) -> onnx.ModelProto:
    """`chain`'s graph in INT8, Q/DQ placed for `target`; the weights are the same numbers.

    Raises:
        ValueError: the graph is not what `chain` makes with that seed.
    """
    kernels = [tuple(t.dims) for t in model.graph.initializer]
    channels, _, kernel, _ = kernels[0]
    integers, scale = _weights(channels, len(kernels), kernel, seed)
    for tensor, values in zip(model.graph.initializer, integers, strict=True):
        if not np.array_equal(numpy_helper.to_array(tensor), values.astype(np.float32) * scale):
            msg = f"{tensor.name} is not of chain(seed={seed})"
            raise ValueError(msg)
    placement = qdq_placement.plan(model, target)
    signed = target == "tensorrt"
    # Inputs are standard normal, and He's scale keeps all later values in the same range.
    around = qdq_placement.Activation(scale=4 / 127, zero_point=0 if signed else 127, signed=signed)
    above = qdq_placement.Activation(scale=4 / (127 if signed else 255), zero_point=0, signed=signed)
    activations = {name: around if name == "input" else above for name in placement.observed}
    scales = np.full(channels, scale, dtype=np.float32)
    weights = {
        site.node: qdq_placement.Weight(values=values, scale=scales)
        for site, values in zip(placement.weights, integers, strict=True)
    }
    return qdq_placement.insert(model, placement, activations, weights)


def macs(channels: int = CHANNELS, size: int = SIZE, depth: int = DEPTH, kernel: int = KERNEL) -> int:
    """Multiply-accumulates of one image through `chain`."""
    return depth * channels**2 * kernel**2 * size**2


def stream(size_bytes: int) -> onnx.ModelProto:
    """One addition of two FP32 inputs of about `size_bytes` each; a run moves three times as much."""
    shape = stream_shape(size_bytes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")]
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)
    node = helper.make_node("Add", ["a", "b"], ["sum"], name="add")
    return _model(helper.make_graph([node], "stream", inputs, [output]))


def stream_shape(size_bytes: int) -> tuple[int, int, int, int]:
    """(1, 64, H, 1024) in FP32, 64 * 1024 * 4 bytes per row."""
    return (1, 64, max(1, size_bytes // (64 * 1024 * 4)), 1024)


@functools.cache
def _weights(channels: int, depth: int, kernel: int, seed: int) -> tuple[tuple[NDArray[np.int8], ...], np.float32]:
    rng = np.random.default_rng(seed)
    shape = (channels, channels, kernel, kernel)
    integers = tuple(
        rng.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT, shape, dtype=np.int8, endpoint=True) for _ in range(depth)
    )
    # He et al. 2015 (arXiv:1502.01852), eq. 10; a uniform distribution over [-L, L] has the variance L^2 / 3.
    deviation = np.sqrt(2 / (channels * kernel * kernel))
    return integers, np.float32(deviation / (WEIGHT_LIMIT / np.sqrt(3)))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

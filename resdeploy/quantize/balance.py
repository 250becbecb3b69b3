"""Spreads the error of 8 bits over a graph's channels where each weight has one scale for all of them.

With one scale per tensor a channel of small weights, or small values, gets few of the levels. Two sets of factors,
exact in FP32, put that right (cross-layer equalization: Nagel et al. 2019, arXiv:1906.04721, section 4.1; factors on
what a layer reads: Xiao et al. 2022, arXiv:2211.10438):

rows      An output channel of a layer is divided by a factor, which its readers multiply back (`channels.rescale`):
          the largest weight of its row over the largest of the layer. In a residual stream several layers write a
          channel, and the largest of their factors is taken.
columns   What a layer reads is multiplied by a factor per channel, its weights divided by it
          (`channels.scale_before`). That is a Mul, which TensorRT-RTX puts into the kernel that quantizes.

A factor m of a column makes its values larger and its weights smaller, so it moves error from one to the other. With a
the scale of the activation, w that of the weight, E the energy of the column's weights, P the mean square of the
channel's values and n its number of weights, the error of rounding in the layer's outputs is proportional to

    a^2 sum(E / m^2) + w^2 sum(n P m^2),    a = max(m largest value) / 255,    w = max(largest weight / m) / 127

For given a and w each channel has its own best m, `(a^2 E / (w^2 n P)) ^ (1/4)`, within the bounds that a and w set.
The factors' common size does not matter, so a is chosen, and w is searched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from resdeploy.graph import channels
from resdeploy.graph.index import Index, attribute, by_name, copy, set_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.graph.channels import Ties
    from resdeploy.graph.qdq_placement import Placement
    from resdeploy.quantize.calibrate import Runner

# Columns and rows in turns: the RMS logit errors of ResNet-20 (three calibration sets, 1,000 test images) after two and
# four rounds were 0.166 and 0.163.
ROUNDS = 4
# A row of hardly any weight is not blown up beyond this.
MIN_FACTOR = 0.02
# Scales of weights that are tried: multiples of the smallest that leaves any choice of factors.
STEPS = np.geomspace(1, 30, 40)
SEEN = "seen"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A convolution."""

    node: onnx.NodeProto
    weight: NDArray[np.float64]
    data: str  # the tensor it reads
    written: NDArray[np.int64]  # (out,): the ties of the channels it writes


@dataclass(frozen=True, kw_only=True, eq=False)
class _Values:
    """What a tensor's channels hold, each (channels,)."""

    largest: NDArray[np.float64]  # magnitude
    squares: NDArray[np.float64]  # their mean


def balance(
    model: onnx.ModelProto,
    placement: Placement,
    batches: Sequence[NDArray[Any]],
    run: Runner,
    *,
    exact: Collection[str] = (),
) -> onnx.ModelProto:
    """The graph with channels balanced for one scale per tensor.

    Args:
        model: a float graph with inferred shapes.
        placement: of its Q/DQ pairs.
        batches: images, each (n, C, H, W); none: the graph as it is.
        run: opens a graph for running.
        exact: tensors whose quantization is exact as they are.
    """
    batches = [batch for batch in batches if len(batch)]
    tied = channels.ties(model)
    layers = _layers(model, placement, tied)
    tensors = [t for t in dict.fromkeys(layer.data for layer in layers) if t not in exact]
    if not batches or not tensors:
        return model
    values = _observe(model, tensors, tied, batches, run)
    if not all(np.isfinite(seen.largest).all() for seen in values.values()):
        return model  # `calibrate.observe` says which tensor it is
    divisors = np.ones(tied.count)
    factors: dict[str, NDArray[np.float64]] = {}
    for _ in range(ROUNDS):
        factors = {
            tensor: _column_factors([layer for layer in layers if layer.data == tensor], seen, divisors)
            for tensor, seen in values.items()
        }
        divisors = _even_rows(layers, tied, factors)
    # `factors` are of the values as they were: what a tensor is divided by is multiplied back.
    factors = {tensor: factor * divisors[tied.tensors[tensor]] for tensor, factor in factors.items()}
    readers = {layer.node.name for layer in layers}
    return channels.scale_before(channels.rescale(model, tied, divisors), factors, readers)


def _layers(model: onnx.ModelProto, placement: Placement, tied: Ties) -> list[_Layer]:
    """The quantized convolutions whose channels are known.

    A Gemm is left alone: an image shows it each of its inputs once, and where each channel ends is not known from a few
    hundred values. With factors that make all of them end at the limit, other images are cut off.
    """
    index = Index(model)
    nodes = by_name(index.nodes)
    layers = []
    for site in placement.weights:
        node = nodes[site.node]
        if node.op_type == "Conv" and node.output[0] in tied.tensors:
            weight = index.array(site.tensor).astype(np.float64)
            layers.append(_Layer(node=node, weight=weight, data=site.data, written=tied.tensors[node.output[0]]))
    return [layer for layer in layers if len(tied.tensors[layer.data]) == len(_columns(layer.node, layer.weight))]


def _columns(node: onnx.NodeProto, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """(channels read, weights that read each)."""
    groups = attribute(node, "group", 1)
    split = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)  # (groups, out, in, taps)
    return np.asarray(split.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1))


def _even_rows(layers: Sequence[_Layer], tied: Ties, factors: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """What each tie is divided by, given what the columns are multiplied by."""
    shares = np.zeros(tied.count)
    for layer in layers:
        read = 1 / factors[layer.data] if layer.data in factors else np.ones(len(_columns(layer.node, layer.weight)))
        weight = np.abs(channels.rescale_weight(layer.node, layer.weight, read, np.ones(1)))
        largest = weight.reshape(len(weight), -1).max(axis=1)
        np.maximum.at(shares, layer.written, largest / max(largest.max(), np.finfo(np.float64).tiny))
    divisors = np.where(shares > 0, np.maximum(shares, MIN_FACTOR), 1.0)
    divisors[channels.PINNED] = 1.0
    return divisors


def _column_factors(readers: Sequence[_Layer], values: _Values, divisors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors of one tensor's channels, of least error over all its readers as if these had one scale."""
    read = np.ones(len(values.largest))
    parts = [
        _columns(layer.node, channels.rescale_weight(layer.node, layer.weight, read, divisors[layer.written]))
        for layer in readers
    ]
    columns = np.concatenate(parts, axis=1)
    alive = (values.largest > 0) & (np.abs(columns).max(axis=1) > 0)
    factors = np.ones(len(columns))
    if alive.any():
        factors[alive] = best_factors(values.largest[alive], values.squares[alive], columns[alive])
    return factors


def best_factors(
    largest: NDArray[np.float64], squares: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The factors of least error, by the formula in the head of the file; the tensor's largest value stays.

    Args:
        largest: (channels,), positive: the largest magnitude of each.
        squares: (channels,): the mean square of its values.
        columns: (channels, n): the weights that read it, not all zero.
    """
    weights, energy = np.abs(columns).max(axis=1), np.square(columns).sum(axis=1)
    noise = squares * columns.shape[1]
    activation = 1 / 255
    best, least = np.ones(len(largest)), np.inf
    for step in STEPS:
        weight = (weights * largest).max() / (127 * 255 * activation) * step
        factors = np.sqrt(activation / weight * np.sqrt(energy / noise))
        factors = np.clip(factors, weights / (127 * weight), 255 * activation / largest)
        error = activation**2 * (energy / factors**2).sum() + weight**2 * (noise * factors**2).sum()
        if error < least:
            best, least = factors, error
    return np.asarray(best * (largest.max() / (best * largest).max()))


def _observe(
    model: onnx.ModelProto, tensors: Sequence[str], tied: Ties, batches: Sequence[NDArray[Any]], run: Runner
) -> dict[str, _Values]:
    """The values of each tensor's channels on the images."""
    graph = _watch(model, tensors)
    shape = batches[0].shape[1:]
    with run(graph, (shape[0], shape[1], shape[2])) as predict:
        rows = np.concatenate([predict(batch) for batch in batches]).astype(np.float64)
    sizes = [len(tied.tensors[tensor]) for tensor in tensors for _ in range(2)]
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return {
        tensor: _Values(largest=largest.max(axis=0), squares=squares.mean(axis=0))
        for tensor, largest, squares in zip(tensors, parts[::2], parts[1::2], strict=True)
    }


def _watch(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with one output: for each tensor the largest magnitude of each channel of an image, then mean squares.

    Its shape is (n, 2 x channels of all tensors).
    """
    result = copy(model)
    graph = result.graph
    columns = []
    for i, tensor in enumerate(tensors):
        stem = f"{SEEN}/{i}"
        graph.node.append(helper.make_node("Abs", [tensor], [f"{stem}/ReduceMax"]))
        graph.node.append(helper.make_node("Mul", [tensor, tensor], [f"{stem}/ReduceMean"]))
        for reduce in ("ReduceMax", "ReduceMean"):
            column = f"{stem}/{reduce}/of"
            graph.node.append(helper.make_node(reduce, [f"{stem}/{reduce}"], [column], axes=[2, 3], keepdims=0))
            columns.append(column)
    graph.node.append(helper.make_node("Concat", columns, [SEEN], axis=1))
    set_output(graph, SEEN, [graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch", None])
    return result

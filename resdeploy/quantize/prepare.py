"""What is done to the float graph before it is quantized, so that it loses less: exact in FP32, and nothing to run.

Two things. The input becomes whole pixel values where the graph or its description says how it was normalised
(`graph.pixels`): no error is left there. And channels are rescaled through what commutes with a factor
(`graph.channels`), so that the channels of a tensor, which share one scale, have ranges more alike.

How far: with r the largest magnitude of a channel over the largest of its tensor, and the largest such r among the
tensors of a residual stream, the channels are divided by `r ** BALANCE`. 1 would make the ranges of activations equal,
0 leaves the weights' alone; Nagel et al. 2019 (arXiv:1906.04721, section 4.1) balance both, likewise with a square
root.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from resdeploy.graph import channels, pixels
from resdeploy.graph.index import copy, set_output
from resdeploy.graph.qdq_placement import Activation
from resdeploy.records import Effort, Preprocessing, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.graph.qdq_placement import Placement
    from resdeploy.quantize.calibrate import Runner

# Of 0, 0.5 and 1, by ResNet-20's RMS logit error on 1,000 CIFAR-10 training images that calibration did not see: on
# S8S8 0.5 and 1 took 2 to 5 % off; on U8S8 0.5 took up to 2 % off and 1 added 1 to 3 %.
BALANCE = 0.5
# A channel that is hardly ever active is not blown up beyond this.
MIN_FACTOR = 0.02
# Images whose channel ranges decide the factors, which are exact whatever they are: the first ones, as many as 16 of
# 224 x 224 hold pixels, and no more than this.
HEAD_ELEMENTS, HEAD_IMAGES = 16 * 3 * 224 * 224, 128
RANGES = "ranges"


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A graph that computes what the given one does, and tensors of it whose quantization is exact."""

    model: onnx.ModelProto
    exact: Mapping[str, Activation]


def make_input_exact(model: onnx.ModelProto, spec: Preprocessing | None, target: Target, effort: Effort) -> Prepared:
    """The graph with whole pixel values where the first convolutions read, if its input allows it.

    A uint8 input always does. A normalised float one needs three small operators before the first convolution, the
    price of `effort` high.

    Args:
        model: in canonical form.
        spec: how its images are normalised; None: unknown.
        target: whose integers it will hold.
        effort: what may be spent.
    """
    floats = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    if floats and effort != "high":
        return Prepared(model=model, exact={})
    signed = target == "tensorrt"
    exact = pixels.to_whole_pixels(model, spec, signed=signed)
    if exact is None:
        return Prepared(model=model, exact={})
    del exact.model.graph.value_info[:]
    how = Activation(scale=1.0, zero_point=0, signed=signed)
    return Prepared(
        model=onnx.shape_inference.infer_shapes(exact.model, strict_mode=True, data_prop=True),
        exact=dict.fromkeys(exact.tensors, how),
    )


def peek(
    batches: Iterable[NDArray[Any]],
) -> tuple[list[NDArray[Any]], Iterator[NDArray[Any]]]:
    """The first images, and all batches, these included."""
    stream = iter(batches)
    head: list[NDArray[Any]] = []
    images = elements = 0
    for batch in stream:
        head.append(batch)
        images, elements = images + len(batch), elements + batch.size
        if images >= HEAD_IMAGES or elements >= HEAD_ELEMENTS:
            break
    return head, itertools.chain(head, stream)


def rescale(
    model: onnx.ModelProto, placement: Placement, batches: Sequence[NDArray[Any]], run: Runner
) -> onnx.ModelProto:
    """The graph with channels rescaled towards equal ranges in the tensors that will be quantized.

    Args:
        model: a float graph with inferred shapes.
        placement: of its Q/DQ pairs.
        batches: images, each (n, C, H, W); none: the graph as it is.
        run: opens a graph for running.
    """
    batches = [batch for batch in batches if len(batch)]
    tied = channels.ties(model)
    tensors = [name for name in placement.observed if tied.tensors[name].any()]
    if tied.count == 1 or not tensors or not batches:
        return model
    graph = _watch_magnitudes(model, tensors)
    shape = batches[0].shape[1:]
    with run(graph, (shape[0], shape[1], shape[2])) as predict:
        largest = np.max([predict(batch).max(axis=0) for batch in batches], axis=0)
    if not np.isfinite(largest).all():
        return model  # `calibrate.observe` says which tensor it is
    factors = np.zeros(tied.count)
    ends = np.cumsum([tied.tensors[name].size for name in tensors])
    for name, magnitudes in zip(tensors, np.split(largest.astype(np.float64), ends[:-1]), strict=True):
        np.maximum.at(factors, tied.tensors[name], magnitudes / max(magnitudes.max(), np.finfo(np.float32).tiny))
    factors = np.where(factors > 0, np.maximum(factors**BALANCE, MIN_FACTOR), 1.0)
    factors[channels.PINNED] = 1.0
    return channels.rescale(model, tied, factors)


def _watch_magnitudes(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with one output (n, channels of all tensors): the largest magnitude of each channel of an image."""
    result = copy(model)
    graph = result.graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info, *graph.output)}
    columns = []
    for i, tensor in enumerate(tensors):
        stem = f"{RANGES}/{i}"
        graph.node.append(helper.make_node("Abs", [tensor], [f"{stem}/magnitude"]))
        column = f"{stem}/magnitude"
        if ranks[tensor] > 2:
            axes = list(range(2, ranks[tensor]))
            graph.node.append(helper.make_node("ReduceMax", [column], [f"{stem}/largest"], axes=axes, keepdims=0))
            column = f"{stem}/largest"
        columns.append(column)
    graph.node.append(helper.make_node("Concat", columns, [RANGES], axis=1))
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    set_output(graph, RANGES, [batch, None])
    return result

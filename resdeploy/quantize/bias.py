"""Bias correction: quantization shifts the mean of a layer's outputs, and its bias can shift it back.

The empirical form of Nagel et al. 2019 (arXiv:1906.04721, section 4.2 and appendix): run the float and the quantized
network on the same images and add to each bias what its layer's outputs lack on average. Shifts from the layers before
must have been corrected by then, or they would be corrected twice, so the paper goes layer by layer. Here one graph
holds both networks, and each layer of the quantized one is corrected on the spot by the mean over the batch: one pass,
whatever the depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.graph.index import Index, add_constant, copy, input_name, node_name, set_nodes, set_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.graph.qdq_placement import Placement, Weight, WeightSite
    from resdeploy.quantize.calibrate import Runner

# Images kept: 16 of 224 x 224 at most, whose last maps still give 784 values per channel.
IMAGE_ELEMENTS = 16 * 3 * 224 * 224
# Images whose mean corrects a layer on the spot, and all that are run: both networks, in float, take long. RMS logit
# errors of CIFAR's ResNet-20 and -56 as shares of those from 256 images (means of three sets): from 6 images, which
# have as many values in the last maps as 8 of 224 x 224, 1.07 and 1.09; from 12, 1.08 and 1.09; uncorrected 1.43, 1.14.
BATCH_ELEMENTS = 8 * 3 * 224 * 224
MAX_BATCH_SIZE = 64
LACKING = "lacking"
FLOAT = "float/"


class Reservoir:
    """A seeded uniform sample of a stream of images, bounded in memory (Vitter 1985, algorithm R)."""

    def __init__(self, seed: int) -> None:
        self.images: list[NDArray[np.float32]] = []
        self._seen = 0
        self._random = np.random.default_rng(seed)

    def watch(self, batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The batches themselves, looked at in passing."""
        for batch in batches:
            for image in batch:
                self._seen += 1
                if len(self.images) < max(1, IMAGE_ELEMENTS // image.size):
                    self.images.append(image.copy())
                elif (slot := int(self._random.integers(self._seen))) < len(self.images):
                    self.images[slot] = image.copy()
            yield batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """What one pass of both networks tells."""

    shifts: Mapping[str, NDArray[np.float64]]  # what each quantized convolution and Gemm lacks on average, (channels,)
    images: NDArray[np.float32]  # of the pass, (n, C, H, W)
    logits: NDArray[np.float32]  # the float network's, (n, classes)


def correction(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    placement: Placement,
    weights: Mapping[str, Weight],
    images: Sequence[NDArray[np.float32]],
    run: Runner,
) -> Correction:
    """What each quantized convolution and Gemm lacks on average, those before it corrected.

    Args:
        model: the float graph, its batch dimension symbolic.
        quantized: made from it by `qdq_placement.insert`.
        placement: the one it was made with.
        weights: the ones it was made with.
        images: each (C, H, W).
        run: opens a graph for running.
    """
    sites = _sites(model, placement)
    channels, height, width = images[0].shape
    size = min(MAX_BATCH_SIZE, max(1, BATCH_ELEMENTS // images[0].size), len(images))
    # Only whole batches: a runtime may fill up the last one, and then its mean would not be that of the images.
    most = max(size, min(len(images), BATCH_ELEMENTS // images[0].size))
    picked = np.random.default_rng(0).permutation(len(images))[: most // size * size]  # those kept first are the oldest
    whole = np.stack([images[k] for k in sorted(picked)])
    with run(pair_networks(model, quantized, sites, weights, size), (channels, height, width)) as predict:
        rows = predict(whole)
    *parts, logits = np.split(rows, np.cumsum([weights[site.node].scale.size for site in sites]), axis=1)
    return Correction(
        shifts={site.node: part.mean(axis=0, dtype=np.float64) for site, part in zip(sites, parts, strict=True)},
        images=whole,
        logits=logits,
    )


def _sites(model: onnx.ModelProto, placement: Placement) -> tuple[WeightSite, ...]:
    """The quantized operators that can have a bias."""
    biasable = {node_name(node) for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    return tuple(site for site in placement.weights if site.node in biasable)


def pair_networks(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    sites: Sequence[WeightSite],
    weights: Mapping[str, Weight],
    size: int,
) -> onnx.ModelProto:
    """Both networks in one graph for batches of `size`, with one output (size, channels of all sites + classes).

    It is what each layer of the quantized network lacks on average, image by image, then the float network's logits.

    The quantized one's weights are written as float numbers, so that no runtime makes integer kernels of it, which
    could saturate: its activations are rounded, and all else is exact.
    """
    result = copy(quantized)
    graph = result.graph
    site_of = {site.node: site for site in sites}
    nodes = float_twins(model, graph)
    columns: dict[str, str] = {}
    for node in quantized.graph.node:
        twin = copy(node)
        nodes.append(twin)
        if (site := site_of.get(node_name(node))) is None:
            continue
        weight, stem = weights[site.node], f"{LACKING}/{site.node}"
        twin.input[1] = add_constant(graph, f"{stem}/weight", weight.in_float(site.axis))
        twin.output[0] = f"{stem}/raw"
        nodes += _correction_nodes(node.output[0], stem, list(range(2, weight.values.ndim)))
        columns[site.node] = f"{stem}/column"
    logits = f"{LACKING}/logits"
    nodes.append(helper.make_node("Flatten", [FLOAT + model.graph.output[0].name], [logits], axis=1))
    nodes.append(helper.make_node("Concat", [*(columns[site.node] for site in sites), logits], [LACKING], axis=1))
    del graph.value_info[:]
    set_nodes(graph, nodes)
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    classes = math.prod(dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:])
    channels = sum(weights[site.node].scale.size for site in sites)
    # A runtime would ask a run of its own for an unknown one.
    set_output(graph, LACKING, [size, channels + classes if classes else None])
    return result


def float_twins(model: onnx.ModelProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The float network's nodes under new names; its weights are added to `graph`."""
    own = {tensor.name for tensor in model.graph.initializer} | {name for n in model.graph.node for name in n.output}
    for tensor in model.graph.initializer:
        graph.initializer.append(tensor)
        graph.initializer[-1].name = FLOAT + tensor.name
    twins = []
    for node in model.graph.node:
        twin = copy(node)
        twin.name = FLOAT + node_name(node)
        twin.input[:] = [FLOAT + name if name in own else name for name in node.input]
        twin.output[:] = [FLOAT + name if name else name for name in node.output]
        twins.append(twin)
    return twins


def _correction_nodes(output: str, stem: str, space: list[int]) -> list[onnx.NodeProto]:
    """From `stem/raw` to `output`: what an image's values lack on average is a column, the batch's average is added."""
    nodes = [helper.make_node("Sub", [FLOAT + output, f"{stem}/raw"], [f"{stem}/lacking"])]
    image = f"{stem}/lacking"
    if space:
        image = f"{stem}/image"
        nodes.append(helper.make_node("ReduceMean", [f"{stem}/lacking"], [image], axes=space, keepdims=1))
    return [
        *nodes,
        helper.make_node("Flatten", [image], [f"{stem}/column"], axis=1),
        helper.make_node("ReduceMean", [image], [f"{stem}/batch"], axes=[0], keepdims=1),
        helper.make_node("Add", [f"{stem}/raw", f"{stem}/batch"], [output]),
    ]


def shift_biases(model: onnx.ModelProto, by: Mapping[str, NDArray[np.float64]]) -> onnx.ModelProto:
    """A copy of the float graph with each named operator's bias shifted; one that had none gets one."""
    result = copy(model)
    index = Index(result)
    for node in result.graph.node:
        if (shift := by.get(node_name(node))) is None:
            continue
        stored = index.value(input_name(node, 2))
        bias = shift if stored is None else numpy_helper.to_array(stored) + shift
        name = add_constant(result.graph, f"{node_name(node)}/bias/corrected", bias.astype(np.float32))
        node.input[:] = [*node.input[:2], name]
    return result

"""Places the Q/DQ pairs of INT8 so that the target fuses, on skips of residual blocks too, and inserts them.

A pair belongs to a tensor: all readers of the tensor read the dequantized value. What differs between the targets:

                              tensorrt          openvino            onnxruntime
  activations                 S8, symmetric     U8, zero point      U8, zero point
  convolution before an Add   not quantized     quantized unless    quantized (QLinearAdd takes integers only)
                                                the skip is another
                                                convolution (below)
  other convolution outputs   where read by     where read by       always: QLinearConv writes integers only
                              a weighted op     a weighted op
  max pooling, slice, pad     read side only    source side only    both sides
  global pooling's output     -                 -                   quantized (QLinearGlobalAveragePool)
  weights in the file         float, with Q/DQ  int8, with DQ       int8, with DQ
  biases                      float             float               int32, with DQ

Common rules (NVIDIA's "Q/DQ placement recommendations", OpenVINO's low precision transformations, ONNX Runtime's QDQ
selectors): a pair at the input of each weighted operator, at the skip operand of each residual Add (in a downsampling
block that is the projection's output), at the input of the global pooling. Weights are symmetric, a scale per channel.
TensorRT 8.6 quantizes float weights itself and does not take int8 initializers, hence its larger file.

TensorRT-RTX 1.7 (layer lists of its compiler, `benchmarks/rtx_placements.py`): pairs before weighted operators alone.
No form makes its convolutions write INT8. They write FP16 and take in bias, sum and ReLU if all channels of the weight
have one scale; with a scale per channel they write FP32 for a kernel more to finish. A quantized skip costs a kernel.
Activations are U8 with a zero point here, which `zero_points` brings to S8 at 0; scales are numbers of FP16.

OpenVINO and identity blocks (executed graphs of 2026.4, ResNet-18 and -50): with the skip alone quantized, its low
precision transformation puts the skip's scale as a Multiply between convolution and Add, and the pass that marks
what convolutions will absorb (SnippetsMarkSkipped) looks through a FakeQuantize there but not through a Multiply, so
the Add becomes a kernel of its own. Quantizing the main branch too lets all fuse. Where the skip is a projection it
fuses without, and one rounding less is more exact.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.graph import clips
from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    by_name,
    copy,
    drop_unused,
    input_name,
    insert_nodes,
    node_name,
    opset_version,
)
from resdeploy.graph.residual import ACTIVATIONS, ResidualBlock, find_blocks
from resdeploy.graph.zero_points import can_shift
from resdeploy.records import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The placement whose files run in INT8 in all of several runtimes (docs/matrix.md): OpenVINO takes in all that ONNX
# Runtime needs, while of OpenVINO's own form ONNX Runtime leaves convolutions in float. TensorRT takes no zero point.
_SERVES: Mapping[frozenset[Target], Target] = {frozenset({"openvino", "onnxruntime"}): "onnxruntime"}
# Per-axis scales of DequantizeLinear came with opset 13; TensorRT 8.6 reads 17 at most.
MIN_OPSET = 13
# Operators that only move values: what goes in quantized comes out with the same scale.
TRANSPARENT = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Pad", "Identity"}
)
AVERAGES = frozenset({"GlobalAveragePool", "AveragePool"})
PAIR = ("QuantizeLinear", "DequantizeLinear")
# Whose integer kernels never saturate, and want a pair at each edge.
NVIDIA: frozenset[Target] = frozenset({"tensorrt", "tensorrt-rtx"})
QUANTIZED_OPS = frozenset({*PAIR, "QLinearConv", "ConvInteger", "MatMulInteger"})
# The largest bias that still leaves int32 room for the accumulated products.
BIAS_LIMIT = 2**30


@dataclass(frozen=True, kw_only=True)
class WeightSite:
    """The constant weight of one operator."""

    node: str  # the operator, by `node_name`
    tensor: str  # its weight: an initializer or the output of a Constant
    axis: int  # the axis of output channels
    data: str  # the activation it is applied to


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the Q/DQ pairs of one graph go for one target."""

    target: Target
    # Tensor -> the tensor whose range it takes: itself, or the source of what only moves values.
    activations: Mapping[str, str]
    weights: tuple[WeightSite, ...]
    kept_float: Mapping[str, str]  # operator -> why it is not quantized
    unfusable: Mapping[str, str]  # residual Add -> why no INT8 kernel can take it in
    blocks: tuple[ResidualBlock, ...]
    # Tensors whose range must have zero in its middle: what reads them can take no shift (`zero_points.can_shift`).
    centred: frozenset[str] = frozenset()

    @property
    def one_scale(self) -> bool:
        """Whether all channels of a weight have one scale."""
        return self.target == "tensorrt-rtx"

    def is_rounded_for(self, node: str) -> bool:
        """Whether a node that reads a tensor with a pair reads the dequantized value: on TensorRT-RTX sums do not."""
        return self.target != "tensorrt-rtx" or any(site.node == node for site in self.weights)

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges calibration must supply."""
        return tuple(dict.fromkeys(self.activations.values()))


@dataclass(frozen=True, kw_only=True)
class Activation:
    """Per-tensor quantization: `real = (q - zero_point) * scale`, q in uint8 or int8."""

    scale: float
    zero_point: int
    signed: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Weight:
    """Symmetric quantization: `real = values * scale`, the scale along the site's axis.

    Where the target takes one scale per tensor (`Placement.one_scale`), all are equal.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]  # (channels,), positive

    def in_float(self, axis: int) -> NDArray[np.float32]:
        """The numbers that are multiplied with, the scale along `axis`."""
        others = [i for i in range(self.values.ndim) if i != axis]
        return self.values.astype(np.float32) * np.expand_dims(self.scale, others)


def form_for(targets: Collection[Target]) -> Target:
    """Whose placement one file follows that is to be INT8 in each of these runtimes.

    Raises:
        UsageError: no form is.
    """
    together = frozenset(targets)
    if len(together) == 1:
        return next(iter(together))
    if together not in _SERVES:
        raise UsageError(
            f"no form of Q/DQ is INT8 in all of {', '.join(sorted(together))}",
            cause="TensorRT takes symmetric activations alone, which ONNX Runtime computes in float",
            fix="Write a file for each: --target tensorrt, and --target openvino,onnxruntime",
        )
    return _SERVES[together]


def plan(model: onnx.ModelProto, target: Target, *, keep_float: Collection[str] = ()) -> Placement:
    """Where Q/DQ pairs go in a float graph, batch normalisations folded.

    Every convolution and matrix product with constant weights is quantized, first and last layer included,
    except those named in `keep_float`.

    Raises:
        UsageError: quantized already, nothing to quantize, or `keep_float` names no weighted operator.
        MalformedInput: an opset before per-channel quantization.
    """
    _refuse(model)
    index = Index(model)
    sites, kept_float = _weight_sites(index, keep_float)
    blocks = find_blocks(model)
    tensors = dict.fromkeys(_tensors_to_quantize(index, target, sites, blocks))
    activations: dict[str, str] = {}
    for tensor in tensors:
        chain = _chain(index, tensor)
        if target in NVIDIA:  # one pair an edge, as NVIDIA has them, on its source's scale where that has one
            activations[tensor] = next((link for link in reversed(chain) if link in tensors), tensor)
            continue
        for link in chain[-1:] if target == "openvino" else chain:
            activations[link] = chain[-1]
    unfusable = {b.add: why for b in blocks if (why := _obstacle(index, target, b, sites, activations))}
    nodes = by_name(index.nodes)
    fixed = [site for site in sites if target == "tensorrt-rtx" and not can_shift(nodes[site.node])]
    return Placement(
        target=target,
        activations=activations,
        weights=sites,
        kept_float=kept_float,
        unfusable=unfusable,
        blocks=blocks,
        centred=frozenset(activations[site.data] for site in fixed),
    )


def _refuse(model: onnx.ModelProto) -> None:
    if any(node.op_type in QUANTIZED_OPS for node in model.graph.node):
        raise UsageError("the file is quantized already", fix="Quantize the FP32 file that it was made from")
    opset = opset_version(model, 0)
    if opset < MIN_OPSET:
        raise MalformedInput(
            f"the file has opset {opset}, which cannot hold per-channel scales",
            fix="Export it again: resdeploy export MODEL -o F.onnx",
        )


def _weight_sites(index: Index, keep_float: Collection[str]) -> tuple[tuple[WeightSite, ...], dict[str, str]]:
    sites: list[WeightSite] = []
    kept_float: dict[str, str] = {}
    for node in index.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        name = node_name(node)
        if name in kept_float or any(site.node == name for site in sites):
            raise MalformedInput(f"two operators are called {name}", fix="Give every node a name of its own")
        weight = index.value(node.input[1])
        if name in keep_float:
            kept_float[name] = "kept in float on request"
        elif node.op_type == "ConvTranspose":
            kept_float[name] = "transposed convolutions are not quantized"
        elif weight is None or node.input[0] in index.constants:
            kept_float[name] = "its weights are not constant"
        elif weight.data_type != onnx.TensorProto.FLOAT:
            kept_float[name] = f"its weights are {onnx.TensorProto.DataType.Name(weight.data_type)}, not FLOAT"
        else:
            sites.append(WeightSite(node=name, tensor=node.input[1], axis=_axis(node, weight), data=node.input[0]))
    if unknown := set(keep_float) - kept_float.keys():
        raise UsageError(
            f"no convolution or matrix product is called {', '.join(sorted(unknown))}",
            fix=f"The first are: {', '.join([s.node for s in sites[:5]])}",
        )
    if not sites:
        raise UsageError(
            "there is nothing to quantize: no convolution or matrix product with constant float weights",
            fix="Check that this is the classifier's ONNX file",
        )
    return tuple(sites), kept_float


def _axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return len(weight.dims) - 1


def _tensors_to_quantize(
    index: Index, target: Target, sites: tuple[WeightSite, ...], blocks: tuple[ResidualBlock, ...]
) -> Iterator[str]:
    """Tensors that must be read quantized, in no particular order and with repetitions."""
    quantized = {site.node for site in sites}
    for site in sites:
        yield site.data
    if target == "tensorrt-rtx":
        return
    fusable = [block for block in blocks if block.last_conv in quantized]
    for block in fusable:
        yield block.skip
        if target == "onnxruntime" or (target == "openvino" and block.shortcut != "projection"):
            yield block.main
    averages = [node for node in index.nodes if node.op_type in AVERAGES]
    for node in averages:
        yield node.input[0]
    if target == "onnxruntime":
        makers = [node for node in index.nodes if node_name(node) in quantized] + averages
        yield from (tensor for node in makers if (tensor := _result(index, node)) is not None)
        for block in fusable:
            if index.readers[block.output]:
                yield block.output


def _result(index: Index, node: onnx.NodeProto) -> str | None:
    """What a node and the activation fused into it produce; None for an output of the graph, which stays float."""
    follower = index.only_reader(node.output[0])
    tensor = node.output[0] if follower is None or follower.op_type not in ACTIVATIONS else follower.output[0]
    reader, read = index.only_reader(tensor), tensor
    while reader is not None and _moves(index, reader):  # a Flatten of what is pooled last
        read = reader.output[0]
        reader = index.only_reader(read)
    return str(tensor) if index.readers[read] else None


def range_source(index: Index, tensor: str) -> str:
    """The tensor whose values `tensor` holds, moved at most: where its range comes from."""
    return _chain(index, tensor)[-1]


def _chain(index: Index, tensor: str) -> list[str]:
    """`tensor`, then what it is made of as long as values are only moved; the last one decides the range."""
    chain = [tensor]
    while (node := index.maker(chain[-1])) is not None and _moves(index, node):
        chain.append(node.input[0])
    return chain


def _moves(index: Index, node: onnx.NodeProto) -> bool:
    if node.op_type not in TRANSPARENT or node.input[0] in index.constants:
        return False
    if node.op_type != "Pad" or not input_name(node, 2):
        return True
    value = index.value(node.input[2])  # zero is exact in every scheme, another filler may lie outside the range
    return value is not None and not numpy_helper.to_array(value).any()


def _obstacle(
    index: Index,
    target: Target,
    block: ResidualBlock,
    sites: tuple[WeightSite, ...],
    activations: Mapping[str, str],
) -> str:
    """Why a residual addition cannot be fused into an INT8 kernel; "" where it can.

    That kernel is the last convolution of the main branch; ONNX Runtime adds in a kernel of its own, QLinearAdd.
    TensorRT-RTX adds in FP16, whatever the convolution multiplies.
    """
    if block.last_conv is None:
        node = index.maker(block.main)
        return f"its main branch ends in {node.op_type if node else 'an input'}, not in a convolution"
    if target != "tensorrt-rtx" and all(site.node != block.last_conv for site in sites):
        return f"its last convolution {block.last_conv} stays in float"
    if target != "onnxruntime" and index.only_reader(block.main) is None:
        return f"the output of its last convolution {block.last_conv} is read elsewhere too"
    if target != "tensorrt-rtx" and not _leaves_quantized(index, target, block.output, activations):
        return "its sum is read in float"
    return ""


def _leaves_quantized(index: Index, target: Target, tensor: str, activations: Mapping[str, str]) -> bool:
    """Whether a sum leaves its kernel quantized.

    OpenVINO's convolution takes in a batch norm and an activation behind the sum too: executed graphs of 2026.4,
    pre-activation networks, whose last sum of a stage is read by these alone.
    """
    while tensor not in activations:
        reader = index.only_reader(tensor)
        if target != "openvino" or reader is None or reader.op_type not in (*ACTIVATIONS, "BatchNormalization"):
            return False
        tensor = reader.output[0]
    return True


def insert(
    model: onnx.ModelProto,
    placement: Placement,
    activations: Mapping[str, Activation],
    weights: Mapping[str, Weight],
) -> onnx.ModelProto:
    """A copy of the graph with Q/DQ pairs.

    Args:
        model: the graph that `placement` was planned for.
        placement: where the pairs go.
        activations: for every tensor of `placement.observed`.
        weights: for every operator of `placement.weights`, by its name.

    Raises:
        ValueError: a bias does not fit into int32 under the scales given.
    """
    result = copy(model)
    writer = _Writer(result, placement, activations)
    dequantized = writer.pairs()
    for node in result.graph.node:
        if placement.is_rounded_for(node_name(node)):
            node.input[:] = [dequantized.get(name, name) for name in node.input]
    nodes = by_name(result.graph.node)
    for site in placement.weights:
        writer.weight(nodes[site.node], site, weights[site.node])
    insert_nodes(result.graph, before=writer.before, after=writer.after)
    if placement.target == "onnxruntime":
        clips.leave_to_quantizers(result)
    drop_unused(result.graph)
    return result


class _Writer:
    """Makes the new nodes and initializers, and remembers where each node goes."""

    def __init__(self, model: onnx.ModelProto, placement: Placement, activations: Mapping[str, Activation]) -> None:
        self.index = Index(model)
        self.graph = model.graph
        self.placement = placement
        self.activations = activations
        self.after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> nodes that follow its producer
        self.before: dict[str, list[onnx.NodeProto]] = {}  # operator -> nodes that precede it

    def parameters(self, stem: str, scale: NDArray[np.float32], zero_point: NDArray[np.integer]) -> list[str]:
        return [
            add_constant(self.graph, f"{stem}/scale", scale),
            add_constant(self.graph, f"{stem}/zero_point", zero_point),
        ]

    def pairs(self) -> dict[str, str]:
        """Writes the activations' pairs; tensor -> its dequantized twin."""
        parameters: dict[str, list[str]] = {}
        for source in self.placement.observed:
            how = self.activations[source]
            zero_point = np.array(how.zero_point, np.int8 if how.signed else np.uint8)
            parameters[source] = self.parameters(source, np.array(how.scale, np.float32), zero_point)
        for tensor, source in self.placement.activations.items():
            self.after[tensor] = _pair(tensor, tensor, parameters[source])
        return {tensor: f"{tensor}/dequantized" for tensor in self.placement.activations}

    def weight(self, node: onnx.NodeProto, site: WeightSite, weight: Weight) -> None:
        stem = f"{site.node}/weight"
        scale, axis = (weight.scale[0], None) if self.placement.one_scale else (weight.scale, site.axis)
        parameters = self.parameters(stem, scale, np.zeros(scale.shape, np.int8))
        if self.placement.target == "tensorrt":
            new = _pair(add_constant(self.graph, stem, weight.in_float(site.axis)), stem, parameters, axis)
        else:
            stored = add_constant(self.graph, f"{stem}/quantized", weight.values)
            new = [_dequantize(stem, stored, parameters, axis)]
        node.input[1] = f"{stem}/dequantized"
        if self.placement.target == "onnxruntime" and input_name(node, 2):
            new += self.bias(node, site, weight)
        self.before[site.node] = new

    def bias(self, node: onnx.NodeProto, site: WeightSite, weight: Weight) -> list[onnx.NodeProto]:
        """QLinearConv and QGemm add an int32 bias to the int32 products, on their scale."""
        stored = self.index.value(node.input[2])
        if stored is None:
            return []
        scale = weight.scale * np.float32(self.activations[self.placement.activations[site.data]].scale)
        exact = np.rint(numpy_helper.to_array(stored).astype(np.float64) / scale)
        if np.abs(exact).max(initial=0) > BIAS_LIMIT:
            msg = f"the bias of {site.node} does not fit into int32"
            raise ValueError(msg)
        stem = f"{site.node}/bias"
        parameters = self.parameters(stem, scale, np.zeros(scale.shape, np.int32))
        node.input[2] = f"{stem}/dequantized"
        return [_dequantize(stem, add_constant(self.graph, f"{stem}/quantized", exact.astype(np.int32)), parameters, 0)]


def _pair(tensor: str, stem: str, parameters: list[str], axis: int | None = None) -> list[onnx.NodeProto]:
    quantized = f"{stem}/quantized"
    node = helper.make_node("QuantizeLinear", [tensor, *parameters], [quantized], f"{stem}/QuantizeLinear", axis=axis)
    return [node, _dequantize(stem, quantized, parameters, axis)]


def _dequantize(stem: str, quantized: str, parameters: list[str], axis: int | None = None) -> onnx.NodeProto:
    name, output = f"{stem}/DequantizeLinear", f"{stem}/dequantized"
    return helper.make_node("DequantizeLinear", [quantized, *parameters], [output], name, axis=axis)

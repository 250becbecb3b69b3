"""Rewrites valid ONNX that NVIDIA's parser takes for something else without a word, exactly; else refuses it.

    Mean in 16 bits          its 1/n is written as a float into two bytes: the answer is 0
    Selu without attributes  1.6732 and 1.0507, where ONNX's defaults have 24 bits
    GlobalLpPool             sums x^p, not |x|^p
    Clip with min above max  gives min, where ONNX gives max
    pools that round up      keep a window that starts behind the input, which ONNX drops; and how an average that
                             counts padding divides where a window stands over it is not said

Source: onnx-tensorrt 10.1, onnxOpImporters.cpp and importerUtils.cpp (poolingHelper, getKernelParams); the parser of
TensorRT-RTX 1.7.1 makes the same layers of all of them. Q/DQ have a file of their own, `symmetric`. Refused by its
own checks, and so not here: antialias and aspect ratios in Resize, dilated pools, indices of MaxPool, training modes.
DOUBLE is computed in FLOAT: other digits and no other answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from resdeploy.errors import MalformedInput
from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    copy,
    drop_attributes,
    input_name,
    integers,
    node_name,
    opset_version,
    set_nodes,
)
from resdeploy.graph.windows import end_of_last

# The defaults of ONNX's Selu (onnx/defs/math/defs.cc).
SELU: Mapping[str, float] = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
POOLS = ("MaxPool", "AveragePool", "LpPool")


def close(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in operators that the parser takes as ONNX means them; the same object where all are.

    Raises:
        MalformedInput: a pool of which the sizes that decide are not known; it is named.
    """
    index = Index(model)
    unfit = {node_name(node) for node in index.nodes if _differs(node, index)}
    if not unfit:
        return model
    result = copy(model)
    writer = _Writer(result)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        nodes += writer.rewrite(node) if node_name(node) in unfit and node.op_type in writer.how else [node]
    set_nodes(result.graph, nodes)
    return result


def _differs(node: onnx.NodeProto, index: Index) -> bool:
    """Whether the parser may take a node for another."""
    if node.op_type == "Selu":
        return any(attribute(node, name, 0.0) == 0.0 for name in SELU)
    if node.op_type == "Clip":
        return _is_reversed(node, index)
    if node.op_type in POOLS:
        return bool(attribute(node, "ceil_mode", 0)) and (_divides(node) or _drops(node))
    return node.op_type in ("Mean", "GlobalLpPool")


def _is_reversed(clip: onnx.NodeProto, index: Index) -> bool:
    low, high = input_name(clip, 1), input_name(clip, 2)
    if not (low or high):
        return attribute(clip, "min", -math.inf) > attribute(clip, "max", math.inf)
    if index.value(low) is None or index.value(high) is None:
        return False
    return bool((index.array(low) > index.array(high)).any())


def _divides(pool: onnx.NodeProto) -> bool:
    """Whether it matters how a pool counts what a window stands over."""
    return _counts_padding(pool) or pool.op_type == "LpPool"


def _counts_padding(pool: onnx.NodeProto) -> bool:
    return pool.op_type == "AveragePool" and bool(attribute(pool, "count_include_pad", 0))


def _drops(pool: onnx.NodeProto) -> bool:
    """Whether a window may start behind the input, at some size of it."""
    return any(kernel < stride + end for kernel, stride, _, end in _axes(pool))


def _axes(pool: onnx.NodeProto) -> list[tuple[int, int, int, int]]:
    """Per spatial axis: kernel, stride, padding before and behind."""
    kernel = integers(pool, "kernel_shape", ())
    rank = len(kernel)
    strides, pads = integers(pool, "strides", (1,) * rank), integers(pool, "pads", (0,) * 2 * rank)
    return list(zip(kernel, strides, pads[:rank], pads[rank:], strict=True))


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph, self.index, self.opset = model.graph, Index(model), opset_version(model, 0)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self.infos = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
        self.how: Mapping[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
            "Selu": self._selu, "Mean": self._mean, "GlobalLpPool": self._global_lp_pool, "Clip": self._clip,
            "MaxPool": self._pool, "AveragePool": self._pool, "LpPool": self._pool,
        }  # fmt: skip

    def rewrite(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take a node's place, which may be itself."""
        return self.how[node.op_type](node)

    def _selu(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        set_by_hand = {name: attribute(node, name, default) for name, default in SELU.items()}
        drop_attributes(node, *SELU)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in set_by_hand.items())
        return [node]

    def _mean(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The sum, divided."""
        if len(node.input) == 1:
            return [helper.make_node("Identity", node.input, node.output, name=node.name)]
        kind = self._elem_type(node.output[0])
        name, total = node_name(node), self._free(f"{node.output[0]}/sum")
        divisor = self._free(f"{name}/count")
        self.graph.initializer.append(helper.make_tensor(divisor, kind, (), [len(node.input)]))
        return [
            helper.make_node("Sum", node.input, [total], name=f"{name}/sum"),
            helper.make_node("Div", [total, divisor], node.output, name=name),
        ]

    def _global_lp_pool(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The same of the absolute values."""
        positive = self._free(f"{node.input[0]}/abs")
        before = helper.make_node("Abs", [node.input[0]], [positive], name=f"{node_name(node)}/abs")
        node.input[0] = positive
        return [before, node]

    def _clip(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Its max for its min."""
        if input_name(node, 2):
            node.input[1] = node.input[2]
        else:
            largest = attribute(node, "max", math.inf)
            drop_attributes(node, "min")
            node.attribute.append(helper.make_attribute("min", largest))
        return [node]

    def _pool(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Explicit padding in place of rounding up."""
        axes = _axes(node)
        begins, ends = [begin for *_, begin, _ in axes], [end for *_, end in axes]
        needed = [
            max(end_of_last(size, *axis), 0) for size, axis in zip(self._sizes(node, len(axes)), axes, strict=True)
        ]
        stands_over = any(n > end for n, end in zip(needed, ends, strict=True))
        if stands_over and node.op_type == "LpPool":
            raise _refusal(node, "rounds its size up, and it is not said how a window counts what it stands over")
        if not (stands_over and _counts_padding(node)):
            return [_round_down(node, [*begins, *needed])]
        # What is padded by zeros counts, what only the last window stands over does not.
        padding = [min(n, end) for n, end in zip(needed, ends, strict=True)]
        pads = [0, 0, *begins, 0, 0, *padding]
        before = [self._pad(node, pads)] if any(pads) else []
        drop_attributes(node, "count_include_pad")
        return [*before, _round_down(node, [*[0] * len(axes), *(n - p for n, p in zip(needed, padding, strict=True))])]

    def _pad(self, pool: onnx.NodeProto, pads: list[int]) -> onnx.NodeProto:
        """Zeros around what a pool reads, which then reads that."""
        padded = self._free(f"{pool.input[0]}/padded")
        source, pool.input[0] = pool.input[0], padded
        if self.opset < 11:
            return helper.make_node("Pad", [source], [padded], name=f"{node_name(pool)}/pad", pads=pads)
        stored = add_constant(self.graph, self._free(f"{padded}/pads"), np.array(pads, np.int64))
        return helper.make_node("Pad", [source, stored], [padded], name=f"{node_name(pool)}/pad")

    def _sizes(self, node: onnx.NodeProto, rank: int) -> list[int]:
        info = self.infos.get(node.input[0])
        dims = list(info.shape.dim)[-rank:] if info is not None and info.HasField("shape") else []
        if len(dims) != rank or not all(dim.dim_value > 0 for dim in dims):
            raise _refusal(
                node, "rounds its size up, which TensorRT may do otherwise, and its input's size is not known"
            )
        return [dim.dim_value for dim in dims]

    def _elem_type(self, tensor: str) -> int:
        info = self.infos.get(tensor)
        return int(info.elem_type) if info is not None and info.elem_type else TensorProto.FLOAT

    def _free(self, name: str) -> str:
        while name in self.index.producer or name in self.index.initializers or name in self.infos:
            name += "_"
        return name


def _round_down(pool: onnx.NodeProto, pads: list[int]) -> onnx.NodeProto:
    """The pool with this padding and no other."""
    drop_attributes(pool, "ceil_mode", "pads")
    pool.attribute.append(helper.make_attribute("pads", pads))
    return pool


def _refusal(node: onnx.NodeProto, why: str) -> MalformedInput:
    return MalformedInput(
        f"node {node_name(node)} ({node.op_type}) {why}",
        cause="NVIDIA's parser takes such nodes without a word",
        fix="Export the network for one image size, or with ceil_mode=False and explicit padding",
    )

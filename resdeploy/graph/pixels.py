"""Networks that see pixels: normalisation folded into the first convolutions, so that their input is exact in 8 bits.

An image is 8-bit already. `(pixel / 255 - mean) / std` is no grid of 256 steps common to the channels, so quantizing
a normalised image rounds what was exact; it is the largest single error of an INT8 CIFAR ResNet. With `m = 255 mean`
the first convolution can read `pixel - m` instead, its weights divided by `255 std`:

    uint8 input:  Cast -> Sub(m)          -> Conv      (`to_pixels`; zero padding still means the mean colour)
    float input:  Mul(255 std)            -> Conv      (`centre_pixels`)

and both are quantized without any error as `pixel - offset` on a scale of 1, offset 0 on U8 and 128 on S8 (zero point
0 in both), which `to_whole_pixels` writes as

    ... -> Pad(0) -> Add(m - offset) -> [Q/DQ, scale 1] -> Conv without padding, its bias moved by offset - m

What remains is the padding border: its colour `m` is rounded to a whole pixel value, by half a step at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.errors import UsageError
from resdeploy.graph.index import (
    Index,
    add_constant,
    attribute,
    copy,
    drop_attributes,
    drop_unused,
    input_name,
    insert_nodes,
    integers,
    node_name,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.records import Preprocessing

LEVELS = 255  # the largest pixel value, which preprocessing maps to 1
OFFSET = 128  # S8 holds pixel - 128
CENTRED = "pixels/centred"  # pixel - m; begins with the stem of every name that this file gives


def to_pixels(model: onnx.ModelProto, spec: Preprocessing) -> onnx.ModelProto:
    """A graph in canonical form whose input is (N, C, H, W) uint8, normalised as `spec` says inside.

    Raises:
        UsageError: its input is not float32, or has another number of channels than the normalisation.
    """
    result = copy(model)
    image = _image(result, spec)
    mean, std = _columns(spec)
    front = [
        helper.make_node("Cast", [image.name], ["pixels/cast"], "pixels/cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels/cast", "pixels/mean"], [CENTRED], "pixels/sub"),
    ]
    add_constant(result.graph, "pixels/mean", mean.astype(np.float32))
    image.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    _put_before(result, image.name, front, 1 / (LEVELS * std))
    return result


def centre_pixels(model: onnx.ModelProto, spec: Preprocessing) -> onnx.ModelProto:
    """A graph in canonical form that turns its normalised float input back into pixels and then does the same.

    Raises:
        UsageError: as `to_pixels`.
    """
    result = copy(model)
    image = _image(result, spec)
    _, std = _columns(spec)
    add_constant(result.graph, "pixels/deviation", (LEVELS * std).astype(np.float32))
    front = [helper.make_node("Mul", [image.name, "pixels/deviation"], [CENTRED], "pixels/mul")]
    _put_before(result, image.name, front, 1 / (LEVELS * std))
    return result


def _image(model: onnx.ModelProto, spec: Preprocessing) -> onnx.ValueInfoProto:
    image: onnx.ValueInfoProto = model.graph.input[0]
    kind = image.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise UsageError(
            f"the input is {onnx.TensorProto.DataType.Name(kind.elem_type)} already, not FLOAT",
            fix="Name the file with the normalised float input",
        )
    if kind.shape.dim[1].dim_value != len(spec.mean):
        raise UsageError(
            f"the model takes {kind.shape.dim[1].dim_value} channels, its preprocessing normalises {len(spec.mean)}",
            fix="Give --mean and --std with a number for each channel",
        )
    return image


def _columns(spec: Preprocessing) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """M = 255 mean, and std, each (1, C, 1, 1)."""
    return LEVELS * np.array(spec.mean).reshape(1, -1, 1, 1), np.array(spec.std).reshape(1, -1, 1, 1)


def _put_before(model: onnx.ModelProto, image: str, front: list[onnx.NodeProto], gain: NDArray[np.float64]) -> None:
    """`front`, then all readers of the image on what it makes, `gain` in their weights where they are convolutions."""
    index = Index(model)
    readers = [index.nodes[i] for i in index.readers[image]]
    foldable = all(_foldable(index, node, image) for node in readers)
    graph = model.graph
    if not foldable:
        add_constant(graph, "pixels/gain", gain.astype(np.float32))
        front = [*front, helper.make_node("Mul", [CENTRED, "pixels/gain"], ["pixels/normalised"], "pixels/normalise")]
    for node in readers:
        for i, name in enumerate(node.input):
            if name == image:
                node.input[i] = CENTRED if foldable else "pixels/normalised"
        if foldable:
            _replace(graph, node, 1, index.array(node.input[1]).astype(np.float64) * gain)
    insert_nodes(graph, before={}, after={image: front})
    drop_unused(graph)


def _foldable(index: Index, node: onnx.NodeProto, image: str) -> bool:
    stored = index.value(node.input[1]) if len(node.input) > 1 else None
    plain = node.op_type == "Conv" and node.input[0] == image and attribute(node, "group", 1) == 1
    return plain and stored is not None and stored.data_type == onnx.TensorProto.FLOAT


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, i: int, values: NDArray[np.float64]) -> None:
    name = add_constant(graph, f"pixels/{node_name(node)}/{('', 'weight', 'bias')[i]}", values.astype(np.float32))
    node.input[:] = [*node.input[:i], name, *node.input[i + 1 :]]


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A graph whose first convolutions read whole pixel values: `Activation(scale=1, zero_point=0)` changes nothing."""

    model: onnx.ModelProto
    tensors: tuple[str, ...]  # what those convolutions read


def to_whole_pixels(model: onnx.ModelProto, spec: Preprocessing | None, *, signed: bool) -> Exact | None:
    """The graph with inputs for S8 (`signed`) or U8; None where it has no convolutions to fold into.

    The function is that of `model` but for the padding border, whose colour becomes a whole pixel value once quantized.

    Args:
        model: in canonical form, its input uint8 as `to_pixels` leaves it, or float.
        spec: how a float input was normalised; None: unknown, and then it cannot be made exact.
        signed: for S8.
    """
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        result = None if spec is None else centre_pixels(model, spec)
        front = None if result is None or spec is None else (CENTRED, _columns(spec)[0])
    else:
        result = copy(model)
        front = _front(Index(result), result.graph.input[0].name)
    if result is None or front is None:
        return None
    tensor, middle = front
    index = Index(result)
    readers = [index.nodes[i] for i in index.readers[tensor]]
    if not all(_foldable(index, node, tensor) and _padding_known(node) for node in readers):
        return None
    # What a convolution reads: pixel - offset = (pixel - m) + shift.
    tensors = _shift(result.graph, index, tensor, middle - (OFFSET if signed else 0))
    return Exact(model=result, tensors=tensors)


def _shift(graph: onnx.GraphProto, index: Index, tensor: str, shift: NDArray[np.float64]) -> tuple[str, ...]:
    """Has the convolutions that read `tensor` read it shifted, padded before them; the names of what they then read."""
    added: dict[tuple[int, ...], str] = {}
    before: dict[str, list[onnx.NodeProto]] = {}
    for node in (index.nodes[i] for i in index.readers[tensor]):
        pads = integers(node, "pads", (0, 0, 0, 0))
        if pads not in added:
            added[pads] = f"{node_name(node)}/pixels"
            before[node_name(node)] = _shift_nodes(graph, tensor, added[pads], pads, shift)
        weight = index.array(node.input[1]).astype(np.float64)
        bias = index.array(node.input[2]).astype(np.float64) if input_name(node, 2) else np.zeros(len(weight))
        node.input[0] = added[pads]
        _replace(graph, node, 2, bias - np.tensordot(weight.sum(axis=(2, 3)), shift.ravel(), axes=1))
        drop_attributes(node, "pads")
    insert_nodes(graph, before=before, after={})
    drop_unused(graph)
    return tuple(added.values())


def _front(index: Index, image: str) -> tuple[str, NDArray[np.float64]] | None:
    """The tensor that holds `pixel - m`, and m (1, C, 1, 1)."""
    cast = index.only_reader(image)
    if cast is None or cast.op_type != "Cast":
        return None
    sub = index.only_reader(cast.output[0])
    stored = index.value(sub.input[1]) if sub is not None and sub.op_type == "Sub" else None
    if sub is None or stored is None or len(stored.dims) != 4 or set(stored.dims) - {stored.dims[1]} - {1}:
        return None
    return str(sub.output[0]), numpy_helper.to_array(stored).astype(np.float64)


def _padding_known(node: onnx.NodeProto) -> bool:
    return attribute(node, "auto_pad", b"") in (b"", b"NOTSET")


def _shift_nodes(
    graph: onnx.GraphProto, tensor: str, output: str, pads: tuple[int, ...], shift: NDArray[np.float64]
) -> list[onnx.NodeProto]:
    """The border of the mean colour, then whole pixel values instead of differences from it."""
    nodes = []
    if any(pads):
        top, left, bottom, right = pads
        amounts = add_constant(graph, f"{output}/pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        nodes.append(helper.make_node("Pad", [tensor, amounts], [f"{output}/padded"], f"{output}/pad"))
        tensor = f"{output}/padded"
    added = add_constant(graph, f"{output}/shift", shift.astype(np.float32))
    return [*nodes, helper.make_node("Add", [tensor, added], [output], f"{output}/add")]

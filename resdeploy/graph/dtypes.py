"""Types of files from elsewhere that no CNN is computed in: sparse constants become dense, FP64 becomes FP32.

All else that reads a graph then sees the types that ours have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from resdeploy import external
from resdeploy.errors import MalformedInput
from resdeploy.external import MAX_BYTES
from resdeploy.graph.index import copy, overwrite

_DOUBLE, _FLOAT = TensorProto.DOUBLE, TensorProto.FLOAT
# Attributes that name a type (ONNX's operators): of Cast, EyeLike, RandomNormal, QuantizeLinear, ...
_NAME_A_TYPE = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def fill_sparse(model: onnx.ModelProto, path: Path) -> None:
    """Makes every sparse constant of the graph a dense one, in place.

    Raises:
        MalformedInput: one that takes more than 2 GB when it is dense, or whose places lie outside its shape.
    """
    graph = model.graph
    graph.initializer.extend(_dense(sparse, sparse.values.name, path) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value":
                dense = _dense(attribute.sparse_tensor, node.output[0], path)
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, name: str, path: Path) -> onnx.TensorProto:
    """Its indices are (n,) into the flattened tensor, or (n, rank)."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    size = math.prod(sparse.dims) * values.dtype.itemsize
    if size > MAX_BYTES or any(d < 0 for d in sparse.dims):
        raise MalformedInput(
            f"the sparse constant {name!r} of {path} claims the shape {tuple(sparse.dims)}", fix="Do not use this file"
        )
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.size and places.min() < 0:
        raise MalformedInput(
            f"the sparse constant {name!r} of {path} has values before its start", fix="Export it again"
        )
    try:
        if places.ndim == 2:
            dense[tuple(places.T)] = values
        else:
            dense.ravel()[places] = values
    except (IndexError, ValueError) as e:
        raise MalformedInput(
            f"the sparse constant {name!r} of {path} has values outside its shape: {e}", fix="Export or copy it again"
        ) from e
    return numpy_helper.from_array(dense, name)


def holds_double(model: onnx.ModelProto) -> bool:
    """Whether anything that the graph stores, takes or gives is FP64."""
    graph = model.graph
    values = (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    return _DOUBLE in values or any(tensor.data_type == _DOUBLE for tensor in external.tensors(model))


def to_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with FP32 in the place of FP64; the same one where it has none.

    Raises:
        MalformedInput: a weight that FP32 cannot hold.
    """
    if not holds_double(model):
        return model
    result = copy(model)
    for tensor in external.tensors(result):
        if tensor.data_type != _DOUBLE:
            continue
        with np.errstate(over="ignore"):
            single = numpy_helper.to_array(tensor).astype(np.float32)
        if not np.isfinite(single).all():
            raise MalformedInput(
                f"tensor {tensor.name!r} is FP64 and holds values over 3.4e38, which FP32 cannot",
                cause="No runtime here computes a CNN in FP64",
                fix="Scale the weights, or train the network again in FP32",
            )
        overwrite(tensor, single)
    for value in (*result.graph.input, *result.graph.output, *result.graph.value_info):
        if value.type.tensor_type.elem_type == _DOUBLE:
            value.type.tensor_type.elem_type = _FLOAT
    for attribute in _named_types(result):
        attribute.i = _FLOAT
    return result


def _named_types(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in model.graph.node:
        yield from (a for a in node.attribute if a.name in _NAME_A_TYPE and a.i == _DOUBLE)

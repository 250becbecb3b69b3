"""Products by a constant matrix, however written: Gemm with weights (out, in), no factors and a bias (out,)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from resdeploy.graph.canonical import blanks
from resdeploy.graph.canonical.fold import add_constant, constant, insert_node, new_node, operand

_TRANSPOSED = (ir.AttrInt64("transB", 1),)


def join(graph: ir.Graph) -> None:
    """MatMul of matrices, and Gemm with alpha, beta, transA or any shape of bias, become plain Gemm.

    What is added to a product is `affine`'s.
    """
    for node in tuple(graph):
        if node.domain or node.op_type not in ("MatMul", "Gemm") or len(operand(node).shape or ()) != 2:
            continue
        weight = constant(node.inputs[1])
        if weight is not None and weight.ndim == 2 and not _is_plain(node):
            _rewrite(graph, node, weight)


def _is_plain(node: ir.Node) -> bool:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return (
        node.op_type == "Gemm"
        and node.attributes.get_int("transB", 0) == 1
        and node.attributes.get_int("transA", 0) == 0
        and _factors(node) == (1.0, 1.0)
        and (bias is None or bias.shape == (operand(node, 1).shape or ())[:1])
    )


def _factors(node: ir.Node) -> tuple[float, float]:
    """Alpha and beta."""
    return node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)


def _rewrite(graph: ir.Graph, node: ir.Node, weight: NDArray[np.generic]) -> None:
    alpha, beta = _factors(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    fixed = constant(bias)
    if bias is not None and fixed is None and beta != 1.0:
        return  # something computed is added, times beta: no classifier's
    image = _transposed(graph, node) if node.attributes.get_int("transA", 0) else operand(node)
    name = str(operand(node, 1).name)
    matrix = weight if node.attributes.get_int("transB", 0) else weight.T
    inputs = [image, add_constant(graph, name, _times(matrix, alpha))]
    outside: ir.Value | None = None
    if fixed is not None:
        added = _times(fixed, beta)
        if fixed.size == 1 or fixed.shape[-1:] == (fixed.size,) == (len(matrix),):
            inputs.append(add_constant(graph, f"{name}_bias", np.resize(added, len(matrix))))
        else:  # it differs from image to image
            outside = add_constant(graph, f"{name}_added", added)
    elif bias is not None:
        inputs.append(bias)
    if outside is None:
        new_node(graph, node, "Gemm", inputs, node.outputs[0], attributes=_TRANSPOSED)
    else:
        product = insert_node(graph, node, "Gemm", inputs, node.outputs[0], attributes=_TRANSPOSED)
        new_node(graph, node, "Add", [product, outside], node.outputs[0])
    graph.remove(node, safe=True)


def _times(array: NDArray[np.generic], factor: float) -> NDArray[np.generic]:
    if blanks.is_blank(array):
        return array
    return np.ascontiguousarray(array if factor == 1.0 else (array.astype(np.float64) * factor).astype(array.dtype))


def _transposed(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """What transA asks for, as a node of its own."""
    source = operand(node)
    turned = insert_node(graph, node, "Transpose", [source], source, attributes=(ir.AttrInt64s("perm", [1, 0]),))
    turned.shape = None if source.shape is None else ir.Shape(tuple(source.shape)[::-1])
    return turned

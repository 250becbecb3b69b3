"""A graph as plain data, for whoever computes it without ONNX: operators in order, constants as arrays.

The way back replaces constants and leaves the graph as it is, so that what was learned of it goes into the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, numpy_helper

from resdeploy.graph.index import copy, image_input, node_name, overwrite

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator. An input that is left out is ""."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str  # the first; classifiers use no other
    attributes: Mapping[str, Any]  # numbers, strings and lists of numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A classifier of one input and one output."""

    ops: tuple[Op, ...]  # in order of execution
    constants: Mapping[str, NDArray[Any]]
    input: str
    output: str


def read(model: onnx.ModelProto) -> Program:
    """The program of a graph whose nodes are in topological order."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    ops = []
    for node in model.graph.node:
        attributes = {a.name: _plain_value(helper.get_attribute_value(a)) for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = attributes["value"]
            continue
        op = Op(
            name=node_name(node),
            kind=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
            inputs=tuple(node.input),
            output=node.output[0],
            attributes=attributes,
        )
        ops.append(op)
    image = image_input(model.graph).name
    return Program(ops=tuple(ops), constants=constants, input=image, output=model.graph.output[0].name)


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def with_constants(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of the graph with other values for some of its initializers, of the same types and shapes."""
    result = copy(model)
    for tensor in result.graph.initializer:
        if (value := constants.get(tensor.name)) is not None:
            before = numpy_helper.to_array(tensor)
            assert before.shape == value.shape, tensor.name
            overwrite(tensor, value.astype(before.dtype))
    return result

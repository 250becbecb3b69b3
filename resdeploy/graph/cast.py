"""Casts an FP32 graph to FP16 or BF16, its input and output left in FP32.

Weights are rounded to nearest even. In FP16 what is below 2^-25 becomes zero (weights this small move no logit),
and what is over 65504 would become infinity: the node that holds it stays in FP32 and is named by `nodes_in_fp32`.
BF16 has FP32's range. Conv takes BF16 from opset 22 on, so a BF16 file is at opset 22 and only for runtimes
that read it; an FP16 file stays at opset 17.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import UnknownName, UsageError
from resdeploy.graph.index import copy
from resdeploy.graph.qdq_placement import PAIR

KEPT_KEY = "resdeploy.kept_fp32"
BF16_OPSET, BF16_IR_VERSION = 22, 10
FP16_MAX = 65504.0
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SUFFIXES: dict[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "fp32"}
# Inputs that ONNX defines as FP32 whatever the data's type is.
_ALWAYS_FLOAT = {("Resize", 2)}


def to_half(
    model: onnx.ModelProto,
    precision: Literal["fp16", "bf16"],
    *,
    keep: Collection[str] = (),
    pairs: bool = False,
) -> onnx.ModelProto:
    """The model in half precision; `model` itself (FP32, canonical) is left alone.

    Args:
        model: FP32, in the canonical form.
        precision: of all weights and of all values but the input and the output.
        keep: names of nodes that run in FP32, with casts around them.
        pairs: whether the model may hold Q/DQ nodes, whose scales are then cast too (opset 19; `graph.for_tensorrt`).

    Raises:
        UnknownName: `keep` names a node that is not there.
        UsageError: the model holds Q/DQ nodes.
    """
    if missing := sorted(set(keep) - {node.name for node in model.graph.node}):
        raise UnknownName(
            f"there is no node {', '.join(map(repr, missing))} to keep in FP32",
            fix="Name nodes of the canonical form: resdeploy export F.onnx -o CANONICAL.onnx writes it",
        )
    if not pairs and any(node.op_type in PAIR for node in model.graph.node):
        raise UsageError("a quantized model cannot be cast to half precision", fix="Cast the FP32 model it came from")
    result = onnx.version_converter.convert_version(model, BF16_OPSET) if precision == "bf16" else model
    result = onnx.shape_inference.infer_shapes(result)
    if precision == "bf16":
        result.ir_version = BF16_IR_VERSION
    names = set(keep) | (_overflowing_nodes(result.graph) if precision == "fp16" else set())
    _Caster(result.graph, _TYPES[precision]).cast(names)
    props = {p.key: p.value for p in model.metadata_props}
    if names:
        props[KEPT_KEY] = "\n".join(node.name for node in result.graph.node if node.name in names)
    helper.set_model_props(result, dict(sorted(props.items())))
    onnx.checker.check_model(result)
    return result


def nodes_in_fp32(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that `to_half` left in FP32, asked for or because FP16 cannot hold their weights."""
    return tuple(name for p in model.metadata_props if p.key == KEPT_KEY for name in p.value.split("\n"))


def _overflowing_nodes(graph: onnx.GraphProto) -> set[str]:
    """Nodes with a weight that rounds to infinity in FP16."""
    too_large = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and not np.isfinite(_round_to(numpy_helper.to_array(tensor), TensorProto.FLOAT16)).all()
    }
    return {node.name for node in graph.node if too_large & set(node.input)}


def _round_to(array: np.ndarray, elem_type: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(helper.tensor_dtype_to_np_dtype(elem_type))


class _Caster:
    """Goes through a graph in order: each value has one type, and a Cast makes the other where a node wants it."""

    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self.graph, self.half = graph, half
        self.infos = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        self.types = {name: info.type.tensor_type.elem_type for name, info in self.infos.items()}
        self.weights = {t.name: t for t in graph.initializer}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.casts: list[onnx.ValueInfoProto] = []

    def cast(self, in_float: Collection[str]) -> None:
        """Changes the graph; the nodes named stay in FP32, and so do its outputs."""
        for node in self.graph.node:
            self.add(node, TensorProto.FLOAT if node.name in in_float else self.half)
        if self.types[self.graph.output[0].name] == self.half:
            self.widen_output(self.graph.output[0].name)
        values = [*self.graph.value_info, *self.casts]
        for info in values:
            info.type.tensor_type.elem_type = self.types[info.name]
        changed = onnx.GraphProto(
            name=self.graph.name,
            node=self.nodes,
            input=self.graph.input,
            output=self.graph.output,
            initializer=self.constants.values(),
            value_info=values,
        )
        self.graph.CopyFrom(changed)

    def add(self, node: onnx.NodeProto, kind: int) -> None:
        """A node of the graph, computing in the type `kind`."""
        for k, name in enumerate(node.input):
            each = TensorProto.FLOAT if (node.op_type, k) in _ALWAYS_FLOAT else kind
            node.input[k] = self.weight(name, each) if name in self.weights else self.value(name, each)
        for name in node.output:
            if self.types.get(name) == TensorProto.FLOAT:
                self.types[name] = kind
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
        self.nodes.append(node)

    def weight(self, name: str, kind: int) -> str:
        """The name under which a stored tensor can be had as `kind`; integers and booleans stay what they are."""
        tensor = self.weights[name]
        if tensor.data_type != TensorProto.FLOAT:
            self.constants[name] = tensor
            return name
        # Another name, since a node that is not kept may use the same weight.
        final = f"{name}.fp32" if kind == TensorProto.FLOAT else name
        if final not in self.constants:
            self.constants[final] = numpy_helper.from_array(_round_to(numpy_helper.to_array(tensor), kind), final)
        return final

    def value(self, name: str, kind: int) -> str:
        """As `weight`, of a computed tensor."""
        if self.types.get(name) not in (TensorProto.FLOAT, self.half) or self.types[name] == kind:
            return name
        final = f"{name}.{_SUFFIXES[kind]}"
        if final not in self.types:
            self.nodes.append(helper.make_node("Cast", [name], [final], name=f"{final}.cast", to=kind))
            info = copy(self.infos[name])
            info.name, self.types[final] = final, kind
            self.casts.append(info)
        return final

    def widen_output(self, logits: str) -> None:
        """The output in FP32, by a Cast of what is computed in half precision."""
        inner = f"{logits}.{_SUFFIXES[self.half]}"
        last = next(node for node in self.nodes if logits in node.output)
        for node in self.nodes:
            node.input[:] = [inner if name == logits else name for name in node.input]
        last.output[:] = [inner if name == logits else name for name in last.output]
        self.nodes.append(helper.make_node("Cast", [inner], [logits], name=f"{logits}.cast", to=TensorProto.FLOAT))

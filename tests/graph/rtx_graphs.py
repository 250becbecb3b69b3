"""Graphs of one operator, of which TensorRT-RTX was asked what it makes of them for each GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS: dict[str, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Whom 1.7.1.116 refuses each for, or makes FP16 of for all (the last but one).
REFUSED: dict[str, tuple[str, ...]] = {
    "conv fp32": (),
    "conv fp16": (),
    "matmul fp16": (),
    "matmul int8 fp16": (),
    "matmul fp32": ("sm75",),
    "matmul int8 fp32": ("sm75",),
    "matmul bf16": ("sm75",),
    "mul bf16": ("sm75",),
    "conv int8": ("sm75",),
    "conv fp8": ("sm75", "sm80", "sm86"),
}


def of(kind: str) -> onnx.ModelProto:
    """`OPERATOR TYPE`, or `OPERATOR int8 TYPE` with scales in that type; weights of sixteenths."""
    operator, *types = kind.split()
    quantized, real = (
        types[0] if types[0] in ("int8", "fp8") else "",
        KINDS[types[-1] if types[-1] in KINDS else "fp16"],
    )
    image = operator == "conv"
    shape, weight = ([1, 8, 8, 8], (8, 8, 3, 3)) if image else ([1, 16], {"matmul": (16, 8), "mul": (16,)}[operator])
    stored: list[onnx.TensorProto] = [_tensor("w", np.arange(np.prod(weight)).reshape(weight) % 7 / 16, real)]
    nodes = [helper.make_node("Cast", ["x"], ["data"], to=real)]
    data, weights = "data", "w"
    if quantized:
        for name in ("data", "w"):
            stored.append(_tensor(f"{name}_s", np.asarray(1 / 16), real))
            zero = TensorProto.INT8 if quantized == "int8" else TensorProto.FLOAT8E4M3FN
            stored.append(helper.make_tensor(f"{name}_z", zero, (), bytes(1), raw=True))
            nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_q"]))
            pair = [f"{name}_q", f"{name}_s", f"{name}_z"]
            nodes.append(helper.make_node("DequantizeLinear", pair, [f"{name}_d"]))
        data, weights = "data_d", "w_d"
    how: dict[str, Any] = {"pads": [1] * 4} if image else {}
    kinds = {"conv": "Conv", "matmul": "MatMul", "mul": "Mul"}
    nodes.append(helper.make_node(kinds[operator], [data, weights], ["z"], name="the_one", **how))
    nodes.append(helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT))
    out = [1, 8] if operator == "matmul" else shape
    ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out)))
    graph = helper.make_graph(nodes, "one", [next(ends)], [next(ends)], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def _tensor(name: str, values: np.ndarray, kind: int) -> onnx.TensorProto:
    if kind == TensorProto.BFLOAT16:
        return helper.make_tensor(name, kind, values.shape, values.ravel().astype(np.float32))
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(kind)), name)

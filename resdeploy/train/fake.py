"""A Q/DQ graph in torch, trainable: every rounding of the file is there, and lets gradients through.

The graph that runs is the file's own, so what is trained is what is deployed: the same placement, one scale a channel
of the weights, batch normalisations folded. The scales of activations are learned too (Esser et al. 2019,
arXiv:1902.08153: with the straight-through estimator of Bengio et al. 2013 the gradient of a scale follows by the
product rule), by logarithms of factors, so that they stay positive, one learning rate fits all of them, and what was
not trained is the file's to the last bit. Zero points and the
scales of weights stay: a learned one would move all weights of its channel at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from numpy.typing import NDArray
from torch import Tensor, nn

from resdeploy.errors import UsageError
from resdeploy.graph.program import Op, Program
from resdeploy.quantize.ranges import FULL_RANGE

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}


class Graph(nn.Module):
    """Runs a program. What is trained: weights and biases, and the scales of activations.

    Stored integers become trainable real numbers: `weight/quantized` is kept as `values * scale` and rounded to the
    grid of the moment in every pass. The scale of an int32 bias is the product of its operator's two others.

    Args:
        program: with or without `QuantizeLinear` and `DequantizeLinear`.
        weight_limit: largest integer magnitude of a weight (`quantize.ranges`).
        dtype: of all arithmetic. A sum that errs in its last bit falls to the other side of a rounding now and then,
            so that float32 changes a class in a thousand; float64 shows what the file says.

    Raises:
        UsageError: an operator that cannot be trained here.
    """

    def __init__(self, program: Program, *, weight_limit: int = FULL_RANGE, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight_limit, self.dtype = weight_limit, dtype
        unknown = sorted({op.kind for op in program.ops} - OPS.keys() - {"QuantizeLinear", "DequantizeLinear"})
        if unknown:
            raise UsageError(
                f"the graph has operators that cannot be trained: {', '.join(unknown)}",
                fix="Quantize the file without training (resdeploy quantize)",
            )
        self.program = program
        self.makers = {op.output: op for op in program.ops}
        self.parameter_of: dict[str, nn.Parameter] = {}  # constant -> what is trained in its place
        self.fixed: dict[str, Tensor] = {}
        self._find_scales()
        self._find_values()
        self.trained = nn.ParameterList(self.parameter_of.values())

    def _find_scales(self) -> None:
        """All scales but those of biases, which follow from the others."""
        self.bias_scales: dict[str, Op] = {}  # scale constant of a bias -> the operator that adds it
        self.found_scales: dict[str, Tensor] = {}  # scale constant -> what the file says
        for op in self.program.ops:
            if op.kind in WEIGHTED and len(op.inputs) > 2 and (maker := self.makers.get(op.inputs[2])):
                self.bias_scales[maker.inputs[1]] = op
        for op in self.program.ops:
            if op.kind in ("QuantizeLinear", "DequantizeLinear") and op.inputs[1] not in self.bias_scales:
                scale = self._real(self.program.constants[op.inputs[1]])
                self.found_scales[op.inputs[1]] = scale
                self.parameter_of.setdefault(op.inputs[1], nn.Parameter(torch.zeros_like(scale)))

    def _real(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.dtype)

    def _find_values(self) -> None:
        """Weights and biases, stored as real numbers or as integers; everything else is fixed."""
        stored: dict[str, Tensor] = {}
        for op in self.program.ops:
            if op.kind == "DequantizeLinear" and op.inputs[0] in self.program.constants:
                values, scale, zero = (np.asarray(self.program.constants[name]) for name in op.inputs[:3])
                shape = _spread(scale, values.ndim, op)
                real = (values.astype(np.float64) - zero.reshape(shape)) * scale.reshape(shape).astype(np.float64)
                stored[op.inputs[0]] = self._real(real)
            elif op.kind == "QuantizeLinear" and op.inputs[0] in self.program.constants:
                stored[op.inputs[0]] = self._real(self.program.constants[op.inputs[0]])
            elif op.kind in WEIGHTED:
                floats = [name for name in op.inputs[1:] if name in self.program.constants]
                stored |= {n: self._real(self.program.constants[n]) for n in floats}
        self.parameter_of |= {name: nn.Parameter(value) for name, value in stored.items()}
        for name, value in self.program.constants.items():
            if name not in self.parameter_of:
                floating = np.issubdtype(np.asarray(value).dtype, np.floating)
                self.fixed[name] = self._real(value) if floating else torch.from_numpy(np.array(value))

    def groups(self, exact: Collection[str] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What is trained: the weights and biases, and the logarithms of factors on the activations' scales.

        Args:
            exact: tensors whose values are whole multiples of their scale, which stays.
        """
        ops = [op for op in self.program.ops if op.kind in ("QuantizeLinear", "DequantizeLinear")]
        scales = {op.inputs[1] for op in ops}
        fixed = {op.inputs[1] for op in ops if op.inputs[0] in self.parameter_of or op.inputs[0] in exact}
        pairs = self.parameter_of.items()
        return [p for n, p in pairs if n not in scales], [p for n, p in pairs if n in scales - fixed]

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, classes)
        values: dict[str, Tensor] = {self.program.input: x.to(self.dtype)}
        for op in self.program.ops:
            if op.kind == "QuantizeLinear":
                values[op.output] = self._quantize(op, self._value(op.inputs[0], values))
            elif op.kind == "DequantizeLinear":
                values[op.output] = self._dequantize(op, values)
            else:
                values[op.output] = OPS[op.kind](op, [self._value(name, values) for name in op.inputs if name])
        return values[self.program.output]

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        return self.parameter_of[name] if name in self.parameter_of else self.fixed[name]

    def _scale(self, name: str) -> Tensor:
        if (op := self.bias_scales.get(name)) is None:
            return self.found_scales[name] * self.parameter_of[name].exp()
        data, weight = (self.makers[tensor].inputs[1] for tensor in op.inputs[:2])
        return self._scale(data) * self._scale(weight)

    def _quantize(self, op: Op, x: Tensor) -> Tensor:
        """The integers of ONNX's `saturate(round(x / scale) + zero_point)`, as real numbers with a gradient."""
        scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
        low, high = LIMITS[str(zero.dtype).removeprefix("torch.")]
        if op.inputs[0] in self.parameter_of and zero.dtype == torch.int8:
            low, high = -self.weight_limit, self.weight_limit
        shape = _spread(scale, x.ndim, op)
        offset = zero.to(x.dtype).reshape(_spread(zero, x.ndim, op))
        inside = torch.minimum(torch.maximum(x / scale.reshape(shape), low - offset), high - offset)
        return inside + (inside.round() - inside).detach() + offset

    def _dequantize(self, op: Op, values: Mapping[str, Tensor]) -> Tensor:
        scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
        stored = op.inputs[0] in self.parameter_of
        q = self._quantize(op, self.parameter_of[op.inputs[0]]) if stored else values[op.inputs[0]]
        shape = _spread(scale, q.ndim, op)
        return (q - zero.to(q.dtype).reshape(_spread(zero, q.ndim, op))) * scale.reshape(shape)

    @torch.no_grad()
    def constants(self) -> dict[str, NDArray[Any]]:
        """The trained constants as the file holds them: scales as scales, stored integers as integers."""
        found: dict[str, NDArray[Any]] = {}
        scales = {op.inputs[1] for op in self.program.ops if op.kind in ("QuantizeLinear", "DequantizeLinear")}
        for name in scales:
            found[name] = self._scale(name).numpy()
        for name, parameter in self.parameter_of.items():
            if name not in scales:
                found[name] = parameter.numpy()
        for op in self.program.ops:
            if op.inputs[0] not in self.parameter_of:
                continue
            if op.kind == "DequantizeLinear":
                found[op.inputs[0]] = self._quantize(op, self.parameter_of[op.inputs[0]]).numpy()
            elif op.kind == "QuantizeLinear":  # a float weight lies on its grid, so that all rounding agrees
                scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
                grid = self._quantize(op, self.parameter_of[op.inputs[0]])
                shape = _spread(scale, grid.ndim, op)
                found[op.inputs[0]] = ((grid - zero.reshape(shape)) * scale.reshape(shape)).numpy()
        return found


def _spread(scale: Tensor | NDArray[Any], ndim: int, op: Op) -> list[int]:
    """The shape in which a scale, one or one a channel, meets a tensor of `ndim` axes."""
    if scale.ndim == 0:
        return [1] * ndim
    shape = [1] * ndim
    shape[op.attributes.get("axis", 1)] = -1
    return shape


def _conv(op: Op, x: list[Tensor]) -> Tensor:
    a = op.attributes
    pads = a.get("pads", [0, 0, 0, 0])
    bias = x[2] if len(x) > 2 else None
    if pads[:2] != pads[2:]:
        padded = F.pad(x[0], (pads[1], pads[3], pads[0], pads[2]))
        return F.conv2d(padded, x[1], bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))
    return F.conv2d(x[0], x[1], bias, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1))


def _gemm(op: Op, x: list[Tensor]) -> Tensor:
    a = op.attributes
    left = x[0].T if a.get("transA", 0) else x[0]
    product: Tensor = left @ (x[1].T if a.get("transB", 0) else x[1]) * a.get("alpha", 1.0)
    return product + x[2] * a.get("beta", 1.0) if len(x) > 2 else product


def _pool(op: Op, x: list[Tensor]) -> Tensor:
    a = op.attributes
    kernel, pads = a["kernel_shape"], a.get("pads", [0, 0, 0, 0])
    strides, ceil = a.get("strides", [1, 1]), bool(a.get("ceil_mode", 0))
    if op.kind == "MaxPool":
        return F.max_pool2d(x[0], kernel, strides, pads[:2], a.get("dilations", 1), ceil)
    return F.avg_pool2d(x[0], kernel, strides, pads[:2], ceil, bool(a.get("count_include_pad", 0)))


def _slice(_op: Op, x: list[Tensor]) -> Tensor:
    starts, ends = x[1].tolist(), x[2].tolist()
    axes = x[3].tolist() if len(x) > 3 else range(len(starts))
    steps = x[4].tolist() if len(x) > 4 else [1] * len(starts)
    index = [slice(None)] * x[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, min(end, x[0].shape[axis]), step)
    return x[0][tuple(index)]


def _pad(_op: Op, x: list[Tensor]) -> Tensor:
    half = len(x[1]) // 2
    pads = x[1].tolist()
    flat = [pads[i + side * half] for i in reversed(range(half)) for side in (0, 1)]
    return F.pad(x[0], flat, value=float(x[2]) if len(x) > 2 else 0.0)


def _clip(_op: Op, x: list[Tensor]) -> Tensor:
    return x[0].clamp(*(float(bound) for bound in x[1:3]))


WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
OPS: Mapping[str, Callable[[Op, list[Tensor]], Tensor]] = {
    "Add": lambda _, x: x[0] + x[1],
    "AveragePool": _pool,
    "Clip": _clip,
    "Concat": lambda op, x: torch.cat(x, op.attributes["axis"]),
    "Conv": _conv,
    "Flatten": lambda op, x: x[0].flatten(op.attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x[0].mean((2, 3), keepdim=True),
    "Identity": lambda _, x: x[0],
    "MatMul": lambda _, x: x[0] @ x[1],
    "MaxPool": _pool,
    "Mul": lambda _, x: x[0] * x[1],
    "Pad": _pad,
    "Relu": lambda _, x: x[0].relu(),
    "Reshape": lambda _, x: x[0].reshape([n or x[0].shape[i] for i, n in enumerate(x[1].tolist())]),
    "Slice": _slice,
}

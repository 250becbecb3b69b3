"""A Q/DQ graph in torch, trainable: every rounding of the file is there, and lets gradients through.

The graph that runs is the file's own, so what is trained is what is deployed: the same placement, one scale per channel
of the weights, batch normalisations folded. The scales of activations are learned too (Esser et al. 2019,
arXiv:1902.08153: with the straight-through estimator of Bengio et al. 2013 the gradient of a scale follows by the
product rule), by logarithms of factors, so that they stay positive, one learning rate fits all of them, and what was
not trained is the file's to the last bit. Zero points and the
scales of weights stay: a learned one would move all weights of its channel at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
        obstacles = sorted({obstacle for op in program.ops if (obstacle := _obstacle(op))})
        if obstacles:
            raise UsageError(
                f"the graph has operators that cannot be trained: {', '.join(obstacles)}",
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
        self.file_scales: dict[str, Tensor] = {}  # scale constant -> what the file says
        for op in self.program.ops:
            if op.kind in WEIGHTED and len(op.inputs) > 2 and (maker := self.makers.get(op.inputs[2])):
                self.bias_scales[maker.inputs[1]] = op
        for op in self.program.ops:
            if op.kind in ("QuantizeLinear", "DequantizeLinear") and op.inputs[1] not in self.bias_scales:
                scale = self._real(self.program.constants[op.inputs[1]])
                self.file_scales[op.inputs[1]] = scale
                self.parameter_of.setdefault(op.inputs[1], nn.Parameter(torch.zeros_like(scale)))

    def _real(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.dtype)

    def _find_values(self) -> None:
        """Weights and biases, stored as real numbers or as integers; everything else is fixed."""
        stored: dict[str, Tensor] = {}
        for op in self.program.ops:
            if op.kind == "DequantizeLinear" and op.inputs[0] in self.program.constants:
                values, scale, zero = (np.asarray(self.program.constants[name]) for name in op.inputs[:3])
                shape = _broadcast_shape(scale, values.ndim, op)
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
                inputs = [self._value(name, values) if name else None for name in op.inputs]
                values[op.output] = OPS[op.kind](op, inputs)
        return values[self.program.output]

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        return self.parameter_of[name] if name in self.parameter_of else self.fixed[name]

    def _scale(self, name: str) -> Tensor:
        if (op := self.bias_scales.get(name)) is None:
            return self.file_scales[name] * self.parameter_of[name].exp()
        data, weight = (self.makers[tensor].inputs[1] for tensor in op.inputs[:2])
        return self._scale(data) * self._scale(weight)

    def _quantize(self, op: Op, x: Tensor) -> Tensor:
        """The integers of ONNX's `saturate(round(x / scale) + zero_point)`, as real numbers with a gradient."""
        scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
        low, high = LIMITS[str(zero.dtype).removeprefix("torch.")]
        if op.inputs[0] in self.parameter_of and zero.dtype == torch.int8:
            low, high = -self.weight_limit, self.weight_limit
        shape = _broadcast_shape(scale, x.ndim, op)
        offset = zero.to(x.dtype).reshape(_broadcast_shape(zero, x.ndim, op))
        inside = torch.minimum(torch.maximum(x / scale.reshape(shape), low - offset), high - offset)
        return inside + (inside.round() - inside).detach() + offset

    def _dequantize(self, op: Op, values: Mapping[str, Tensor]) -> Tensor:
        scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
        stored = op.inputs[0] in self.parameter_of
        q = self._quantize(op, self.parameter_of[op.inputs[0]]) if stored else values[op.inputs[0]]
        shape = _broadcast_shape(scale, q.ndim, op)
        return (q - zero.to(q.dtype).reshape(_broadcast_shape(zero, q.ndim, op))) * scale.reshape(shape)

    @torch.no_grad()
    def constants(self) -> dict[str, NDArray[Any]]:
        """The trained constants as the file holds them: scales as scales, stored integers as integers."""
        constants: dict[str, NDArray[Any]] = {}
        scales = {op.inputs[1] for op in self.program.ops if op.kind in ("QuantizeLinear", "DequantizeLinear")}
        for name in scales:
            constants[name] = self._scale(name).numpy()
        for name, parameter in self.parameter_of.items():
            if name not in scales:
                constants[name] = parameter.numpy()
        for op in self.program.ops:
            if op.inputs[0] not in self.parameter_of:
                continue
            if op.kind == "DequantizeLinear":
                constants[op.inputs[0]] = self._quantize(op, self.parameter_of[op.inputs[0]]).numpy()
            elif op.kind == "QuantizeLinear":  # a float weight lies on its grid, so that all rounding agrees
                scale, zero = self._scale(op.inputs[1]), self.fixed[op.inputs[2]]
                grid = self._quantize(op, self.parameter_of[op.inputs[0]])
                shape = _broadcast_shape(scale, grid.ndim, op)
                constants[op.inputs[0]] = ((grid - zero.reshape(shape)) * scale.reshape(shape)).numpy()
        return constants


def _broadcast_shape(scale: Tensor | NDArray[Any], ndim: int, op: Op) -> list[int]:
    """The shape in which a scale, one or one per channel, meets a tensor of `ndim` axes."""
    if scale.ndim == 0:
        return [1] * ndim
    shape = [1] * ndim
    shape[op.attributes.get("axis", 1)] = -1
    return shape


def _obstacle(op: Op) -> str:
    """What cannot be computed here, or "": an operator, or one that is asked for in another way than classifiers do."""
    if op.kind not in OPS.keys() | {"QuantizeLinear", "DequantizeLinear"}:
        return op.kind
    a = op.attributes
    if op.kind in ("AveragePool", "MaxPool") and len(a["kernel_shape"]) != 2:
        return f"{op.kind} of {len(a['kernel_shape'])} dimensions"
    if op.kind == "AveragePool" and any(n != 1 for n in a.get("dilations", [])):
        return "AveragePool with dilations"
    if op.kind == "Pad" and a.get("mode", "constant") != "constant":
        return f"Pad in mode {a['mode']}"
    return ""


def _optional_input(x: list[Any], place: int) -> Any:
    """An input that may be left out, at the end or between others: None."""
    return x[place] if place < len(x) else None


def _conv(op: Op, x: list[Any]) -> Tensor:
    a = op.attributes
    strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    sides = _sides(op, x[0].shape[2:], x[1].shape[2:])
    if all(before == after for before, after in sides):
        symmetric = [before for before, _ in sides]
        return F.conv2d(x[0], x[1], _optional_input(x, 2), strides, symmetric, dilations, a.get("group", 1))
    return F.conv2d(_pad_sides(x[0], sides), x[1], _optional_input(x, 2), strides, 0, dilations, a.get("group", 1))


def _sides(op: Op, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """The padding before and after each axis of an image, given or as `auto_pad` has it."""
    a = op.attributes
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = a.get("pads", [0, 0, 0, 0]) if auto == "NOTSET" else [0, 0, 0, 0]
        return [*zip(pads[:2], pads[2:], strict=True)]
    sides = []
    for size, k, stride, dilation in zip(
        sizes, kernel, a.get("strides", [1, 1]), a.get("dilations", [1, 1]), strict=True
    ):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        sides.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return sides


def _pad_sides(image: Tensor, sides: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """With so much before and after each of the last axes."""
    return F.pad(image, [n for side in reversed(sides) for n in side], value=value)


def _gemm(op: Op, x: list[Any]) -> Tensor:
    a = op.attributes
    left = x[0].T if a.get("transA", 0) else x[0]
    product: Tensor = left @ (x[1].T if a.get("transB", 0) else x[1]) * a.get("alpha", 1.0)
    return product if _optional_input(x, 2) is None else product + x[2] * a.get("beta", 1.0)


def _pool(op: Op, x: list[Any]) -> Tensor:
    a = op.attributes
    kernel, strides, dilations = a["kernel_shape"], a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    image: Tensor = x[0]
    sides = _sides(op, image.shape[2:], kernel)
    overhangs = _overhangs(op, image.shape[2:], sides)
    if op.kind == "MaxPool":
        whole = [(before, after + more) for (before, after), more in zip(sides, overhangs, strict=True)]
        return F.max_pool2d(_pad_sides(image, whole, -math.inf), kernel, strides, 0, dilations)
    # What lies beyond the padding never counts, and the padding only if asked for.
    ones = _pad_sides(torch.ones_like(image[:1, :1]), sides, float(a.get("count_include_pad", 0)))
    more_only = [(0, more) for more in overhangs]
    sums, counts = (
        F.avg_pool2d(_pad_sides(part, more_only), kernel, strides, divisor_override=1)
        for part in (_pad_sides(image, sides), ones)
    )
    return sums / counts


def _overhangs(op: Op, sizes: Sequence[int], sides: Sequence[tuple[int, int]]) -> list[int]:
    """How far the last window of `ceil_mode` reaches beyond the padding; none starts in the padding at the end."""
    a = op.attributes
    if not a.get("ceil_mode", 0) or a.get("auto_pad", "NOTSET") != "NOTSET":
        return [0, 0]
    overhangs = []
    axes = zip(sizes, a["kernel_shape"], a.get("strides", [1, 1]), a.get("dilations", [1, 1]), sides, strict=True)
    for size, k, stride, dilation, (before, after) in axes:
        reach, whole = (k - 1) * dilation + 1, before + size + after
        start = -(-(whole - reach) // stride) * stride
        start -= stride if start >= before + size else 0
        overhangs.append(max(0, start + reach - whole))
    return overhangs


def _slice(_op: Op, x: list[Any]) -> Tensor:
    image: Tensor = x[0]
    starts, ends = x[1].tolist(), x[2].tolist()
    axes = range(len(starts)) if _optional_input(x, 3) is None else x[3].tolist()
    steps = [1] * len(starts) if _optional_input(x, 4) is None else x[4].tolist()
    index = [slice(None)] * image.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, min(end, image.shape[axis]), step)
    return image[tuple(index)]


def _pad(_op: Op, x: list[Any]) -> Tensor:
    pads, half = x[1].tolist(), len(x[1]) // 2
    sides = [(0, 0)] * x[0].ndim
    for i, axis in enumerate(range(half) if _optional_input(x, 3) is None else x[3].tolist()):
        sides[axis] = (pads[i], pads[i + half])
    return _pad_sides(x[0], sides, 0.0 if _optional_input(x, 2) is None else float(x[2]))


def _clip(op: Op, x: list[Any]) -> Tensor:
    image: Tensor = x[0]
    bounds = [_optional_input(x, 1), _optional_input(x, 2)]  # before opset 11 they were attributes
    low, high = (op.attributes.get(n) if b is None else float(b) for n, b in zip(("min", "max"), bounds, strict=True))
    return image if low is None and high is None else image.clamp(low, high)


WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
OPS: Mapping[str, Callable[[Op, list[Any]], Tensor]] = {
    "Add": lambda _, x: x[0] + x[1],
    "AveragePool": _pool,
    "Clip": _clip,
    "Concat": lambda op, x: torch.cat(x, op.attributes["axis"]),
    "Conv": _conv,
    "Flatten": lambda op, x: x[0].reshape(math.prod(x[0].shape[: op.attributes.get("axis", 1)]), -1),
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

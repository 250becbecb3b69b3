"""Graphs of torch networks without their weights' values, by torch.fx: cheap, and spelled as no exporter does.

Networks may live on torch's meta device. Initializers have a shape; their values are zeros, and left out unless asked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx, nn


class _Writer:
    def __init__(self, net: nn.Module, *, values: bool) -> None:
        self.net, self.values = net, values
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, onnx.TensorProto] = {}

    def parameter(self, name: str, shape: tuple[int, ...]) -> str:
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        if self.values:
            tensor.raw_data = bytes(4 * math.prod(shape))
        self.stored[name] = tensor
        return name

    def integers(self, name: str, numbers: list[int]) -> str:
        self.stored[name] = onnx.numpy_helper.from_array(np.array(numbers, np.int64), name)
        return name

    def emit(self, op: str, inputs: list[str], at: fx.Node, **attributes: Any) -> None:
        name = at.target if at.op == "call_module" else at.name
        self.nodes.append(helper.make_node(op, inputs, [at.name], str(name), **attributes))

    def module(self, at: fx.Node) -> None:
        found = self.net.get_submodule(str(at.target))
        inputs = [str(a.name) for a in at.args if isinstance(a, fx.Node)]
        held = [self.parameter(f"{at.target}.{k}", tuple(p.shape)) for k, p in found.named_parameters(recurse=False)]
        _MODULES[type(found)](self, at, found, [*inputs, *held])


def _conv(w: _Writer, at: fx.Node, m: nn.Module, inputs: list[str]) -> None:
    assert isinstance(m, nn.Conv2d)
    w.emit("Conv", inputs, at, strides=m.stride, pads=[*m.padding, *m.padding], group=m.groups)


def _norm(w: _Writer, at: fx.Node, m: nn.Module, inputs: list[str]) -> None:
    assert isinstance(m, nn.BatchNorm2d)
    running = [w.parameter(f"{at.target}.{k}", (m.num_features,)) for k in ("running_mean", "running_var")]
    w.emit("BatchNormalization", [*inputs, *running], at, epsilon=m.eps)


def _pool(w: _Writer, at: fx.Node, m: nn.Module, inputs: list[str]) -> None:
    assert isinstance(m, nn.MaxPool2d | nn.AvgPool2d)
    kernel, stride, pad = ([n, n] if isinstance(n, int) else list(n) for n in (m.kernel_size, m.stride, m.padding))
    op = "MaxPool" if isinstance(m, nn.MaxPool2d) else "AveragePool"
    w.emit(op, inputs, at, kernel_shape=kernel, strides=stride, pads=[*pad, *pad], ceil_mode=int(m.ceil_mode))


def _mean(w: _Writer, at: fx.Node, m: nn.Module, inputs: list[str]) -> None:
    whole = m.output_size in (1, (1, 1))  # else the pool over single elements of AlexNet and VGG at 224 pixels
    w.emit("GlobalAveragePool" if whole else "Identity", inputs, at)


def _same(w: _Writer, at: fx.Node, _m: nn.Module, inputs: list[str]) -> None:
    w.emit("Identity", inputs, at)


_MODULES: dict[type, Callable[[_Writer, fx.Node, nn.Module, list[str]], None]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _mean,
    nn.Linear: lambda w, at, _m, inputs: w.emit("Gemm", inputs, at, transB=1),
    nn.ReLU: lambda w, at, _m, inputs: w.emit("Relu", inputs, at),
    nn.Flatten: lambda w, at, _m, inputs: w.emit("Flatten", inputs, at, axis=1),
    nn.LocalResponseNorm: lambda w, at, m, inputs: w.emit("LRN", inputs, at, size=m.size),
    **dict.fromkeys((nn.Dropout, nn.Identity), _same),
}


def _function(w: _Writer, at: Any) -> None:  # an fx.Node, whose arguments may be all sorts of things
    if at.target is operator.getitem:  # x[:, :, ::2, ::2]
        steps = [part.step or 1 for part in at.args[1]]
        numbers = [[0] * 4, [1 << 30] * 4, [0, 1, 2, 3], steps]
        w.emit("Slice", [at.args[0].name, *(w.integers(f"{at.name}.{k}", n) for k, n in enumerate(numbers))], at)
    elif at.target is nn.functional.pad:
        by = [*at.args[1], *[0] * (8 - len(at.args[1]))]  # torch begins with the last axis
        w.emit("Pad", [at.args[0].name, w.integers(f"{at.name}.pads", [*by[::2][::-1], *by[1::2][::-1]])], at)
    elif at.target is torch.cat:
        parts, axis = at.args[0], at.args[1] if len(at.args) > 1 else at.kwargs["dim"]
        w.emit("Concat", [part.name for part in parts], at, axis=axis)
    elif at.target in (operator.add, operator.iadd):
        w.emit("Add", [a.name for a in at.args], at)
    elif at.target is torch.flatten:
        w.emit("Flatten", [at.args[0].name], at, axis=1)
    else:
        raise NotImplementedError(f"{at.target} is not written as ONNX here yet: add it to _function")


def graph(net: nn.Module, shape: tuple[int, int, int], *, values: bool = False) -> onnx.ModelProto:
    """The network in evaluation mode, batch norms standing, at batch 1."""
    writer, output = _Writer(net, values=values), ""
    for at in fx.symbolic_trace(net).graph.nodes:
        if at.op == "placeholder":
            image = at.name
        elif at.op == "call_module":
            writer.module(at)
        elif at.op == "call_function":
            _function(writer, at)
        else:
            assert at.op == "output"
            output = at.args[0].name
    made = helper.make_graph(
        writer.nodes,
        "g",
        [helper.make_tensor_value_info(image, TensorProto.FLOAT, (1, *shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(writer.stored.values()),
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

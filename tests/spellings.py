"""One network in many spellings: canonical graphs written as other exporters would have written them.

Factors are powers of two and norms have a variance that adds up to 1, so that every spelling is exact: what undoes it
can, and must, give back each bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.graph import counts, files, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.quantize import ptq
from resdeploy.records import Artifact, Calibration, ModelSpec, Target
from tests.sessions import session

Array = NDArray[Any]
OPSETS = range(7, 23)
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
EPSILON = 2.0**-10


def respell(model: onnx.ModelProto, seed: int, opset: int = 17) -> onnx.ModelProto:
    """The same function in an opset from 7 to 22, every layer in a spelling drawn by the seed."""
    return _Speller(model, seed, opset).model()


def anonymous(model: onnx.ModelProto) -> Hashable:
    """All that a graph is but for names and metadata: operators in order, attributes, and the bytes of constants."""
    stored = {t.name: (tuple(t.dims), t.data_type, t.raw_data) for t in model.graph.initializer}
    places: dict[str, Hashable] = {model.graph.input[0].name: "input", "": None}
    nodes = []
    for n in model.graph.node:
        nodes.append(
            (
                (n.domain, n.op_type),
                tuple(stored.get(name) or places[name] for name in n.input),
                tuple(a.SerializeToString() for a in sorted(n.attribute, key=lambda a: a.name)),
            )
        )
        places |= {name: (len(nodes), k) for k, name in enumerate(n.output)}
    return tuple(nodes), places[model.graph.output[0].name]


class _Speller:
    def __init__(self, model: onnx.ModelProto, seed: int, opset: int) -> None:
        self.source, self.opset = model.graph, opset
        self.random = np.random.default_rng(seed)
        self.stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in infos}
        self.makers = {name: n.op_type for n in model.graph.node for name in n.output}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.names = {model.graph.input[0].name: "data"}

    def model(self) -> onnx.ModelProto:
        image, logits = self.source.input[0], self.source.output[0]
        for n in self.source.node:
            write: Callable[[onnx.NodeProto], str] = getattr(self, f"spell_{n.op_type.lower()}", self.plainly)
            self.names[n.output[0]] = self.nothing(write(n))
        output = self.emit("Identity", [self.names[logits.name]])
        dims = [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim]
        graph = helper.make_graph(
            self.nodes,
            "spelled",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [dims[0], self.shapes[logits.name][1]])],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made

    def pick(self, *options: Any) -> Any:
        return options[int(self.random.integers(len(options)))]

    def emit(self, op: str, inputs: list[str], **attributes: Any) -> str:
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], f"n{len(self.nodes)}", **attributes))
        return made

    def constant(self, array: Array) -> str:
        """An initializer, a node, or what is computed from one."""
        how = self.pick("stored", "node", "identity", "turned", "sum")
        if how == "node" and (self.opset >= 9 or array.dtype == np.float32):
            return self.emit("Constant", [], value=numpy_helper.from_array(array))
        if how == "turned" and array.ndim > 1:
            order = list(range(array.ndim))[::-1]
            return self.emit("Transpose", [self.store(np.ascontiguousarray(array.T))], perm=order)
        if how == "identity":
            return self.emit("Identity", [self.store(array)])
        if how == "sum" and array.dtype == np.float32:
            return self.emit("Sum", [self.store(array / 2), self.store(array / 2)])
        return self.store(array)

    def store(self, array: Array) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = array
        return name

    def nothing(self, value: str) -> str:
        """The value, or what does nothing to it."""
        how = self.pick("", "", "", "Identity", "Dropout", "Cast", "Sum")
        more = {"to": TensorProto.FLOAT} if how == "Cast" else {}
        return self.emit(how, [value], **more) if how else value

    def plainly(self, n: onnx.NodeProto) -> str:
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        inputs = [self.names[name] if name in self.names else self.constant(self.stored[name]) for name in n.input]
        return self.emit(n.op_type, inputs, **attributes)

    def spell_slice(self, n: onnx.NodeProto) -> str:
        """Attributes before opset 10; and one axis at a time, or all at once."""
        starts, ends, axes, steps = (self.stored[name].tolist() for name in n.input[1:])
        value = self.names[n.input[0]]
        if self.opset < 10 and set(steps) == {1}:
            return self.emit("Slice", [value], starts=starts, ends=ends, axes=axes)
        for each in self.pick(zip(starts, ends, axes, steps, strict=True), [(starts, ends, axes, steps)]):
            value = self.emit("Slice", [value, *(self.constant(np.atleast_1d(number)) for number in each)])
        return value

    def spell_pad(self, n: onnx.NodeProto) -> str:
        amounts = self.stored[n.input[1]]
        if self.opset < 11:
            return self.emit("Pad", [self.names[n.input[0]]], pads=amounts.tolist())
        return self.emit("Pad", [self.names[n.input[0]], self.constant(amounts)])

    def spell_conv(self, n: onnx.NodeProto) -> str:
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
        image, weight = self.names[n.input[0]], self.stored[n.input[1]]
        bias = self.stored[n.input[2]] if len(n.input) > 2 else None
        if any(attributes["pads"]) and self.pick(True, False):
            image = self.pad(image, attributes.pop("pads"), 0.0)
            attributes |= self.pick({}, {"auto_pad": "VALID"})
        factor = np.exp2(self.random.integers(-3, 4, len(weight))).astype(np.float32)
        tall = factor[:, None, None, None]
        how = self.pick("", "Mul") if bias is None else self.pick("", "BatchNormalization", "Mul", "Add", "Div", "Sub")
        scaled = {"": weight, "Add": weight, "Div": weight * tall, "Sub": -weight}.get(how, weight / tall)
        first = {"": bias, "Mul": self.pick(None, bias / factor) if bias is not None else None}.get(how)
        inputs = [image, self.constant(scaled), *([] if first is None else [self.constant(first)])]
        value = self.emit("Conv", inputs, **attributes)
        if how == "":
            return value
        if how == "BatchNormalization":
            assert bias is not None
            still = [np.zeros_like(bias), np.full_like(bias, 1 - EPSILON)]
            parameters = [self.constant(array) for array in (factor, bias, *still)]
            return self.emit("BatchNormalization", [value, *parameters], epsilon=EPSILON)
        last = self.pick(True, False)
        value = self.emit("Transpose", [value], perm=LAST) if last else value
        shape = (-1,) if last else self.pick((-1, 1, 1), (1, -1, 1, 1))
        if how in ("Mul", "Div"):
            value = self.emit(how, [value, self.constant(factor.reshape(shape))])
        if bias is not None and first is None:
            value = self.shift(value, bias.reshape(shape), turned=how == "Sub")
        return self.emit("Transpose", [value], perm=FIRST) if last else value

    def shift(self, value: str, bias: Array, *, turned: bool) -> str:
        if turned:
            return self.emit("Sub", [self.constant(bias), value])
        how = self.pick("Add", "swapped", "Sub")
        if how == "Sub":
            return self.emit("Sub", [value, self.constant(-bias)])
        operands = [value, self.constant(bias)]
        return self.emit("Add", operands if how == "Add" else operands[::-1])

    def pad(self, image: str, pads: list[int], value: float) -> str:
        top, left, bottom, right = pads
        amounts = [0, 0, top, left, 0, 0, bottom, right]
        if self.opset < 11:
            return self.emit("Pad", [image], pads=amounts, value=value)
        filler = [self.constant(np.array(value, np.float32))] if value or self.pick(True, False) else []
        return self.emit("Pad", [image, self.constant(np.array(amounts)), *filler])

    def spell_relu(self, n: onnx.NodeProto) -> str:
        image = self.names[n.input[0]]
        how = self.pick("Relu", "Clip", "Max", "twice")
        if how == "Clip":
            return self.clip(image, 0.0, None)
        if how == "Max" and self.opset >= 8:
            return self.emit("Max", [image, self.constant(np.zeros(self.pick((), (1,), (1, 1, 1)), np.float32))])
        return self.emit("Relu", [self.emit("Relu", [image]) if how == "twice" else image])

    def clip(self, image: str, low: float | None, high: float | None) -> str:
        bounds = {"min": low, "max": high}
        if self.opset < 11:
            return self.emit("Clip", [image], **{name: b for name, b in bounds.items() if b is not None})
        given = ["" if b is None else self.constant(np.array(b, np.float32)) for b in bounds.values()]
        return self.emit("Clip", [image, *(given if given[1] else given[:1])])

    def spell_add(self, n: onnx.NodeProto) -> str:
        return self.emit(self.pick("Add", "Sum"), [self.names[name] for name in n.input])

    def spell_maxpool(self, n: onnx.NodeProto) -> str:
        attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute if a.name != "dilations"}
        image = self.names[n.input[0]]
        lowest = [-np.inf, float(np.finfo(np.float32).min), *([0.0] if self.makers.get(n.input[0]) == "Relu" else [])]
        if any(attributes["pads"]) and self.pick(True, False):
            image = self.pad(image, attributes.pop("pads"), self.pick(*lowest))
        return self.emit("MaxPool", [image], **attributes)

    def spell_globalaveragepool(self, n: onnx.NodeProto) -> str:
        image, (height, width) = self.names[n.input[0]], self.shapes[n.input[0]][2:]
        how = self.pick("GlobalAveragePool", "AveragePool", "ReduceMean", "turned")
        if how == "AveragePool" and height * width > 1:  # one of a single element does nothing
            return self.emit("AveragePool", [image], kernel_shape=[height, width], strides=self.pick([1, 1], [7, 7]))
        if how == "ReduceMean":
            return self.mean(image, [2, 3])
        if how == "turned":
            return self.emit("Transpose", [self.mean(self.emit("Transpose", [image], perm=LAST), [1, 2])], perm=FIRST)
        return self.emit("GlobalAveragePool", [image])

    def mean(self, image: str, axes: list[int]) -> str:
        if self.opset < 18:
            return self.emit("ReduceMean", [image], axes=axes, keepdims=1)
        return self.emit("ReduceMean", [image, self.constant(np.array(axes))], keepdims=1)

    def spell_flatten(self, n: onnx.NodeProto) -> str:
        image = self.names[n.input[0]]
        how = self.pick("Flatten", "Reshape", "Squeeze", "sizes")
        if how == "Flatten" or (how == "Squeeze" and any(d != 1 for d in self.shapes[n.input[0]][2:])):
            return self.emit("Flatten", [image])
        if how == "Squeeze":
            given = self.opset >= 13
            axes = {} if given else {"axes": [2, 3]}
            return self.emit("Squeeze", [image, *([self.constant(np.array([2, 3]))] if given else [])], **axes)
        whole = int(np.prod(self.shapes[n.input[0]][1:]))
        return self.emit("Reshape", [image, self.constant(np.array([0, -1] if how == "Reshape" else [-1, whole]))])

    def spell_gemm(self, n: onnx.NodeProto) -> str:
        image, weight, bias = self.names[n.input[0]], self.stored[n.input[1]], self.stored[n.input[2]]
        how = self.pick("Gemm", "MatMul", "factors", "transA")
        shaped = bias.reshape(self.pick((-1,), (1, -1)))
        if how == "MatMul":
            turned = self.constant(np.ascontiguousarray(weight.T))
            return self.shift(self.emit("MatMul", [image, turned]), shaped, turned=False)
        if how == "factors":
            inputs = [image, self.constant(weight * 4), self.constant(shaped / 2)]
            return self.emit("Gemm", inputs, transB=1, alpha=0.25, beta=2.0)
        if how == "transA":
            image = self.emit("Transpose", [image], perm=[1, 0])
        inputs = [image, self.constant(weight), self.constant(shaped)]
        return self.emit("Gemm", inputs, transB=1, **({"transA": 1} if how == "transA" else {}))


def small_net(seed: int) -> onnx.ModelProto:
    """A random residual network in canonical spelling, but for its names: not yet `form.canonicalise`d."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}

    def emit(op: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"v{len(nodes)}"], f"{op}_{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    def conv(image: str, into: int, out: int, kernel: int, stride: int, group: int = 1, bias: bool = True) -> str:
        taps = into // group * kernel**2
        name = f"w{len(weights)}"
        weights[name] = random.normal(0, np.sqrt(2 / taps), (out, into // group, kernel, kernel)).astype(np.float32)
        weights[f"{name}b"] = random.normal(0, 0.3, out).astype(np.float32)
        pads = [kernel // 2] * 4
        return emit("Conv", [image, name, *([f"{name}b"] * bias)], pads=pads, strides=[stride] * 2, group=group)

    width = int(random.choice([4, 8]))
    value = emit("Relu", [conv("x", 3, width, 3, int(random.choice([1, 2])))])
    if random.random() < 0.5:
        value = emit("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for _ in range(int(random.integers(1, 3))):
        grown = bool(random.random() < 0.5)
        out, stride = (width * 2, 2) if grown else (width, 1)
        main = emit("Relu", [conv(value, width, out, 3, stride, bias=bool(random.random() < 0.8))])
        main = conv(main, out, out, 3, 1, group=int(random.choice([1, 2])))
        skip = conv(value, width, out, 1, stride) if grown else value
        value, width = emit("Relu", [emit("Add", [main, skip])]), out
    value = emit("Flatten", [emit("GlobalAveragePool", [value])])
    weights["fc"] = random.normal(0, 0.5, (5, width)).astype(np.float32)
    weights["fcb"] = random.normal(0, 0.3, 5).astype(np.float32)
    nodes.append(helper.make_node("Gemm", [value, "fc", "fcb"], ["y"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SPEC = ModelSpec(name="m", family="f", classes=5, input_shape=(3, 16, 16), params=0)


def read(model: onnx.ModelProto) -> tuple[object, ...]:
    """What else is told of a graph: its work, its residual blocks, and where its pairs go."""
    plans = [qdq_placement.plan(model, target) for target in get_args(Target)]
    placed = [(len(p.activations), len(p.weights), len(p.unfusable), len(p.kept_float)) for p in plans]
    return counts.count(model, SPEC).macs, [(b.shortcut, len(b.convs)) for b in plans[0].blocks], placed


def assert_one_form(seed: int, opset: int) -> None:
    """A random network, respelled, has the canonical graph, counts and placement of the plain one, and its outputs."""
    plain = form.canonicalise(small_net(seed))
    spelled = respell(plain, seed, opset)
    model = form.canonicalise(spelled)
    assert anonymous(model) == anonymous(plain)
    assert read(model) == read(plain)
    x = np.random.default_rng(seed).normal(size=(2, 3, 16, 16)).astype(np.float32)
    logits, before = (session(m, exactly=True).run(None, {m.graph.input[0].name: x})[0] for m in (model, spelled))
    assert np.abs(logits - before).max() <= 1e-5 * np.abs(before).max()


@contextlib.contextmanager
def here(model: onnx.ModelProto, _shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """In this process."""
    opened = session(model)
    yield lambda images: opened.run(None, {opened.get_inputs()[0].name: images})[0]


def in_int8(model: onnx.ModelProto, target: Target, folder: Path) -> Hashable:
    """The `anonymous` INT8 file of a network for images of 3 x 16 x 16."""
    return anonymous(quantize(model, target, folder))


def quantize(model: onnx.ModelProto, target: Target, folder: Path) -> onnx.ModelProto:
    """The INT8 file of a network for images of 3 x 16 x 16."""
    source, out = folder / "float.onnx", folder / "int8.onnx"
    files.save_model(model, source)
    images = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    record = Artifact(path=str(source), format="onnx", precision="fp32", sha256=store.digest(source))
    asked = Calibration(data="noise", count=8, seed=0, method="minmax")
    ptq.quantize(record, [images], calibration=asked, target=target, out=out, run=here)
    return onnx.load(out)

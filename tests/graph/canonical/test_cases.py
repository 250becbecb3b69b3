"""Forms that files from elsewhere have and ours do not: as INT8 files they keep what the plain spelling keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph import files, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.quantize.fidelity import snr_db
from resdeploy.records import Target
from tests.sessions import session
from tests.spellings import anonymous, quantize

Array = NDArray[Any]
Pair = tuple[onnx.ModelProto, onnx.ModelProto]  # the plain spelling, and another's
node = helper.make_node
TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino", "tensorrt")
IMAGES = np.random.default_rng(2).normal(size=(32, 3, 16, 16)).astype(np.float32)
WIDTH, CLASSES = 16, 10


def filled(*shape: int, seed: int = 0) -> Array:
    """He's initialisation of a weight, or small numbers."""
    deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 2 else 0.3
    return np.random.default_rng([seed, *shape]).normal(0, deviation, shape).astype(np.float32)


STEM = {"w0": filled(WIDTH, 3, 3, 3), "b0": filled(WIDTH)}
NEXT = {"w1": filled(WIDTH, WIDTH, 3, 3), "b1": filled(WIDTH, seed=1)}
HEAD = {"fc": filled(CLASSES, WIDTH), "fcb": filled(CLASSES)}


def classifier(
    nodes: list[onnx.NodeProto], *weights: dict[str, Array], opset: int = 17, end: str | None = None, rank: int = 2
) -> onnx.ModelProto:
    """From `x`; `end` is pooled and classified plainly, without one the nodes make `y` themselves."""
    if end is not None:
        pool = [node("GlobalAveragePool", [end], ["g"], "pool"), node("Flatten", ["g"], ["f"], "flatten")]
        nodes = [*nodes, *pool, node("Gemm", ["f", "fc", "fcb"], ["y"], "fc", transB=1)]
        weights = (*weights, HEAD)
    known: dict[str, Array] = {name: np.asarray(array) for group in weights for name, array in group.items()}
    read = {name for each in nodes for name in each.input}
    logits: list[int | str] = ["n", CLASSES, 1, 1]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, logits[:rank])],
        [numpy_helper.from_array(array, name) for name, array in known.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def conv(image: str, k: int, output: str, bias: str = "", weight: str = "") -> onnx.NodeProto:
    return node("Conv", [image, weight or f"w{k}", *([bias] if bias else [])], [output], f"conv{k}", pads=[1] * 4)


def stem(output: str = "r") -> list[onnx.NodeProto]:
    return [conv("x", 0, "c", "b0"), node("Relu", ["c"], [output], "relu")]


def conv_mul_add() -> Pair:
    """Conv -> Mul(C,1,1) -> Add(C,1,1), factors a hundredfold apart: Caffe's Scale, TensorFlow's unfused batch norm."""
    scale = np.exp(np.random.default_rng(4).normal(0, 1.2, (WIDTH, 1, 1))).astype(np.float32)
    apart = [
        conv("x", 0, "c"),
        node("Mul", ["c", "scale"], ["m"], "mul"),
        node("Add", ["m", "shift"], ["a"], "add"),
        node("Relu", ["a"], ["r"], "relu"),
    ]
    known: dict[str, Array] = {
        "w0": STEM["w0"] / scale[..., None],
        "scale": scale,
        "shift": STEM["b0"].reshape(-1, 1, 1),
    }
    rest = [conv("r", 1, "d", "b1"), node("Relu", ["d"], ["e"], "relu1")]
    return classifier([*stem(), *rest], STEM, NEXT, end="e"), classifier([*apart, *rest], known, NEXT, end="e")


def gemm_bias_1n() -> Pair:
    """MatMul, then the bias as (1, classes): CNTK's MNIST, and what simplifiers leave."""
    pool = [node("GlobalAveragePool", ["r"], ["g"], "pool"), node("Flatten", ["g"], ["f"], "flatten")]
    product = [node("MatMul", ["f", "fc"], ["p"], "fc"), node("Add", ["p", "fcb"], ["y"], "bias")]
    known = {"fc": np.ascontiguousarray(HEAD["fc"].T), "fcb": HEAD["fcb"].reshape(1, -1)}
    return classifier(stem(), STEM, end="r"), classifier([*stem(), *pool, *product], STEM, known)


def logits_4d() -> Pair:
    """Logits (N, classes, 1, 1) of a pooling that comes last: SqueezeNet 1.0 and DenseNet-121 of the model zoo."""
    ends = [node("Conv", ["r", "w2", "b2"], ["d"], "conv2"), node("GlobalAveragePool", ["d"], ["g"], "pool")]
    known = {"w2": filled(CLASSES, WIDTH, 1, 1), "b2": filled(CLASSES)}
    plain = classifier([*stem(), *ends, node("Flatten", ["g"], ["y"], "flatten")], STEM, known)
    ends[1].output[0] = "y"
    return plain, classifier([*stem(), *ends], STEM, known, rank=4)


def gelu() -> Pair:
    """Gelu of opset 20, as torch writes it for ConvNeXt, beside x (1 + erf(x / sqrt(2))) / 2 in older operators."""
    half = {
        "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32),
        "root": np.array(np.sqrt(0.5), np.float32),
    }
    written = [
        node("Mul", ["c", "root"], ["s"], "scaled"),
        node("Erf", ["s"], ["e"], "erf"),
        node("Add", ["e", "one"], ["o"], "plus"),
        node("Mul", ["c", "o"], ["m"], "times"),
        node("Mul", ["m", "half"], ["a"], "half"),
    ]
    first = conv("x", 0, "c", "b0")
    return (
        classifier([first, *written, conv("a", 1, "d", "b1")], STEM, NEXT, half, end="d"),
        classifier([first, node("Gelu", ["c"], ["a"], "gelu"), conv("a", 1, "d", "b1")], STEM, NEXT, opset=20, end="d"),
    )


def group_normalization() -> Pair:
    """GroupNormalization of opset 21, as torch writes it for ResNets of group norms, beside means and divisions."""
    groups = 4
    shapes = {
        "grouped": np.array([0, groups, -1]),
        "whole": np.array([0, WIDTH, 16, 16]),
        "tiny": np.array(1e-5, np.float32),
    }
    written = [
        node("Reshape", ["c", "grouped"], ["q"], "group"),
        node("ReduceMean", ["q"], ["mean"], "mean", axes=[2]),
        node("Sub", ["q", "mean"], ["z"], "centre"),
        node("Mul", ["z", "z"], ["zz"], "square"),
        node("ReduceMean", ["zz"], ["var"], "variance", axes=[2]),
        node("Add", ["var", "tiny"], ["v"], "plus"),
        node("Sqrt", ["v"], ["sd"], "deviation"),
        node("Div", ["z", "sd"], ["n"], "divide"),
        node("Reshape", ["n", "whole"], ["a"], "ungroup"),
    ]
    neutral = {"one": np.ones(WIDTH, np.float32), "zero": np.zeros(WIDTH, np.float32)}
    normed = node("GroupNormalization", ["c", "one", "zero"], ["a"], "norm", num_groups=groups)
    first, rest = conv("x", 0, "c", "b0"), [node("Relu", ["a"], ["r"], "relu"), conv("r", 1, "d", "b1")]
    return (
        classifier([first, *written, *rest], STEM, NEXT, shapes, end="d"),
        classifier([first, normed, *rest], STEM, NEXT, neutral, opset=21, end="d"),
    )


def pad_before_max_pool(value: float, *, convolved: bool) -> Pair:
    """A pad that no maximum sees, right and below: "same" max pooling of TensorFlow, and of timm's MaxPool2dSame."""
    pool: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
    padded = [node("Pad", ["r", "pads", "low"], ["q"], "pad"), node("MaxPool", ["q"], ["p"], "maxpool", **pool)]
    rest = [conv("p", 1, "d", "b1"), node("Relu", ["d"], ["e"], "relu1")] if convolved else []
    own = [node("MaxPool", ["r"], ["p"], "maxpool", pads=[0, 0, 1, 1], **pool)]
    known, end = {"pads": np.array([0] * 6 + [1, 1]), "low": np.array(value, np.float32)}, "e" if convolved else "p"
    plain = classifier([*stem(), *own, *rest], STEM, NEXT, end=end)
    return plain, classifier([*stem(), *padded, *rest], STEM, NEXT, known, end=end)


def standardized_weights() -> Pair:
    """Weights that the graph centres and divides by their deviation: BiT's ResNetV2, NFNet."""
    raw = NEXT["w1"].astype(np.float64)
    mean, deviation = (f(raw, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    gain = np.array(np.sqrt(2 / raw[0].size), np.float32)
    computed = [
        node("ReduceMean", ["w1"], ["mean"], "mean", axes=[1, 2, 3]),
        node("Sub", ["w1", "mean"], ["z"], "centre"),
        node("Mul", ["z", "z"], ["zz"], "square"),
        node("ReduceMean", ["zz"], ["var"], "variance", axes=[1, 2, 3]),
        node("Sqrt", ["var"], ["sd"], "deviation"),
        node("Div", ["z", "sd"], ["n"], "divide"),
        node("Mul", ["n", "gain"], ["k"], "times"),
    ]
    known = NEXT | {"w1": ((raw - mean) / deviation * gain).astype(np.float32)}
    rest = [node("Relu", ["d"], ["e"], "relu1")]
    return (
        classifier([*stem(), conv("r", 1, "d", "b1"), *rest], STEM, known, end="e"),
        classifier([*stem(), *computed, conv("r", 1, "d", "b1", "k"), *rest], STEM, NEXT, {"gain": gain}, end="e"),
    )


def sum_residual() -> Pair:
    """Residual additions written as Sum: Caffe2's ResNet-50, MXNet's add_n."""

    def written(op: str) -> onnx.ModelProto:
        block = [
            conv("r", 1, "d", "b1"),
            node("Relu", ["d"], ["e"], "relu1"),
            conv("e", 2, "s"),
            node(op, ["s", "r"], ["t"], "add"),
            node("Relu", ["t"], ["u"], "relu2"),
        ]
        return classifier([*stem(), *block], STEM, NEXT, {"w2": filled(WIDTH, WIDTH, 3, 3, seed=2)}, end="u")

    return written("Add"), written("Sum")


def sparse_constant() -> Pair:
    """A classifier's weight as a sparse Constant."""
    values = HEAD["fc"].ravel()
    places = helper.make_tensor("at", TensorProto.INT64, [values.size], range(values.size))
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(values, "fc"), places, list(HEAD["fc"].shape))
    plain = classifier(stem(), STEM, end="r")
    other = classifier(stem(), STEM, end="r")
    other.graph.initializer.remove(next(t for t in other.graph.initializer if t.name == "fc"))
    other.graph.node.insert(0, node("Constant", [], ["fc"], "constant", sparse_value=sparse))
    return plain, other


def answer(model: onnx.ModelProto) -> Array:
    """ONNX Runtime's, without rewrites of its own."""
    logits: Array = session(model, exactly=True).run(None, {model.graph.input[0].name: IMAGES})[0]
    return logits.reshape(len(IMAGES), -1)


LOWEST = float(np.finfo(np.float32).min)
CASES: dict[str, Callable[[], Pair]] = {
    **{make.__name__: make for make in (conv_mul_add, gemm_bias_1n, logits_4d, gelu, group_normalization)},
    "pad -inf": lambda: pad_before_max_pool(-np.inf, convolved=True),
    "pad -1e4": lambda: pad_before_max_pool(-1e4, convolved=True),
    "pad lowest, pooled": lambda: pad_before_max_pool(LOWEST, convolved=False),
    **{make.__name__: make for make in (standardized_weights, sum_residual, sparse_constant)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_form_of_elsewhere_keeps_what_the_plain_one_keeps(case: str, tmp_path: Path) -> None:
    """For each target: all weights in INT8, and the plain spelling's signal to noise within 1 dB, in ONNX Runtime.

    A file with the plain one's canonical form has its INT8 files too (test_spellings.py); of it one is judged.
    """
    plain, other = CASES[case]()
    exact = answer(other)
    assert np.allclose(exact, answer(plain), rtol=1e-4, atol=1e-4)
    onnx.save(other, tmp_path / "other.onnx")
    other = files.load_model(tmp_path / "other.onnx")
    first, second = (form.canonicalise(model) for model in (plain, other))
    for target in TARGETS:
        assert not qdq_placement.plan(second, target).kept_float
    for target in TARGETS[:1] if anonymous(first) == anonymous(second) else TARGETS:
        expected, found = (snr_db(exact, answer(quantize(model, target, tmp_path))) for model in (plain, other))
        assert expected is not None
        assert expected > 18
        assert found == pytest.approx(expected, abs=1)

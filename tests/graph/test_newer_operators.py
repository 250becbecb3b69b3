"""Operators newer than opset 17 that ONNX defines by older ones, and classifiers that end in their pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resdeploy.errors import EnvironmentFailure, MalformedInput
from resdeploy.graph import counts, files, metadata
from resdeploy.graph.canonical import form
from tests.sessions import session

RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.standard_normal((2, 3, 6, 6)).astype(np.float32)
Numbers = NDArray[np.float32]
assert_allclose: Any = np.testing.assert_allclose


def numbers(*shape: int) -> Numbers:
    return RANDOM.standard_normal(shape).astype(np.float32)


def classifier(*nodes: onnx.NodeProto, opset: int, out: tuple[int | str, ...] = (5,), ir: int = 8) -> onnx.ModelProto:
    """Nodes from `c`, (n, 8, 6, 6), to `a`, in a classifier; `one`, `two` (8,) and `last` (6,) are weights."""
    body = [helper.make_node("Conv", ["x", "w"], ["c"], "c0", pads=[1] * 4), *nodes]
    if out == (5,):
        body += [
            helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "fc"], ["y"], "fc"),
        ]
    weights = {"w": numbers(8, 3, 3, 3), "fc": numbers(8, 5), "w1": numbers(5, 8, 1, 1)}
    weights |= {"one": numbers(8), "two": numbers(8), "last": numbers(6)}
    read = {name for node in body for name in node.input}
    graph = helper.make_graph(
        body,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", *out])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def one(op: str, *weights: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["c", *weights], ["a"], "act", **attributes)


def answer(model: onnx.ModelProto) -> Numbers:
    """ONNX Runtime's, without its own rewrites."""
    opened = session(model, exactly=True)
    answers: Numbers = opened.run(None, {opened.get_inputs()[0].name: IMAGES})[0]
    return answers


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (one("Gelu"), 20),
        (one("Gelu", approximate="tanh"), 28),
        (one("GroupNormalization", "one", "two", num_groups=4), 21),
        (one("Mish"), 22),
        (one("Swish", alpha=1.5), 24),
        (one("RMSNormalization", "last"), 23),
        (one("HardSwish"), 22),
        (one("Celu", alpha=0.7), 28),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else str(value),
)
def test_what_onnx_defines_by_older_operators_is_read(node: onnx.NodeProto, opset: int) -> None:
    """The canonical form, in opset 17 and for any batch, computes what onnx's reference says of the file."""
    model = classifier(node, opset=opset)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": IMAGES})
    canonical = form.canonicalise(model)
    assert [o.version for o in canonical.opset_import] == [17]
    assert canonical.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_allclose(answer(canonical), expected, rtol=1e-4, atol=1e-5)
    cost = counts.count(model, metadata.spec_of(model, Path("file.onnx")))
    assert (sum(layer.macs for layer in cost.layers), cost.unknown) == (8 * 36 * 27 + 8 * 5, ())


def test_normalisations_in_a_row_are_written_out() -> None:
    """onnx infers no type behind a GroupNormalization, on which the next one's body depends; names tell its place."""
    first = helper.make_node("GroupNormalization", ["c", "one", "two"], ["b"], "norm1", num_groups=2)
    second = helper.make_node("GroupNormalization", ["b", "two", "one"], ["a"], "norm2", num_groups=8)
    model = classifier(first, second, opset=21)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": IMAGES})
    canonical = form.canonicalise(model)
    assert_allclose(answer(canonical), expected, rtol=1e-4, atol=1e-5)
    written = {node.name.partition(".")[0] for node in canonical.graph.node}
    assert written == {"c0", "norm1", "norm2", "pool", "flatten", "fc"}


def test_an_operator_without_a_definition_is_refused_by_name() -> None:
    with pytest.raises(MalformedInput, match=r"BitwiseNot"):
        form.canonicalise(classifier(helper.make_node("BitwiseNot", ["c"], ["a"], "not"), opset=18))


def test_logits_of_a_pooling_are_logits() -> None:
    """(N, classes, 1, 1), as SqueezeNet 1.0 and DenseNet-121 of the model zoo give, is (N, classes) in what is made."""
    ends = [
        helper.make_node("Conv", ["c", "w1"], ["d"], "c1"),
        helper.make_node("GlobalAveragePool", ["d"], ["y"], "pool"),
    ]
    model = classifier(*ends, opset=17, out=(5, 1, 1))
    assert metadata.spec_of(model, Path("f.onnx")).classes == 5
    assert metadata.spec_of(classifier(*ends, opset=17, out=("c", "h", "w")), Path("f.onnx")).classes == 5
    canonical = form.canonicalise(model)
    assert_allclose(answer(canonical), answer(model).reshape(2, 5), rtol=1e-6)
    with pytest.raises(MalformedInput, match=r"\(N, classes, 1, 1\) is expected, found y \(n, 8, 6, 6\)"):
        metadata.spec_of(classifier(one("Relu"), helper.make_node("Identity", ["a"], ["y"]), opset=17, out=(8, 6, 6)),
                         Path("f.onnx"))  # fmt: skip


def test_a_file_newer_than_the_installed_onnx_names_both_versions(tmp_path: Path) -> None:
    known = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    newest = classifier(one("Relu"), opset=known[0], ir=known[1])
    onnx.save(newest, tmp_path / "f.onnx")
    assert files.load_model(tmp_path / "f.onnx").ir_version == known[1]
    assert_allclose(answer(form.canonicalise(newest)), answer(newest), rtol=1e-5)
    onnx.save(classifier(one("Relu"), opset=17, ir=known[1] + 1), tmp_path / "f.onnx")
    with pytest.raises(EnvironmentFailure, match=rf"format version {known[1] + 1}.* onnx {onnx.__version__} reads"):
        files.load_model(tmp_path / "f.onnx")
    onnx.save(classifier(one("Relu"), opset=known[0] + 1), tmp_path / "f.onnx")
    with pytest.raises(EnvironmentFailure, match=rf"opset {known[0] + 1}.* opset {known[0]} at most"):
        files.load_model(tmp_path / "f.onnx")

"""The canonical portable form."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from resdeploy.errors import MalformedInput
from resdeploy.graph import metadata
from resdeploy.graph.canonical import form
from tests.sessions import session

pytest.importorskip("torch")

import torch

CANONICAL = {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"}
RESNET18 = {"Conv": 20, "Relu": 17, "Add": 8, "MaxPool": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """In onnxruntime without its own rewrites, so that a wrong file cannot be repaired."""
    opened = session(model, exactly=True)
    return opened.run(None, {opened.get_inputs()[0].name: x})[0]


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def torchscript(module: torch.nn.Module, example: torch.Tensor, **options: Any) -> onnx.ModelProto:
    """The exporter that most ONNX files in the world came from."""
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), buffer, dynamo=False, **options)
    return onnx.load_from_string(buffer.getvalue())


def randomise_statistics(module: torch.nn.Module) -> None:
    """Fresh batch norms are the identity, which hides folding errors."""
    generator = torch.Generator().manual_seed(7)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low in (
                (layer.weight, 0.5),
                (layer.running_var, 0.5),
                (layer.bias, -0.5),
                (layer.running_mean, -0.5),
            ):
                assert tensor is not None
                tensor.data = torch.rand(tensor.shape, generator=generator) + low


@pytest.fixture(scope="module")
def resnet18(torchvision: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None).eval()
    randomise_statistics(module)
    return module


@pytest.mark.parametrize("constant_folding", [True, False])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_torchscript_file_becomes_canonical(resnet18: torch.nn.Module, opset: int, constant_folding: bool) -> None:
    """TorchScript exports of opset 11 to 17, folded or not, give 49 nodes that compute what torch computes."""
    raw = torchscript(
        resnet18,
        torch.zeros(1, 3, 64, 64),
        opset_version=opset,
        do_constant_folding=constant_folding,
        input_names=["data"],
        dynamic_axes={"data": {0: "n"}},
    )
    model = form.canonicalise(raw)
    assert ops(model) == RESNET18
    assert {o.domain: o.version for o in model.opset_import} == {"": 17}
    assert model.ir_version == 8
    x = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = resnet18.double()(torch.from_numpy(x).double()).numpy()
    resnet18.float()
    assert relative_error(run(model, x), expected) < 1e-5


def test_names_are_the_module_paths(resnet18: torch.nn.Module) -> None:
    """From a TorchScript file that kept no weight names, the nodes are named after the modules, and unique."""
    model = form.canonicalise(torchscript(resnet18, torch.zeros(1, 3, 64, 64), opset_version=17))
    names = [node.name for node in model.graph.node]
    block = ["layer1.0.conv1", "layer1.0.relu1", "layer1.0.conv2", "layer1.0.add", "layer1.0.relu2"]
    assert names[:8] == ["conv1", "relu", "maxpool", *block]
    assert names[-3:] == ["avgpool", "flatten", "fc"]
    assert {"layer2.0.downsample.0", "layer4.1.relu2"} <= set(names)
    assert len(set(names)) == len(names)
    assert {"layer1.0.conv2.weight", "layer1.0.conv2.bias", "fc.weight"} <= {t.name for t in model.graph.initializer}
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["input", "logits"]


def test_a_fixed_batch_becomes_symbolic(resnet18: torch.nn.Module) -> None:
    """A file exported for batch 1 runs at batch 3 afterwards, since nothing in it depends on the batch."""
    model = form.canonicalise(torchscript(resnet18, torch.zeros(1, 3, 64, 64), opset_version=17))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert run(model, np.zeros((3, 3, 64, 64), np.float32)).shape == (3, 1000)


def test_the_canonical_form_is_a_fixed_point_and_deterministic(resnet18: torch.nn.Module) -> None:
    """Canonicalising twice, or two equal files, gives the same bytes."""
    raw = torchscript(resnet18, torch.zeros(1, 3, 64, 64), opset_version=13)
    once = form.canonicalise(raw)
    assert form.canonicalise(raw).SerializeToString() == once.SerializeToString()
    assert form.canonicalise(once).SerializeToString() == once.SerializeToString()


def graph_model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], opset: int = 17, **shapes: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes.get("x", ("n", 3, 8, 8)))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_means_over_the_image_become_global_pooling() -> None:
    """ReduceMean with axes as an input (opset 18, misread by TensorRT 8.6) becomes GlobalAveragePool + Flatten."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    raw = graph_model([node], {"axes": np.array([-1, -2])}, opset=18)
    model = form.canonicalise(raw)
    assert ops(model) == {"GlobalAveragePool": 1, "Flatten": 1}
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert np.allclose(run(model, x), x.mean((2, 3)), atol=1e-6)


POOLS: dict[str, dict[str, Any]] = {
    **{op: {} for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{op: {"kernel_shape": [1, 1]} for op in ("AveragePool", "MaxPool")},
    **{f"ReduceMean {keep}": {"axes": [2, 3], "keepdims": keep} for keep in (0, 1)},
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_over_one_element_is_nothing(pool: str) -> None:
    """Whatever its name: a kernel, and pairs, less. A mean is remembered, for other tools count it."""
    flat = [helper.make_node("Flatten", ["p"], ["y"])] if pool != "ReduceMean 0" else []
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "zero", "zero", "one"], ["n"], "norm", epsilon=0.0),
        helper.make_node(pool.split()[0], ["n"], ["p" if flat else "y"], **POOLS[pool]),
        *flat,
    ]
    numbers = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    norm = {"gamma": np.arange(1, 5), "zero": np.zeros(4), "one": np.ones(4)}
    weights = {"w": numbers} | {name: array.astype(np.float32) for name, array in norm.items()}
    model = form.canonicalise(graph_model(nodes, weights))
    assert ops(model) == {"Conv": 1, "Flatten": 1}
    removed = metadata.read_removed(model)
    assert removed is not None
    assert (removed.norms, removed.pools) == (("conv",), () if "Max" in pool else ("conv",))
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = np.einsum("nchw,ochw->no", x, numbers) * weights["gamma"]
    assert np.allclose(run(model, x), expected, atol=1e-3)
    unknown = form.canonicalise(graph_model(nodes, weights, x=("n", 3, "h", "w")))
    assert ops(unknown)["GlobalAveragePool"] == (pool == "GlobalAveragePool" or "Mean" in pool)


def test_shape_arithmetic_of_view_is_gone() -> None:
    """`x.view(x.size(0), -1)`, Shape-Gather-Unsqueeze-Concat-Reshape, becomes one Flatten."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    model = form.canonicalise(graph_model(nodes, {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1])}))
    assert ops(model) == {"Flatten": 1}
    assert run(model, np.zeros((5, 3, 8, 8), np.float32)).shape == (5, 192)


def test_a_slice_that_keeps_everything_is_left_out_and_one_that_does_not_is_kept() -> None:
    """As torch's exporter writes `x[:, :, ::2, ::2]`: the first two axes are sliced too, as long as they may be."""
    value, end = helper.make_tensor_value_info, np.iinfo(np.int64).max
    held = {"zeros": [0, 0], "ends": [end, end], "near": [0, 1], "low": [1, 2], "high": [2, 3], "ones": [1, 1]}
    nodes = [
        helper.make_node("Slice", ["x", "zeros", "ends", "low", "ones"], ["whole"], "whole"),
        helper.make_node("Slice", ["whole", "near", "ends", "high", "ones"], ["y"], "part"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ("n", 3, 4, 4))],
        [value("y", TensorProto.FLOAT, ("n", 3, 4, 3))],
        [numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = form.canonicalise(model)
    assert ops(made) == {"Slice": 1}
    x = np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(run(made, x), x[..., 1:])


def test_option_a_is_two_nodes() -> None:
    """`F.pad(x[:, :, ::2, ::2], ...)` is one Slice and one Pad, bit-exact."""

    class Shortcut(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 5))

    module = Shortcut()
    model = form.canonicalise(torchscript(module, torch.zeros(1, 3, 8, 8), opset_version=17))
    assert ops(model) == {"Slice": 1, "Pad": 1}
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(run(model, x), module(torch.from_numpy(x)).numpy())


def test_a_batch_that_some_node_depends_on_stays_fixed() -> None:
    """A Reshape to (1, ...) would broadcast the first image over the others: the batch of 1 is kept."""
    nodes = [
        helper.make_node("Reshape", ["x", "one"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    model = form.canonicalise(graph_model(nodes, {"one": np.array([1, 3, 8, 8])}, x=(1, 3, 8, 8)))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_split_written_as_a_sequence_becomes_split() -> None:
    """The dynamo exporter spells `torch.split` as SplitToSequence and SequenceAt, which TensorRT does not read."""
    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "first"], ["a"]),
        helper.make_node("SequenceAt", ["s", "second"], ["b"]),
        helper.make_node("Concat", ["b", "a"], ["y"], axis=1),
    ]
    raw = graph_model(nodes, {"two": np.array(2), "first": np.array(0), "second": np.array(1)})
    model = form.canonicalise(raw)
    assert ops(model) == {"Split": 1, "Concat": 1}
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(run(model, x), x[:, [2, 0, 1]])


def test_a_batch_norm_whose_input_is_used_elsewhere_stays() -> None:
    """Folding must not change the convolution's other users."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"abmv"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 3, 1, 1)).astype(np.float32)}
    weights |= {name: rng.uniform(0.5, 1, 3).astype(np.float32) for name in "abmv"}
    raw = graph_model(nodes, weights)
    model = form.canonicalise(raw)
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1, "Add": 1}
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    assert np.allclose(run(model, x), run(raw, x), rtol=1e-6)


def test_a_tile_bomb_is_not_computed() -> None:
    """A constant Tile to 10^12 elements is left alone instead of filling the memory."""
    nodes = [helper.make_node("Tile", ["one", "times"], ["t"]), helper.make_node("Add", ["x", "t"], ["y"])]
    weights = {"one": np.ones((1, 1), np.float32), "times": np.array([10**6, 10**6])}
    raw = graph_model(nodes, weights, x=("n", 3, 1, 1))
    assert ops(form.canonicalise(raw))["Tile"] == 1


def test_two_inputs_are_refused() -> None:
    """A model that is no classifier is refused in words, not by a stack trace."""
    model = graph_model([helper.make_node("Add", ["x", "z"], ["y"])], {})
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 3, 8, 8)))
    with pytest.raises(MalformedInput, match="2 inputs"):
        form.canonicalise(model)


@pytest.mark.parametrize(
    ("scopes", "name"),
    [("['', 'stage.act', 'relu']", "stage.act"), ("['', 1]", "own"), ("not a list", "own"), ("[", "own")],
)
def test_scopes_in_a_file_are_read_as_text(scopes: str, name: str) -> None:
    """A list of strings as torch writes it; anything else is no scope, and nothing of it is taken for Python."""
    nodes = [helper.make_node("Relu", ["input"], ["a"], name="own"), helper.make_node("Flatten", ["a"], ["out"])]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    ends = [
        helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape)
        for tensor, shape in (("input", [1, 3, 4, 4]), ("out", [1, 48]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    assert form.canonicalise(model).graph.node[0].name.startswith(name)


@st.composite
def residual_nets(draw: st.DrawFn) -> onnx.ModelProto:
    """Small random residual networks in the spellings of several exporters."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    opset = draw(st.sampled_from([17, 18]))
    width = draw(st.sampled_from([4, 8]))

    def emit(op: str, inputs: list[str], **attributes: Any) -> str:
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return out

    def constant(array: np.ndarray) -> str:
        name = f"w{len(weights)}"
        weights[name] = array
        return name

    def conv(x: str, inputs: int, norm: bool) -> str:
        groups = draw(st.sampled_from([1, 2])) if inputs % 2 == 0 else 1
        operands = [x, constant(rng.normal(size=(width, inputs // groups, 3, 3)).astype(np.float32))]
        if draw(st.booleans()):
            operands.append(constant(rng.normal(size=width).astype(np.float32)))
        x = emit("Conv", operands, pads=[1, 1, 1, 1], group=groups)
        if draw(st.booleans()):
            x = emit("Identity", [x])
        if norm:
            parameters = [
                rng.normal(size=width),
                rng.normal(size=width),
                rng.normal(size=width),
                rng.uniform(0.1, 2, width),
            ]
            x = emit("BatchNormalization", [x, *(constant(p.astype(np.float32)) for p in parameters)], epsilon=1e-3)
        return x

    x = conv("x", 3, draw(st.booleans()))
    for _ in range(draw(st.integers(0, 3))):
        y = emit("Relu", [conv(x, width, draw(st.booleans()))])
        x = emit("Relu", [emit("Add", [conv(y, width, draw(st.booleans())), x])])
    if opset == 17:
        x = emit("ReduceMean", [x], axes=[2, 3], keepdims=draw(st.sampled_from([0, 1])))
    else:
        x = emit("ReduceMean", [x, constant(np.array([2, 3]))], keepdims=draw(st.sampled_from([0, 1])))
    x = emit("Reshape", [x, constant(np.array([0, -1]))])
    x = emit("MatMul", [x, constant(rng.normal(size=(width, 5)).astype(np.float32))])
    nodes.append(helper.make_node("Add", [x, constant(rng.normal(size=5).astype(np.float32))], ["y"]))
    return graph_model(nodes, weights, opset)


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(raw=residual_nets(), seed=st.integers(0, 1000))
def test_canonicalising_never_changes_the_function(raw: onnx.ModelProto, seed: int) -> None:
    """For random residual networks: same results in onnxruntime, canonical operators only, and a fixed point."""
    model = form.canonicalise(raw)
    assert set(ops(model)) <= CANONICAL
    x = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype(np.float32)
    before = run(raw, x)
    assert np.abs(run(model, x) - before).max() <= 1e-4 * max(1.0, np.abs(before).max())
    assert form.canonicalise(model).SerializeToString() == model.SerializeToString()


def test_a_sparse_constant_is_refused_in_words() -> None:
    """Valid ONNX that onnx-ir cannot hold is the file's, not a defect of ours."""
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("i", TensorProto.INT64, [2], [0, 5])
    weights = helper.make_node("Constant", [], ["w"], sparse_value=helper.make_sparse_tensor(values, places, [10, 3]))
    nodes = [
        weights,
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])], [value("y", TensorProto.FLOAT, ["n", 10])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(MalformedInput, match="cannot be rewritten") as refused:
        form.canonicalise(model)
    assert refused.value.exit_status == 4

"""Same kernels or not: what is executed is compared, not what it is called; on made-up layers and on real runtimes."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from resdeploy import store
from resdeploy.backends.lane import Lane
from resdeploy.measure import kernels
from resdeploy.records import Artifact, Execution, Kernels, Layer, Port


def port(shape, precision="fp32"):
    return Port(name="", precision=precision, shape=shape)


def conv(name, *, precision="fp32", size=3, width=16, image=32, **fields):
    """A convolution of `width` channels into as many."""
    tensor = port((1, width, image, image), precision)
    known = {
        "name": name,
        "kind": "Convolution:jit",
        "precision": precision,
        "sources": (name,),
        "time_s": 1e-4,
        "inputs": (tensor,),
        "outputs": (tensor,),
        "others": (port((width, width, size, size), precision),),
    }
    return Layer(**known | fields)


def reorder(name="r", time_s=1e-5):
    tensor = port((1, 16, 32, 32))
    return Layer(
        name=name, kind="Reorder:jit", precision="fp32", role="reformat", time_s=time_s, inputs=(tensor,),
        outputs=(tensor,),
    )  # fmt: skip


def differ(before, after):
    return kernels.compare(kernels.of_layers(before), kernels.of_layers(after))


def test_names_order_and_times_of_layers_do_not_count():
    one = [conv("conv1"), reorder(), conv("conv2", width=32)]
    other = [conv("stem", width=32, time_s=7e-4), conv("a+b"), reorder("x_abcd_acdb_y")]
    assert differ(one, other) == "same"
    assert "conv1" in {kernel.example for kernel in kernels.of_layers(one)}


def test_kernels_that_do_the_same_are_kept_as_one():
    (kept,) = kernels.of_layers([conv(f"c{n}") for n in range(5)])
    assert (kept.count, kept.example) == (5, "c0")
    assert kept.time_s == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([conv("a"), conv("b")], [conv("a", precision="int8")] * 2, "2 convolutions in int8 instead of fp32"),
        ([conv("a")], [conv("a"), reorder(), reorder()], "2 more Reorder"),
        ([conv("a"), conv("b"), reorder()], [conv("a")], "1 fewer convolution; 1 fewer Reorder"),
        ([conv("a"), conv("b")], [conv("a"), conv("b", image=16)], "other shapes: b"),
        ([conv("a", size=3)], [conv("a", size=1)], "other shapes: a"),  # of its weights
        ([conv("a")], [conv("a", kind="Convolution:ref")], "1 convolution by another kernel"),
        ([conv("a", tactic="sm80_x")], [conv("a", tactic="sm80_y")], "1 convolution by another kernel"),
        ([conv("a", tactic="__myl_1")], [conv("a", tactic="__myl_7")], "same"),
        ([conv("a")], [conv("a", inputs=(port((1, 16, 32, 32)),) * 2)], "1 convolution with more inputs"),
        ([conv("a")], [conv("a", outputs=(port((1, 16, 32, 32), "fp16"),))], "1 convolution on other types"),
        ([conv("a")], [conv("{0}", kind="{1}")], "1 more {1}; 1 fewer convolution"),
        (
            [conv("a")] * 4,
            [conv(f"l{n}", image=n) for n in (2, 4, 6)] + [conv("p", precision="int8")],
            "1 convolution in int8 instead of fp32; other shapes: l2, l4 and 1 more",
        ),
    ],
)  # fmt: skip
def test_what_differs_is_counted_and_named(before, after, words):
    found = differ(before, after)
    assert found is not None
    assert sorted(found.split("; ")) == sorted(words.split("; "))


def test_no_more_than_a_few_differences_are_named():
    found = differ([conv("a")], [conv("a"), *(conv("x", kind=f"Op{n}") for n in range(9))])
    assert found is not None
    assert found.count(";") == kernels.MOST
    assert found.endswith("; and 5 more")


def test_without_shapes_nothing_is_known():
    """Torch tells modules and no shapes: an addition between them would go unseen."""
    told, untold = [conv("a")], [conv("a", outputs=())]
    assert kernels.of_layers(untold) == ()
    assert differ(told, untold) is None
    assert differ(untold, untold) is None
    assert kernels.compare((), ()) is None


def test_kernels_at_the_clocks_resolution_come_and_go_unless_the_network_is_made_of_them():
    """OpenVINO lists what took no whole microsecond on average as not executed."""
    assert differ([conv("a")], [conv("a"), reorder(time_s=1e-6)]) == "same"
    assert differ([conv("a")], [conv("a"), *[reorder(time_s=1e-6)] * 20]) == "20 more Reorder"


def test_what_costs_nothing_is_no_kernel():
    assert differ([conv("a")], [conv("a"), conv("view", role="free", kind="NoOp")]) == "same"


def test_kernels_are_read_back_from_json(tmp_path):
    path = tmp_path / "k.json"
    kept = kernels.of_layers([conv("a"), reorder()])
    for one in kept:
        store.write_json(path, dataclasses.asdict(one))
        assert store.read(Kernels, path) == one


def network(path, *, seed, prefix, size=3):
    """Three convolutions, a shortcut and a classifier."""
    onnx = pytest.importorskip("onnx")
    rng, helper = np.random.default_rng(seed), onnx.helper
    weights = {
        "w0": rng.normal(size=(16, 3, 3, 3)),
        "w1": rng.normal(size=(16, 16, size, size)),
        "w2": rng.normal(size=(16, 16, 3, 3)),
        "w3": rng.normal(size=(10, 16)),
    }
    pads = [[1] * 4, [size // 2] * 4, [1] * 4]
    nodes = []
    for n, (read, written) in enumerate((("x", "c0"), ("r0", "c1"), ("r1", "c2"))):
        conv = helper.make_node("Conv", [read, f"{prefix}w{n}"], [written], name=f"{prefix}conv{n}", pads=pads[n])
        nodes.append(conv)
        if n < 2:
            nodes.append(helper.make_node("Relu", [written], [f"r{n}"], name=f"{prefix}relu{n}"))
    nodes += [
        helper.make_node("Add", ["c2", "r0"], ["sum"], name=f"{prefix}add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"], name=f"{prefix}pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name=f"{prefix}flat"),
        helper.make_node("Gemm", ["flat", f"{prefix}w3"], ["y"], name=f"{prefix}fc", transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 32, 32)), ("y", (1, 10)))]
    values = [onnx.numpy_helper.from_array(v.astype(np.float32), f"{prefix}{n}") for n, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))


@pytest.mark.parametrize(("backend", "ending"), [("openvino", "xml"), ("onnxruntime", "onnx")])
def test_real_runtimes_execute_the_same_for_one_graph_and_not_for_another(tmp_path, backend, ending):
    """Other weights, other names, several times: the same kernels. A 1x1 convolution for a 3x3 one: not."""
    pytest.importorskip(backend)
    execution = Execution()

    def traced(name, times, **graph):
        source = network(tmp_path / f"{name}.onnx", **graph)
        found = []
        with Lane(backend) as lane:
            built = lane.build(source, execution, tmp_path / f"{name}.built.{ending}")
            for _ in range(times):
                lane.open(built, execution, trace=True)
                lane.block(5)
                found.append(kernels.of_layers(lane.layers()))
        return found

    alike = [*traced("a", 2, seed=0, prefix=""), *traced("b", 2, seed=1, prefix="other.")]
    assert all(alike)
    assert {kernels.compare(*pair) for pair in itertools.combinations(alike, 2)} == {"same"}
    (narrow,) = traced("c", 1, seed=0, prefix="", size=1)
    words = kernels.compare(alike[0], narrow)
    assert words is not None
    assert "shapes" in words or "convolution" in words

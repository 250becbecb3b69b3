"""What each layer costs alone, against networks in which really only that layer is rounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.errors import MissingInput, UsageError
from resdeploy.graph import qdq_placement
from resdeploy.quantize import ptq, sensitivity
from resdeploy.quantize.ptq import Calibrated
from resdeploy.records import Artifact, Target
from tests.quantize.test_ptq import calibration, here
from tests.sessions import session

Images = NDArray[np.float32]


def network(batch: int | str = "batch") -> onnx.ModelProto:
    """A stem with max pooling, an identity block, a block with a projection, pooling, a classifier."""
    random = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w0", "b0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"], "relu0"),
        node("MaxPool", ["r0"], ["x"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["x", "w1", "b1"], ["c1"], "one.conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "one.relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "one.conv2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "x"], ["a2"], "one.add"),
        node("Relu", ["a2"], ["y"], "one.relu2"),
        node("Conv", ["y", "w3"], ["c3"], "two.conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c3"], ["r3"], "two.relu1"),
        node("Conv", ["r3", "w4", "b4"], ["c4"], "two.conv2", pads=[1, 1, 1, 1]),
        node("Conv", ["y", "w5", "b5"], ["c5"], "two.downsample", strides=[2, 2]),
        node("Add", ["c4", "c5"], ["a4"], "two.add"),
        node("Relu", ["a4"], ["z"], "two.relu2"),
        node("GlobalAveragePool", ["z"], ["p"], "avgpool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w6", "b6"], ["logits"], "fc", transB=1),
    ]
    weights = [
        *(weight("w0", 6, 3, 3, 3), weight("b0", 6), weight("w1", 6, 6, 3, 3), weight("b1", 6)),
        *(weight("w2", 6, 6, 3, 3), weight("b2", 6), weight("w3", 8, 6, 3, 3), weight("w4", 8, 8, 3, 3)),
        *(weight("b4", 8), weight("w5", 8, 6, 1, 1), weight("b5", 8), weight("w6", 5, 8), weight("b6", 5)),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, [batch, 3, 12, 12])],
        [value("logits", TensorProto.FLOAT, [batch, 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def images() -> Images:
    return np.random.default_rng(1).standard_normal((11, 3, 12, 12)).astype(np.float32)


def calibrated(model: onnx.ModelProto, path: Path, images: Images, target: Target) -> Calibrated:
    onnx.save(model, path)
    source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    return ptq.run_calibration(source, [images], calibration=calibration(len(images)), target=target, run=here)


def logits(model: onnx.ModelProto, images: Images) -> NDArray[np.float64]:
    opened = session(model, exactly=True)
    return np.asarray(opened.run(None, {"input": images})[0], np.float64)


def alone(seen: Calibrated, chosen: set[str], rounded: dict[str, str]) -> onnx.ModelProto:
    """The float network with the weights of the `chosen` layers rounded, and what the given nodes read.

    `rounded`: "node:tensor" -> the tensor whose grid rounds that input of that node.
    """
    model = onnx.ModelProto()
    model.CopyFrom(seen.model)
    weights = ptq.quantized_weights(seen.model, seen.placement, seen.activations, 127)
    extra = []
    for node in model.graph.node:
        for i, tensor in enumerate(node.input):
            if (source := rounded.get(f"{node.name}:{tensor}")) is None:
                continue
            how, stem = seen.activations[source], f"{node.name}/{tensor}"
            kind = np.int8 if how.signed else np.uint8
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.array(how.scale, np.float32), f"{stem}/s"),
                    numpy_helper.from_array(np.array(how.zero_point, kind), f"{stem}/z"),
                ]
            )
            extra.append(
                (
                    node.name,
                    helper.make_node("QuantizeLinear", [tensor, f"{stem}/s", f"{stem}/z"], [f"{stem}/q"]),
                    helper.make_node("DequantizeLinear", [f"{stem}/q", f"{stem}/s", f"{stem}/z"], [f"{stem}/d"]),
                )
            )
            node.input[i] = f"{stem}/d"
        if node.name in chosen:
            weight = weights[node.name]
            scale = weight.scale.reshape([-1] + [1] * (weight.values.ndim - 1))
            model.graph.initializer.append(numpy_helper.from_array(weight.values * scale, f"{node.name}/rounded"))
            node.input[1] = f"{node.name}/rounded"
    nodes = []
    for node in model.graph.node:
        nodes += [made for name, *pair in extra if name == node.name for made in pair]
        nodes.append(node)
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


@pytest.mark.parametrize("target", get_args(Target))
def test_each_layer_costs_what_a_network_with_it_alone_rounded_loses(
    target: Target, images: Images, tmp_path: Path
) -> None:
    """Layers before, in and after branches, and a classifier: the same noise, signal and number of changed answers."""
    seen = calibrated(network(), tmp_path / "a.onnx", images, target)
    found = {trial.name: trial for trial in sensitivity.measure(seen, [images[:4], images[4:]], run=here)}
    exact = logits(seen.model, images)
    sites = {site.node: site for site in seen.placement.weights}
    assert set(sites) == {name for name, trial in found.items() if trial.kind != "block"}
    for name, site in sites.items():
        # What pooling and flattening only move may have no grid of its own.
        moved = {"pool.out": "relu0.out", "flatten.out": "avgpool.out"}
        source = seen.placement.activations.get(site.data) or moved[site.data]
        expected = logits(alone(seen, {name}, {f"{name}:{site.data}": source}), images)
        assert found[name].images == len(images)
        assert found[name].signal == pytest.approx(np.square(exact).sum(), rel=1e-4)
        assert found[name].noise == pytest.approx(np.square(expected - exact).sum(), rel=0.02)
        assert found[name].changed == (expected.argmax(1) != exact.argmax(1)).sum()


def test_a_block_costs_what_all_its_layers_and_its_skip_lose_together(images: Images, tmp_path: Path) -> None:
    """A block with a projection: three convolutions, and the projection's output at the addition."""
    seen = calibrated(network(), tmp_path / "a.onnx", images, "openvino")
    found = {trial.name: trial for trial in sensitivity.measure(seen, [images], run=here)}
    layers = {"two.conv1", "two.conv2", "two.downsample"}
    assert set(found["two"].layers) == layers
    read = {
        "two.conv1": "one.relu2",
        "two.downsample": "one.relu2",
        "two.conv2": "two.relu1",
        "two.add": "two.downsample",
    }
    rounded = {f"{node}:{maker}.out": f"{maker}.out" for node, maker in read.items()}
    expected = logits(alone(seen, layers, rounded), images)
    assert found["two"].noise == pytest.approx(np.square(expected - logits(seen.model, images)).sum(), rel=0.02)


def test_the_number_of_images_in_a_batch_does_not_matter(images: Images, tmp_path: Path) -> None:
    """The last batch is filled up, and what fills it up is not counted."""
    seen = calibrated(network(), tmp_path / "a.onnx", images, "tensorrt")
    one = sensitivity.measure(seen, [images], run=here)
    several = sensitivity.measure(seen, [images[:3], images[3:10], images[10:]], run=here)
    for left, right in zip(one, several, strict=True):
        assert (left.name, left.images, left.changed) == (right.name, right.images, right.changed)
        assert left.noise == pytest.approx(right.noise, rel=1e-3)


def test_no_images_and_a_fixed_batch_size_are_refused(images: Images, tmp_path: Path) -> None:
    """Each with its own sentence."""
    seen = calibrated(network(), tmp_path / "a.onnx", images, "openvino")
    with pytest.raises(MissingInput, match="no images"):
        sensitivity.measure(seen, [], run=here)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(seen.model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(UsageError, match="free batch size"):
        sensitivity.measure(dataclasses.replace(seen, model=fixed), [images], run=here)


def test_what_is_tried_is_every_layer_and_every_block(images: Images, tmp_path: Path) -> None:
    """In order of execution, blocks last; a layer kept in float is not tried."""
    seen = calibrated(network(), tmp_path / "a.onnx", images, "openvino")
    tried = sensitivity.list_trials(seen.model, seen.placement)
    assert [trial.name for trial in tried] == [
        *("stem", "one.conv1", "one.conv2", "two.conv1", "two.conv2", "two.downsample", "fc"),
        *("one", "two"),
    ]
    kept = qdq_placement.plan(seen.model, "openvino", keep_float=["stem", "two.conv2"])
    assert {"stem", "two.conv2"}.isdisjoint(trial.name for trial in sensitivity.list_trials(seen.model, kept))

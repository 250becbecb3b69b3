"""Torch -> ONNX, through the exporter people use today."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from resdeploy import store
from resdeploy.errors import MalformedInput
from resdeploy.graph import cast, counts, files, from_torch, metadata
from resdeploy.graph.canonical import form
from resdeploy.records import Artifact, ModelSpec, Preprocessing, Weights
from tests.sessions import session

pytest.importorskip("torch")

import torch


def run(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    opened = session(path)
    return opened.run(["logits"], {"input": inputs})[0]


@pytest.fixture(scope="module")
def exported(torchvision: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, torch.nn.Module]:
    """ResNet-50, seeded, for small images: its graph is that for large ones."""
    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval()
    spec = ModelSpec(
        name="resnet50",
        family="resnet",
        classes=1000,
        input_shape=(3, 64, 64),
        preprocessing=Preprocessing(size=(64, 64), resize=72),
        labels=tuple(f"class {k}" for k in range(1000)),
        params=25_557_032,
    )
    out = tmp_path_factory.mktemp("export") / "resnet50.onnx"
    return from_torch.export(module, spec, out, weights=Weights(source="random", seed=0)), module


def test_resnet50_is_122_nodes(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """Facts: 53 Conv, 49 Relu, 16 Add, and one each of MaxPool, GlobalAveragePool, Flatten, Gemm; no BN left."""
    model = files.load_model(Path(exported[0].path))
    singles = dict.fromkeys(("MaxPool", "GlobalAveragePool", "Flatten", "Gemm"), 1)
    assert Counter(n.op_type for n in model.graph.node) == {"Conv": 53, "Relu": 49, "Add": 16, **singles}
    names = {node.name for node in model.graph.node}
    assert {"conv1", "layer1.0.conv2", "layer1.0.relu3", "layer1.0.add", "layer4.2.add", "fc"} <= names
    assert {"layer4.0.downsample.0.weight", "fc.weight", "fc.bias"} <= {t.name for t in model.graph.initializer}


def test_no_trace_of_the_exporting_machine_is_in_the_file(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """Stack traces, with their paths, are gone."""
    data = Path(exported[0].path).read_bytes()
    assert b"site-packages" not in data
    assert b"stack_trace" not in data


def test_the_file_computes_what_torch_computes_in_float64(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """At two batch sizes, within FP32 rounding; the figures are kept."""
    artifact, module = exported
    samples = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    checked = from_torch.verify(artifact, module, run, samples)
    assert 0 < checked.checks["max_rel_error"] < 3e-5
    assert 0 < checked.checks["torch_fp32_rel_error"] < 3e-5
    assert (checked.checks["batch_size_1"], checked.checks["batch_size_2"]) == (1, 3)
    assert next(module.parameters()).dtype == torch.float32


def test_a_file_that_differs_from_torch_is_refused(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """An error of one part in a thousand is no rounding."""
    artifact, module = exported
    samples = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    for wrong in (lambda p, x: run(p, x) * 1.001, lambda p, x: run(p, x) * np.nan):
        with pytest.raises(MalformedInput, match="off from torch"):
            from_torch.verify(artifact, module, wrong, samples, sizes=(1, 1))


class Cancelling(torch.nn.Module):
    """Loses digits in float32, as a thousand layers do."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = large

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x + self.large) - self.large).mean((2, 3))


def test_where_float32_does_not_compute_the_network_no_file_passes() -> None:
    """Torch's own logits overflow or lose all digits: four times their error would let any file through."""
    artifact = Artifact(path="f.onnx", format="onnx", precision="fp32", sha256="")
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float32)
    for large in (1e8, 1e39):
        with pytest.raises(MalformedInput, match="off from torch"):
            from_torch.verify(artifact, Cancelling(large), lambda _p, b: 0.5 * b.mean((2, 3)), x, sizes=(1, 1))


@pytest.mark.parametrize(("large", "own"), [(0.0, 1e-6), (3e4, 1e-3)])
def test_a_file_may_round_four_times_as_much_as_torch_itself(large: float, own: float) -> None:
    """And at least 1e-4; what is over four times torch's own error, or not finite, is no rounding."""
    module = Cancelling(large)
    artifact = Artifact(path="f.onnx", format="onnx", precision="fp32", sha256="")
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float32)

    def off(relative: float) -> float:
        exact = module(torch.from_numpy(x).double()).numpy()
        error = relative * np.abs(exact).max()
        return from_torch.verify(artifact, module, lambda _p, b: exact + error, x, sizes=(1, 1)).checks["max_rel_error"]

    torch_error = from_torch.verify(
        artifact, module, lambda _p, b: module(torch.from_numpy(b)).numpy(), x, sizes=(1, 1)
    )
    measured = torch_error.checks["torch_fp32_rel_error"]
    assert own / 10 < measured < own if large else measured < own
    limit = max(1e-4, 4 * measured)
    assert off(0.99 * limit) == pytest.approx(0.99 * limit)
    for wrong in (1.01 * limit, np.inf, np.nan):
        with pytest.raises(MalformedInput, match="off from torch"):
            off(wrong)


def test_the_spec_travels_in_the_file(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """Preprocessing, labels and counts come back from the file alone."""
    artifact = exported[0]
    assert metadata.spec_of(files.load_model(Path(artifact.path)), Path("renamed.onnx")) == artifact.model
    assert artifact.sha256 == store.digest(Path(artifact.path))


def test_resnet50_costs_what_the_facts_say(exported: tuple[Artifact, torch.nn.Module]) -> None:
    """4,089,184,256 multiply-accumulates at 224 pixels and 25,530,472 folded parameters (facts), layer by layer."""
    artifact = exported[0]
    assert artifact.model is not None
    large = dataclasses.replace(artifact.model, input_shape=(3, 224, 224), preprocessing=None)
    counted = counts.count(files.load_model(Path(artifact.path)), large)
    assert (counted.macs, counted.params_deployed, counted.params) == (4_089_184_256, 25_530_472, 25_557_032)
    assert counted.unknown == ()
    assert sum(layer.macs > 0 for layer in counted.layers) == 54
    conv = next(layer for layer in counted.layers if layer.name == "layer2.0.conv2")
    assert (conv.block, conv.stage, conv.output_shape) == ("layer2.0", "layer2", (1, 128, 28, 28))
    assert conv.macs == 28 * 28 * 128 * 128 * 9
    assert conv.params == 128 * 128 * 9 + 128


def test_fp16_keeps_fp32_at_both_ends(exported: tuple[Artifact, torch.nn.Module], tmp_path: Path) -> None:
    """The FP16 file takes and gives FP32, holds half the bytes, costs the same, and onnxruntime runs it closely."""
    artifact = exported[0]
    model = files.load_model(Path(artifact.path))
    half = cast.to_half(model, "fp16")
    files.save_model(half, tmp_path / "half.onnx")
    assert half.ByteSize() < 0.51 * model.ByteSize()
    assert artifact.model is not None
    costs = [counts.count(one, artifact.model).macs for one in (model, files.load_model(tmp_path / "half.onnx"))]
    assert costs[0] == costs[1] > 300_000_000
    x = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    found, expected = run(tmp_path / "half.onnx", x), run(Path(artifact.path), x)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_model_torch_cannot_export_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Data-dependent Python code is an error of ours, and no file."""

    class Fickle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    spec = ModelSpec(name="fickle", family="x", classes=3, input_shape=(3, 8, 8), preprocessing=None)
    with pytest.raises(MalformedInput, match="cannot export fickle"):
        from_torch.export(Fickle(), spec, tmp_path / "f.onnx", weights=Weights(source="random", seed=0))
    assert list(tmp_path.iterdir()) == []


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """And training mode is restored."""
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    module = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4, 2)).train()
    spec = ModelSpec(name="tiny", family="x", classes=2, input_shape=(3, 8, 8), preprocessing=None)
    weights = Weights(source="random", seed=0)
    first = from_torch.export(module, spec, tmp_path / "a.onnx", weights=weights)
    second = from_torch.export(module, spec, tmp_path / "b.onnx", weights=weights)
    assert first.sha256 == second.sha256
    assert module.training


def test_without_weights_the_graph_is_that_of_the_file() -> None:
    """Nodes, names, shapes and counts, and nothing of what fills the file."""
    from resdeploy.models import weights, zoo

    spec = zoo.spec("resnet20")
    whole = form.canonicalise(from_torch._trace(weights.create(spec, None), spec), whole=True)
    blank = from_torch.blank_graph(weights.create_unfilled(spec), spec)
    assert list(blank.graph.node) == list(whole.graph.node)
    shapes = [[(t.name, t.data_type, t.dims) for t in model.graph.initializer] for model in (whole, blank)]
    assert shapes[0] == shapes[1]
    assert counts.count(blank, spec) == counts.count(whole, spec)
    assert metadata.read_removed(blank) == metadata.read_removed(whole)
    assert blank.ByteSize() * 10 < whole.ByteSize()

"""The fake-quantized torch graph is the file: same answers, same nodes, and training brings them nearer to FP32's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from resdeploy import store
from resdeploy.data.datasets import batches, choose, open_dataset
from resdeploy.errors import OutputLost, UsageError
from resdeploy.graph import files, program
from resdeploy.models import zoo
from resdeploy.quantize import fidelity, ptq, simulated
from resdeploy.records import Artifact, Calibration, Effort, Likeness, Preprocessing, Target, Weights
from resdeploy.train import loop, qat
from resdeploy.train.fake import Graph
from tests import quick
from tests.quantize.test_ptq import here
from tests.sessions import session

SIGHT = Preprocessing(size=(8, 8), channels="L", mean=(0.3,), std=(0.4,))
TARGETS: tuple[Target, ...] = ("tensorrt", "openvino", "onnxruntime")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """ResNet-20 with one block left in each stage, trained for three epochs on digits, as an FP32 ONNX file."""
    folder = tmp_path_factory.mktemp("qat")
    removed = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (1, 2))
    whole = zoo.spec("resnet20", classes=10, preprocessing=SIGHT)
    spec = dataclasses.replace(whole, removed=removed, params=None)
    train, test = open_dataset("digits", split="train"), choose(open_dataset("digits", split="test"), 32, 0)
    plan = loop.Plan(epochs=3, batch_size=32, threads=1)
    task = loop.Task(spec=spec, train_data=train, test_data=test, plan=plan, out=folder / "r.safetensors")
    artifact = loop.train(task)
    assert artifact.model is not None
    net = zoo.create(artifact.model)
    from resdeploy.models import weights

    weights.load_into(net, Path(artifact.path))
    return quick.export(net, artifact.model, folder / "r.onnx", weights=Weights(source="trained"))


Quantized = Callable[..., Artifact]


@pytest.fixture(scope="module")
def quantized(trained: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """(target, effort) -> the portable INT8 file, made once."""

    @functools.cache
    def made(target: Target, effort: Effort = "normal") -> Artifact:
        count = 24 if effort == "high" else 64
        images = choose(open_dataset("digits", split="train"), count, 0)
        calibration = Calibration(data="digits", count=count, seed=0, method="percentile", effort=effort)
        stream = (batch.inputs for batch in batches(images, SIGHT, 16))
        out = tmp_path_factory.mktemp(target) / "ptq.onnx"
        options = ptq.FileOptions(portable=True)
        return ptq.quantize(trained, stream, options, calibration=calibration, target=target, out=out, run=here)

    return made


def held_out() -> np.ndarray:
    return np.concatenate([b.inputs for b in batches(open_dataset("digits", split="test"), SIGHT, 64)])


def as_written(path: str, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime without its optimisations: every Q/DQ node as it stands, no kernel that may saturate."""
    return session(path, exactly=True).run(None, {"input": x})[0]


@torch.no_grad()
def in_torch(graph: Graph, x: np.ndarray) -> np.ndarray:
    return graph(torch.from_numpy(x)).numpy()


def test_the_float_graph_is_onnx_runtimes(trained: Artifact) -> None:
    """The executor itself, without rounding."""
    x = held_out()
    found = in_torch(Graph(program.read(files.load_model(Path(trained.path)))), x)
    expected = as_written(trained.path, x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("target", TARGETS)
def test_the_fake_quantized_graph_answers_as_onnx_runtime_before_and_after_training(
    trained: Artifact, quantized: Quantized, tmp_path: Path, target: str
) -> None:
    """All held-out digits but one in a thousand; the file has the same nodes; the distance to FP32 shrinks."""
    x = held_out()
    start = quantized(target)
    images = choose(open_dataset("digits", split="train"), 512, 0)
    losses: list[float] = []
    made = qat.train(
        trained, start, images, qat.Plan(epochs=3, batch_size=32, threads=1), out=tmp_path / "qat.onnx",
        watch=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    limit = 127 if target == "tensorrt" else 64
    wanted = as_written(trained.path, x)
    distances = []
    for artifact in (start, made):
        graph = Graph(program.read(files.load_model(Path(artifact.path))), weight_limit=limit)
        torch_says, ort_says = in_torch(graph, x), as_written(artifact.path, x)
        assert (torch_says.argmax(1) == ort_says.argmax(1)).mean() >= 0.999
        distances.append(float(np.square(ort_says - wanted).mean()))
    assert distances[1] < distances[0]
    before, after = (files.load_model(Path(a.path)) for a in (start, made))
    assert before.graph.node == after.graph.node
    assert made.sha256 == store.digest(tmp_path / "qat.onnx") != start.sha256
    assert made.parent == start.sha256
    for tensor in after.graph.initializer:
        if tensor.data_type == 3 and tensor.name.endswith("weight/quantized"):  # INT8
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= limit


def test_what_is_trained_for_tensorrt_rtx_gets_its_form_afterwards(trained: Artifact, tmp_path: Path) -> None:
    """Nodes, opset and one scale a weight as of the untrained file; nearer to FP32, every rounding spelled out.

    It learns on the plain graph in FP32: FP16 between, the addition of half the range and rounded scales come after.
    """
    images, sample = (choose(open_dataset("digits", split="train"), count, 0) for count in (256, 64))
    calibration = Calibration(data="digits", count=64, seed=0, method="percentile")
    batched = [batch.inputs for batch in batches(sample, SIGHT, 16)]

    def made(name: str, *, plain: bool) -> Artifact:
        options = ptq.FileOptions(plain=plain)
        out = tmp_path / name
        return ptq.quantize(
            trained, batched, options, calibration=calibration, target="tensorrt-rtx", out=out, run=here
        )  # fmt: skip

    untrained, start = made("ptq.onnx", plain=False), made("plain.onnx", plain=True)
    plan = qat.Plan(epochs=2, batch_size=32, threads=1)
    result = qat.train(trained, start, images, plan, out=tmp_path / "qat.onnx")
    before, after = (files.load_model(Path(a.path)) for a in (untrained, result))
    assert [(n.op_type, n.name) for n in before.graph.node] == [(n.op_type, n.name) for n in after.graph.node]
    assert before.opset_import == after.opset_import
    sizes = [[(t.name, t.data_type, t.dims) for t in m.graph.initializer] for m in (before, after)]
    assert sizes[0] == sizes[1]
    assert result.target == "tensorrt-rtx"
    x = held_out()
    wanted = as_written(trained.path, x)
    errors = [
        float(np.square(session(simulated.in_float(m), exactly=True).run(None, {"input": x})[0] - wanted).mean())
        for m in (before, after)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("target", ["tensorrt", "openvino"])
def test_training_from_high_effort_leaves_an_exact_input_exact(
    trained: Artifact, quantized: Quantized, tmp_path: Path, target: str
) -> None:
    """The scale of whole pixel values stays 1, that of another activation is learned, and ONNX Runtime agrees."""
    start = quantized(target, "high")
    assert start.calibration is not None
    exact = [tensor for tensor, method in start.calibration.methods.items() if method == "exact"]
    assert exact
    images = choose(open_dataset("digits", split="train"), 256, 0)
    made = qat.train(
        trained, start, images, qat.Plan(epochs=1, batch_size=32, threads=1), out=tmp_path / "qat.onnx"
    )  # fmt: skip
    before, after = (scales_of(artifact) for artifact in (start, made))
    assert all(after[tensor] == before[tensor] == 1 for tensor in exact)
    assert any(after[tensor] != before[tensor] for tensor in before)
    x = held_out()
    read = program.read(files.load_model(Path(made.path)))
    graph = Graph(read, weight_limit=127 if target == "tensorrt" else 64, dtype=torch.float64)
    torch_says, ort_says = in_torch(graph, x), as_written(made.path, x)
    # A sum on the edge of a rounding falls to either side: one image in some hundreds, where two classes nearly tie.
    assert np.median(np.abs(torch_says - ort_says).max(axis=1)) < 1e-3
    assert (torch_says.argmax(1) != ort_says.argmax(1)).sum() <= 1


def scales_of(artifact: Artifact) -> dict[str, float]:
    """Activation -> the scale of its QuantizeLinear."""
    read = program.read(files.load_model(Path(artifact.path)))
    ops = [op for op in read.ops if op.kind == "QuantizeLinear" and op.inputs[0] not in read.constants]
    return {op.inputs[0]: float(read.constants[op.inputs[1]]) for op in ops}


def test_untrained_constants_come_back_as_they_were(quantized: Quantized) -> None:
    """What goes through torch and back is the file: integers exactly, scales within a float's rounding."""
    for target in TARGETS:
        start = quantized(target)
        model = files.load_model(Path(start.path))
        limit = 127 if target == "tensorrt" else 64
        again = program.with_constants(model, Graph(program.read(model), weight_limit=limit).constants())
        for a, b in zip(model.graph.initializer, again.graph.initializer, strict=True):
            before, after = numpy_helper.to_array(a), numpy_helper.to_array(b)
            assert a.name == b.name
            assert before.dtype == after.dtype
            if before.dtype == np.int32:  # a bias of up to 2**30 steps: the product of two rounded scales
                np.testing.assert_allclose(after, before, rtol=1e-5, atol=1)
            elif before.dtype == np.float32:
                np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(after, before)


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    """Esser et al. 2019, equation 3: round(v) - v inside the range, the limit outside of it."""
    s = torch.tensor(0.1).log()
    ops = (
        program.Op(name="q", kind="QuantizeLinear", inputs=("x", "s", "z"), output="q", attributes={}),
        program.Op(name="d", kind="DequantizeLinear", inputs=("q", "s", "z"), output="y", attributes={}),
    )
    constants: dict[str, np.ndarray] = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    graph = Graph(program.Program(ops=ops, constants=constants, input="x", output="y"))
    for x in (0.23, -0.48, 40.0, -40.0):
        graph.zero_grad()
        graph(torch.tensor([x])).sum().backward()
        v = x / float(s.exp())
        expected = (round(v) - v if -128 <= v <= 127 else max(-128, min(127, v))) * float(s.exp())
        gradient = graph.parameter_of["s"].grad
        assert gradient is not None
        assert float(gradient) == pytest.approx(expected, rel=1e-4)


def test_a_trained_file_is_compared_with_its_teacher_and_not_written_where_it_is_lost(
    trained: Artifact, quantized: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own figure stands in the record, and no longer that of the file which it started from."""
    start = quantized("openvino")
    assert start.checks["snr_db"] > 15
    like = Likeness(snr_db=0.0, images=8)
    lost = dataclasses.replace(start, notes=(*start.notes, *fidelity.notes(like)), likeness=like)
    images = choose(open_dataset("digits", split="train"), 64, 0)
    plan = qat.Plan(epochs=1, batch_size=32, threads=1)
    made = qat.train(trained, lost, images, plan, out=tmp_path / "qat.onnx")
    x = np.concatenate([batch.inputs for batch in batches(images, SIGHT, 64)])
    r, g = (logits - logits.mean(0) for logits in (as_written(trained.path, x), as_written(made.path, x)))
    expected = 10 * np.log10(np.square(r).sum() / np.square(r - g).sum())
    assert made.checks["snr_db"] == pytest.approx(expected, abs=0.1)
    assert not any("its output" in note for note in made.notes)
    monkeypatch.setattr(fidelity, "LOST_DB", fidelity.LIMIT_DB + 1)  # whatever the output
    with pytest.raises(OutputLost, match="--lr"):
        qat.train(trained, start, images, plan, out=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_loss_that_is_not_finite_and_unknown_operators_are_named(
    trained: Artifact, quantized: Quantized, tmp_path: Path
) -> None:
    """Nothing is written."""
    start = quantized("tensorrt")
    images = choose(open_dataset("digits", split="train"), 64, 0)
    with pytest.raises(UsageError) as caught:
        qat.train(trained, start, images, qat.Plan(epochs=2, lr=1e30, batch_size=32), out=tmp_path / "x.onnx")
    assert caught.value.code == "E-DIVERGED"
    assert not (tmp_path / "x.onnx").exists()
    model = program.read(files.load_model(Path(start.path)))
    odd = dataclasses.replace(model, ops=(dataclasses.replace(model.ops[0], kind="Erf"), *model.ops[1:]))
    with pytest.raises(UsageError, match="Erf"):
        Graph(odd)

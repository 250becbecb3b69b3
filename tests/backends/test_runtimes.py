"""ONNX Runtime and OpenVINO against onnx.reference, an independent interpreter; torch against its own eager self."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from resdeploy import store
from resdeploy.backends import machine, onnxruntime
from resdeploy.backends.lane import Lane
from resdeploy.errors import BackendMissing, EnvironmentFailure, MalformedInput, UsageError
from resdeploy.records import Artifact, BackendName, Execution
from tests.backends.conftest import artifact_of
from tests.graph.test_intent import quantized
from tests.graph.test_symmetric import answers, network

assert_allclose: Any = np.testing.assert_allclose  # a lane's answers are of any type
RUNTIMES = [("onnxruntime", "built.onnx"), ("openvino", "built.xml")]


@pytest.fixture(params=RUNTIMES, ids=[name for name, _ in RUNTIMES])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[BackendName, Path]:
    """A runtime and where it builds to."""
    pytest.importorskip(request.param[0])
    return request.param[0], tmp_path / "out" / request.param[1]


def test_outputs_equal_the_reference(runtime: tuple[BackendName, Path], tiny: Artifact, images: np.ndarray) -> None:
    """Five images through batches of two, the last one padded, give onnx.reference's logits."""
    (expected,) = ReferenceEvaluator(tiny.path).run(None, {"input": images})
    name, out = runtime
    with Lane(name) as lane:
        built = lane.build(tiny, Execution(batch_size=2), out)
        assert store.digest(out) == built.sha256
        assert built.parent == tiny.sha256
        opened = lane.open(built, Execution(batch_size=2, streams=2, hint="throughput"))
        assert opened.inputs["input"].shape == (2, 3, 32, 32)
        assert opened.outputs["logits"].shape == (2, 10)
        assert opened.load_s > 0
        assert opened.first_s > 0
        assert_allclose(lane.predict(images), expected, rtol=1e-4, atol=1e-5)
        block = lane.block(9, warmup=1)
        assert len(block.run_s) == 9
        assert_allclose(lane.predict(images), expected, rtol=1e-4, atol=1e-5)
    assert sorted(p.suffix for p in out.parent.iterdir()) == sorted(
        {out.suffix, *(c.suffix for c in store.companions(out))}
    )


def test_layers_are_the_executed_kernels(runtime: tuple[BackendName, Path], tiny: Artifact) -> None:
    """Both convolutions are there in FP32 with a time; the ReLU after the first one ran inside it."""
    name, out = runtime
    with Lane(name) as lane:
        lane.open(lane.build(tiny, Execution(), out), Execution(), trace=True)
        lane.block(3)
        layers = lane.layers()
        assert lane.layers() == layers
    convolutions = [layer for layer in layers if layer.kind.startswith("Conv")]
    assert len(convolutions) == 2
    assert all(layer.precision == "fp32" and layer.time_s is not None and layer.time_s > 0 for layer in convolutions)
    assert not any(layer.kind.startswith("Relu") and "relu1" in layer.name for layer in layers)


def test_openvino_names_the_graph_nodes_of_a_kernel(tiny: Artifact, tmp_path: Path) -> None:
    """A convolution and its ReLU are one kernel with both as sources; the arithmetic is pinned to FP32."""
    with Lane("openvino") as lane:
        opened = lane.open(lane.build(tiny, Execution(), tmp_path / "b.xml"), Execution(), trace=True)
        lane.block(2)
        layers = lane.layers()
    assert opened.settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert ("conv1", "relu1") in [layer.sources for layer in layers]


@pytest.mark.parametrize("wanted", [True, False])
def test_onnxruntime_plans_its_memory_as_asked(tiny: Artifact, wanted: bool) -> None:
    """The session itself says whether it lays out a second block for all tensors."""
    with Lane("onnxruntime") as lane:
        opened = lane.open(tiny, Execution(memory_pattern=wanted))
    assert opened.settings["enable_mem_pattern"] == str(wanted)


def test_every_output_is_returned_by_name(
    runtime: tuple[BackendName, Path], tiny: Artifact, images: np.ndarray
) -> None:
    """predict_all gives activations too, for calibration."""
    model = onnx.load(tiny.path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tiny.path)
    source = dataclasses.replace(tiny, sha256=store.digest(Path(tiny.path)))
    expected = ReferenceEvaluator(model).run(["logits", "r1"], {"input": images})
    name, out = runtime
    with Lane(name) as lane:
        lane.open(lane.build(source, Execution(batch_size=4), out), Execution(batch_size=4))
        found = lane.predict_all(images)
    assert list(found) == ["logits", "r1"]
    for value, wanted in zip(found.values(), expected, strict=True):
        assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_damaged_file_is_malformed(runtime: tuple[BackendName, Path], tiny: Artifact) -> None:
    """A truncated ONNX file is refused with exit status 4 and nothing is written."""
    path = Path(tiny.path)
    path.write_bytes(path.read_bytes()[:300])
    name, out = runtime
    with Lane(name) as lane, pytest.raises(MalformedInput):
        lane.build(tiny, Execution(), out)
    assert list(out.parent.iterdir()) == []


def test_file_of_a_fixed_batch_is_not_run_at_another(runtime: tuple[BackendName, Path], tiny: Artifact) -> None:
    """The mismatch is told by its sizes, before anything runs, of the file that was named: with external data too."""
    model = onnx.load(tiny.path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tiny.path, save_as_external_data=True, location="w.bin", size_threshold=0)
    name, out = runtime
    words = re.escape(f"{tiny.path} takes 1 x 3 x 32 x 32, not 4 x 3 x 32 x 32")
    with Lane(name) as lane, pytest.raises(UsageError, match=words):
        lane.build(artifact_of(Path(tiny.path)), Execution(batch_size=4), out)


def test_file_of_any_image_size_runs_at_the_size_given(
    runtime: tuple[BackendName, Path], tiny: Artifact, images: np.ndarray
) -> None:
    """Height and width are names in the file and 0 in its description: asked for, and then run."""
    model = onnx.load(tiny.path)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    onnx.save(model, tiny.path)
    assert tiny.model is not None
    spec = dataclasses.replace(tiny.model, input_shape=(3, 0, 0))
    source = dataclasses.replace(tiny, sha256=store.digest(Path(tiny.path)), model=spec)
    small = np.ascontiguousarray(images[:, :, :16, :16])
    (expected,) = ReferenceEvaluator(model).run(None, {"input": small})
    name, out = runtime
    with Lane(name) as lane:
        for unknown in (None, (3, 0, 0)):
            with pytest.raises(UsageError, match="--img-size"):
                lane.build(source, Execution(input_shape=unknown), out)
        execution = Execution(batch_size=5, input_shape=(3, 16, 16))
        assert lane.open(lane.build(source, execution, out), execution).inputs["input"].shape == (5, 3, 16, 16)
        assert_allclose(lane.predict(small), expected, rtol=1e-4, atol=1e-5)


def test_openvino_writes_xml_only(tiny: Artifact, tmp_path: Path) -> None:
    """Another suffix is refused with the right one."""
    with Lane("openvino") as lane, pytest.raises(UsageError, match=r"model\.xml"):
        lane.build(tiny, Execution(), tmp_path / "model.onnx")


@pytest.mark.skipif(machine.cpu().bf16, reason="this CPU has BF16")
def test_openvino_does_not_emulate_bf16(tiny: Artifact, tmp_path: Path) -> None:
    """Without BF16 arithmetic the precision is refused rather than run slowly under that name."""
    with Lane("openvino") as lane:
        built = lane.build(tiny, Execution(), tmp_path / "b.xml")
        with pytest.raises(BackendMissing, match="BF16"):
            lane.open(built, Execution(precision="bf16"))


@pytest.fixture(scope="module")
def from_torch(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> tuple[Path, np.ndarray]:
    """What torch's exporter writes of a large model, an .onnx and an .onnx.data, and torch's logits in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    )
    network = torch.nn.Sequential(network, torch.nn.Flatten(), torch.nn.Linear(8, 10)).eval()
    path = tmp_path_factory.mktemp("torch") / "net.onnx"
    example, sizes = (torch.zeros(2, 3, 32, 32),), ({0: torch.export.Dim("n")},)
    exported = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=sizes, verbose=False)
    exported.save(path, external_data=True)
    with torch.inference_mode():
        return path, network.double()(torch.from_numpy(images).double()).numpy()


def test_what_torch_writes_in_two_files_runs(
    runtime: tuple[BackendName, Path], from_torch: tuple[Path, np.ndarray], images: np.ndarray
) -> None:
    """External data go through every runtime, built and opened as they are."""
    path, expected = from_torch
    assert store.companions(path) == (path.with_name("net.onnx.data"),)
    name, out = runtime
    with Lane(name) as lane:
        source = artifact_of(path)
        for opened in (lane.build(source, Execution(batch_size=5), out), source):
            lane.open(opened, Execution(batch_size=5))
            assert_allclose(lane.predict(images), expected, rtol=1e-4, atol=1e-5)


def test_torch_lane_equals_torch(tmp_path: Path, images: np.ndarray) -> None:
    """A checkpoint through the lane gives the plain network's logits; layers are its modules in order."""
    torch = pytest.importorskip("torch")
    from resdeploy.models import weights, zoo
    from resdeploy.records import Weights

    spec = zoo.spec("resnet20")
    network = zoo.create(spec, seed=5)
    source = weights.save(network, spec, tmp_path / "r.safetensors", Weights(source="random", seed=5))
    with torch.inference_mode():
        expected = network.double()(torch.from_numpy(images).double()).numpy()
    with Lane("torch") as lane:
        built = lane.build(source, Execution(), tmp_path / "built.safetensors")
        lane.open(built, Execution(batch_size=2))
        assert_allclose(lane.predict(images), expected, rtol=1e-4, atol=1e-5)
        layers = lane.layers()
        lane.open(built, Execution(batch_size=5, precision="bf16"))
        assert_allclose(lane.predict(images), expected, atol=0.1)
    assert sum(layer.kind == "Conv2d" for layer in layers) == 19
    assert layers[-1].kind == "Linear"


def test_onnxruntime_on_a_device_keeps_inputs_and_outputs_there(tiny: Artifact, images: np.ndarray) -> None:
    """The session for CUDA, with the CPU as its device: the same answers as the plain one."""
    from resdeploy.backends import onnxruntime

    with onnxruntime.open(tiny, Execution(batch_size=5)) as loaded:
        plain = loaded.session()
        held = onnxruntime._DeviceSession(plain.session, loaded.inputs, loaded.outputs, device="cpu")
        answers = []
        for session in (plain, held):
            session.put({"input": images})
            session.run()
            answers.append({name: value.copy() for name, value in session.get().items()})
    np.testing.assert_array_equal(answers[0]["logits"], answers[1]["logits"])


def test_tensorrt_behind_onnxruntime_gets_no_q_dq_that_it_misreads(tiny: Artifact, tmp_path: Path) -> None:
    """The same parser: UINT8 with zero point 0 is refused there too, and INT8 goes on to the provider."""
    for target, error in (("onnxruntime", MalformedInput), ("tensorrt", BackendMissing)):
        onnx.save(quantized(onnx.load(tiny.path), target), tmp_path / f"{target}.onnx")  # type: ignore[arg-type]
        source = dataclasses.replace(artifact_of(tmp_path / f"{target}.onnx"), precision="int8")
        with Lane("onnxruntime") as lane, pytest.raises(error):
            lane.build(source, Execution(provider="tensorrt"), tmp_path / "out.onnx")


def test_tensorrt_behind_onnxruntime_gets_the_q_dq_that_were_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UINT8 at 128 becomes INT8 at 0, with the same answers. The CPU stands for the provider, which is not here."""
    monkeypatch.setattr(onnxruntime, "_providers", lambda *_: ["CPUExecutionProvider"])
    model = network(activation=np.uint8(128), weight=np.full(4, 128, np.uint8))
    onnx.save(model, tmp_path / "m.onnx")
    source = dataclasses.replace(artifact_of(tmp_path / "m.onnx"), precision="int8")
    built = onnxruntime.build(
        source, Execution(provider="tensorrt", batch_size=2, input_shape=(3, 8, 8)), tmp_path / "out.onnx"
    )
    found = onnx.load(built.path)
    assert {t.data_type for t in found.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}
    assert built.sha256 == store.digest(tmp_path / "out.onnx") != source.sha256
    np.testing.assert_array_equal(answers(found), answers(model))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_an_error_not_the_cpu(tiny: Artifact, provider: str) -> None:
    with Lane("onnxruntime") as lane, pytest.raises(BackendMissing, match=r"has no .*ExecutionProvider"):
        lane.open(tiny, Execution(provider=provider))  # type: ignore[arg-type]


def test_a_file_newer_than_the_runtime_names_both_versions(tiny: Artifact) -> None:
    """Exit 6, with the next command; Python 3.10's ONNX Runtime 1.23 says so of format version 14 in the same words."""
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load(tiny.path)
    model.ir_version = 99
    onnx.save(model, tiny.path)
    with (
        pytest.raises(
            EnvironmentFailure, match=r"has format version 99, and onnxruntime .* reads format version"
        ) as refused,
        onnxruntime.open(artifact_of(Path(tiny.path)), Execution()),
    ):
        pass
    assert refused.value.exit_status == 6
    assert runtime.__version__ in str(refused.value)
    assert "resdeploy export" in str(refused.value)


def test_logits_of_a_last_pooling_are_predicted_as_logits(tmp_path: Path, images: np.ndarray) -> None:
    """(N, 3, 1, 1) of a global pooling, from a lane (N, 3): numpy's mean of each channel."""
    pool = onnx.helper.make_node("GlobalAveragePool", ["input"], ["logits"])
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, *sides])
        for name, sides in (("input", (32, 32)), ("logits", (1, 1)))
    ]
    graph = onnx.helper.make_graph([pool], "g", ends[:1], ends[1:])
    path = tmp_path / "pool.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    with Lane("onnxruntime") as lane:
        lane.open(artifact_of(path), Execution(batch_size=2), query=False)
        assert_allclose(lane.predict(images), images.mean(axis=(2, 3)), rtol=1e-4, atol=1e-5)

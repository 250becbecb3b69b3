"""TensorRT-RTX builds and audits without a GPU, says what it built for, and refuses what has no effect there."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from resdeploy import store
from resdeploy.backends import choose, plan_header, tensorrt_rtx
from resdeploy.cli import engine
from resdeploy.deploy import build, candidates, executed, model_string
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import CompiledFile, Request
from resdeploy.errors import BackendCrash, BackendMissing, UsageError
from resdeploy.graph import cast
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, EngineOptions, Execution
from resdeploy.verbs import audit
from tests.backends.conftest import artifact_of, tiny_network
from tests.doubles.rtx_double import VERSION, RtxDouble

HERE = Execution(batch_size=2, input_shape=(3, 32, 32))


def use(monkeypatch: pytest.MonkeyPatch, **options: Any) -> RtxDouble:
    """A double in the compiler's place."""
    double = RtxDouble(**options)
    monkeypatch.setitem(sys.modules, tensorrt_rtx.VENDOR, double.module)
    monkeypatch.setattr(tensorrt_rtx, "installed_version", lambda *names: VERSION)
    return double


@pytest.fixture
def half(tmp_path: Path) -> Artifact:
    path = tmp_path / "half.onnx"
    onnx.save(cast.to_half(onnx.shape_inference.infer_shapes(tiny_network()), "fp16"), path)
    return dataclasses.replace(artifact_of(path), precision="fp16")


def built(source: Artifact, *targets: str) -> Artifact:
    execution = dataclasses.replace(HERE, engine=EngineOptions(targets=targets))
    with tensorrt_rtx.prepare(source, execution) as (prepared, settings):
        return tensorrt_rtx.build(prepared, settings, Path(source.path).with_name("e.engine"))


def test_a_build_needs_no_gpu_and_records_what_it_is(monkeypatch: pytest.MonkeyPatch, half: Artifact) -> None:
    """Targets in the order asked for, the version of the header, and whom it is not for."""
    double = use(monkeypatch)
    made = built(half, "sm86", "sm89")
    asked = [call for call in double.calls if "compute_cap" in call]
    assert asked == [
        "IBuilderConfig.num_compute_capabilities = 2",
        "IBuilderConfig.set_compute_capability(ComputeCapability.SM86, 0)",
        "IBuilderConfig.set_compute_capability(ComputeCapability.SM89, 1)",
    ]
    assert (made.format, made.machine, made.tools["tensorrt-rtx"]) == ("tensorrt-rtx", "SM86, SM89", VERSION)
    assert made.sha256 == store.digest(Path(made.path))
    assert "for GeForce RTX (SM86, SM89), not for H100 or H200" in made.notes
    assert built(half).machine is None
    assert len([call for call in double.calls if "compute_cap" in call]) == len(asked)


def test_the_layers_of_an_engine_are_in_its_record(monkeypatch: pytest.MonkeyPatch, half: Artifact) -> None:
    """So that an audit, today or of the file next year, runs nothing: the backend here opens no engine."""
    use(monkeypatch)
    made = built(half)
    layers = executed.layers_of(Candidate(label="", backend="tensorrt-rtx", artifact=made, execution=HERE))
    convolutions = [layer for layer in layers if layer.kind == "correlation"]
    assert [layer.sources for layer in convolutions] == [("conv1", "relu1"), ("conv2", "add", "relu2")]
    assert {layer.inputs[0].precision for layer in convolutions} == {"fp16"}
    copy = store.publish(Path(made.path).with_name("kept.engine"), lambda out: store.derive(made, _copied(made, out)))
    assert store.load(Path(copy.path)) == copy
    assert copy.layers == layers


def _copied(made: Artifact, out: Path) -> Path:
    out.write_bytes(Path(made.path).read_bytes())
    return out


def test_a_builder_that_gives_up_is_not_answered_with_an_option_that_it_ignores(
    monkeypatch: pytest.MonkeyPatch, half: Artifact
) -> None:
    use(monkeypatch, gives_up="graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS)")
    with pytest.raises(BackendCrash, match=r"TensorRT-RTX could not build .*half\.onnx.*graph_jit") as gave_up:
        built(half)
    assert "--opt-level" not in gave_up.value.paragraph
    assert "--targets" in gave_up.value.fix


def test_a_target_is_refused_before_the_build(monkeypatch: pytest.MonkeyPatch, tiny: Artifact) -> None:
    double = use(monkeypatch)
    with pytest.raises(UsageError, match=r"tiny\.onnx holds Gemm or MatMul in FP32 \(fc\).*sm75"):
        built(tiny, "sm75", "sm89")
    assert not double.calls


def test_it_builds_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`build` and `audit` take it by name; `auto`, and whatever runs a model, do not."""
    use(monkeypatch)
    assert choose.pick("tensorrt-rtx", "bf16", running=False)[0] == "tensorrt-rtx"
    with pytest.raises(BackendMissing, match=r"GeForce RTX.*not H100 or H200.*under NVIDIA's licence") as refused:
        choose.pick("tensorrt-rtx", "fp32")
    assert refused.value.exit_status == 6
    assert "with build, audit and gate --require-fused" in refused.value.fix
    assert choose.pick("auto", "fp32", running=False)[0] != "tensorrt-rtx"
    with pytest.raises(BackendMissing):
        tensorrt_rtx.open(artifact_of(Path(__file__)), HERE)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, "the package tensorrt-rtx-cu13-bindings is not installed"),
        ({"tensorrt_rtx_bindings": VERSION}, "tensorrt-rtx-cu13-libs, whose bindings are here, is not installed"),
        ({"tensorrt_rtx_bindings": "1.6.1.120", "tensorrt_rtx_libs": "1.6.1.120"}, "1.6.1.120 is older than 1.7"),
    ],
)
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], words: str) -> None:
    """With the command that installs it, and under whose licence."""
    monkeypatch.setattr(tensorrt_rtx, "installed_version", lambda package, *names: versions.get(package))
    found = tensorrt_rtx.available()
    assert not found.ok
    assert not found.builds
    assert words in found.reason
    assert "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings" in found.install
    assert "NVIDIA's licence" in found.install


@pytest.mark.parametrize(
    ("given", "backend", "words"),
    [
        ({"level": 3, "timing_cache": ""}, "tensorrt-rtx", "--opt-level, --no-timing-cache: without effect"),
        ({"tactics": ("cublas",), "strip": True}, "tensorrt-rtx", "--tactics, --strip-weights: without effect"),
        ({"version_compatible": True, "refit": True}, "tensorrt-rtx", "--version-compatible, --refit: without"),
        ({"hardware_compatible": "ampere_plus"}, "tensorrt-rtx", "add --backend tensorrt."),
        ({"targets": ("sm89",)}, "tensorrt", "add --backend tensorrt-rtx."),
        ({"targets": ("sm89",), "level": 1}, "tensorrt", "--targets: without effect on backend tensorrt. Leave"),
    ],
)
def test_options_without_effect_are_refused(given: dict[str, Any], backend: Any, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        engine.refuse_ignored(EngineOptions(**given), backend)
    assert words in refused.value.paragraph
    engine.refuse_ignored(EngineOptions(batch_range=(1, 8), workspace_mib=512), backend)


def test_an_engine_tells_by_its_first_bytes_whose_it_is(tmp_path: Path) -> None:
    """TensorRT's and TensorRT-RTX's end alike."""
    mine, theirs = tmp_path / "mine.engine", tmp_path / "theirs.engine"
    mine.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)))
    theirs.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 0)))
    assert model_string.classify(str(mine)) == CompiledFile(mine, "tensorrt-rtx", "tensorrt-rtx")
    for path in (theirs, tmp_path / "none.engine"):
        assert model_string.classify(str(path)) == CompiledFile(path, "engine", "tensorrt")
    assert [plan_header.version(path.read_bytes()) for path in (mine, theirs)] == ["1.7.1.116", "10.3.0"]
    assert plan_header.version(b"ftrt" + bytes(20) + b"\x08\x06\x01") == plan_header.version(b"vtrt") == ""


def test_targets_of_what_is_not_built_here_are_refused(monkeypatch: pytest.MonkeyPatch, half: Artifact) -> None:
    use(monkeypatch)
    plan = audit.AuditPlan(targets=("sm89",), backend="onnxruntime")
    for model in ("layers.json", built(half).path, half.path):
        with pytest.raises(UsageError, match="--targets has no effect on"):
            audit.audit(Request(model=model), plan, CalibrationPlan(), progress=lambda *_: None)


def test_one_that_was_built_is_audited_and_not_run(monkeypatch: pytest.MonkeyPatch, half: Artifact) -> None:
    """The backend of such a file is the one that built it; to run it is refused as for one that is not here."""
    use(monkeypatch)
    request = Request(model=built(half).path)
    assert candidates.pick_backend(request, "auto", None, running=False) == "tensorrt-rtx"
    with pytest.raises(BackendMissing):
        candidates.pick_backend(request, "auto", None)
    assert build.suffix_of("tensorrt-rtx") == ".engine"

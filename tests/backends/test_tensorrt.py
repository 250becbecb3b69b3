"""TensorRT 8.6, 10.3, 10.16 and 11.4 through one scripted plan, against doubles made of their real API lists."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from resdeploy import backends, store
from resdeploy.backends import cuda, tensorrt, trt_builder, worker
from resdeploy.deploy import build
from resdeploy.errors import (
    BackendCrash,
    BackendMissing,
    EnvironmentFailure,
    IntegrityError,
    MalformedInput,
    OutOfMemory,
    UsageError,
)
from resdeploy.graph import cast, for_tensorrt, intent
from resdeploy.judge import fusion
from resdeploy.records import Artifact, EngineOptions, Execution
from tests.backends.conftest import artifact_of, tiny_network
from tests.doubles import cuda_runtime
from tests.doubles.tensorrt_double import VERSIONS, Double
from tests.graph.test_intent import quantized

DRIVER = cuda.Driver(problem="", cuda=13000, devices=(cuda.Device(name="Double GPU", capability=(9, 0)),))


class Bench:
    """The backend with a double in TensorRT's place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder

    def use(self, version: str, **options: Any) -> Double:
        double = Double(version, **options)
        package = type(sys)("cuda")
        inner = type(sys)("cuda.bindings")
        package.bindings, inner.runtime = inner, cuda_runtime  # type: ignore[attr-defined]
        modules = {
            "tensorrt": double.module,
            "cuda": package,
            "cuda.bindings": inner,
            "cuda.bindings.runtime": cuda_runtime,
        }
        for name, module in modules.items():
            self.monkeypatch.setitem(sys.modules, name, module)
        self.monkeypatch.setattr(tensorrt, "installed_version", lambda *names: version)
        self.monkeypatch.setattr(cuda, "driver", lambda: DRIVER)
        return double

    def source(self, model: onnx.ModelProto, precision: str, major: int) -> Artifact:
        return self.stored(for_tensorrt.lower(model, major).SerializeToString(), precision)

    def stored(self, data: bytes, precision: str) -> Artifact:
        path = self.folder / f"{precision}.onnx"
        path.write_bytes(data)
        return dataclasses.replace(artifact_of(path), precision=precision)  # type: ignore[arg-type]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, tmp_path)


def model_of(precision: str) -> onnx.ModelProto:
    model = onnx.shape_inference.infer_shapes(tiny_network(channels=8))
    if precision == "fp16":
        return cast.to_half(model, "fp16")
    return quantized(model, "tensorrt") if precision == "int8" else model


@functools.cache
def lowered(precision: str, major: int) -> bytes:
    return for_tensorrt.lower(model_of(precision), major).SerializeToString()


@functools.cache
def asked(precision: str) -> intent.Intent:
    return intent.of(model_of(precision))


@functools.cache
def unreadable() -> bytes:
    """A node that no version reads: too new for 8.6, of two types for strongly typed networks."""
    model = model_of("fp16")
    bad = next(t for t in model.graph.initializer if t.name == "w2")
    bad.CopyFrom(helper.make_tensor("w2", TensorProto.FLOAT, list(bad.dims), np.zeros(bad.dims).ravel()))
    model.opset_import[0].version, model.ir_version = 18, 9
    return model.SerializeToString()


def execution(folder: Path, batch_size: int = 2, **options: Any) -> Execution:
    cache = str(folder / "timing.cache")
    given: dict[str, Any] = {"batch_range": (1, 4), "timing_cache": cache, "workspace_mib": 64, "level": 3}
    engine = EngineOptions(**given | options)
    return Execution(batch_size=batch_size, input_shape=(3, 32, 32), engine=engine)


def plan(bench: Bench, double: Double, precision: str, images: np.ndarray) -> tuple[Any, ...]:
    """Build, run and audit: all that a version is asked to do, and what came of it."""
    heard: list[tuple[str, int, int]] = []
    bench.monkeypatch.setattr(backends, "listener", lambda *words: heard.append(words))
    with pytest.raises(MalformedInput) as refused:
        tensorrt.build(bench.stored(unreadable(), "fp32"), execution(bench.folder), bench.folder / "x.engine")
    source = bench.stored(lowered(precision, double.major), precision)
    how = execution(bench.folder, refit=True, version_compatible=True, hardware_compatible="ampere_plus")
    built = tensorrt.build(source, how, bench.folder / "e.engine")
    with tensorrt.open(built, how) as loaded:
        sessions = [loaded.session(), loaded.session()]
        answers = [worker.answer(loaded, [session], images)["logits"] for session in sessions]
        device_s = sessions[0].device_time_s()
        settings = dict(loaded.settings)
    with tensorrt.open(built, how, trace=True) as loaded:
        loaded.session().run()
        layers = loaded.layers()
    told = fusion.judge("tiny", layers, intent=asked(precision), asked=precision)  # type: ignore[arg-type]
    capabilities = trt_builder.capabilities(double.module)
    facts = (device_s is not None, str(refused.value), len(double.calls))
    return capabilities, tuple(heard), tuple(answers[0].ravel()), settings, told, facts, tuple(double.calls)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_one_plan_runs_on_every_version(bench: Bench, version: str, precision: str, images: np.ndarray) -> None:
    """Built, run on two streams, equal to ONNX Runtime in FP32, audited as fused in the precision asked for."""
    double = bench.use(version, execute=precision == "fp32")
    _, heard, logits, settings, told, (timed, refused, _), _ = plan(bench, double, precision, images)
    assert told.verdict.state == "pass", told.verdict
    assert [(b.fused, b.precision) for b in told.blocks] == [(True, precision)]
    assert told.time_s
    assert timed
    assert ("node #0: opset 18" if version == "8.6.0" else "node conv2 (Conv)") in refused
    assert settings["cuda_graph"] == "yes"
    assert settings["tensorrt"] == version
    assert heard == (() if version == "8.6.0" else (("building the engine", 1, 2), ("building the engine", 2, 2)))
    if precision == "fp32":
        session = onnxruntime.InferenceSession(model_of("fp32").SerializeToString(), providers=["CPUExecutionProvider"])
        expected = session.run(None, {"input": images})[0]
        np.testing.assert_allclose(np.array(logits).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_capabilities_are_those_of_the_version(bench: Bench, version: str) -> None:
    """Against NVIDIA's release notes, as facts: what came in 9.1, 10.0, 10.1, 10.9 and what 11 removed."""
    able = trt_builder.capabilities(bench.use(version).module)
    old, new = version == "8.6.0", version == "11.4.0"
    assert able == {
        "strongly typed networks": not old,
        "explicit batch flag": not new,
        "FP16 flag": not new,
        "INT8 flag": not new,
        "stripped plans": not old,
        "refitting from ONNX": not old,
        "engines for one compute capability": version in ("10.16.1", "11.4.0"),
        "profile sharing": not new,
        "cuBLAS tactics": not new,
        "progress of a build": not old,
        "names in parser errors": not old,
        "engine memory (v2)": not old,
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.slow
def test_every_used_name_is_needed(bench: Bench, version: str, images: np.ndarray, tmp_path: Path) -> None:
    """A name taken out of a version's list makes the plan fail, or do visibly something else."""

    def outcome(double: Double) -> Any:
        for left in bench.folder.glob("*"):
            left.unlink()
        try:
            *found, calls = plan(bench, double, "int8", images[:1])
        except (AttributeError, TypeError, KeyError, UsageError, pytest.fail.Exception) as e:
            return type(e)
        found[4] = [(block.fused, block.precision) for block in found[4].blocks]
        return found, calls

    reference = bench.use(version, execute=False)
    expected = outcome(reference)
    assert not isinstance(expected, type)
    # A class that is only asked whether it has a member, which it has not, is looked at and not used.
    used = sorted(n for n in reference.used if n[1] or any(m for kind, m in reference.used if kind == n[0]))
    assert len(used) > 60
    assert outcome(bench.use(version, execute=False)) == expected  # the plan itself repeats
    idle = [name for name in used if outcome(bench.use(version, without=name, execute=False)) == expected]
    assert not idle


@pytest.mark.parametrize("version", VERSIONS)
def test_precision_flags_go_to_8_alone(bench: Bench, version: str, images: np.ndarray) -> None:
    double = bench.use(version, execute=False)
    plan(bench, double, "int8", images)
    flags = {
        call
        for call in double.calls
        if (call.startswith("IBuilderConfig.set_flag") and "FP16" in call) or "INT8)" in call
    }
    assert flags == (
        {"IBuilderConfig.set_flag(BuilderFlag.FP16)", "IBuilderConfig.set_flag(BuilderFlag.INT8)"}
        if version == "8.6.0"
        else set()
    )


# What 8.6 cannot read


def with_axes_input() -> onnx.ModelProto:
    model = tiny_network()
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "ReduceMean"
    pool.input.append("axes")
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]))
    model.opset_import[0].version = 18
    model.ir_version = 9
    return model


def test_newer_graphs_are_lowered_for_8(bench: Bench) -> None:
    """The double refuses opset 18 with axes as an input; lowering writes both as 8.6 reads them."""
    bench.use("8.6.0", execute=False)
    model = with_axes_input()
    raw = bench.folder / "raw.onnx"
    onnx.save(model, raw)
    with pytest.raises(MalformedInput, match=r"node #0: opset 18 is newer"):
        tensorrt.build(artifact_of(raw), execution(bench.folder), bench.folder / "x.engine")
    tensorrt.build(bench.source(model, "fp32", 8), execution(bench.folder), bench.folder / "e.engine")


def test_fp16_scales_are_refused_by_8_and_named(bench: Bench) -> None:
    bench.use("10.3.0", execute=False)
    typed = bench.source(model_of("int8"), "int8", 10)
    double = bench.use("8.6.0", execute=False)
    held = onnx.load(typed.path)
    held.opset_import[0].version = 17
    onnx.save(held, typed.path)
    with pytest.raises(MalformedInput, match="scales in FP16"):
        tensorrt.build(typed, execution(bench.folder), bench.folder / "e.engine")
    assert double.major == 8


def test_a_quantized_graph_too_new_for_8_says_what_to_do() -> None:
    model = model_of("int8")
    model.opset_import[0].version = 19
    with pytest.raises(MalformedInput, match="opset 19"):
        for_tensorrt.lower(model, 8)


@pytest.mark.parametrize("version", VERSIONS)
def test_q_dq_for_another_runtime_never_reach_the_builder(bench: Bench, version: str) -> None:
    """UINT8 with zero point 0, which NVIDIA's parser takes for INT8: exit 4 and the next command."""
    double = bench.use(version, execute=False)
    source = bench.stored(quantized(tiny_network(), "openvino").SerializeToString(), "int8")
    with pytest.raises(MalformedInput, match="has UINT8 with a zero point of 0") as refused:
        build.build_in_lane(source, "tensorrt", execution(bench.folder), bench.folder / "e.engine")
    assert refused.value.exit_status == 4
    assert "--target tensorrt" in refused.value.fix
    assert not double.calls


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_parser_errors_name_the_node(bench: Bench, version: str) -> None:
    """A strongly typed network with operands of two types; what TensorRT says of it is kept."""
    bench.use(version, execute=False)
    with pytest.raises(MalformedInput, match=r"node conv2 \(Conv\): operands of different types"):
        tensorrt.build(bench.stored(unreadable(), "fp32"), execution(bench.folder), bench.folder / "e.engine")


# Lowering


def with_scale(name: str, value: float) -> onnx.ModelProto:
    model = model_of("int8")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            shape = tuple(tensor.dims)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, value, np.float32), tensor.name))
    return model


@pytest.mark.parametrize("value", [1.01 * 2**-17, 3.3e-5, 2**-14, 0.013])
def test_weights_keep_their_integers_on_fp16_scales(value: float) -> None:
    """round(q s / fp16(s)) is q for every q, down to the smallest scale that is not raised."""
    q = np.arange(-127, 128, dtype=np.float64)
    rounded = np.float64(np.float16(value))
    weights = (q * np.float32(value)).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(np.rint(weights / rounded), q)


def test_a_weight_scale_too_small_for_fp16_is_raised_and_stays_fused() -> None:
    lowered = for_tensorrt.lower(with_scale("conv2/weight/scale", 1e-6), 10)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in lowered.graph.initializer}
    assert held["conv2/weight/scale"].dtype == np.float16
    assert (held["conv2/weight/scale"] == np.float16(2**-17)).all()
    assert not cast.nodes_in_fp32(lowered)


def test_an_activation_scale_too_small_for_fp16_keeps_its_pair_in_fp32() -> None:
    lowered = for_tensorrt.lower(with_scale("input/scale", 1e-6), 10)
    assert set(cast.nodes_in_fp32(lowered)) == {"input/QuantizeLinear", "input/DequantizeLinear"}
    onnx.checker.check_model(lowered, full_check=True)


@pytest.mark.parametrize(("precision", "major"), [("fp32", 10), ("fp16", 10), ("fp16", 8), ("int8", 8)])
def test_what_needs_no_lowering_is_left_alone(precision: str, major: int) -> None:
    model = model_of(precision)
    assert for_tensorrt.lower(model, major) is model


# The timing cache


def test_timing_caches_are_merged_not_overwritten(bench: Bench) -> None:
    bench.use("10.3.0", execute=False)
    for precision in ("fp32", "fp16"):
        options = execution(bench.folder, refit=precision == "fp16")
        tensorrt.build(bench.source(model_of(precision), precision, 10), options, bench.folder / "e.engine")
    assert len((bench.folder / "timing.cache").read_text().splitlines()) == 3  # the head, and one kernel each


@pytest.mark.parametrize("left", [b"9.9.0 Double GPU\nx", b"\xff\x00 damaged"])
@pytest.mark.parametrize("version", ["8.6.0", "10.3.0", "11.4.0"])
def test_an_unfit_timing_cache_is_set_aside(bench: Bench, version: str, left: bytes) -> None:
    """Whether the version makes none of it, or an empty one with a warning alone."""
    double = bench.use(version, execute=False)
    (bench.folder / "timing.cache").write_bytes(left)
    built = tensorrt.build(
        bench.source(model_of("fp32"), "fp32", double.major), execution(bench.folder), bench.folder / "e.engine"
    )
    aside = list(bench.folder.glob("*.incompatible"))
    assert [path.read_bytes() for path in aside] == [left]
    assert "set aside" in " ".join(built.notes)
    assert (bench.folder / "timing.cache").read_text().startswith(version)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_timing_cache_fits(bench: Bench, version: str) -> None:
    """A file that holds no kernels, or nothing at all, is no reason to set anything aside."""
    double = bench.use(version, execute=False)
    for held in (b"", f"{version} Double GPU\n".encode()):
        (bench.folder / "timing.cache").write_bytes(held)
        source = bench.source(model_of("fp32"), "fp32", double.major)
        built = tensorrt.build(source, execution(bench.folder), bench.folder / "e.engine")
        assert not built.notes
        assert not list(bench.folder.glob("*.incompatible"))


# Options and sizes


@pytest.mark.parametrize(
    ("version", "options", "words"),
    [
        ("8.6.0", {"strip": True}, "--strip-weights"),
        ("8.6.0", {"hardware_compatible": "same_compute_capability"}, "same-compute-capability"),
        ("11.4.0", {"tactics": ("CUBLAS",)}, "CUBLAS"),
        ("10.3.0", {"batch_range": (4, 8)}, "leave out 2"),
    ],
)
def test_options_that_a_version_lacks_are_named(bench: Bench, version: str, options: Any, words: str) -> None:
    double = bench.use(version, execute=False)
    source = bench.source(model_of("fp32"), "fp32", double.major)
    with pytest.raises(UsageError, match=words):
        tensorrt.build(source, execution(bench.folder, **options), bench.folder / "e.engine")


@pytest.fixture
def engine(bench: Bench) -> Callable[[], Artifact]:
    bench.use("10.3.0")
    return lambda: tensorrt.build(
        bench.source(model_of("fp32"), "fp32", 10), execution(bench.folder), bench.folder / "e.engine"
    )


def test_any_batch_of_the_profile_runs(bench: Bench, engine: Callable[[], Artifact], images: np.ndarray) -> None:
    built = engine()
    answers: list[Any] = []
    for batch_size in (1, 3, 4):
        with tensorrt.open(built, execution(bench.folder, batch_size)) as loaded:
            answers.append(worker.answer(loaded, [loaded.session()], images)["logits"])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[2], rtol=1e-4, atol=1e-5)


def test_a_batch_outside_the_profile_is_refused(bench: Bench, engine: Callable[[], Artifact]) -> None:
    with (
        pytest.raises(UsageError, match="batches of 1 to 4, not 5"),
        tensorrt.open(engine(), execution(bench.folder, 5)),
    ):
        pass


def test_closing_gives_all_memory_back(bench: Bench, engine: Callable[[], Artifact]) -> None:
    before = dict(cuda_runtime.live)
    with tensorrt.open(engine(), execution(bench.folder)) as loaded:
        loaded.session(), loaded.session()
        assert len(cuda_runtime.live) > len(before) + 10
    assert cuda_runtime.live == before


def test_gpu_memory_that_does_not_suffice_is_said(
    bench: Bench, engine: Callable[[], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = engine()
    monkeypatch.setattr(cuda_runtime, "LIMIT", 100)
    with pytest.raises(OutOfMemory, match="GPU's memory"), tensorrt.open(built, execution(bench.folder)):
        pass


def test_without_graph_capture_kernels_are_enqueued(
    bench: Bench, engine: Callable[[], Artifact], monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    built = engine()
    refused = cuda_runtime.cudaError_t.cudaErrorStreamCaptureUnsupported
    monkeypatch.setattr(cuda_runtime, "cudaGraphInstantiate", lambda graph, flags: (refused, None))
    cuda_runtime.cudaGraphInstantiate.__name__ = "cudaGraphInstantiate"
    with tensorrt.open(built, execution(bench.folder)) as loaded:
        assert loaded.settings["cuda_graph"].startswith("no: cudaGraphInstantiate failed: CUDA error 900")
        assert np.isfinite(worker.answer(loaded, [loaded.session()], images)["logits"]).all()


# Engines that do not belong here


def test_another_gpu_is_said_before_tensorrt_is_touched(bench: Bench, engine: Callable[[], Artifact]) -> None:
    built = dataclasses.replace(engine(), machine="NVIDIA T4 (sm_75)")
    double = bench.use("10.3.0")
    with pytest.raises(EnvironmentFailure, match="built for NVIDIA T4"), tensorrt.open(built, execution(bench.folder)):
        pass
    assert not double.calls


def test_another_tensorrt_is_said(bench: Bench, engine: Callable[[], Artifact]) -> None:
    built = engine()
    for tools in (built.tools, {}):  # from the record, and from the plan's own header
        bench.use("11.4.0")
        stranger = dataclasses.replace(built, tools=tools)
        with (
            pytest.raises(EnvironmentFailure, match=r"written by TensorRT 10\.3\.0; this is 11"),
            tensorrt.open(stranger, execution(bench.folder)),
        ):
            pass


def built_as(bench: Bench, version: str, **options: Any) -> Artifact:
    double = bench.use(version)
    source = bench.source(model_of("fp32"), "fp32", double.major)
    return tensorrt.build(source, execution(bench.folder, **options), bench.folder / "e.engine")


def test_a_version_compatible_engine_opens_on_another_tensorrt(bench: Bench) -> None:
    """Its own runtime is allowed for it, and for no engine whose record does not say so."""
    built = built_as(bench, "10.3.0", version_compatible=True)
    newer = bench.use("11.4.0")
    with tensorrt.open(built, execution(bench.folder)) as loaded:
        loaded.session().run()
    assert "Runtime.engine_host_code_allowed = True" in newer.calls
    plain = built_as(bench, "10.3.0")
    double = bench.use("10.3.0")
    with tensorrt.open(plain, execution(bench.folder)):
        pass
    assert not any("engine_host_code_allowed" in call for call in double.calls)


@pytest.mark.parametrize(
    ("level", "opens"), [("none", False), ("same_compute_capability", True), ("ampere_plus", True)]
)
def test_on_another_gpu_of_the_same_capability(bench: Bench, level: str, opens: bool) -> None:
    """The name counts for plain engines alone."""
    built = built_as(bench, "11.4.0", hardware_compatible=level)
    cousin = dataclasses.replace(DRIVER, devices=(cuda.Device(name="Cousin", capability=(9, 0)),))
    bench.monkeypatch.setattr(cuda, "driver", lambda: cousin)
    refused = contextlib.nullcontext() if opens else pytest.raises(EnvironmentFailure, match="built for Double GPU")
    with refused, tensorrt.open(built, execution(bench.folder)):
        pass


def test_one_compute_capability_is_not_another(bench: Bench) -> None:
    built = built_as(bench, "11.4.0", hardware_compatible="same_compute_capability")
    older = dataclasses.replace(DRIVER, devices=(cuda.Device(name="Double GPU", capability=(8, 0)),))
    bench.monkeypatch.setattr(cuda, "driver", lambda: older)
    with pytest.raises(EnvironmentFailure, match="built for sm_90"), tensorrt.open(built, execution(bench.folder)):
        pass


def test_the_bytes_that_are_loaded_are_the_ones_hashed(bench: Bench, engine: Callable[[], Artifact]) -> None:
    """A file swapped after it was read: the first reading is refused, whatever a second would find."""
    built = engine()
    good, path = Path(built.path).read_bytes(), Path(built.path)
    bench.monkeypatch.setattr(Path, "read_bytes", lambda self: good[:-1] + b"!" if self == path else b"")
    with pytest.raises(IntegrityError, match="changed"), tensorrt.open(built, execution(bench.folder)):
        pass


def test_a_timing_cache_set_aside_after_the_build_is_noted(bench: Bench) -> None:
    """Another build left an unfit one meanwhile: the note is in the record although the build was done."""
    bench.use("10.3.0", execute=False)
    source, cache = bench.source(model_of("fp32"), "fp32", 10), bench.folder / "timing.cache"
    real, calls = trt_builder._load_cache, []

    def load(config: Any, path: Path, notes: list[str]) -> Any:
        calls.append(path)
        if len(calls) == 2:
            cache.write_bytes(b"8.6.0 Double GPU\nx")
        return real(config, path, notes)

    bench.monkeypatch.setattr(trt_builder, "_load_cache", load)
    built = tensorrt.build(source, execution(bench.folder), bench.folder / "e.engine")
    assert "set aside" in " ".join(built.notes)


def test_a_damaged_engine_is_refused_in_tensorrts_words(bench: Bench, engine: Callable[[], Artifact]) -> None:
    built = engine()
    Path(built.path).write_bytes(b"nonsense")
    damaged = dataclasses.replace(built, sha256=store.digest(Path(built.path)))
    with pytest.raises(BackendCrash, match="cannot load") as caught, tensorrt.open(damaged, execution(bench.folder)):
        pass
    assert "magicTag" in str(caught.value)


def test_stripped_engines_do_not_run(bench: Bench) -> None:
    bench.use("10.3.0", execute=False)
    options = execution(bench.folder, strip=True)
    built = tensorrt.build(bench.source(model_of("fp32"), "fp32", 10), options, bench.folder / "e.engine")
    with pytest.raises(EnvironmentFailure, match="without its weights"), tensorrt.open(built, options):
        pass


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "8.6.0"])
@pytest.mark.parametrize("option", ["strip", "refit"])
def test_weights_are_put_back(bench: Bench, version: str, option: str, images: np.ndarray) -> None:
    """A stripped engine is small, cannot run, and answers as the whole one once it is refitted."""
    double = bench.use(version)
    source = bench.source(model_of("fp32"), "fp32", double.major)
    how = execution(bench.folder, **{option: True})
    bare = tensorrt.build(source, how, bench.folder / "bare.engine")
    again = execution(bench.folder, refit_from=bare.path)
    whole = tensorrt.build(source, again, bench.folder / "whole.engine")
    with tensorrt.open(whole, again) as loaded:
        got: Any = worker.answer(loaded, [loaded.session()], images)["logits"]
    expected = onnxruntime.InferenceSession(source.path, providers=["CPUExecutionProvider"]).run(
        None, {"input": images}
    )
    np.testing.assert_allclose(got, expected[0], rtol=1e-4, atol=1e-5)
    wanted = "REFIT_IDENTICAL" if option == "strip" else "REFIT"
    assert f"IBuilderConfig.set_flag(BuilderFlag.{wanted})" in double.calls


def test_every_name_used_in_refitting_is_needed(bench: Bench) -> None:
    """Those that the builder and the runner use besides are proven needed by their own plan."""
    how = execution(bench.folder, strip=True)

    def outcome(double: Double) -> Any:
        bare = tensorrt.build(bench.source(model_of("fp32"), "fp32", 10), how, bench.folder / "bare.engine")
        started, double.used = len(double.calls), set()
        try:
            options = execution(bench.folder, refit_from=bare.path)
            whole = tensorrt.build(bench.source(model_of("fp32"), "fp32", 10), options, bench.folder / "whole.engine")
        except (AttributeError, KeyError, UsageError) as e:
            return type(e)
        return whole.sha256, double.calls[started:]

    reference = bench.use("10.3.0", execute=False)
    expected = outcome(reference)
    assert not isinstance(expected, type)
    own = {"Refitter", "OnnxParserRefitter", "SerializationFlag", "ISerializationConfig"}
    used = sorted(name for name in reference.used if name[0] in own and name[1])
    assert len(used) >= 5, used
    assert not [name for name in used if outcome(bench.use("10.3.0", without=name, execute=False)) == expected]


def test_an_engine_that_was_not_built_for_it_is_not_refitted(bench: Bench, engine: Callable[[], Artifact]) -> None:
    built = engine()
    with pytest.raises(UsageError, match="was not built to be refitted"):
        tensorrt.build(
            bench.source(model_of("fp32"), "fp32", 10),
            execution(bench.folder, refit_from=built.path),
            bench.folder / "w",
        )


def test_weights_of_another_graph_are_refused(bench: Bench) -> None:
    bench.use("10.3.0")
    how = execution(bench.folder, strip=True)
    bare = tensorrt.build(bench.source(model_of("fp32"), "fp32", 10), how, bench.folder / "bare.engine")
    other = bench.source(onnx.shape_inference.infer_shapes(tiny_network(channels=16)), "fp32", 10)
    with pytest.raises(MalformedInput, match="do not fit"):
        tensorrt.build(other, execution(bench.folder, refit_from=bare.path), bench.folder / "w.engine")


def test_8_refits_from_no_onnx(bench: Bench) -> None:
    bench.use("8.6.0")
    with pytest.raises(UsageError, match="does not refit from ONNX"):
        tensorrt.build(
            bench.source(model_of("fp32"), "fp32", 8),
            execution(bench.folder, refit_from=str(bench.folder / "fp32.onnx")),
            bench.folder / "w.engine",
        )


def test_layers_are_not_timed_in_the_run_that_loads_them(bench: Bench, engine: Callable[[], Artifact]) -> None:
    """Opening runs the engine once, which loads kernels and may compile them: no layer has a time yet."""
    with tensorrt.open(engine(), execution(bench.folder), trace=True) as loaded:
        session = loaded.session()
        assert all(layer.time_s is None for layer in loaded.layers())
        session.run()
        assert any(layer.time_s for layer in loaded.layers())


# The driver


def test_without_metadata_the_module_tells_its_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels that were unpacked have none, and what an engine is built from depends on the version."""
    bench.use("10.3.0")
    monkeypatch.setattr(tensorrt, "installed_version", lambda *names: tensorrt.UNKNOWN_VERSION)
    assert tensorrt.available().version == "10.3.0"


def test_a_module_that_cannot_be_imported_has_no_version_to_tell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that it links is missing, say: looking for backends must not end in a traceback."""
    bench.use("10.3.0")
    monkeypatch.setattr(tensorrt, "installed_version", lambda *names: tensorrt.UNKNOWN_VERSION)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert tensorrt.available().version == tensorrt.UNKNOWN_VERSION


def test_the_module_is_not_imported_for_its_version_without_a_driver(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.use("10.3.0")
    monkeypatch.setattr(tensorrt, "installed_version", lambda *names: tensorrt.UNKNOWN_VERSION)
    monkeypatch.setattr(tensorrt, "_imported_version", lambda: pytest.fail("imported"))
    monkeypatch.setattr(cuda, "driver", lambda: cuda.Driver(problem="no driver"))
    assert not tensorrt.available().ok


@pytest.mark.parametrize(
    ("version", "driver", "words"),
    [
        ("8.6.0", cuda.Driver(problem="this machine has no CUDA driver (libcuda.so.1)"), "no CUDA driver"),
        ("11.4.0", dataclasses.replace(DRIVER, cuda=12040), "supports CUDA 12.4, TensorRT 11.4.0 needs 13"),
        (None, DRIVER, "the package tensorrt is not installed"),
    ],
)
def test_the_driver_is_asked_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tiny: Artifact, version: str | None, driver: cuda.Driver, words: str
) -> None:
    double = bench.use(version or "8.6.0")
    monkeypatch.setattr(tensorrt, "installed_version", lambda *names: version)
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    with pytest.raises(BackendMissing, match=words.replace("(", r"\(").replace(")", r"\)")):
        tensorrt.build(tiny, Execution(), bench.folder / "e.engine")
    assert not double.used

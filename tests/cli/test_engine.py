"""TensorRT through the whole command line: real lanes and files, a double of TensorRT on the child's path, no GPU."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest

from tests.cli.conftest import Commands, Run, gpu_environment

BUILD = ("build", "--backend", "tensorrt")


@pytest.fixture(scope="module")
def engines(
    commands: Commands, driver: Path, digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Builds an engine with these options, once for all tests, in a folder that also has the key that signed it."""
    made: dict[tuple[str, ...], Path] = {}

    def build(*options: str) -> Path:
        if options not in made:
            folder = tmp_path_factory.mktemp("engine")
            environment = {**os.environ, **gpu_environment(folder, driver, "10.3.0")}
            done = commands.run([*BUILD, str(digits_onnx), *options, "-o", "d.engine"], folder, environment)
            assert done.returncode == 0, done.stderr
            made[options] = folder
        return made[options]

    return build


@pytest.fixture
def engine(engines: Callable[..., Path], tmp_path: Path) -> Callable[..., None]:
    """An engine built with these options, `d.engine`, and the key that signed it are in the test's folder."""

    def copy(*options: str) -> None:
        shutil.copytree(engines(*options), tmp_path, dirs_exist_ok=True)

    return copy


def test_an_engine_is_built_evaluated_and_audited(
    on_gpu: Run, engine: Callable[..., None], digits_onnx: Path, tmp_path: Path
) -> None:
    """The same answers as the FP32 file in ONNX Runtime, which is what the double computes with."""
    engine("-b", "4", "--max-batch", "8")
    record = json.loads((tmp_path / "d.engine.json").read_text())
    assert (record["format"], record["machine"]) == ("engine", "Double GPU (sm_90)")
    assert record["checks"]["build_s"] > 0
    scores = []
    for model, backend in (("d.engine", "tensorrt"), (digits_onnx, "onnxruntime")):
        done = on_gpu("eval", model, "--data", "digits", "--backend", backend, "-b", 8, "--format", "json")
        assert done.returncode == 0, done.stderr
        scores.append(json.loads(done.stdout)["results"][0]["correct"])
    assert scores[0] == scores[1] > 80
    done = on_gpu("audit", "d.engine", "--against", digits_onnx, "-b", 4, "--format", "json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "pass"), done.stderr
    assert [block["precision"] for block in document["blocks"]] == ["fp32"] * 9


@pytest.mark.parametrize("version", ["8.6.0", "11.4.0"])
def test_int8_engines_are_fused_in_int8(on_gpu: Run, digits_onnx: Path, version: str) -> None:
    """Quantized, lowered for the version, built into the cache and audited by one command."""
    options = ("--precision", "int8", "--calib-data", "digits", "--backend", "tensorrt", "--format", "json")
    done = on_gpu("audit", digits_onnx, *options, version=version, DOUBLE_EXECUTE="no")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (0, "pass"), done.stdout
    assert [block["precision"] for block in document["blocks"]] == ["int8"] * 9


def cached(tmp_path: Path) -> Path:
    (engine,) = (tmp_path / "cache/artifacts").glob("*.engine")
    return engine


def test_a_cached_engine_not_signed_by_the_user_is_built_again(on_gpu: Run, digits_onnx: Path, tmp_path: Path) -> None:
    """Swapped together with its sidecar, so that the digest fits: the signature does not."""
    command = ("audit", digits_onnx, "--backend", "tensorrt", "--format", "json")
    assert on_gpu(*command, DOUBLE_EXECUTE="no").returncode == 0
    engine = cached(tmp_path)
    good = engine.read_bytes()
    planted = good[:-1] + b"x"
    engine.write_bytes(planted)
    record = json.loads((sidecar := engine.with_name(engine.name + ".json")).read_text())
    sidecar.write_text(json.dumps(record | {"sha256": hashlib.sha256(planted).hexdigest()}))
    assert on_gpu(*command, DOUBLE_EXECUTE="no").returncode == 0
    assert engine.read_bytes() == good
    key = tmp_path / "config/resdeploy/signing.key"
    assert key.stat().st_mode & 0o077 == 0


def test_a_downloaded_engine_needs_trust(on_gpu: Run, engine: Callable[..., None], tmp_path: Path) -> None:
    engine()
    try:
        os.setxattr(tmp_path / "d.engine", "user.xdg.origin.url", b"https://example.org/d.engine")
    except OSError:
        pytest.skip("this file system keeps no attributes")
    refused = on_gpu("audit", "d.engine")
    assert refused.returncode == 5
    assert "https://example.org/d.engine" in refused.stderr
    assert "--trust-engine" in refused.stderr
    assert on_gpu("audit", "d.engine", "--trust-engine", DOUBLE_EXECUTE="no").returncode in (0, 3)


def test_a_gate_of_an_engine_that_somebody_else_signed_needs_trust(
    on_gpu: Run, engine: Callable[..., None], tmp_path: Path
) -> None:
    """As `audit`: one with host code that somebody else has signed."""
    engine("--version-compatible")
    sidecar = tmp_path / "d.engine.json"
    record = json.loads(sidecar.read_text())
    record["seal"]["signature"] = "0" * 64
    sidecar.write_text(json.dumps(record))
    command = ("gate", "--baseline", "d.engine", "--candidate", "d.engine", "--max-size", 100)
    refused = on_gpu(*command)
    assert refused.returncode == 5, refused.stderr
    assert "E-UNSIGNED" in refused.stderr
    assert "gate and audit take --trust-engine" in refused.stderr
    trusted = on_gpu(*command, "--trust-engine")
    assert trusted.returncode == 0, trusted.stderr


def test_host_code_runs_by_the_users_signature_not_by_a_record(
    on_gpu: Run, engine: Callable[..., None], tmp_path: Path
) -> None:
    """The record says that it is version-compatible; whoever plants an engine plants its record too."""
    engine("--version-compatible")
    assert on_gpu("audit", "d.engine", DOUBLE_EXECUTE="no").returncode == 0
    sidecar = tmp_path / "d.engine.json"
    record = json.loads(sidecar.read_text())
    record["seal"]["signature"] = "0" * 64
    sidecar.write_text(json.dumps(record))
    refused = on_gpu("audit", "d.engine")
    assert refused.returncode == 5
    assert "is not signed by you" in refused.stderr
    assert "--trust-engine" in refused.stderr
    assert on_gpu("audit", "d.engine", "--trust-engine", DOUBLE_EXECUTE="no").returncode == 0


def test_an_engine_from_elsewhere_asks_for_what_it_cannot_tell(
    on_gpu: Run, engine: Callable[..., None], tmp_path: Path
) -> None:
    engine()
    (tmp_path / "d.engine.json").unlink()
    for given, missing in (((), "--img-size"), (("--img-size", 16), "--precision")):
        done = on_gpu("bench", "d.engine", "--backend", "tensorrt", *given)
        assert (done.returncode, missing in done.stderr) == (2, True), done.stderr
    options = ("--img-size", 16, "--precision", "fp32", "--backend", "tensorrt")
    done = on_gpu("audit", "d.engine", *options, DOUBLE_EXECUTE="no")
    assert done.returncode == 0, done.stderr


def test_an_engine_of_another_tensorrt_is_exit_6(on_gpu: Run, engine: Callable[..., None]) -> None:
    engine()
    done = on_gpu("audit", "d.engine", version="11.4.0")
    assert done.returncode == 6
    assert "written by TensorRT 10.3.0; this is 11.4.0" in done.stderr


def test_without_a_gpu_it_is_one_paragraph_and_exit_6(resdeploy: Run, digits_onnx: Path) -> None:
    for verb in ("build", "bench", "audit"):
        done = resdeploy(verb, digits_onnx, "--backend", "tensorrt")
        assert done.returncode == 6
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1
        assert "no CUDA driver" in done.stderr or "not installed" in done.stderr


def test_a_stripped_engine_runs_once_it_has_its_weights_back(
    on_gpu: Run, engine: Callable[..., None], digits_onnx: Path
) -> None:
    engine("--strip-weights")
    refused = on_gpu("audit", "d.engine")
    assert refused.returncode == 6
    assert "--refit-from" in refused.stderr
    done = on_gpu("build", digits_onnx, "--backend", "tensorrt", "--refit-from", "d.engine", "-o", "whole.engine")
    assert done.returncode == 0, done.stderr
    assert on_gpu("audit", "whole.engine", DOUBLE_EXECUTE="no").returncode == 0
    gone = on_gpu("build", digits_onnx, "--backend", "tensorrt", "--refit-from", "gone.engine", "-o", "w.engine")
    assert (gone.returncode, "there is no file" in gone.stderr) == (2, True), gone.stderr


@pytest.mark.parametrize(
    ("built_with", "refitted_with", "says"),
    [
        ((), (), "takes back the weights that it was built with alone"),
        (("--refit",), (), None),
        (("--refit",), ("--version-compatible",), "--refit-from builds nothing"),
        (("--refit", "--version-compatible"), (), "is version-compatible"),
    ],
)
def test_an_engine_is_refitted_with_what_it_was_built_for(
    on_gpu: Run,
    engine: Callable[..., None],
    digits_onnx: Path,
    tmp_path: Path,
    built_with: tuple[str, ...],
    refitted_with: tuple[str, ...],
    says: str | None,
) -> None:
    """Another training's weights fit by name and size: only an engine built with --refit may be given them."""
    other = onnx.load(digits_onnx)
    for tensor in other.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(other, tmp_path / "other.onnx")
    engine("--strip-weights", *built_with)
    done = on_gpu(*BUILD, "other.onnx", "--refit-from", "d.engine", *refitted_with, "-o", "w.engine")
    assert done.returncode == (0 if says is None else 2), done.stderr
    assert (tmp_path / "w.engine").exists() == (says is None)
    assert says is None or says in done.stderr


def test_an_engine_of_another_precision_is_not_refitted(on_gpu: Run, digits_onnx: Path) -> None:
    """What comes out is recorded in the precision of its source, so the engine must be of that one."""
    assert on_gpu("quantize", digits_onnx, "--precision", "fp16", "-o", "half.onnx").returncode == 0
    command = ("build", "half.onnx", "--backend", "tensorrt", "--strip-weights", "--refit", "-o", "half.engine")
    assert on_gpu(*command).returncode == 0
    done = on_gpu("build", digits_onnx, "--backend", "tensorrt", "--refit-from", "half.engine", "-o", "w.engine")
    assert (done.returncode, "was built in fp16" in done.stderr) == (2, True), done.stderr


def test_options_of_the_builder_are_refused_where_there_is_no_engine(resdeploy: Run, digits_onnx: Path) -> None:
    """Asked for and not done is an error, not a silence."""
    done = resdeploy("build", digits_onnx, "--backend", "onnxruntime", "--strip-weights", "-o", "m.onnx")
    assert (done.returncode, "--strip-weights: without effect on" in done.stderr) == (2, True), done.stderr

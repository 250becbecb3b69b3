"""A model with external data through the commands, in process: its weights are what is judged, and all take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from resdeploy import store
from resdeploy.cli import app
from resdeploy.data import datasets
from resdeploy.deploy.resume import Steps
from resdeploy.graph import files, metadata
from resdeploy.measure import prediction_files
from resdeploy.records import Profile
from resdeploy.run import profile_run
from tests.cli.conftest import Run


@pytest.fixture
def apart(digits_onnx: Path, tmp_path: Path) -> Path:
    """A trained network whose weights lie in a folder below it."""
    (tmp_path / "weights").mkdir()
    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(digits_onnx), path, save_as_external_data=True, location="weights/all.bin", size_threshold=16)
    return path


def answer_zero(path: Path) -> None:
    """Changes one weight, in the data file alone: the last layer's bias of class 0 grows beyond all logits."""
    model = onnx.load(path, load_external_data=False)
    (bias,) = (t for t in model.graph.initializer if t.name == model.graph.node[-1].input[2])
    place = {entry.key: entry.value for entry in bias.external_data}
    with (path.parent / place["location"]).open("r+b") as data:
        data.seek(int(place["offset"]))
        data.write(np.float32(1e4).tobytes())


def told(*arguments: object, status: tuple[int, ...] = (0,)) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments), "--format", "json"])
    assert done.exit_code in status, (done.stderr, done.exception)
    return json.loads(done.stdout)


def ran(*arguments: object) -> None:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)


def oracle(path: Path) -> np.ndarray:
    """The classes that ONNX Runtime finds in the model as onnx reads it."""
    spec = metadata.spec_of(files.load_model(path), path)
    assert spec.preprocessing is not None
    images = datasets.open_dataset("digits", split="test")
    batch = next(iter(datasets.batches(images, spec.preprocessing, len(images))))
    session = ort.InferenceSession(onnx.load(path).SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch.inputs})
    return np.asarray(logits.argmax(axis=1))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_weights_as_they_are_now_are_judged(apart: Path, digits_onnx: Path, tmp_path: Path, backend: str) -> None:
    """One weight changed in the data file, nothing in the .onnx, one cache: `eval` and `gate` see the new model."""
    pytest.importorskip(backend)
    on = ("--data", "digits", "--backend", backend)
    seen = []
    for changed in (False, True):
        if changed:
            answer_zero(apart)
        told("eval", apart, *on, "--predictions", tmp_path / "p.npz")
        found = prediction_files.load(tmp_path / "p.npz")
        np.testing.assert_array_equal(found.top[:, 0], oracle(apart))
        seen.append(found.sha256)
    assert seen[0] != seen[1]
    assert set(oracle(apart)) == {0}
    judged = told("gate", "--baseline", digits_onnx, "--candidate", apart, *on, "--max-drop", 5, status=(1,))
    assert judged["verdict"] == "fail"


@pytest.mark.acceptance
def test_every_command_takes_it(apart: Path, digits_onnx: Path, tmp_path: Path) -> None:
    """What is made of it is made of the same weights, is one file, and runs."""
    pytest.importorskip("openvino")
    assert told("cost", apart)["results"][0]["params"] == told("cost", digits_onnx)["results"][0]["params"]
    for source, name in ((apart, "a"), (digits_onnx, "b")):
        ran("export", source, "-o", tmp_path / f"{name}.onnx")
        ran("quantize", source, "--precision", "fp16", "-o", tmp_path / f"{name}.fp16.onnx")
    for kind in ("onnx", "fp16.onnx"):
        made, expected = (onnx.load(tmp_path / f"{name}.{kind}", load_external_data=False) for name in "ab")
        assert made.graph.initializer == expected.graph.initializer
    ran("quantize", apart, "--calib-data", "digits", "--calib-samples", 8, "-o", tmp_path / "a.int8.onnx")
    for backend, out in (("onnxruntime", "built.onnx"), ("openvino", "built.xml")):
        ran("build", apart, "--backend", backend, "-o", tmp_path / out)
        assert all(part.parent == tmp_path for part in store.companions(tmp_path / out))
    assert told("audit", apart, "--backend", "openvino", status=(0, 1))["blocks"]
    rows = told("bench", apart, tmp_path / "a.int8.onnx", "--duration", 0.1, "--backend", "onnxruntime")["results"]
    assert len(rows) == 2


def test_an_engine_is_built_of_its_weights(on_gpu: Run, apart: Path) -> None:
    """TensorRT's double reads the file that it is given, and computes with it."""
    answer_zero(apart)
    done = on_gpu("eval", apart, "--data", "digits", "--backend", "tensorrt", "--format", "json")
    assert done.returncode == 0, done.stderr
    labels = datasets.open_dataset("digits", split="test").labels
    assert json.loads(done.stdout)["results"][0]["correct"] == (labels == 0).sum()


def test_a_run_makes_its_file_anew_after_a_weight_changed(apart: Path, tmp_path: Path) -> None:
    """Steps whose inputs are unchanged are skipped: a weight in the data file is a change."""
    plan = Profile(name="p", model=str(apart), data=None)
    said: list[str] = []
    for _ in range(3):
        steps = Steps(tmp_path / "runs", said.append)
        made = profile_run.ProfileRun(profile=plan, steps=steps, progress=lambda *_: None, note=said.append).fp32()
        if len(said) == 2:
            answer_zero(apart)
    assert [line.split()[0] for line in said] == ["making", "unchanged", "making"]
    assert oracle(Path(made.path)).tolist() == oracle(apart).tolist() == [0] * 360

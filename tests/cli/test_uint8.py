"""A model that takes raw pixels, from export to gate."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from resdeploy.measure import prediction_files
from tests.cli.conftest import Commands, Run


@pytest.fixture(scope="module")
def taking_pixels(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    folder = tmp_path_factory.mktemp("pixels")
    command = ["export", str(digits_onnx), "--input", "uint8", "-o", "pixels.onnx"]
    done = commands.run(command, folder, dict(os.environ))
    assert done.returncode == 0, done.stderr
    return folder / "pixels.onnx"


def test_a_model_that_takes_pixels_answers_as_the_one_that_takes_floats(
    digits_onnx: Path, taking_pixels: Path, tmp_path: Path, resdeploy: Run
) -> None:
    """`eval` decodes the same images for both, normalised for one only; the sidecar says which."""
    sidecar = json.loads(taking_pixels.with_name("pixels.onnx.json").read_text())
    assert sidecar["model"]["preprocessing"]["dtype"] == "uint8"
    assert 0 <= sidecar["checks"]["max_rel_error"] < 1e-4
    found = []
    for model, out in ((digits_onnx, "floats.npz"), (taking_pixels, "pixels.npz")):
        done = resdeploy("eval", model, "--data", "digits", "--backend", "onnxruntime", "--predictions", out)
        assert done.returncode == 0, done.stderr
        found.append(prediction_files.load(tmp_path / out))
    assert found[0].preprocessing_fingerprint == found[1].preprocessing_fingerprint
    assert found[0].logits is not None
    assert found[1].logits is not None
    np.testing.assert_allclose(found[0].logits, found[1].logits, rtol=1e-3, atol=1e-3)


@pytest.mark.acceptance
def test_quantized_at_high_effort_it_passes_the_gate_and_can_be_timed(
    digits_onnx: Path, taking_pixels: Path, tmp_path: Path, resdeploy: Run
) -> None:
    """Calibration, the gate's evaluation and the benchmark all feed pixels."""
    options = ["--effort", "high", "--target", "onnxruntime", "--portable", "--calib-data", "digits"]
    done = resdeploy("quantize", taking_pixels, *options, "--calib-samples", "32", "-o", "int8.onnx")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "int8.onnx.json").read_text())
    assert record["calibration"]["effort"] == "high"
    assert "exact" in record["calibration"]["methods"].values()
    judged = resdeploy(
        *("gate", "--baseline", digits_onnx, "--candidate", "int8.onnx", "--data", "digits", "--max-drop", "5"),
        *("--backend", "onnxruntime"),
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    timed = resdeploy("bench", "int8.onnx", "--backend", "onnxruntime", "--duration", "0.2", "--format", "json")
    assert timed.returncode == 0, timed.stderr


def test_a_file_that_takes_pixels_already_is_refused(taking_pixels: Path, resdeploy: Run) -> None:
    done = resdeploy("quantize", taking_pixels, "--input", "uint8", "--calib-data", "digits")
    assert done.returncode == 2
    assert "is uint8 already" in done.stderr

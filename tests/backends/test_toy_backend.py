"""A new backend is one file and one line: both are added to a copy of the package, and its commands run with them."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resdeploy.data import datasets
from resdeploy.records import Preprocessing
from tests.backends.conftest import tiny_network

ROOT = Path(__file__).parents[2]
FILE, LINE = ROOT / "tests/doubles/toy_backend.py", '    "toy",\n'
SIGHT = ("--resize", "32", "--mean", "0.4,0.5,0.6", "--std", "0.2,0.3,0.4")
SHORT = "from tests.shortly import time_shortly; time_shortly(); from resdeploy.__main__ import main; main()"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, and in it one file and one line more."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "resdeploy", root / "resdeploy")
    shutil.copy(FILE, root / "resdeploy/backends/toy.py")
    names = root / "resdeploy/registered_backends.py"
    before = names.read_text(encoding="utf-8")
    names.write_text(before.replace('    "torch",\n', LINE + '    "torch",\n'), encoding="utf-8")
    changed = difflib.ndiff(before.splitlines(True), names.read_text(encoding="utf-8").splitlines(True))
    assert [line for line in changed if line[0] in "+-?"] == ["+ " + LINE]
    return root


@pytest.fixture
def resdeploy(extended: Path, tmp_path: Path) -> Run:
    """Runs the extended package's commands, with short benches, in a folder that holds `tiny.onnx`."""
    onnx.save(tiny_network(), tmp_path / "tiny.onnx")

    def run(*args: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", SHORT, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{extended}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def expected_logits() -> np.ndarray:
    """Torch's, in float64, of the test split of the digits."""
    torch = pytest.importorskip("torch")
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in tiny_network().graph.initializer}
    w = {name: torch.from_numpy(value) for name, value in held.items()}
    spec = Preprocessing(size=(32, 32), resize=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    batches = datasets.batches(datasets.open_dataset("digits", split="test"), spec, 64)
    images = torch.from_numpy(np.concatenate([batch.inputs for batch in batches]).astype(np.float64))
    convolve = torch.nn.functional.conv2d
    first = convolve(images, w["w1"], w["b1"], padding=1).relu()
    second = (convolve(first, w["w2"], w["b2"], padding=1) + first).relu()
    return (second.mean((2, 3)) @ w["wf"].T + w["bf"]).numpy()


def test_a_backend_of_one_file_and_one_line_predicts_as_torch_does(resdeploy: Run, tmp_path: Path) -> None:
    """`eval`, from the ONNX file and from the compiled form that `build` writes, which no other backend has."""
    resdeploy("build", "tiny.onnx", "--backend", "toy", "-o", "tiny.toy")
    assert json.loads((tmp_path / "tiny.toy.json").read_text())["format"] == "toy"
    expected = expected_logits()
    for model in ("tiny.onnx", "tiny.toy"):
        resdeploy("eval", model, "--backend", "toy", "--data", "digits", *SIGHT, "--predictions", f"{model}.npz")
        with np.load(tmp_path / f"{model}.npz") as found:
            np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(found["predictions"], expected.argmax(1))


def test_it_is_benched_beside_others(resdeploy: Run) -> None:
    """With the package that it runs on among the tools; `--help` names it in the order of `auto`."""
    args = ("--backend", "toy,onnxruntime", "--duration", "0.1", "--format", "json")
    document = json.loads(resdeploy("bench", "tiny.onnx", *args).stdout)
    assert [row["backend"] for row in document["results"]] == ["toy", "onnxruntime"]
    assert all(row["latency_ms"]["p50"] > 0 for row in document["results"])
    assert document["environment"]["packages"]["onnx"] == onnx.__version__
    assert "onnxruntime, toy, torch or" in " ".join(resdeploy("bench", "--help").stdout.replace("│", " ").split())


def test_its_kernels_are_audited(resdeploy: Run) -> None:
    """A compiled file is known by its suffix; it fuses nothing, and the verdict says so."""
    resdeploy("build", "tiny.onnx", "--backend", "toy", "-o", "tiny.toy")
    for args in (("tiny.onnx", "--backend", "toy"), ("tiny.toy", "--against", "tiny.onnx")):
        document = json.loads(resdeploy("audit", *args, "--format", "json", status=1).stdout)
        assert [layer["name"] for layer in document["layers"]][:2] == ["conv1", "relu1"]
        (block,) = document["blocks"]
        assert (block["name"], block["fused"]) == ("add", False)
        assert block["reason"] == "its sum is a kernel of its own (Add)"


def test_its_own_check_looks_at_what_a_user_names(resdeploy: Run, tmp_path: Path) -> None:
    """Before it is run, and with the words of the backend."""
    (tmp_path / "bad.toy").write_bytes(b"something else")
    done = resdeploy("audit", "bad.toy", status=4)
    assert "bad.toy is no toy" in done.stderr

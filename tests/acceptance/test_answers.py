"""Real networks in real runtimes, asked as a user asks: the answer says what is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytestmark = pytest.mark.acceptance


def answer(tmp_path: Path, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "resdeploy", "bench", *arguments, "--backend", "openvino", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_network_of_twice_the_work_is_slower(tmp_path: Path) -> None:
    """ResNet-34 has 2.02 times the MACs of ResNet-18, and takes about as many times the CPU time."""
    for name in ("resnet18", "resnet34"):
        subprocess.run([sys.executable, "-m", "resdeploy", "export", name], cwd=tmp_path, check=True)
    document = answer(tmp_path, "resnet18.onnx", "resnet34.onnx")
    (comparison,) = document["comparisons"]
    assert comparison["verdict"] == "slower"
    low, high = comparison["cpu_ratio_ci99"]
    assert 1.5 < low < high < 2.6
    assert document["answers"][0].startswith("resnet34 openvino b1 takes")


def test_a_file_and_its_copy_are_not_called_different(tmp_path: Path) -> None:
    """One file under two names: equal, or undecided where the machine is restless."""
    subprocess.run([sys.executable, "-m", "resdeploy", "export", "resnet18"], cwd=tmp_path, check=True)
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "resnet18.onnx").read_bytes())
    document = answer(tmp_path, "resnet18.onnx", "copy.onnx", "--max-time", "60")
    (comparison,) = document["comparisons"]
    assert comparison["verdict"] in ("equal", "undecided")

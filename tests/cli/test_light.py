"""What the command line must not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OURS = {"resdeploy.store", "resdeploy.signing", "resdeploy.records", "resdeploy.locks", "resdeploy.measure"}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "numpy", "scipy", "PIL"}
PROBE = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
from resdeploy.cli import main
sys.argv = ["resdeploy", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("args", [["--help"], ["bench", "--help"], ["eval", "--help"], ["--version"]])
def test_help_loads_no_vendor_and_nothing_of_what_does_the_work(args: list[str]) -> None:
    """Asking for help imports nothing that does the work. (Typer itself parses a verb with pydantic.)"""
    done = subprocess.run([sys.executable, "-c", PROBE, *args], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "typer" in loaded
    assert not loaded & (HEAVY | OURS)
    assert args != ["--help"] or "pydantic" not in loaded


TORCH_FAMILY = ("torch", "functorch", "timm", "nvidia", "onnxscript", "nncf", "safetensors")


@pytest.fixture(scope="module")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has everything this one has, except torch and what needs it."""
    root = tmp_path_factory.mktemp("torchless")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    site = next((root / "lib").glob("python3*/site-packages"))
    import numpy

    for entry in Path(numpy.__file__).parents[1].iterdir():
        if not entry.name.startswith(TORCH_FAMILY) and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return root / "bin" / "python"


def test_an_onnx_file_goes_the_whole_way_without_torch(torchless: Path, tmp_path: Path, digits_onnx: Path) -> None:
    """quantize, build, bench, eval, cost and gate work in an environment that has no torch."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])

    def run(*args: object) -> str:
        command = [str(torchless), "-m", "resdeploy", *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    missing = subprocess.run([torchless, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert missing.returncode != 0
    run("quantize", digits_onnx, "--calib-data", "digits", "--calib-samples", 50, "-o", "int8.onnx")
    run("build", "int8.onnx", "--backend", "onnxruntime", "-o", "built.onnx")
    run("bench", "int8.onnx", "--duration", "0.2")
    run("cost", "int8.onnx")
    run("eval", digits_onnx, "--data", "digits", "--predictions", "fp32.npz")
    run("eval", "int8.onnx", "--data", "digits", "--predictions", "int8.npz")
    run("gate", "--baseline", "fp32.npz", "--candidate", "int8.npz", "--max-drop", "5")

"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def resdeploy(tmp_path: Path) -> Run:
    """Runs `resdeploy ARGS` in an empty folder and returns its exit status and output."""

    def run(*args: object, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "resdeploy", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has really learned handwriting, trained and exported by the command line.

    Made once for all of pytest's workers: the first one here makes it while the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    checkpoint, out = shared / "digits.safetensors", shared / "digits.onnx"
    with (shared / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            base = [sys.executable, "-m", "resdeploy"]
            training = ["train", "resnet20", "--data", "digits", "--img-size", "16", "--epochs", "3", "-o", checkpoint]
            subprocess.run([*base, *training], check=True, capture_output=True)
            subprocess.run([*base, "export", checkpoint, "-o", out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def digits_checkpoint(digits_onnx: Path) -> Path:
    """The checkpoint that `digits_onnx` was exported from."""
    return digits_onnx.with_suffix(".safetensors")

"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

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
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has really learned handwriting, made by the command line."""
    out = tmp_path_factory.mktemp("trained") / "digits.safetensors"
    command = [sys.executable, "-m", "resdeploy", "train", "resnet20", "--data", "digits", "--img-size", "16"]
    subprocess.run([*command, "--epochs", "4", "-o", out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def digits_onnx(digits_checkpoint: Path) -> Path:
    """The same in ONNX."""
    out = digits_checkpoint.with_suffix(".onnx")
    subprocess.run([sys.executable, "-m", "resdeploy", "export", digits_checkpoint, "-o", out], check=True)
    return out

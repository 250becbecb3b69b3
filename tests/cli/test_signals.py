"""Signals to the command line: its children end before it does, and nothing of theirs stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import left_by, workers_of


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_signal_ends_the_children_first_and_leaves_nothing(
    number: signal.Signals, status: int, word: str, again: bool, digits_onnx: Path, tmp_path: Path
) -> None:
    """Ctrl-C, a CI system that cancels, a lost terminal; and the same once more while the first is dealt with."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "resdeploy", "bench", str(digits_onnx), "--backend", "null", "--duration", "120"]
    environment = {**os.environ, "TMPDIR": str(temporary), "RESDEPLOY_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not workers_of(process.pid):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        if again:
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.splitlines()[-1] == word
    assert "Traceback" not in said
    assert left_by(process.pid, temporary, tmp_path) == []


def test_under_nohup_a_lost_terminal_is_not_heard(digits_onnx: Path, tmp_path: Path) -> None:
    """The command runs to its end."""
    command = [sys.executable, "-m", "resdeploy", "bench", str(digits_onnx), "--backend", "null", "--duration", "2"]
    environment = {**os.environ, "RESDEPLOY_CACHE": str(tmp_path / "cache")}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["nohup", *command], env=environment, **quiet) as process:
        while not workers_of(process.pid):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0

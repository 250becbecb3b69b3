"""Signals to the command line: its children end before it does, and nothing of theirs stays."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Started, left_by, workers_of

Start = Callable[..., Started]


def with_children(started: Start, folder: Path, *args: object, **options: object) -> Started:
    """A bench of nothing that has started a worker."""
    environment = {"TMPDIR": str(folder), "RESDEPLOY_CACHE": str(folder.parent / "cache")}
    process = started("bench", *args, "--backend", "null", **options, **environment)
    while not workers_of(process.pid):
        assert not process.ended()
        time.sleep(0.05)
    return process


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_signal_ends_the_children_first_and_leaves_nothing(
    number: signal.Signals,
    status: int,
    word: str,
    again: bool,
    digits_onnx: Path,
    tmp_path: Path,
    temporary: Path,
    started: Start,
) -> None:
    """Ctrl-C, a CI system that cancels, a lost terminal; and the same once more while the first is dealt with."""
    process = with_children(started, temporary, digits_onnx, "--duration", 120)
    process.send_signal(number)
    if again:
        process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == status
    assert said.splitlines()[-1] == word
    assert "Traceback" not in said
    assert left_by(process.pid, temporary, tmp_path) == []


def test_under_nohup_a_lost_terminal_is_not_heard(digits_onnx: Path, temporary: Path, started: Start) -> None:
    """The command runs to its end where it was started with the signal ignored, which is what `nohup` does."""
    process = with_children(started, temporary, digits_onnx, "--duration", 1, ignored=(signal.SIGHUP,))
    process.send_signal(signal.SIGHUP)
    process.stderr.read()
    assert process.wait() == 0

"""The process of a lane: no signal at any moment leaves one behind, nor its folder, nor a descriptor."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from resdeploy import interrupts, scratch
from resdeploy.backends import child
from resdeploy.backends.lane import Lane
from resdeploy.records import Artifact, Execution

# Answers every request at once; a real worker takes a quarter of a second to start, and there are hundreds here.
WORKER = """#!/bin/sh
exec 3<"/dev/fd/$4" 4>"/dev/fd/$5"
opened='{"load_s": 0, "first_s": 0, "inputs": {}, "outputs": {}, "settings": {}, "uncounted": ""}'
while read -r line <&3; do
  echo '{"result": '"$opened"', "peak_rss_bytes": 0}' >&4
done
"""
ARTIFACT = Artifact(path="model.engine", format="engine", precision="fp32", sha256="0")
# Where lanes are made of. The rest of the standard library runs inside of these.
TRACED: tuple[str, ...] = ("/resdeploy/backends/lane.py", "/resdeploy/backends/child.py")
TRACED += ("/resdeploy/backends/exchange.py", "/resdeploy/interrupts.py", "/resdeploy/scratch.py")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where lanes put their folders."""
    folder = tmp_path / "lanes"
    folder.mkdir()
    monkeypatch.setattr(scratch, "MEMORY", folder)
    monkeypatch.setattr(scratch, "MEMORY_FREE_BYTES", 0)
    return folder


@pytest.fixture
def use(tmp_path: Path, base: Path) -> Callable[[], None]:
    """Opens a lane, asks and closes it, with a temporary folder of its own as who calibrates has."""
    python = tmp_path / "python"
    python.write_text(WORKER)
    python.chmod(0o755)

    def used() -> None:
        with scratch.folder(), Lane("null", python=python) as lane:
            lane.open(ARTIFACT, Execution())
            lane.predict_all(np.zeros((1, 3, 4, 4), np.float32))

    return used


def children() -> set[str]:
    """Processes that this one started, living or not yet reaped."""
    listed = list(Path("/proc/self/task").glob("*/children"))
    if not listed:
        pytest.skip("this kernel lists no children")
    return {pid for path in listed for pid in path.read_text().split()}


def left() -> tuple[set[str], int]:
    """Children and open descriptors at what is the end of the program.

    One blow in hundreds falls between a block and its `finally`; such a lane ends with the program.
    """
    child._end_all()
    scratch._remove_all()
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            # A selector that was struck is held by its traceback until the next garbage collection.
            found += "eventpoll" not in str(Path(f"/proc/self/fd/{number}").readlink())
    return children(), found


def left_but(before: tuple[set[str], int]) -> tuple[set[str], int]:
    """As `left`; what differs from `before` may be held by the traceback of a blow until garbage is collected."""
    found = left()
    if found[0] == before[0] and found != before:
        gc.collect()
        found = left()
    return found


def struck(act: Callable[[], None], *blows: tuple[int, signal.Signals]) -> int:
    """Runs `act` with real signals, each as soon as so many lines of the traced files have run; how many did."""
    coming, lines = sorted(blows), 0

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename.endswith(TRACED) else None

    def line(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        if coming and lines >= coming[0][0]:
            signal.raise_signal(coming.pop(0)[1])
        return line

    sys.settrace(trace)
    try:
        act()
    except (KeyboardInterrupt, interrupts.Interrupted):
        pass
    finally:
        sys.settrace(None)
    return lines


def test_sigint_at_any_line_of_a_lane_leaves_nothing(use: Callable[[], None], base: Path) -> None:
    """Opening, asking and closing: raised by Python's own handler at each line in turn, until none is left."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    use()
    before = left()
    last, ended = 0, False
    while not ended:
        last += 1
        ended = struck(use, (last, signal.SIGINT)) < last
        found = left() if ended else left_but(before)  # the last use was not struck
        assert (*found, list(base.iterdir())) == (*before, []), last
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert last > 300


@pytest.mark.parametrize("patience_s", [5.0, 0.0])
def test_a_second_signal_in_the_midst_of_cleaning_up_leaves_nothing_either(
    patience_s: float, use: Callable[[], None], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line hears them, at lines drawn by chance: a second one within seconds does not cut in again.

    Should it cut in, since cleaning up takes longer than that, nothing is lost either.
    """
    monkeypatch.setattr(interrupts, "PATIENCE_S", patience_s)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    interrupts.listen()
    try:
        total, before, chance = struck(use), left(), random.Random(0)
        for _ in range(60):
            first = chance.randrange(1, total)
            second = first + chance.randrange(1, 40)
            monkeypatch.setattr(interrupts, "_raised_at", -patience_s)
            struck(use, (first, chance.choice(numbers)), (second, chance.choice(numbers)))
            assert (*left_but(before), list(base.iterdir())) == (*before, []), (first, second)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_fork_leaves_the_lanes_of_its_parent_alone(tiny: Artifact) -> None:
    """What a child of a fork does at its end is not done to the parent's lanes."""
    with Lane("null") as lane:
        lane.open(tiny, Execution())
        pid = os.fork()
        if not pid:
            child._end_all()
            scratch._remove_all()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(lane.block(2).run_s) == 2

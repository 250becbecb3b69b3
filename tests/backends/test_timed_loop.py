"""The timed loop does nothing of its own between its clocks."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest

from resdeploy.backends import worker


class Ticking:
    """A clock that advances only when it is read, or when a session says so; and the session."""

    def __init__(self) -> None:
        self.now = self.readings = 0
        self.calls: list[str] = []

    def read(self) -> int:
        self.readings += 1
        return self.now

    def put(self, _: Any) -> None:
        self.calls.append("put")
        self.now += 3

    def run(self) -> None:
        self.calls.append("run")
        self.now += 1000

    def get(self) -> dict[str, Any]:
        self.calls.append("get")
        self.now += 5
        return {}

    def device_time_s(self) -> None:
        self.calls.append("device")


def test_a_query_is_four_readings_of_the_clock_and_the_sessions_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten queries: each part is exactly what the session took, and there is no other call and no other reading."""
    clock = Ticking()
    monkeypatch.setattr(time, "perf_counter_ns", clock.read)
    rows: list[tuple[int, ...]] = []
    left = iter([True] * 10 + [False])
    worker.time_queries(clock, iter([{}] * 20), left.__next__, rows)
    times = np.array(rows)
    assert (np.diff(times[:, :4], axis=1) == [3, 1000, 5]).all()
    assert clock.readings == 4 * 10
    assert clock.calls == ["put", "run", "get", "device"] * 10
    assert (np.diff(times[:, 0]) == 1008).all()


def test_garbage_is_not_collected_while_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's collector is off in every query, those that warm up too, and on again after it, failed or not."""
    session = Ticking()
    states: list[bool] = []
    monkeypatch.setattr(session, "run", lambda: states.append(gc.isenabled()))
    worker.time_block([session], lambda _: iter([{}] * 9), 4, 0.0, 2)
    assert states == [False] * 6
    assert gc.isenabled()

    def fails() -> None:
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(session, "run", fails)
    with pytest.raises(RuntimeError, match="broken"):
        worker.time_block([session], lambda _: iter([{}] * 9), 4, 0.0, 2)
    assert gc.isenabled()

"""The timed loop does nothing of its own between its clocks."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.backends import Tensor, worker
from resdeploy.data import loading, preprocess
from resdeploy.errors import MalformedInput
from resdeploy.records import Preprocessing


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
    worker.time_block([session], lambda _: iter([{}] * 9), worker.Stretch(queries=4, warmup=2))
    assert states == [False] * 6
    assert gc.isenabled()

    def fails() -> None:
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(session, "run", fails)
    with pytest.raises(RuntimeError, match="broken"):
        worker.time_block([session], lambda _: iter([{}] * 9), worker.Stretch(queries=4, warmup=2))
    assert gc.isenabled()


def test_files_are_decoded_under_the_same_limits_as_by_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GIF that calls itself JPEG, and an image above the limit of pixels (lowered here), are refused by name."""
    spec = Preprocessing(size=(8, 8))
    tensor = Tensor(shape=(1, 3, 8, 8), dtype="float32")
    session = worker._FromFiles(Ticking(), "input", tensor, spec)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    good, gif = tmp_path / "good.jpg", tmp_path / "gif.jpg"
    Image.fromarray(pixels).save(good)
    Image.fromarray(pixels).save(gif, format="GIF")
    session.put({"input": np.array([str(good)])})
    expected = preprocess.apply(loading.decode(good.read_bytes()), spec)
    np.testing.assert_array_equal(session.buffer[0], expected)
    with pytest.raises(MalformedInput, match=r"gif\.jpg: neither JPEG nor PNG"):
        session.put({"input": np.array([str(gif)])})
    monkeypatch.setattr(loading, "MAX_PIXELS", 63)
    with pytest.raises(MalformedInput, match=r"good\.jpg: 8x8 pixels"):
        session.put({"input": np.array([str(good)])})

"""GPU facts: what is asked, and what is made of two answers."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from resdeploy.backends import nvml

CALM = {"sm_clock_mhz": 1980, "throttled_by": [], "other_processes": 0}


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({}, ()),
        ({"sm_clock_mhz": 1950}, ()),
        ({"sm_clock_mhz": 1500}, ("from 1980 to 1500 MHz",)),
        ({"throttled_by": ["heat, by hardware"]}, ("slowed by heat, by hardware",)),
        ({"other_processes": 2}, ("2 other processes",)),
    ],
)
def test_disturbances_are_named(after: dict[str, Any], words: tuple[str, ...]) -> None:
    found = nvml.disturbances(CALM, CALM | after)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_nothing_is_claimed_without_snapshots() -> None:
    assert nvml.disturbances(None, CALM) == nvml.disturbances(CALM, None) == ()


def test_a_gpu_that_answers_half_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is left out; bits of idleness are no throttling; foreign processes are counted, not named."""
    fake = types.ModuleType("pynvml")
    fake.NVML_CLOCK_SM, fake.NVML_CLOCK_MEM, fake.NVML_TEMPERATURE_GPU = 1, 2, 0  # type: ignore[attr-defined]
    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda handle: b"GPU",
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x1 | 0x40,
        "nvmlDeviceGetPowerUsage": lambda handle: 70500,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [types.SimpleNamespace(pid=1)],
    }
    for name, answer in answers.items():
        setattr(fake, name, answer)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "installed_version", lambda *names: "1")
    assert nvml.snapshot() == {
        "name": "GPU",
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 1980,
        "throttled_by": ["heat, by hardware"],
        "power_w": 70.5,
        "other_processes": 1,
    }


def test_without_a_driver_there_is_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # no nvmlInit: as good as a driver that does not answer
    monkeypatch.setattr(nvml, "installed_version", lambda *names: "1")
    assert nvml.snapshot() is None

"""What NVIDIA's management library says of the first GPU, before and after a measurement; never inside the timed loop.

Polling disturbs what is measured (NVIDIA/TensorRT#3090), so there are two snapshots, and what lies between is judged
from them: throttle reasons, clocks that fell, other processes. Without a driver or the package nvidia-ml-py there is no
snapshot, and nothing is claimed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resdeploy.backends import installed_version

# nvml.h: nvmlClocksThrottleReason*; idle and the clocks that an application asked for are no throttling.
REASONS: Mapping[int, str] = {
    0x4: "the power cap",
    0x8: "a hardware slowdown",
    0x10: "the slowest GPU of its sync group",
    0x20: "heat, by software",
    0x40: "heat, by hardware",
    0x80: "an external power brake",
}
CLOCK_FALL = 0.05  # share of the SM clock: within it boost clocks wander by themselves


def snapshot(number: int = 0) -> dict[str, Any] | None:
    """One GPU as it is now, in JSON-able values; None where it cannot be asked.

    Returns:
        name, driver, memory (bytes), clocks (MHz; the largest too), throttled_by, power (W; its limit too), temperature
        (Celsius), utilisation (percent), other_processes (how many, not whose), persistence. What it does not tell is
        left out.
    """
    if installed_version("pynvml", "nvidia-ml-py") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except Exception:  # no driver: `backends.cuda.driver` says so in words
        return None
    try:
        return _facts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(number))
    except Exception:
        return None
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def disturbances(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What disturbed the time between two snapshots, one sentence each with its remedy."""
    if before is None or after is None:
        return ()
    sentences = []
    reasons = sorted({*before.get("throttled_by", ()), *after.get("throttled_by", ())})
    if reasons:
        sentences.append(
            f"the GPU was slowed by {', '.join(reasons)}; let it cool, or lower its clocks with nvidia-smi -lgc"
        )
    first, last = before.get("sm_clock_mhz"), after.get("sm_clock_mhz")
    if first and last and last < first * (1 - CLOCK_FALL):
        sentences.append(
            f"the GPU's clock fell from {first} to {last} MHz; fix it with nvidia-smi -lgc, then measure again"
        )
    if others := max(before.get("other_processes", 0), after.get("other_processes", 0)):
        sentences.append(f"{others} other processes used the GPU; stop them and measure again")
    return tuple(sentences)


def _facts(nvml: Any, handle: Any) -> dict[str, Any]:
    ask: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "memory_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "memory_used_bytes": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "throttled_by": lambda: _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "utilisation_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "other_processes": lambda: _others(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        "persistence": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
    }
    facts = {}
    for name, question in ask.items():
        with contextlib.suppress(Exception):  # not every GPU and container answers every question
            facts[name] = question()
    return facts


def _reasons(mask: int) -> list[str]:
    return [words for bit, words in REASONS.items() if int(mask) & bit]


def _others(processes: Any) -> int:
    """Processes on the GPU that are neither this one nor its children: lanes are ours."""
    return sum(process.pid != os.getpid() and not _is_child(process.pid) for process in processes)


def _is_child(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")  # a name may be any bytes
        return int(text.rpartition(")")[2].split()[1]) == os.getpid()
    return False


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

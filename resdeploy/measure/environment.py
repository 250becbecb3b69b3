"""The machine that a number was measured on, and whether anything else kept it busy meanwhile.

`capture` describes the machine in JSON-able values and holds nothing that names its owner: no host name, no user, no
paths. `snapshot` before and after a run tells what the run itself cannot see: CPU time taken by others, by the
hypervisor, or withheld by a container's quota. Both read counters outside the timed loops only.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import resdeploy
from resdeploy import backends
from resdeploy.backends import machine, nvml
from resdeploy.registered_backends import BACKENDS

# Shares of the run above which a warning is given. 5 % of the usable cores is what an idle desktop stays below; stolen
# and throttled time hit the measured process directly, so that 1 % already moves a p99.
OTHER_LOAD_SHARE = 0.05
WITHHELD_SHARE = 0.01
CLOCK_LIMIT_SHARE = 0.99  # a limit below what the core can do: set by hand, or by the firmware for power or heat


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Counters since boot; only differences of two mean anything. None: not readable here."""

    clock_s: float
    cores: int
    busy_s: float | None  # of the usable cores, by anybody
    own_s: float  # this process and its finished children
    stolen_s: float | None  # by the hypervisor, from the usable cores
    throttled: int | None  # periods in which the container's quota stopped us
    throttled_s: float | None
    gpu: Mapping[str, Any] | None = None  # `backends.nvml.snapshot`
    thermal: int | None = None  # times that a core or a package was slowed for its heat
    clock_limit: float | None = None  # lowest of the cores' present limits, as a share of what each can do


def capture(root: Path = Path("/")) -> dict[str, Any]:
    """The machine and the software, as JSON-able values.

    Args:
        root: where `proc` and `sys` hang.
    """
    cpu = machine.cpu()
    before = snapshot(root)
    return {
        "resdeploy": resdeploy.__version__,
        "os": _os_name(root),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": {
            "model": cpu.model,
            "isa": sorted(cpu.isa),
            "vnni": cpu.vnni,
            "amx": cpu.amx,
            "bf16": cpu.bf16,
            "logical_cores": os.cpu_count(),
            "usable_cores": machine.usable_cores(root),
            "quota_cores": machine.quota_cores(root),
            "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "mhz": _frequencies_mhz(root),
        },
        "throttled_periods": before.throttled,
        "throttled_s": before.throttled_s,
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "memory_bytes": _memory(root, "MemTotal"),
        "memory_available_bytes": _memory(root, "MemAvailable"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _versions(),
        **({"gpu": dict(before.gpu)} if before.gpu else {}),
    }


def snapshot(root: Path = Path("/")) -> Snapshot:
    """Reads the counters. Children still running are not in `own_s`: take it while no lane is open."""
    cores = machine.core_times(root)
    periods, withheld_s = machine.throttling(root)
    return Snapshot(
        clock_s=time.monotonic(),
        cores=cores.cores,
        busy_s=cores.busy_s,
        own_s=own_cpu_s(),
        stolen_s=cores.stolen_s,
        throttled=periods,
        throttled_s=withheld_s,
        gpu=nvml.snapshot(),
        thermal=_thermal(root),
        clock_limit=_clock_limit(root),
    )


def own_cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def disturbances(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """What disturbed the time between two snapshots, one sentence each with its remedy."""
    wall_s = max(after.clock_s - before.clock_s, 1e-9)
    capacity_s = wall_s * max(after.cores, 1)
    disturbances = []
    if before.busy_s is not None and after.busy_s is not None:
        others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / capacity_s
        if others > OTHER_LOAD_SHARE:
            disturbances.append(
                f"other processes took {others:.0%} of the usable cores during the run; stop them and measure again"
            )
    if before.stolen_s is not None and after.stolen_s is not None:
        stolen = (after.stolen_s - before.stolen_s) / capacity_s
        if stolen > WITHHELD_SHARE:
            disturbances.append(f"the hypervisor took {stolen:.0%} of the usable cores; measure on a dedicated machine")
    if before.throttled_s is not None and after.throttled_s is not None:
        withheld = (after.throttled_s - before.throttled_s) / wall_s
        if withheld > WITHHELD_SHARE:
            periods = (after.throttled or 0) - (before.throttled or 0)
            disturbances.append(
                f"the container's CPU quota stopped the run in {periods} periods ({withheld:.0%} of its time); "
                "use fewer --threads or a larger quota"
            )
    if before.thermal is not None and after.thermal is not None and after.thermal > before.thermal:
        disturbances.append(
            f"the processor was slowed {after.thermal - before.thermal} times for its heat; cool it, or let it rest"
        )
    if after.clock_limit is not None and after.clock_limit < CLOCK_LIMIT_SHARE:
        disturbances.append(
            f"a core's clock is limited to {after.clock_limit:.0%} of what it can do; "
            "raise scaling_max_freq, or look for what lowered it"
        )
    return (*disturbances, *nvml.disturbances(before.gpu, after.gpu))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _os_name(root: Path) -> str:
    for line in (_text(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return platform.system()


def _memory(root: Path, key: str) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _frequencies_mhz(root: Path) -> dict[str, float] | None:
    """Lowest and highest current clock over all cores; of virtual machines often a nominal figure."""
    khz = [_text(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    mhz = [int(text) / 1000 for text in khz if text]
    if not mhz:
        lines = (_text(root / "proc/cpuinfo") or "").splitlines()
        mhz = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return {"min": round(min(mhz), 1), "max": round(max(mhz), 1)} if mhz else None


def _thermal(root: Path) -> int | None:
    """Thermal throttling events of all cores and packages since boot (Intel's counters); None where there are none."""
    counts = [_text(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")]
    return sum(int(count) for count in counts if count) if counts else None


def _clock_limit(root: Path) -> float | None:
    shares = []
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        limit, able = _text(folder / "scaling_max_freq"), _text(folder / "cpuinfo_max_freq")
        if limit and able:
            shares.append(int(limit) / int(able))
    return min(shares, default=None)


def _versions() -> dict[str, str]:
    """Of what decides a measurement besides the model; what is absent is left out."""
    vendors = [package for name in sorted(BACKENDS) for package in backends.load(name).PACKAGES]
    versions = {}
    for package in ("numpy", "onnx", *vendors, "timm", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions

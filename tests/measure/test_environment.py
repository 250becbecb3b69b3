"""What is said of the machine, and what is noticed between two snapshots."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import socket
from pathlib import Path

import pytest

from resdeploy.measure import environment


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def container(tmp_path):
    """A version 2 control group of one and a half cores that was throttled."""
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "proc/stat", "cpu  9 9 9 9\n" + "".join(f"cpu{n} 100 0 50 900 0 0 0 25 0 0\n" for n in range(512)))
    write(tmp_path, "proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:  500 kB\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2500000\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1200000\n")
    write(tmp_path, "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "3400000\n")
    return tmp_path


def test_the_capture_is_json_and_names_nobody():
    """No host name, no user, no path of this machine is in it."""
    text = json.dumps(environment.capture(), allow_nan=False)
    names = {socket.gethostname(), str(Path.home()), str(Path.cwd())} | ({getpass.getuser()} - {"root"})
    assert not [name for name in names if len(name) > 3 and name in text]
    assert "/" not in "".join(str(v) for v in environment.capture()["packages"].values())


def test_the_capture_tells_what_decides_speed():
    """Processor, cores, instruction sets and the runtimes' versions, as the machine itself has them."""
    import onnxruntime

    found = environment.capture()
    assert found["cpu"]["usable_cores"] <= len(os.sched_getaffinity(0))
    assert found["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_quota_governor_and_clocks_are_read(container):
    """From the files of the kernel, in cores, words and MHz."""
    cpu = environment.capture(container)["cpu"]
    assert cpu["quota_cores"] == 1.5
    assert cpu["governor"] == "powersave"
    assert cpu["mhz"] == {"min": 1200.0, "max": 3400.0}


def test_throttling_of_both_versions_is_read(container):
    """Version 2 counts microseconds, version 1 nanoseconds."""
    assert environment.snapshot(container).throttled_s == 2.5
    write(container, "proc/self/cgroup", "3:cpu,cpuacct:/here\n0::/\n")
    write(container, "sys/fs/cgroup/cpu/here/cpu.stat", "nr_periods 1\nnr_throttled 7\nthrottled_time 3000000000\n")
    found = environment.snapshot(container)
    assert (found.throttled, found.throttled_s) == (7, 3.0)


def test_only_the_usable_cores_count(container):
    """Time of cores we may not use is not other load: user, nice, system and interrupts of ours are."""
    found = environment.snapshot(container)
    ticks = os.sysconf("SC_CLK_TCK")
    assert found.busy_s == pytest.approx(150 / ticks * len(os.sched_getaffinity(0)))
    assert found.stolen_s == pytest.approx(25 / ticks * len(os.sched_getaffinity(0)))


def test_a_machine_that_says_nothing_is_no_error(tmp_path):
    """Every reading may be missing."""
    assert json.dumps(environment.capture(tmp_path))
    found = environment.snapshot(tmp_path)
    assert (found.busy_s, found.stolen_s, found.throttled_s) == (None, None, None)
    assert environment.disturbances(found, found) == ()


QUIET = environment.Snapshot(clock_s=0, cores=2, busy_s=0, own_s=0, stolen_s=0, throttled=0, throttled_s=0)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"busy_s": 12.0, "own_s": 8.0}, "other processes took 20%"),
        ({"stolen_s": 1.0}, "hypervisor took 5%"),
        ({"throttled_s": 2.0, "throttled": 30}, "in 30 periods (20% of its time)"),
    ],
)
def test_each_disturbance_is_named(changes, word):
    """Shares are of two cores over ten seconds."""
    (found,) = environment.disturbances(QUIET, dataclasses.replace(QUIET, clock_s=10, **changes))
    assert word in found


def test_a_quiet_run_is_undisturbed():
    """Our own work is not other load."""
    after = dataclasses.replace(QUIET, clock_s=10, busy_s=18.0, own_s=17.5)
    assert environment.disturbances(QUIET, after) == ()


def test_heat_and_a_lowered_clock_limit_are_named(container):
    """Events of Intel's thermal counters between two looks; a core limited below what it can do."""
    write(container, "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n")
    write(container, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "4000000\n")
    write(container, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "4000000\n")
    before = environment.snapshot(container)
    assert environment.disturbances(before, before) == ()
    write(container, "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "5\n")
    write(container, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "2000000\n")
    heat, clock = environment.disturbances(before, dataclasses.replace(environment.snapshot(container), clock_s=1e9))
    assert "slowed 2 times for its heat" in heat
    assert "limited to 50%" in clock

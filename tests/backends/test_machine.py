"""Facts about the CPU and the control group."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from resdeploy.backends import machine
from resdeploy.backends.machine import Cpu


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUID is x86's")
def test_cpuid_agrees_with_the_kernel() -> None:
    """Every feature that the kernel lists in /proc/cpuinfo is found by CPUID, and no other that it has a name for."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    assert machine._cpuid() == frozenset(flags.split()) & machine.FEATURES.keys()


def test_isa_name_is_the_best_set() -> None:
    """The tag follows the instruction sets, not the model's name."""

    def named(*isa: str) -> tuple[str, Cpu]:
        cpu = machine._describe("some CPU", frozenset(isa))
        return machine.isa_name(cpu), cpu

    avx512 = ("avx2", "avx512f", "avx512bw", "avx512vl")
    assert named(*avx512)[0] == "avx512"
    assert not named(*avx512)[1].vnni
    assert named(*avx512, "avx512_vnni")[0] == "avx512-vnni"
    assert named(*avx512, "avx512_vnni", "avx512_bf16")[1].bf16
    assert named("avx2", "avx_vnni") == (
        "avx2-vnni",
        Cpu(model="some CPU", isa=frozenset({"avx2", "avx_vnni"}), vnni=True, amx=False, bf16=False),
    )
    assert named(*avx512, "avx512_vnni", "amx_int8")[1].amx
    assert named("asimd", "asimddp")[0] == "neon-dotprod"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GROUP = "sys/fs/cgroup"
V1 = f"{GROUP}/cpu,cpuacct/x"


@pytest.mark.parametrize(
    ("line", "files", "quota"),
    [
        ("0::/a/b", {f"{GROUP}/a/b/cpu.max": "max 100000", f"{GROUP}/a/cpu.max": "250000 100000"}, 2.5),
        ("0::/host/path", {f"{GROUP}/cpu.max": "50000 100000"}, 0.5),
        ("0::/", {}, None),
        ("3:cpu,cpuacct:/x", {f"{V1}/cpu.cfs_quota_us": "300000", f"{V1}/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpu,cpuacct:/x", {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
    ids=["v2 parent", "v2 in a container", "v2 none", "v1", "v1 unlimited", "no cgroup"],
)
def test_quota_is_read_from_both_cgroup_versions(
    line: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    """The smallest quota of the group and its ancestors counts."""
    root = _tree(tmp_path, {**files, "proc/self/cgroup": line})
    assert machine.quota_cores(root) == quota
    affinity = len(os.sched_getaffinity(0))
    assert machine.usable_cores(root) == (affinity if quota is None else max(1, min(affinity, int(quota))))


def test_oom_kills_come_from_the_group_else_from_the_machine(tmp_path: Path) -> None:
    """cgroup v2's memory.events, v1's memory.oom_control, else /proc/vmstat."""
    root = _tree(
        tmp_path / "v2", {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.events": "oom 9\noom_kill 3\n"}
    )
    assert machine.oom_kills(root) == 3
    files = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\noom_kill 2\n"}
    assert machine.oom_kills(_tree(tmp_path / "v1", files)) == 2
    assert machine.oom_kills(_tree(tmp_path / "none", {"proc/vmstat": "nr_free 5\noom_kill 7\n"})) == 7


def test_energy_is_the_packages_sum_and_absent_where_it_cannot_be_read(tmp_path):
    """Parts of a package are counted in it already; a counter that ran over gives no figure."""
    assert machine.energy_j(tmp_path) is None
    for zone, energy_uj in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 1_500_000), ("intel-rapl:0:0", 9_000_000)):
        folder = tmp_path / "sys/class/powercap" / zone
        folder.mkdir(parents=True)
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
    assert machine.energy_j(tmp_path) == (3.0, 1.5)
    assert machine.energy_between_j((3.0, 1.5), (4.0, 2.0)) == 1.5
    assert machine.energy_between_j((3.0, 1.5), (1.0, 2.0)) is None
    assert machine.energy_between_j(None, (1.0, 2.0)) is None

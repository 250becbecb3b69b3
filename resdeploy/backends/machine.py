"""Facts about this machine's CPU: cores we may use, instruction sets, out-of-memory kills.

Instruction sets are asked of the processor itself: /proc/cpuinfo lists what the kernel knows names for, which
for AVX-VNNI and AMX took it years, and containers with a foreign /proc exist. An AVX bit counts only where the
operating system saves the registers (XCR0), as Intel's manual requires (SDM volume 1, section 13.3 and 14.3).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
from dataclasses import dataclass
from pathlib import Path

# cpuid(edi: leaf, esi: subleaf, rdx: four words out), System V calling convention:
# push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid; mov [r8],eax; mov [r8+4],ebx; mov [r8+8],ecx;
# mov [r8+12],edx; pop rbx; ret
CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# xor ecx,ecx; xgetbv; shl rdx,32; or rax,rdx; ret
XGETBV = bytes.fromhex("31c9 0f01d0 48c1e220 4809d0 c3")

# name: (leaf, subleaf, register, bit, XCR0 bits that the operating system must have enabled)
AVX, AVX512, AMX = 0x6, 0xE6, 0x60000
EAX, EBX, ECX, EDX = range(4)
FEATURES = {
    "fma": (1, 0, ECX, 12, AVX),
    "avx": (1, 0, ECX, 28, AVX),
    "avx2": (7, 0, EBX, 5, AVX),
    "avx512f": (7, 0, EBX, 16, AVX512),
    "avx512bw": (7, 0, EBX, 30, AVX512),
    "avx512vl": (7, 0, EBX, 31, AVX512),
    "avx512_vnni": (7, 0, ECX, 11, AVX512),
    "avx512_fp16": (7, 0, EDX, 23, AVX512),
    "amx_bf16": (7, 0, EDX, 22, AMX),
    "amx_tile": (7, 0, EDX, 24, AMX),
    "amx_int8": (7, 0, EDX, 25, AMX),
    "avx_vnni": (7, 1, EAX, 4, AVX),
    "avx512_bf16": (7, 1, EAX, 5, AVX512),
}
OSXSAVE = (1, 0, ECX, 27)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
ARM_FEATURES = frozenset({"asimd", "asimddp", "i8mm", "bf16", "fphp", "asimdhp", "sve", "sve2"})


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor; `isa` holds Linux's names of the instruction sets that matter to a CNN."""

    model: str
    isa: frozenset[str]
    vnni: bool  # 8-bit dot products that do not saturate: AVX512-VNNI, AVX-VNNI, AMX; on Arm SDOT
    amx: bool
    bf16: bool


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy: its affinity, cut down to the quota of its control group, at least 1.

    A quota is rounded down: one thread more than the quota is throttled every period.
    """
    affinity = len(os.sched_getaffinity(0))
    quota = quota_cores(root)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and its ancestors, the innermost first, for cgroup v2 and v1."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2, at the root or, in a hybrid set-up, under `unified`
            mounts = [base, base / "unified"]
        elif controller in controllers.split(","):
            mounts = [base / controller, base / controllers]
        else:
            continue
        # Inside a container the path may be the host's, with only the mount's root in view.
        group = Path(path.lstrip("/"))
        folders += [mount / part for mount in mounts for part in (group, *group.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def quota_cores(root: Path = Path("/")) -> float | None:
    """CPU time this process may use, in cores: the smallest quota of its group and the group's ancestors; None: any."""
    quotas = []
    for folder in groups(root, "cpu"):
        words = _words(folder / "cpu.max")
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel has killed for their memory so far, here; compare two readings.

    The control group's own counter where there is one, else the whole machine's.
    """
    for folder in groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            words = _words(folder / name)
            if "oom_kill" in words:
                return int(words[words.index("oom_kill") + 1])
    words = _words(root / "proc/vmstat")
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0


def last_level_cache_bytes(root: Path = Path("/")) -> int:
    """The largest cache that the first processor reads through; 0: the kernel does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    entries = [_words(path) for path in root.glob("sys/devices/system/cpu/cpu0/cache/index[0-9]*/size")]
    sizes = [int(words[0][:-1]) * units[words[0][-1]] for words in entries if words and words[0][-1] in units]
    return max(sizes, default=0)


@dataclass(frozen=True, kw_only=True)
class CoreTimes:
    """Since boot, of the cores that this process may use; None: not readable here."""

    cores: int
    busy_s: float | None  # by anybody
    stolen_s: float | None  # by the hypervisor


def core_times(root: Path = Path("/")) -> CoreTimes:
    """What the cores that we may use have done since boot, in the kernel's ticks (mostly of 10 ms)."""
    if hasattr(os, "sched_getaffinity"):
        usable = frozenset(f"cpu{index}" for index in os.sched_getaffinity(0))
    else:
        usable = frozenset(f"cpu{index}" for index in range(os.cpu_count() or 1))
    busy = stolen = None
    for line in _lines(root / "proc/stat"):
        name, *fields = line.split()
        if name in usable:
            # man 5 proc: user nice system idle iowait irq softirq steal guest guest_nice; guests are in user already
            ticks = [int(field) for field in fields[:8]]
            stolen = (stolen or 0.0) + ticks[7] / _TICKS_PER_S
            busy = (busy or 0.0) + (sum(ticks[:3]) + ticks[5] + ticks[6]) / _TICKS_PER_S
    return CoreTimes(cores=len(usable), busy_s=busy, stolen_s=stolen)


def waited_s(root: Path = Path("/")) -> float | None:
    """How long the threads of this process have been ready to run and did not get a core; None: not readable here.

    Source: Documentation/scheduler/sched-stats.rst of Linux, /proc/<pid>/schedstat, second field, in nanoseconds.
    """
    waits = [_words(path) for path in root.glob("proc/self/task/*/schedstat")]
    return sum(int(words[1]) for words in waits if len(words) > 1) / 1e9 if any(waits) else None


def throttling(root: Path = Path("/")) -> tuple[int | None, float | None]:
    """Periods and seconds in which the container's quota stopped us; (None, None) where the kernel does not say."""
    for folder in groups(root, "cpu"):
        fields = dict(line.split() for line in _lines(folder / "cpu.stat"))
        if "nr_throttled" in fields:
            in_ns, in_us = fields.get("throttled_time"), fields.get("throttled_usec")  # version 1, version 2
            seconds = int(in_ns) / 1e9 if in_ns else int(in_us or 0) / 1e6
            return int(fields["nr_throttled"]), seconds
    return None, None


def energy_j(root: Path = Path("/")) -> tuple[float, ...] | None:
    """Energy counters of the processor packages in joules, by RAPL; None where there are none or only root reads them.

    Source: Linux, Documentation/power/powercap/powercap.rst.
    """
    # intel-rapl:N is a package (AMD's too); intel-rapl:N:M a part of it that is counted in it already.
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]*/energy_uj"))
    counts = [_words(zone) for zone in zones if zone.parent.name.count(":") == 1]
    return tuple(int(words[0]) / 1e6 for words in counts) if counts and all(counts) else None


def energy_between_j(before: tuple[float, ...] | None, after: tuple[float, ...] | None) -> float | None:
    """Joules between two readings; None where one is missing or a counter ran over."""
    if before is None or after is None or any(b < a for a, b in zip(before, after, strict=True)):
        return None
    return sum(after) - sum(before)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []


@functools.cache
def cpu() -> Cpu:
    """The processor of this machine."""
    info = _cpuinfo(Path("/proc/cpuinfo"))
    isa = _cpuid() if platform.machine() in ("x86_64", "AMD64") else None
    if isa is None:
        known = ARM_FEATURES | FEATURES.keys()
        isa = frozenset((info.get("flags", "") + " " + info.get("Features", "")).split()) & known
    model = info.get("model name") or info.get("Model") or platform.processor() or platform.machine()
    return _describe(model, isa)


def _describe(model: str, isa: frozenset[str]) -> Cpu:
    return Cpu(
        model=model,
        isa=isa,
        vnni=bool(isa & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}),
        amx=bool(isa & {"amx_int8", "amx_bf16"}),
        bf16=bool(isa & {"avx512_bf16", "amx_bf16", "bf16"}),
    )


def isa_name(of: Cpu | None = None) -> str:
    """Short tag of the best instruction set, such as `avx512-vnni`; stored in artifacts tied to it."""
    features = (of or cpu()).isa
    ladder = (
        ("amx", {"amx_int8"}),
        ("avx512-vnni-bf16", {"avx512_vnni", "avx512_bf16"}),
        ("avx512-vnni", {"avx512_vnni"}),
        ("avx512", {"avx512f", "avx512bw", "avx512vl"}),
        ("avx2-vnni", {"avx2", "avx_vnni"}),
        ("avx2", {"avx2"}),
        ("neon-i8mm-bf16", {"i8mm", "bf16"}),
        ("neon-i8mm", {"i8mm"}),
        ("neon-dotprod", {"asimddp"}),
    )
    return next((name for name, needs in ladder if needs <= features), platform.machine())


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's entries."""
    entries: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return entries
    for line in lines:
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    return entries


def _cpuid() -> frozenset[str] | None:
    """Features by executing CPUID; None where memory may not be both writable and executable."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(CPUID.ljust(64, b"\xcc") + XGETBV)
    anchor = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(anchor)
    words = ctypes.c_uint32 * 4
    query = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(words))(address)
    xcr0 = ctypes.CFUNCTYPE(ctypes.c_uint64)(address + 64)

    def ask(leaf: int, subleaf: int) -> list[int]:
        out = words()
        query(leaf, subleaf, ctypes.byref(out))
        return list(out)

    top, subleaves = ask(0, 0)[EAX], ask(7, 0)[EAX]
    leaf, subleaf, register, bit = OSXSAVE
    saved = xcr0() if ask(leaf, subleaf)[register] >> bit & 1 else 0
    features = set()
    for name, (leaf, subleaf, register, bit, needs) in FEATURES.items():
        if leaf > top or (leaf == 7 and subleaf > subleaves):
            continue
        if saved & needs == needs and ask(leaf, subleaf)[register] >> bit & 1:
            features.add(name)
    del anchor
    page.close()
    return frozenset(features)

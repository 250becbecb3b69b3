"""The processor's own counters by Linux's perf events: what a process retired of instructions, and took of cycles.

Other load hardly changes the number of instructions, which makes it the steadiest thing to say of a query. A counter
belongs to the thread that opens it and to every thread and process that comes of it later, so it is opened before a
vendor is loaded. Many machines have none, or let nobody read them: that is said, and nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

# asm/unistd_64.h of x86, asm-generic/unistd.h of the others.
SYSCALLS = {"x86_64": 298, "aarch64": 241, "riscv64": 241}

# linux/perf_event.h
TYPE_HARDWARE, TYPE_SOFTWARE = 0, 1
COUNT_HW_CPU_CYCLES, COUNT_HW_INSTRUCTIONS, COUNT_SW_TASK_CLOCK = 0, 1, 1
FORMAT_TOTAL_TIME_ENABLED, FORMAT_TOTAL_TIME_RUNNING = 1 << 0, 1 << 1
INHERIT, EXCLUDE_KERNEL, EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6  # bit fields of perf_event_attr, in their order
FLAG_FD_CLOEXEC = 1 << 3
ATTR_SIZE_VER0 = 64
# perf_event_attr as first published: type, size, config, sample_period, sample_type, read_format, the bit fields,
# wakeup_events, bp_type, config1. What a kernel has added since is zero.
ATTR = struct.Struct("=IIQQQQQIIQ")
READING = struct.Struct("=QQQ")  # value, time_enabled, time_running

EVENTS: Mapping[str, tuple[int, int]] = {
    "instructions": (TYPE_HARDWARE, COUNT_HW_INSTRUCTIONS),
    "cycles": (TYPE_HARDWARE, COUNT_HW_CPU_CYCLES),
}

NO_COUNTERS = "the processor shows none here, as in most virtual machines; measure on the machine itself"
FORBIDDEN = (
    "the kernel lets us read none; run `sysctl kernel.perf_event_paranoid=2` as root, or start the container with "
    "the capability CAP_PERFMON"
)
NO_CALL = "this system has no perf_event_open; measure on Linux itself, outside a sandbox"
REASONS = {
    errno.ENOENT: NO_COUNTERS,
    errno.ENODEV: NO_COUNTERS,
    errno.EOPNOTSUPP: NO_COUNTERS,
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENOSYS: NO_CALL,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an event has counted so far; the kernel lets several share one counter, and says how long each had it."""

    value: int
    enabled_ns: int
    running_ns: int


class Counters:
    """Counters of this thread and of those that come of it, in user space; a context manager that closes them.

    `missing` says which of `events` are not counted, why, and what to do about it; "": all are.
    """

    def __init__(self, events: Mapping[str, tuple[int, int]]) -> None:
        self._descriptors: dict[str, int] = {}
        refused: dict[str, list[str]] = {}
        for name, (kind, config) in events.items():
            try:
                self._descriptors[name] = _open(kind, config)
            except OSError as e:
                why = REASONS.get(e.errno or 0, f"{e.strerror}; see `man perf_event_open`")
                refused.setdefault(why, []).append(name)
        self.missing = "; ".join(f"{' and '.join(names)} were not counted: {why}" for why, names in refused.items())

    def read(self) -> dict[str, Reading]:
        """Every event that can be read now."""
        readings = {}
        for name, descriptor in self._descriptors.items():
            with contextlib.suppress(OSError):
                data = os.read(descriptor, READING.size)
                if len(data) == READING.size:
                    value, enabled_ns, running_ns = READING.unpack(data)
                    readings[name] = Reading(value=value, enabled_ns=enabled_ns, running_ns=running_ns)
        return readings

    def close(self) -> None:
        """Closes what is open; once is enough."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def between(before: Mapping[str, Reading], after: Mapping[str, Reading], name: str) -> int | None:
    """What was counted between two readings, extrapolated where the event had a counter for a part of the time.

    None: not readable, never on a counter, or nothing was counted, as of virtual machines that only seem to have them.
    """
    if name not in before or name not in after:
        return None
    old, new = before[name], after[name]
    value, enabled, running = new.value - old.value, new.enabled_ns - old.enabled_ns, new.running_ns - old.running_ns
    if value <= 0 or running <= 0:
        return None
    return value if running >= enabled else round(value * enabled / running)


def _open(kind: int, config: int) -> int:
    """The descriptor of an event; it is closed where the process starts another program.

    Raises:
        OSError: the kernel counts it not, or not for us.
    """
    number = SYSCALLS.get(platform.machine())
    if (
        number is None or platform.system() != "Linux" or ctypes.sizeof(ctypes.c_void_p) != 8
    ):  # there it is another call
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    read_format = FORMAT_TOTAL_TIME_ENABLED | FORMAT_TOTAL_TIME_RUNNING
    flags = INHERIT | EXCLUDE_KERNEL | EXCLUDE_HV
    attr = ctypes.create_string_buffer(
        ATTR.pack(kind, ATTR_SIZE_VER0, config, 0, 0, read_format, flags, 0, 0, 0), ATTR_SIZE_VER0
    )
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    # This thread, on any processor, in no group.
    arguments = (ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_int(-1), ctypes.c_ulong(FLAG_FD_CLOEXEC))
    descriptor = int(call(ctypes.c_long(number), attr, *arguments))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor

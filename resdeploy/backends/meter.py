"""What a stretch of time took besides time: CPU seconds, joules, waiting, and what others took meanwhile."""

from __future__ import annotations

import dataclasses
import time

from resdeploy.backends import machine, perf


@dataclasses.dataclass
class Meter:
    """What a stretch of time took besides time, read before and after it.

    `cpu_s` are CPU seconds of this process, `energy_j` the packages' joules; `others` and `withheld` are the shares of
    the usable cores that other processes took, and that the hypervisor or the container's quota kept from us.
    `instructions` and `cycles` are this process's in user space, where there are `counters` that can be read.
    """

    cpu_s: float = 0.0
    energy_j: float | None = None
    others: float | None = None
    withheld: float | None = None
    waited: float | None = None
    instructions: int | None = None
    cycles: int | None = None
    counters: dataclasses.InitVar[perf.Counters | None] = None

    def __post_init__(self, counters: perf.Counters | None) -> None:
        self._read = counters.read if counters else dict

    def start(self) -> None:
        self._energy, self._cores, self._quota = machine.energy_j(), machine.core_times(), machine.throttling()
        self._waited = machine.waited_s()
        self._counted = self._read()
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.cpu_s = time.process_time() - self._cpu
        wall_s = max(time.perf_counter() - self._clock, 1e-9)
        counted = self._read()
        self.instructions, self.cycles = (
            perf.between(self._counted, counted, name) for name in ("instructions", "cycles")
        )
        waited_s = machine.waited_s()
        if self._waited is not None and waited_s is not None:
            self.waited = (waited_s - self._waited) / wall_s
        before, after = self._cores, machine.core_times()
        capacity_s = wall_s * max(after.cores, 1)
        if before.busy_s is not None and after.busy_s is not None:
            self.others = (after.busy_s - before.busy_s - self.cpu_s) / capacity_s
        if before.stolen_s is not None and after.stolen_s is not None:
            stopped = (self._quota[1], machine.throttling()[1])
            quota_s = stopped[1] - stopped[0] if stopped[0] is not None and stopped[1] is not None else 0.0
            self.withheld = (after.stolen_s - before.stolen_s) / capacity_s + quota_s / wall_s
        self.energy_j = machine.energy_between_j(self._energy, machine.energy_j())

"""A lull before a run: waits until other processes have left the usable cores alone for a second."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from resdeploy.backends import machine
from resdeploy.measure import environment
from resdeploy.records import Progress

QUIET_S = 1.0  # of the kernel's ticks of 10 ms, 5 % of one core are five here: shorter tells too little
STEP_S = 0.25  # between two looks, so that a lull is noticed soon after it has been long enough


@dataclass(frozen=True, kw_only=True)
class Lull:
    """How a wait ended."""

    waited_s: float
    quiet: bool
    others: float | None  # share of the usable cores that others took in the last second; None: not readable here

    @property
    def note(self) -> str:
        """What a reader of the run must know of it."""
        if self.others is None:
            return "how busy the machine is cannot be read here: --wait-quiet did not wait"
        if self.quiet:
            return f"waited {self.waited_s:.1f} s until the machine was quiet for {QUIET_S:g} s"
        return (
            f"the machine never got quiet in the {self.waited_s:.1f} s that were waited for it: other processes took "
            f"{self.others:.0%} of the usable cores in the last second; stop them, or raise --wait-quiet"
        )


def wait(
    longest_s: float,
    *,
    progress: Progress,
    cores: Callable[[], machine.CoreTimes] = machine.core_times,
    own_s: Callable[[], float] = environment.own_cpu_s,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lull:
    """Returns as soon as others took less than `environment.OTHER_LOAD_SHARE` of the usable cores for `QUIET_S`.

    Args:
        longest_s: after which it returns all the same, at least `QUIET_S`.
        progress: told of the seconds that have passed.
        cores: what the usable cores have done since boot.
        own_s: CPU seconds of this process, which are not others'; its children's once they have ended, so no lane may
            be open.
        clock: seconds.
        sleep: waits for seconds.
    """
    started, total = clock(), math.ceil(longest_s)
    seen: collections.deque[tuple[float, float]] = collections.deque()  # when, and CPU seconds of others until then
    while True:
        now, busy = clock(), cores()
        if busy.busy_s is None:
            return Lull(waited_s=0.0, quiet=False, others=None)
        seen.append((now, busy.busy_s - own_s()))
        while len(seen) > 2 and now - seen[1][0] >= QUIET_S:
            seen.popleft()
        (since, before), (_, after) = seen[0], seen[-1]
        share = max(after - before, 0.0) / (max(now - since, STEP_S) * max(busy.cores, 1))
        waited_s = now - started
        quiet = now - since >= QUIET_S and share < environment.OTHER_LOAD_SHARE
        if quiet or waited_s >= longest_s:
            progress("waiting for a quiet machine", total, total)
            return Lull(waited_s=waited_s, quiet=quiet, others=share)
        progress("waiting for a quiet machine", min(math.floor(waited_s), total - 1), total)
        sleep(max(min(STEP_S, longest_s - waited_s), 1e-3))

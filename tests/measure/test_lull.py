"""Waiting for a quiet machine, on a clock and counters made up for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from resdeploy.backends.machine import CoreTimes
from resdeploy.measure import lull
from resdeploy.records import Progress


@dataclass
class Machine:
    """Four cores; `load` says how many of them others keep busy at a time, and we keep `own` busy all the while."""

    load: Callable[[float], float]
    own: float = 0.0
    now_s: float = 100.0
    busy_s: float = 5000.0
    own_s: float = 7.0
    told: list[tuple[int, int]] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.busy_s += seconds * (self.load(self.now_s - 100) + self.own)
        self.own_s += seconds * self.own
        self.now_s += seconds

    def wait(self, longest_s: float) -> lull.Lull:
        return lull.wait(
            longest_s,
            progress=self.progress,
            cores=lambda: CoreTimes(cores=4, busy_s=self.busy_s, stolen_s=0.0),
            own_s=lambda: self.own_s,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    @property
    def progress(self) -> Progress:
        return lambda _what, done, total: self.told.append((done, total))


def test_a_quiet_machine_is_waited_for_one_second() -> None:
    """4 % of four cores is quiet."""
    found = Machine(lambda _: 0.16).wait(30)
    assert (found.quiet, found.waited_s) == (True, 1.0)
    assert found.note == "waited 1.0 s until the machine was quiet for 1 s"


def test_the_second_begins_when_others_end() -> None:
    """Others compile for six seconds; progress counts the seconds and ends full."""
    machine = Machine(lambda t: 3.0 if t < 6 else 0.0)
    found = machine.wait(30)
    assert (found.quiet, found.waited_s) == (True, 7.0)
    assert machine.told[0] == (0, 30)
    assert machine.told[-1] == (30, 30)
    assert {done for done, _ in machine.told} == {*range(7), 30}


def test_a_pause_shorter_than_a_second_is_no_quiet_machine() -> None:
    """Bursts of half a second every second."""
    found = Machine(lambda t: 2.0 if t % 1 < 0.5 else 0.0).wait(5)
    assert (found.quiet, found.waited_s) == (False, 5.0)


def test_a_machine_that_stays_busy_is_measured_all_the_same_and_the_note_says_so() -> None:
    """After SECONDS, with the load of the last second and what to do."""
    found = Machine(lambda _: 2.0).wait(3.3)
    assert not found.quiet
    assert 3.3 <= found.waited_s < 3.302
    assert found.note.startswith("the machine never got quiet in the 3.3 s")
    assert "took 50% of the usable cores in the last second; stop them, or raise --wait-quiet" in found.note


def test_our_own_cpu_time_does_not_count() -> None:
    """Two of four cores are busy, with us."""
    assert Machine(lambda _: 0.0, own=2.0).wait(10).quiet


def test_where_the_counters_cannot_be_read_nothing_is_waited_for() -> None:
    """As on a system without /proc/stat: said, and no time lost."""
    unreadable = CoreTimes(cores=4, busy_s=None, stolen_s=None)
    found = lull.wait(10, progress=lambda *_: None, cores=lambda: unreadable)
    assert (found.quiet, found.waited_s) == (False, 0.0)
    assert "cannot be read here" in found.note

"""The processor's counters, by the kernel's clock of tasks where the machine has none: opening, threads, failures."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from resdeploy.backends import child, perf
from resdeploy.backends.lane import Lane
from resdeploy.backends.meter import Meter
from resdeploy.records import Artifact, Execution

CLOCK = (perf.TYPE_SOFTWARE, perf.COUNT_SW_TASK_CLOCK)  # nanoseconds that the threads ran
CLOCKS: Mapping[str, tuple[int, int]] = {"instructions": CLOCK, "cycles": CLOCK}
NO_SUCH_EVENT = (perf.TYPE_SOFTWARE, 1 << 40)
SPIN_S = 0.1

# A container may forbid even these; what is left to test then is that it is said.
with perf.Counters(CLOCKS) as tried:
    software = pytest.mark.skipif(bool(tried.missing), reason=tried.missing)


def spin() -> None:
    end = time.thread_time() + SPIN_S
    while time.thread_time() < end:
        pass


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def counted_s(counters: perf.Counters, before: Mapping[str, perf.Reading]) -> float:
    found = perf.between(before, counters.read(), "cycles")
    assert found is not None
    return found / 1e9


@software
def test_threads_that_start_later_are_counted_while_they_live_and_afterwards() -> None:
    """A thread spins for 0.1 s of CPU time: it is in the reading before it ends, and in the one after."""
    with perf.Counters({"cycles": CLOCK}) as counters:
        before = counters.read()
        spun, leave = threading.Event(), threading.Event()

        def work() -> None:
            spin()
            spun.set()
            leave.wait()

        thread = threading.Thread(target=work)
        thread.start()
        spun.wait()
        alive_s = counted_s(counters, before)
        leave.set()
        thread.join()
        ended_s = counted_s(counters, before)
    assert SPIN_S <= alive_s <= ended_s < 5 * SPIN_S


@software
def test_a_thread_that_was_there_before_is_not_counted() -> None:
    """Which is why they are opened before a vendor is loaded."""
    start, done = threading.Event(), threading.Event()

    def work() -> None:
        start.wait()
        spin()
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with perf.Counters({"cycles": CLOCK}) as counters:
        before = counters.read()
        start.set()
        done.wait()
        assert counted_s(counters, before) < SPIN_S / 2
    thread.join()


@software
def test_descriptors_are_closed_at_the_end_and_where_another_program_starts() -> None:
    """None is left after the block; a program that is started with all descriptors kept gets none of them."""
    left = descriptors()
    with perf.Counters(CLOCKS) as counters:
        assert descriptors() == left + 2
        listed = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=False
        )
        assert "/dev/null" in listed.stdout or "pipe" in listed.stdout
        assert "perf_event" not in listed.stdout
        counters.close()
        assert descriptors() == left
        assert counters.read() == {}
    assert descriptors() == left


def test_an_event_that_the_kernel_does_not_know_is_named_and_costs_no_other() -> None:
    """The real call fails, nothing raises, no descriptor is left, and the sentence says what to do."""
    left = descriptors()
    with perf.Counters({"instructions": NO_SUCH_EVENT, "cycles": CLOCK}) as counters:
        assert counters.missing.startswith("instructions")
        assert "were not counted: " in counters.missing
        assert "; " in counters.missing
        assert "instructions" not in counters.read()
        assert perf.between(counters.read(), counters.read(), "instructions") is None
    assert descriptors() == left


def test_this_machine_counts_or_says_why_not() -> None:
    """Whatever it is: either both are read, or the sentence names what is missing."""
    with perf.Counters(perf.EVENTS) as counters:
        for name in perf.EVENTS:
            assert (name in counters.read()) != (name in counters.missing)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "measure on the machine itself"),
        (errno.EACCES, "kernel.perf_event_paranoid=2"),
        (errno.EPERM, "CAP_PERFMON"),
        (errno.ENOSYS, "outside a sandbox"),
        (errno.EMFILE, "Too many open files; see `man perf_event_open`"),
    ],
)
def test_each_refusal_has_its_remedy(monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    """Both events are named in one sentence."""

    def refuse(*_: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(perf, "_open", refuse)
    missing = perf.Counters(perf.EVENTS).missing
    assert missing.startswith("instructions and cycles were not counted: ")
    assert says in missing


def test_on_another_processor_no_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of one means another call on the other."""
    monkeypatch.setattr(platform, "machine", lambda: "sparc64")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: pytest.fail("called"))
    assert "no perf_event_open" in perf.Counters(perf.EVENTS).missing


def reading(value: int, enabled_ns: int, running_ns: int) -> dict[str, perf.Reading]:
    return {"cycles": perf.Reading(value=value, enabled_ns=enabled_ns, running_ns=running_ns)}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (reading(100, 10, 10), reading(400, 30, 30), 300),
        (reading(100, 10, 10), reading(400, 30, 20), 600),  # on a counter for half of the time
        (reading(100, 10, 10), reading(100, 30, 10), None),  # on none
        (reading(0, 10, 10), reading(0, 30, 30), None),  # a virtual machine that only seems to count
        ({}, reading(400, 30, 30), None),
        (reading(400, 30, 30), {}, None),
    ],
)
def test_what_was_counted_between_two_readings(
    before: dict[str, perf.Reading], after: dict[str, perf.Reading], found: int | None
) -> None:
    """Extrapolated where several events shared a counter, as `perf stat` does; nothing is invented."""
    assert perf.between(before, after, "cycles") == found


@software
def test_the_meter_reads_what_the_streams_took() -> None:
    """Two threads of a block spin: their task clock is the CPU time that the meter has anyway."""
    with perf.Counters(CLOCKS) as counters:
        meter = Meter(counters=counters)
        meter.start()
        threads = [threading.Thread(target=spin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        meter.stop()
    assert meter.cycles is not None
    assert meter.cycles / 1e9 == pytest.approx(meter.cpu_s, rel=0.2)
    without = Meter()
    without.start()
    without.stop()
    assert (without.instructions, without.cycles) == (None, None)


@software
def test_a_lane_counts_the_threads_of_its_vendor(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's pool of two threads, made long after: the clock of tasks is the process's CPU time."""
    clocks = f"from resdeploy.backends import perf; perf.EVENTS = {dict(CLOCKS)!r}; from resdeploy.backends.worker"
    monkeypatch.setattr(child, "START", child.START.replace("from resdeploy.backends.worker", clocks))
    execution = Execution(threads=2)
    with Lane("onnxruntime") as lane:
        built = lane.build(tiny, execution, tmp_path / "built.onnx")
        opened = lane.open(built, execution)
        block = lane.block(5, warmup=1, seconds=0.3)
    assert opened.uncounted == ""
    assert block.cycles is not None
    assert block.cycles / 1e9 == pytest.approx(block.cpu_s, rel=0.2)


def test_a_lane_without_counters_says_so_and_measures(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note is of the whole lane; the block has nulls."""
    unknown = dict.fromkeys(perf.EVENTS, NO_SUCH_EVENT)
    events = f"from resdeploy.backends import perf; perf.EVENTS = {unknown!r}; from resdeploy.backends.worker"
    monkeypatch.setattr(child, "START", child.START.replace("from resdeploy.backends.worker", events))
    with Lane("null") as lane:
        opened = lane.open(tiny, Execution())
        block = lane.block(5)
    assert opened.uncounted.startswith("instructions and cycles were not counted: ")
    assert (block.instructions, block.cycles) == (None, None)
    assert len(block.run_s) == 5

"""Signals that end the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from resdeploy import interrupts


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Handlers as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in interrupts.ENDING}
    monkeypatch.setattr(interrupts, "_raised_at", -interrupts.PATIENCE_S)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_the_signals_is_raised_in_the_main_thread(number: signal.Signals) -> None:
    """And says which it was."""
    interrupts.listen()
    with pytest.raises(interrupts.Interrupted) as caught:
        signal.raise_signal(number)
    assert caught.value.number == number


def test_a_signal_that_our_caller_ignores_stays_ignored() -> None:
    """As nohup has it with SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.listen()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_second_signal_cuts_in_only_when_the_first_was_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds it is impatience, and what cleans up goes on; later it is heard again."""
    interrupts.listen()
    with pytest.raises(interrupts.Interrupted):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(interrupts, "_raised_at", interrupts._raised_at - interrupts.PATIENCE_S)
    with pytest.raises(interrupts.Interrupted):
        signal.raise_signal(signal.SIGINT)


def test_a_held_signal_comes_at_the_end_of_the_outermost_block() -> None:
    """Whatever is in it runs; then the handler does, which is in its place again."""
    before = signal.getsignal(signal.SIGINT)
    done = []

    def nested() -> None:
        with interrupts.hold():
            with interrupts.hold():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("too far")

    with pytest.raises(KeyboardInterrupt):
        nested()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_another_thread_receives_is_held_too() -> None:
    """The kernel gives it to any thread; the handler runs in the main one."""
    done = []

    def struck_elsewhere() -> None:
        with interrupts.hold():
            thread = threading.Thread(target=signal.raise_signal, args=(signal.SIGINT,))
            thread.start()
            thread.join()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        struck_elsewhere()
    assert done == ["all"]


def test_other_threads_hold_nothing() -> None:
    """They could not: Python changes handlers in the main thread only."""
    failures = []

    def hold() -> None:
        try:
            with interrupts.hold():
                pass
        except ValueError as e:
            failures.append(e)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert not failures

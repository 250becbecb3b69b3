"""Signals that end the program: where they take effect, and where they must wait.

Python runs a signal's handler between any two of its instructions, and what the handler raises may fall between the
start of a process and the line that remembers it, or into the middle of a clean-up. `hold` keeps such stretches whole.
Blocking the signals in the main thread (`pthread_sigmask`) would not: the kernel then gives them to another thread,
of numpy's, say, and Python runs the handler in the main thread all the same.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a CI system that cancels, a terminal that is gone
# Clean-ups take a fraction of that. A second signal within it is impatience; one after it means that the first was
# lost (what is raised in a `__del__` goes nowhere) or that a clean-up hangs.
PATIENCE_S = 5.0

_raised_at = -PATIENCE_S


class Interrupted(BaseException):
    """A signal that ends the program, raised where the main thread is, so that every `finally` runs."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(self.number.name)


def listen() -> None:
    """From now on each of the signals raises `Interrupted`; one that our caller has us ignore (nohup) stays ignored."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _raised_at
    now = time.monotonic()
    if now - _raised_at >= PATIENCE_S:
        _raised_at = now
        raise Interrupted(number)


class hold:  # noqa: N801 - a context manager that is used as a word, as contextlib's are
    """Signals that come within this block are acted on at its end.

    In the main thread alone, for handlers run in no other. A signal without a handler in Python is not ours to hold:
    it ends the process at once, or is ignored.
    """

    def __enter__(self) -> None:
        self._holding = False
        self._came: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ENDING:
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                signal.signal(number, self._gate)
        self._holding = True

    def __exit__(self, *exc: object) -> None:
        self._holding = False
        for number, before in self._before.items():
            signal.signal(number, before)
        for number in self._came:
            signal.raise_signal(number)

    def _gate(self, number: int, frame: FrameType | None) -> None:
        """Keeps a signal; one that cuts into the lines that put handlers in place finds it open, and removes it."""
        if self._holding:
            self._came.append(number)
        else:
            signal.signal(number, self._before[number])
            self._before[number](number, frame)

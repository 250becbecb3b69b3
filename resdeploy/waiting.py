"""How long a lock is waited for (`locks`); a file by itself, so that the command line loads nothing else for it."""

from __future__ import annotations

import os

from resdeploy.errors import UsageError

VARIABLE = "RESDEPLOY_LOCK_TIMEOUT"
TIMEOUT_S = 3600.0  # the longest that is waited for: chosen, since TensorRT builds take half an hour

_asked_s: float | None = None


def set_timeout(seconds: float | None) -> None:
    """What the command line says; None: the environment, else an hour."""
    global _asked_s
    _asked_s = seconds


def timeout_s() -> float:
    """How long a lock is waited for.

    Raises:
        UsageError: the environment does not say a number from 0.
    """
    if _asked_s is not None:
        return _asked_s
    text = os.environ.get(VARIABLE, "")
    try:
        found = float(text or TIMEOUT_S)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise UsageError(f"{VARIABLE} is {text!r}, and takes seconds from 0")
    return found

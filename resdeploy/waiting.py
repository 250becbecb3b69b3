"""How long a lock is waited for (`locks`); a file by itself, so that the command line loads nothing else for it."""

from __future__ import annotations

import os

from resdeploy.errors import UsageError

VARIABLE = "RESDEPLOY_LOCK_TIMEOUT"
TIMEOUT_S = 3600.0  # the longest that is waited for: chosen, since TensorRT builds take half an hour

_option_s: float | None = None


def set_timeout(seconds: float | None) -> None:
    """What the command line says; None: the environment, else an hour."""
    global _option_s
    _option_s = seconds


def timeout_s() -> float:
    """How long a lock is waited for.

    Raises:
        UsageError: the environment does not say a number from 0.
    """
    if _option_s is not None:
        return _option_s
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or TIMEOUT_S)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(f"{VARIABLE} is {text!r}, and takes seconds from 0")
    return seconds

"""Benches as short as they can be, for tests of what is done with their result."""

from __future__ import annotations

from collections.abc import Callable


def time_shortly(replace: Callable[[object, str, object], None] = setattr) -> None:
    """One process a row, none again where the machine is busy, and a short look for cached results.

    By default a row gets two processes, and up to three more as long as it is not to be believed: on a machine that is
    busy with other tests, always. What that gives is proven in `tests/measure`.
    """
    from resdeploy.measure import interleaved

    replace(interleaved, "REPLAY_S", 0.01)
    replace(interleaved.run, "__kwdefaults__", {**interleaved.run.__kwdefaults__, "processes": 1, "extensions": 0})

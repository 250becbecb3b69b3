"""Benches as short as they can be, for tests of what is done with their result."""

from __future__ import annotations

from collections.abc import Callable


def time_shortly(replace: Callable[[object, str, object], None] = setattr, **schedule: int) -> None:
    """One process a row, none again where the machine is busy, and a short look for cached results.

    By default a row gets two processes, and up to three more as long as it is unreliable: on a machine that is busy
    with other tests, always. What that gives is proven in `tests/measure`.

    Args:
        replace: as `setattr`; a test's own takes it back.
        schedule: other defaults of `interleaved.Schedule`.
    """
    from resdeploy.measure import interleaved

    init = interleaved.Schedule.__init__
    replace(interleaved, "REPLAY_S", 0.01)
    replace(init, "__kwdefaults__", {**(init.__kwdefaults__ or {}), "processes": 1, "extensions": 0, **schedule})

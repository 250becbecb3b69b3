"""Benches as short as they can be, for tests of what is done with their result."""

from __future__ import annotations

from collections.abc import Callable


def time_shortly(replace: Callable[[object, str, object], None] = setattr, **schedule: int) -> None:
    """One process a row, short turns whatever is asked, and a short look for cached results.

    By default a row gets two processes, and where it is compared eight to sixty. What that gives is proven in
    `tests/measure`; here no comparison can be decided.

    Args:
        replace: as `setattr`; a test's own takes it back.
        schedule: other defaults of `interleaved.Schedule`.
    """
    from resdeploy.measure import entrant, interleaved, pilot

    init = interleaved.Schedule.__init__
    replace(entrant, "REPLAY_S", 0.01)
    replace(init, "__kwdefaults__", {**(init.__kwdefaults__ or {}), "processes": 1, **schedule})
    for module, name, value in (
        (interleaved, "LOOKS", (1,)),
        (interleaved, "TURN_S", 0.02),
        (pilot, "TURNS_S", ()),
    ):
        replace(module, name, value)

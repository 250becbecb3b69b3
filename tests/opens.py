"""Who opens a file: the kernel's own word, which hears every library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

IN_OPEN = 0x20  # inotify(7)
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name, which a watched file has none of


@contextlib.contextmanager
def watched(*paths: Path) -> Iterator[list[Path]]:
    """Fills the list, at the end, with those of `paths` that anybody opened meanwhile; links are followed."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    found: list[Path] = []
    try:
        watches = {libc.inotify_add_watch(queue, os.fsencode(path), IN_OPEN): path for path in paths}
        assert -1 not in watches, os.strerror(ctypes.get_errno())
        yield found
        with contextlib.suppress(BlockingIOError):
            events = os.read(queue, 1 << 16)
            found += [watches[watch] for watch, *_ in EVENT.iter_unpack(events)]
    finally:
        os.close(queue)

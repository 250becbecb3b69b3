"""Temporary folders that are always removed: after errors and signals at once, after kill -9 at the next start.

A folder is locked by its process for as long as that lives; a process that makes its first one in a place removes those
there that nobody holds. It bears the mark of the running kernel only once it is locked, so that a marked folder without
a lock is a leftover, whatever its age. Where locks do not work (some network file systems), and for folders of another
machine that shares the file system, a lock says nothing: those go when nobody has touched them for days.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from resdeploy import disk, interrupts

PREFIX, UNMARKED = "resdeploy-tmp-", "00000000"
NAME = re.compile(rf"\.?{PREFIX}([0-9a-f]{{8}})-\d+-[0-9a-f]{{12}}")  # mark, process, random
MEMORY, MEMORY_FREE_BYTES = Path("/dev/shm"), 1 << 30  # noqa: S108 (the folder inside is private)
STALE_S = 10 * 86400.0  # as long as systemd-tmpfiles leaves /tmp alone

_open: set[Folder] = set()
_swept: set[Path] = set()


class Folder:
    """A new folder that nobody else can read, locked until it is removed: by `remove`, or when the program ends."""

    def __init__(self, *, beside: Path | None = None, in_memory: bool = False) -> None:
        """Makes it.

        Args:
            beside: hidden beside this file, whose parts are made in it; by default where temporary files go.
            in_memory: in shared memory where there is room.

        Raises:
            NotWritable, DiskFull: what the operating system said.
        """
        base = beside.absolute().parent if beside else Path(tempfile.gettempdir())
        for each in {MEMORY, base} - _swept:
            _swept.add(each)
            sweep(each)
        with interrupts.hold():
            if in_memory and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_FREE_BYTES:
                base = MEMORY
            token = f"{os.getpid()}-{secrets.token_hex(6)}"
            dot = "." if beside else ""
            self.path = base / f"{dot}{PREFIX}{UNMARKED}-{token}"
            with disk.disk_errors(beside) if beside else disk.disk_errors(self.path, fix=roomier(base)):
                self.path.mkdir(mode=0o700)
            try:
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:  # too many files are open
                self.path.rmdir()
                raise
            _open.add(self)
            with contextlib.suppress(OSError):  # no locks here: it keeps its name
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self.path = self.path.rename(base / f"{dot}{PREFIX}{_mark()}-{token}")

    def remove(self) -> None:
        """Removes it with all that is in it; once is enough."""
        with interrupts.hold():
            if self in _open:
                shutil.rmtree(self.path, ignore_errors=True)
                os.close(self._lock)
                _open.discard(self)


@contextlib.contextmanager
def folder(*, beside: Path | None = None) -> Iterator[Path]:
    """A `Folder` for as long as the block lasts."""
    temporary = Folder(beside=beside)
    try:
        yield temporary.path
    finally:
        temporary.remove()


def roomier(base: Path) -> str:
    """What to do where there is no room for temporary files in `base`."""
    if base == MEMORY:
        return f"Use a smaller --batch-size, or make {base} larger (docker run --shm-size=4g)"
    return "Free some space there, or name a folder with more: TMPDIR=FOLDER resdeploy ..."


@atexit.register
def _remove_all() -> None:
    """What a signal kept from being removed: it may cut in just before a `finally` begins."""
    for temporary in tuple(_open):
        temporary.remove()


os.register_at_fork(after_in_child=_open.clear)  # they are the parent's


@functools.cache
def _mark() -> str:
    """Tells this boot of this machine from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        return UNMARKED
    return re.sub("[^0-9a-f]", "", boot)[:8].rjust(8, "f")


def sweep(base: Path) -> int:
    """Removes the folders of processes that were killed; the bytes freed.

    Whatever else bears such a name, another user's, a link, a pipe that would keep its reader waiting, is left alone.
    """
    freed = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            if match := NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    freed += _remove_leftover(base / name, match[1] == _mark() != UNMARKED)
    return freed


def _remove_leftover(path: Path, marked: bool) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if status.st_uid == os.geteuid() and (marked or time.time() - status.st_mtime > STALE_S):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed = sum(part.lstat().st_size for part in path.rglob("*"))
            shutil.rmtree(path)
            return freed
        return 0
    finally:
        os.close(handle)

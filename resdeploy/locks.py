"""Locks between processes: who waits is told for whom, and does not wait for ever.

A lock is the kernel's (flock) and ends with its process, however that ends; the file says who holds it. Where locks do
not work (some network file systems) nobody waits: work is then done twice, and each file is still whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from resdeploy import places, store, waiting
from resdeploy.errors import Locked

PATIENCE_S = 2.0  # until a word is said
POLL_S = 0.1


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`, which stays; a wait is said after two seconds, with the holder.

    Args:
        path: of the lock file; it gets the mode that the umask leaves, so that others who may write there may lock too.
        what: is locked, for the words.

    Raises:
        Locked: another process held it for `waiting.timeout_s`.
        NotWritable: the file cannot be made.
    """
    start_s, limit_s, warned = time.monotonic(), waiting.timeout_s(), False
    handle = _open(path)
    try:
        while not (_try_to_take(handle) and _is_at(handle, path)):
            waited_s = time.monotonic() - start_s
            if waited_s >= limit_s:
                raise Locked(
                    f"{what} is in use by {_holder(path)}, and was waited for {waited_s:.0f} s",
                    fix=f"Wait for it to end, or wait longer: resdeploy --lock-timeout SECONDS, or {waiting.VARIABLE}",
                )
            if waited_s >= PATIENCE_S and not warned:
                warned = True
                places.log.warning("waiting for %s: in use by %s", what, _holder(path))
            if _is_at(handle, path):
                time.sleep(min(POLL_S, limit_s))
            else:  # `cache clear` has removed it
                os.close(handle)
                handle = _open(path)
        _sign_in(handle)
        yield
    finally:
        os.close(handle)


def free(path: Path) -> bool:
    """Whether nobody holds the lock file `path`, or there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        return _try_to_take(handle)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    with store.disk_errors(path):
        store.make_folder(path.parent)
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(path, os.O_RDWR | flags, 0o666)
        except PermissionError:  # another user's, of whom reading is allowed: enough for a local lock
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _try_to_take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        pass
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sign_in(handle: int) -> None:
    """Writes who holds the lock; no matter if that fails. The verb alone: what follows it may be a secret."""
    verb = next((word for word in sys.argv[1:] if word.isalpha()), "")
    command = f"{Path(sys.argv[0]).name.replace('__main__.py', 'resdeploy')} {verb}".strip()
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "command": command})
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes()[:4096])
        return f"process {int(holder['pid'])} on {holder['host']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"another process, which has not said who it is in {path}"

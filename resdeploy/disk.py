"""What the operating system refuses on a disk (full, read-only, no such place), as our errors."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from resdeploy.errors import DiskFull, NotWritable


@contextlib.contextmanager
def disk_errors(
    path: Path, *, fix: str = "Free some space, or write elsewhere with -o or RESDEPLOY_CACHE"
) -> Iterator[None]:
    """Turns the operating system's refusals to write `path` into errors of ours; `fix` is for a full disk."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(path.parent).free
                raise DiskFull(
                    f"no space left while writing {path}",
                    cause=f"{free / 1e6:.0f} MB are free in {path.parent}",
                    fix=fix,
                ) from e
            raise DiskFull(f"no space left while writing {path}", fix=fix) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise NotWritable(
                f"cannot write {path}: {e.strerror}",
                fix="Choose a writable place with -o or RESDEPLOY_CACHE",
            ) from e
        raise


def probe(path: Path) -> None:
    """Finds out before long work whether `path` can be written, by a file beside it that is removed at once.

    Raises:
        NotWritable, DiskFull: what the operating system said.
    """
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    with disk_errors(path):
        if path.exists() and not path.is_file():  # a folder, or a device that a rename would replace
            raise IsADirectoryError(errno.EISDIR, "not a plain file", str(path))
        if any(parent.exists() and not parent.is_dir() for parent in path.absolute().parents):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
        try_in(folder)


def try_in(folder: Path) -> None:
    """Makes a file in a folder and removes it at once; an OSError says why that cannot be done."""
    file = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        file.touch(exist_ok=False)
    except FileNotFoundError as e:
        raise refusal(folder) from e
    finally:
        file.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; one that is there already is fine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as e:
        raise refusal(folder) from e


def refusal(folder: Path) -> PermissionError:
    """The refusal that file systems such as /proc mean when they say "not found" of a file that is to be created."""
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

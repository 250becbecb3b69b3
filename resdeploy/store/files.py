"""Files on disk: atomic writes, digests, and what killed writers leave behind.

A reader sees the old file or the new one, never a mixture: every write goes to a unique temporary file in
the destination's own folder, is fsynced, renamed over the destination, and the folder is fsynced (the recipe
that LMDB, SQLite and NVFlare arrived at). A failed or interrupted write removes its temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from resdeploy import external
from resdeploy.errors import DiskFull, MissingInput, NotWritable
from resdeploy.places import cache_dir

CHUNK_BYTES = 1 << 20
# What a write in progress is called: a folder of `publish`, a file of `atomic_path`, a file of `probe`.
_TEMPORARY = re.compile(r"\.(?:.+\.)?[a-z0-9_]{8,12}\.tmp(?:\.\w+)?")
ABANDONED_S = 86400.0  # temporary files this old are of a process that was killed, where locks cannot tell


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
                fix="Choose a writable place"
                + ("; RESDEPLOY_CACHE says where" if path.is_relative_to(cache_dir()) else ""),
            ) from e
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on any exception it is removed.

    For vendors that write files themselves. The suffix is kept, since some of them look at it. The file gets the mode
    that the umask leaves to a new one, whatever the vendor thinks of it (safetensors: its owner's alone).

    Raises:
        NotWritable, DiskFull: what the operating system said, in our words.
    """
    with disk_errors(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
        try:
            # Probe now: some vendors report an unwritable folder as their own obscure failure.
            try:
                temporary.touch()
            except FileNotFoundError as e:
                raise _refused(path.parent) from e
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            if stat.S_IMODE(temporary.stat().st_mode) != mode:
                temporary.chmod(mode)
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


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
        temporary = folder / f".{secrets.token_hex(6)}.tmp"
        try:
            temporary.touch(exist_ok=False)
        except FileNotFoundError as e:
            raise _refused(folder) from e
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; one that is there already is fine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as e:
        raise _refused(folder) from e


def _refused(folder: Path) -> PermissionError:
    """What file systems such as /proc mean when they say that a file cannot be found that is to be made."""
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, document: Any) -> None:
    """Writes JSON atomically; NaN and infinity are refused rather than written as non-JSON."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def companions(path: Path) -> tuple[Path, ...]:
    """Files that belong to `path` and travel with it: OpenVINO's weights beside its XML, an ONNX file's external data.

    Raises:
        MissingInput: external data that is not there.
        UnsafeInput, MalformedInput: an ONNX file whose external data must not, or cannot, be read.
    """
    return (*_weights(path), *(external.checked(path, name) for name in external.names(path)))


def _weights(path: Path) -> tuple[Path, ...]:
    beside = path.with_suffix(".bin")
    return (beside,) if path.suffix == ".xml" and beside.is_file() else ()


def digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file and what belongs to it.

    Of one file it is what `sha256sum` prints, and of OpenVINO's XML and weights that of both in a row, the XML first.
    With external data it is that of what `(sha256sum < F.onnx; sha256sum w.data) | sha256sum` takes in: the digests of
    the files one a line, the external ones by name and in its order, so that no byte can move from one to the next.

    Raises:
        MissingInput: there is no such file, or no such external data.
        UnsafeInput, MalformedInput: as `companions`.
    """
    sha = hashlib.sha256()
    for part in (path, *_weights(path)):
        try:
            with part.open("rb") as file:
                _feed(sha, file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
            raise MissingInput(f"there is no file {part}", fix="Check the path") from e
    if not (outside := external.names(path)):
        return sha.hexdigest()
    lines = [f"{sha.hexdigest()}  -\n"]
    for name in outside:
        sha = hashlib.sha256()
        with external.opened(path, name) as file:
            _feed(sha, file)
        lines.append(f"{sha.hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _feed(sha: hashlib._Hash, file: BinaryIO) -> None:
    while chunk := file.read(CHUNK_BYTES):
        sha.update(chunk)


def sweep(folder: Path, name: str = "", *, age_s: float = ABANDONED_S) -> int:
    """Removes what killed writers have left in a folder (of the file `name` alone, if given); the bytes freed.

    A folder is abandoned if nobody holds its lock and, since locks do not work everywhere, if it is old.
    """
    freed, last = 0, time.time() - age_s
    for left in folder.glob(".*.tmp*"):
        if not (_TEMPORARY.fullmatch(left.name) and left.name.startswith(f".{name}")):
            continue
        with contextlib.suppress(OSError):
            if left.lstat().st_mtime > last:
                continue
            held = left.is_dir() and not left.is_symlink()
            with locked(left, wait=False) if held else contextlib.nullcontext():
                freed += size(left)
                shutil.rmtree(left) if held else left.unlink()
    return freed


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(part.lstat().st_size for part in path.rglob("*") if not part.is_dir())


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a folder's lock; none where locks do not work.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is off.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        handle = None
    try:
        if handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError:
                pass
        yield
    finally:
        if handle is not None:
            os.close(handle)

"""Atomic writes, digests of files, and the leftovers of killed writers.

A reader sees the old file or the new one, never a mixture: every write goes to a unique temporary file in
the destination's own folder, is fsynced, renamed over the destination, and the folder is fsynced (the recipe
that LMDB, SQLite and NVFlare arrived at). A failed or interrupted write removes its temporary file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from resdeploy import external
from resdeploy.disk import disk_errors, make_folder, refusal
from resdeploy.errors import MissingInput

CHUNK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(?:.+\.)?[0-9a-f]{12}\.tmp(?:\.\w+)?")  # a file of `atomic_path` or `disk.try_in`
ABANDONED_S = 86400.0  # not written to for so long, it is of a process that was killed: no download rests for a day


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
                raise refusal(path.parent) from e
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
    return (*weights(path), *(external.check(path, name) for name in external.names(path)))


def weights(path: Path) -> tuple[Path, ...]:
    """OpenVINO's second file, where there is one."""
    beside = path.with_suffix(".bin")
    return (beside,) if path.suffix == ".xml" and beside.is_file() else ()


def digest(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file and what belongs to it.

    Of one file it is what `sha256sum` prints, and of OpenVINO's XML and weights that of both in a row, the XML first.
    With external data it is that of what `(sha256sum < F.onnx; sha256sum w.data) | sha256sum` takes in: the digests of
    the files one per line, the external ones by name and in its order, so that no byte can move from one to the next.

    Raises:
        MissingInput: there is no such file, or no such external data.
        UnsafeInput, MalformedInput: as `companions`.
    """
    sha, mentioned = hashlib.sha256(), False
    for part in (path, *weights(path)):
        try:
            with part.open("rb") as file:
                mentioned |= _feed(sha, file)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
            raise MissingInput(f"there is no file {part}", fix="Check the path") from e
    if not mentioned or not (outside := external.names(path)):
        return sha.hexdigest()
    lines = [f"{sha.hexdigest()}  -\n"]
    for name in outside:
        sha = hashlib.sha256()
        with external.open_file(path, name) as file:
            _feed(sha, file)
        lines.append(f"{sha.hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256, in hexadecimal, of one file and nothing that belongs to it: what `sha256sum` prints."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        _feed(sha, file)
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, file: BinaryIO) -> bool:
    """Whether the word occurs that an ONNX file with external data holds: no second reading need look for it."""
    before, mentioned = b"", False
    while chunk := file.read(CHUNK_BYTES):
        sha.update(chunk)
        mentioned = mentioned or external.WORD in before + chunk
        before = chunk[1 - len(external.WORD) :]
    return mentioned


def sweep(folder: Path) -> int:
    """Removes the temporary files that killed writers have left in a folder; the bytes freed."""
    freed, last = 0, time.time() - ABANDONED_S
    for leftover in folder.glob(".*.tmp*"):
        with contextlib.suppress(OSError):
            status = leftover.lstat()
            if _TEMPORARY.fullmatch(leftover.name) and stat.S_ISREG(status.st_mode) and status.st_mtime < last:
                leftover.unlink()
                freed += status.st_size
    return freed


def size_bytes(path: Path) -> int:
    """Of a file and what belongs to it.

    Raises:
        MissingInput, UnsafeInput, MalformedInput: as `companions`.
    """
    return sum(part.stat().st_size for part in (path, *companions(path)))

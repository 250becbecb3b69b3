"""Signatures (HMAC with the user's own key) that tell what this user's resdeploy made from what others put there.

Records and digests tell accidents; whoever plants a file plants its record too. The key lies outside the cache and
outside every folder that travels. Where none can be kept (no home, a read-only one), a key of this process signs:
what it made it trusts, what an earlier process made is made again, and one line says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import os
import secrets
import stat
from pathlib import Path

from resdeploy import places

KEY_BYTES = 32

_keys: dict[Path, bytes] = {}  # read once: what a process signs it also trusts, whatever becomes of the file


def mac(*parts: str) -> str:
    """HMAC-SHA256 (RFC 2104) over the parts and their order, in hexadecimal."""
    return hmac.new(_key(), json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def good(signature: object, *parts: str) -> bool:
    """Whether this user's key has signed these parts."""
    return isinstance(signature, str) and hmac.compare_digest(signature.encode(errors="replace"), mac(*parts).encode())


def _key() -> bytes:
    folder = places.config_dir()
    if folder is None:
        return _temporary_key("there is no home folder to keep a signing key in (XDG_CONFIG_HOME names another place)")
    path = folder / "signing.key"
    if path in _keys:
        return _keys[path]
    try:
        key, why = _read(path)
        if key is None:
            if why:
                places.log.warning("%s %s: a new key is made, and what was signed before is made again", path, why)
            _write(path, replacing=bool(why))
            key, why = _read(path)  # of two processes one wins, and both read the same key
    except OSError as e:
        return _temporary_key(f"no signing key can be kept in {path}: {e.strerror or e}")
    if key is None:
        return _temporary_key(f"{path} {why or 'has vanished'}")
    return _keys.setdefault(path, key)


def _read(path: Path) -> tuple[bytes | None, str]:
    """The key, or None and what is wrong with the file; "" where there is none.

    Raises:
        OSError: it cannot be read, or belongs to another user, who knows it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not hold us up
    except FileNotFoundError:
        return None, ""
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid():
            raise PermissionError(0, "it belongs to another user")
        if not stat.S_ISREG(status.st_mode):
            return None, "is not a plain file"
        if stat.S_IMODE(status.st_mode) & 0o077:
            return None, "can be read or changed by others"
        key = file.read(KEY_BYTES + 1)
    return (key, "") if len(key) == KEY_BYTES else (None, "does not hold a key")


def _write(path: Path, *, replacing: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(handle)
        if not replacing:
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(temporary, path)  # whole, and never over another's
                except FileExistsError:
                    raise
                except OSError:  # a file system without hard links: of two at once the later one's key stays
                    replacing = True
        if replacing:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def _temporary_key(why: str) -> bytes:
    places.log.warning("%s: what earlier commands have cached is made again", why)
    return _process_key()


@functools.cache
def _process_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)

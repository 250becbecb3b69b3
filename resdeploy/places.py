"""Where files lie: this user's cache and settings, our own profiles, and what is done where a folder cannot be had.

A cache is a help and not a condition: where it cannot be written (a read-only file system, another user's folder, a
container without a home), a folder of this process takes its place and goes with it, and one line says so. That holds
for a folder named with RESDEPLOY_CACHE too: a broken volume in CI costs time and not the verdict.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from resdeploy import disk, scratch

log = logging.getLogger("resdeploy")  # `cli` shows its warnings; a program that imports us sees them as it likes


def cache_dir() -> Path:
    """`$RESDEPLOY_CACHE`, else `$XDG_CACHE_HOME/resdeploy`, else `~/.cache/resdeploy`; not created here.

    Without a home it is a folder of this process.
    """
    if explicit := os.environ.get("RESDEPLOY_CACHE"):
        return Path(explicit)
    folder = _own_folder("XDG_CACHE_HOME", ".cache")
    return folder if folder is not None else _replacement("there is no home folder to keep a cache in")


def writable_cache(part: str = "") -> Path:
    """The cache's folder `part`, made and found to be writable; else one of this process, which is said once."""
    folder = cache_dir()
    why = _refusal(folder / part)
    return (folder if why is None else _replacement(f"the cache {folder} cannot be written ({why})")) / part


def config_dir() -> Path | None:
    """`$XDG_CONFIG_HOME/resdeploy`, else `~/.config/resdeploy`; None where there is no home."""
    return _own_folder("XDG_CONFIG_HOME", ".config")


def profiles_dir() -> Path:
    """The folder of the profiles that come with resdeploy: in the installed package, or beside it in a clone."""
    package = Path(__file__).parent
    installed = package / "profiles"
    return installed if installed.is_dir() else package.parent / "profiles"


def _own_folder(variable: str, default: str) -> Path | None:
    if base := os.environ.get(variable):
        return Path(base) / "resdeploy"
    try:
        return Path.home() / default / "resdeploy"
    except RuntimeError:  # no HOME, and no entry in the list of users: `docker run --user 1234`
        return None


@functools.cache
def _refusal(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is made; None: it can."""
    try:
        disk.make_folder(folder)
        disk.try_in(folder)
    except OSError as e:
        return e.strerror or str(e)
    return None


@functools.cache
def _replacement(why: str) -> Path:
    log.warning("%s: what this command makes is kept for this command only; RESDEPLOY_CACHE names another place", why)
    return _temporary()


@functools.cache
def _temporary() -> Path:
    return scratch.Folder().path

"""The cache: finished work under the hash of all that it depends on, trusted only where this user's key signed it.

An entry that is damaged, or not signed by this user, is made again, and a warning says which and why. Users who share
a folder have entries of their own, since none trusts another's; the weights that they download, whose names tell
their digest, are shared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from resdeploy import locks, places, scratch, signing, store
from resdeploy.errors import IntegrityError, MalformedInput, MissingInput, ResdeployError, UnsafeInput
from resdeploy.records import Artifact

T = TypeVar("T")
ARTIFACTS, WEIGHTS, PEAKS, TENSORRT, IMAGES = PARTS = ("artifacts", "weights", "peaks", "tensorrt", "images")
JOURNALS = "bench*.journal"
COMPANIONS = (".json", ".bin")  # of models: their records, and OpenVINO's weights
DIGITS = re.compile(r"(?<![0-9a-f])[0-9a-f]{8,64}(?![0-9a-f])")  # of a SHA-256, in the name of a download
# What we write there; whoever names a folder of other things as the cache keeps them.
OURS = {
    ARTIFACTS: re.compile(r"[0-9a-f]{32}\.\w+(\.\w+)?"),
    WEIGHTS: re.compile(rf"(?!\.).*{DIGITS.pattern}.*"),
    PEAKS: re.compile(r"[0-9a-f]{32}\.json"),
    IMAGES: re.compile(r"[0-9a-f]{32}\.json"),
    TENSORRT: re.compile(r"timing-.*\.cache(\..*)?"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of the cache."""

    name: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """An entry that will not be used."""

    file: str
    state: Literal["damaged", "foreign"]  # foreign: whole, and not signed by this user
    why: str


def load_or_make(key: Any, suffix: str, make: Callable[[Path], Artifact]) -> Artifact:
    """The artifact cached under `key`, made by `make(path)` where it is missing, damaged or not this user's.

    Processes that want the same entry wait for one of them to make it.

    Raises:
        Locked: that one took longer than the time-out.
    """
    path = places.writable_cache(ARTIFACTS) / f"{store.fingerprint((os.getuid(), key))[:32]}{suffix}"
    with contextlib.suppress(MissingInput, UnsafeInput, IntegrityError):
        return store.load_own(path)  # who finds it whole waits for nobody
    with locks.hold(path.with_suffix(".lock"), f"the cached {path.name}"):
        try:
            return store.load_own(path)
        except MissingInput:
            pass
        except (UnsafeInput, IntegrityError) as e:
            places.log.warning("%s: it is made again", e.what)
        return store.publish(path, make)


def keep(part: str, key: Any, record: Any) -> None:
    """Keeps a record under `key`, signed."""
    path = places.writable_cache(part) / _name(key)
    document = dataclasses.asdict(record)
    signature = signing.mac("record", path.name, store.fingerprint(document))
    store.write_json(path, {"record": document, "signature": signature})


def recall(kind: type[T], part: str, key: Any) -> T | None:
    """The record of `key`; None where there is none, or a damaged one or not this user's, of which a warning tells."""
    path = places.cache_dir() / part / _name(key)
    try:
        return store.parse(kind, json.dumps(_signed_record(path)), str(path))
    except FileNotFoundError:
        return None
    except (UnsafeInput, IntegrityError) as e:
        places.log.warning("%s: it is made again", e.what)
        return None


def _name(key: Any) -> str:
    return f"{store.fingerprint((os.getuid(), key))[:32]}.json"


def _signed_record(path: Path) -> Any:
    try:
        document = json.loads(path.read_bytes())
        record, signature = document["record"], document["signature"]
        fingerprint = store.fingerprint(record)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise MalformedInput(f"{path} is not a signed record") from e
    if not signing.good(signature, "record", path.name, fingerprint):
        raise IntegrityError(f"{path} is not signed by you", code=store.UNSIGNED)
    return record


def contents() -> tuple[Part, ...]:
    """What there is, by folder; journals are of runs that go on or were cut short."""
    folder = places.cache_dir()
    parts = []
    for name in PARTS:
        files = [path for path in _files(name) if not _is_lock(path)]
        companions = sum(path.suffix in COMPANIONS for path in files) if name == ARTIFACTS else 0
        parts.append(Part(name=name, entries=len(files) - companions, size_bytes=_bytes(files)))
    journals = sorted(folder.glob(JOURNALS))
    parts.append(Part(name="journals", entries=len(journals), size_bytes=_bytes(journals)))
    return tuple(parts)


def _bytes(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def doubts() -> tuple[int, tuple[Doubt, ...]]:
    """How many entries were looked at, and those that are damaged or not this user's."""
    checks: list[tuple[Path, Callable[[Path], object]]] = []
    models = [path for path in _files(ARTIFACTS) if path.suffix not in COMPANIONS and not _is_lock(path)]
    checks += [(path, store.load_own) for path in models]
    checks += [(path, _signed_record) for part in (PEAKS, IMAGES) for path in _files(part)]
    checks += [(path, _check_download) for path in _files(WEIGHTS)]
    doubtful = []
    for path, check in checks:
        try:
            check(path)
        except (MissingInput, FileNotFoundError):  # another process has just removed it
            continue
        except (ResdeployError, OSError) as e:
            foreign = isinstance(e, IntegrityError) and e.code == store.UNSIGNED
            why = e.what if isinstance(e, ResdeployError) else str(e.strerror)
            doubtful.append(Doubt(file=str(path), state="foreign" if foreign else "damaged", why=why))
    return len(checks), tuple(doubtful)


def _check_download(path: Path) -> None:
    if not _is_download(path):
        raise IntegrityError(f"{path} is not the file that its name states")


def _is_download(path: Path) -> bool:
    """Whether the digits in its name are its digest's; in that of a user's own file they may be a date."""
    digest = store.digest(path)
    return any(digest.startswith(digits) for digits in DIGITS.findall(path.name))


def clear(*, older_than_s: float = 0.0) -> tuple[int, int]:
    """Removes entries, downloads, journals and what killed processes have left; the files and bytes freed.

    What a living process makes or holds stays, and so does a file among the downloads that is not what its name states.

    Raises:
        NotWritable: a file cannot be removed.
    """
    folder, last = places.cache_dir(), time.time() - older_than_s
    count = freed = 0
    for path in _removable():
        with store.disk_errors(path), contextlib.suppress(FileNotFoundError, MissingInput):
            status = path.lstat()
            if status.st_mtime > last or (path.parent.name == WEIGHTS and not _is_download(path)):
                continue
            path.unlink()
            freed += status.st_size
            count += 1
    for part in ("", *PARTS):
        freed += store.sweep(folder / part) + scratch.sweep(folder / part)
    return count, freed


def _removable() -> Iterator[Path]:
    """Files of ours that no living process holds, locks after what they guard."""
    for name in PARTS:
        files = _files(name)
        busy = [path.stem for path in files if _is_lock(path) and not locks.free(path)]
        idle = [path for path in files if not any(f"{path.name}.".startswith(f"{stem}.") for stem in busy)]
        yield from sorted(idle, key=_is_lock)
    yield from (path for path in sorted(places.cache_dir().glob(JOURNALS)) if locks.free(path))


def _files(part: str) -> list[Path]:
    """Files of ours in a folder of the cache, finished ones: those in work begin with a dot."""
    try:
        folder = places.cache_dir() / part
        return sorted(path for path in folder.iterdir() if path.is_file() and OURS[part].fullmatch(path.name))
    except OSError:
        return []


def _is_lock(path: Path) -> bool:
    return path.suffix == ".lock"

"""Files on disk: atomic writes, digests, sidecar manifests, the cache.

A reader sees the old file or the new one, never a mixture: every write goes to a unique temporary file in
the destination's own folder, is fsynced, renamed over the destination, and the folder is fsynced (the recipe
that LMDB, SQLite and NVFlare arrived at). A failed or interrupted write removes its temporary file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from resdeploy import external
from resdeploy.errors import (
    DiskFull,
    IntegrityError,
    MalformedInput,
    MissingInput,
    NotWritable,
    ProfileError,
    UnsafeInput,
)
from resdeploy.records import Artifact, Profile

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
PROFILE_BYTES, PROFILE_DOTS = 1 << 16, 100  # of a file and of a line; tomllib takes a minute for keys of many parts


def cache_dir() -> Path:
    """`$RESDEPLOY_CACHE`, else `$XDG_CACHE_HOME/resdeploy`, else `~/.cache/resdeploy`; not created here."""
    if explicit := os.environ.get("RESDEPLOY_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "resdeploy"


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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as e:
            raise _refused(path.parent) from e
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
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
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


def _fsync(path: Path) -> None:
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


def fingerprint(document: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form: the key of cached work."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    msg = f"cannot fingerprint {type(value).__name__}"
    raise TypeError(msg)


def parse_json(text: str | bytes, origin: str, *, fix: str = "Write it again") -> Any:
    """Any JSON document, as plain Python values.

    Raises:
        MalformedInput: not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as e:
        raise MalformedInput(f"{origin} is not JSON of ours: it is nested too deeply", fix=fix) from e
    except ValueError as e:  # text that is not UTF-8, too
        raise MalformedInput(f"{origin} is not JSON: {e}", fix=fix) from e


def parse(kind: type[T], text: str | bytes, origin: str) -> T:
    """A record from JSON text, unknown keys refused.

    Raises:
        MalformedInput: with every problem found, not only the first.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as e:
        raise MalformedInput(f"{origin} is not a valid {kind.__name__}: {_problems(e)}") from e


def read(kind: type[T], path: Path) -> T:
    """A record from a JSON file, unknown keys refused.

    Raises:
        MissingInput: no such file.
        MalformedInput: with every problem found.
    """
    try:
        return parse(kind, path.read_bytes(), str(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no file {path}", fix="Check the path") from e


def read_profile(path: Path) -> Profile:
    """A deployment profile from TOML, unknown keys refused.

    Raises:
        MissingInput: no such file.
        ProfileError: with every problem found, not only the first; a file that is too large or nested too deeply.
    """
    from pydantic import TypeAdapter, ValidationError

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if (size := path.stat().st_size) > PROFILE_BYTES:
            raise ProfileError(f"{path} has {size:,} bytes, more than any profile needs", fix="Name a profile")
        text = path.read_text(encoding="utf-8")
        if max(line.count(".") for line in text.split("\n")) > PROFILE_DOTS:
            raise RecursionError
        # As JSON, in which arrays may be tuples; it has no NaN, and no number that Python's own limit refuses.
        document = json.dumps(tomllib.loads(text), default=str, allow_nan=False)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MissingInput(f"there is no profile {path}", fix="Look into profiles/ for examples") from e
    except RecursionError as e:
        raise ProfileError(f"{path} is nested too deeply", fix="A profile is a flat list of keys") from e
    except ValueError as e:  # TOML's own error, text that is not UTF-8, and numbers too large
        raise ProfileError(f"{path} is not valid TOML: {e}", fix="Correct the line named") from e
    if "\\u0000" in document:
        raise ProfileError(f"{path} holds a zero byte", cause="No path or name can", fix="Take it out")
    try:
        # Strict: a number in quotes is a mistake to report, not to convert.
        return TypeAdapter(Profile).validate_json(document, strict=True)
    except ValidationError as e:
        known = [field.name for field in dataclasses.fields(Profile)]
        raise ProfileError(f"{path}: {_problems(e, known)}", fix=f"Known keys: {', '.join(known)}") from e


def _problems(error: ValidationError, known: Collection[str] = ()) -> str:
    return "; ".join(_problem(p, known) for p in error.errors(include_url=False))


def _problem(found: ErrorDetails, known: Collection[str]) -> str:
    where = ".".join(map(str, found["loc"])) or "document"
    if found["type"] not in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: {found['msg']}"
    near = difflib.get_close_matches(where, known, 1)
    return f"{where}: there is no such key" + (f", perhaps {near[0]}" if near else "")


def sidecar(path: Path) -> Path:
    """Where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def save(artifact: Artifact) -> Artifact:
    """Writes the artifact's sidecar and returns the artifact."""
    document = dataclasses.asdict(artifact)
    document["path"] = Path(artifact.path).name  # so that a folder can be moved
    write_json(sidecar(Path(artifact.path)), document)
    return artifact


def load(path: Path) -> Artifact | None:
    """The artifact of `path` from its sidecar, or None where there is no sidecar.

    Raises:
        MissingInput: no such file.
        MalformedInput: the sidecar cannot be read.
        UnsafeInput: external data that must not be read, as `companions`.
        IntegrityError: the file is not the one its sidecar describes.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    manifest = sidecar(path)
    if not manifest.is_file():
        return None
    artifact = parse(Artifact, manifest.read_bytes(), str(manifest))
    if (found := digest(path)) != artifact.sha256:
        raise IntegrityError(
            f"{path} is not the file its sidecar describes (sha256 {found[:12]}, recorded {artifact.sha256[:12]})",
            cause="The file was changed or only partly copied",
            fix=f"Make it again, or remove {manifest.name} to treat it as a file of unknown origin",
        )
    return dataclasses.replace(artifact, path=str(path))


def checked_digest(path: Path) -> str:
    """SHA-256 of a file, which is what its sidecar describes if it has one.

    Raises:
        MissingInput, UnsafeInput, IntegrityError: as `load`.
    """
    artifact = load(path)
    return digest(path) if artifact is None else artifact.sha256


def _own_key() -> bytes:
    """The user's own signing key, made on first use, outside the cache and readable by its owner alone."""
    base = os.environ.get("XDG_CONFIG_HOME")
    path = (Path(base) if base else Path.home() / ".config") / "resdeploy" / "signing.key"
    with disk_errors(path), contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(handle)
            os.link(temporary, path)  # of two processes one wins; both then read the same key
        finally:
            temporary.unlink(missing_ok=True)
    return path.read_bytes()


def _signature(path: Path) -> Path:
    return path.with_name(path.name + ".sig")


def _mac(path: Path) -> str:
    """HMAC-SHA256 (RFC 2104) over the file's name, its digest and its sidecar: neither can be swapped."""
    said = "\0".join((path.name, digest(path), sidecar(path).read_text()))
    return hmac.new(_own_key(), said.encode(), hashlib.sha256).hexdigest()


def sign(path: Path) -> None:
    """Vouches for a file and its sidecar, with the user's own key."""
    write_bytes(_signature(path), _mac(path).encode())


def verify(path: Path) -> None:
    """Returns where this user has signed the file as it now is.

    Raises:
        IntegrityError: no signature, another's, or the file or its sidecar was changed since.
    """
    try:
        good = hmac.compare_digest(_signature(path).read_bytes(), _mac(path).encode())
    except (FileNotFoundError, MissingInput):
        good = False
    if not good:
        raise IntegrityError(
            f"{path} is not signed by you",
            cause="Engines are programs: one that somebody else put there could do anything",
            fix="Build it again: resdeploy build F.onnx --backend tensorrt",
        )


def cached(key: Any, suffix: str, make: Callable[[Path], Artifact], *, signed: bool = False) -> Artifact:
    """The artifact cached under `key`, made by `make(path)` where it is missing or damaged.

    With `signed` an entry counts as damaged unless this user has signed it: what is deserialised as a program.

    Processes that want the same entry wait for one of them to make it. Where locks do not work (some network file
    systems), work is done twice: each file is still whole, and one that does not fit its sidecar is made again.
    """
    path = cache_dir() / "artifacts" / f"{fingerprint(key)[:32]}{suffix}"
    with _locked(path.with_suffix(".lock")):
        with contextlib.suppress(MissingInput, UnsafeInput, IntegrityError):
            found = load(path)
            if found is not None:
                if signed:
                    verify(path)
                return found
        made = save(make(path))
        if signed:
            sign(path)
        return made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

"""Artifacts on disk: a model file, what belongs to it and its record, published and loaded as one.

An artifact takes several renames, and no file system does these at once, so `publish` keeps a redo log, as databases
do. All parts are made in a folder beside the destination (`scratch.Folder`), synced, and gathered in one that is then
renamed to `.NAME.pending`: that is the commit. A rename to the name of a folder that is not empty fails, so there is
one publication of a file at a time, without a lock on anything that others could lock too. Then the parts move into
place, the record first and the file last. Whoever finds the folder finishes it: its writer, the next writer, and a
reader whom file and record contradict; it is locked meanwhile. So the record is never one of another file for long, a
file that we write never without one, and a failed making (an export that torch contradicts) leaves nothing. The
alternative, a record that holds both digests while the file is replaced, needs no finishing for one file, but knows no
answer for two (OpenVINO's .xml and .bin), of which one is old and one new.

Each record carries a seal: its own digest, since a flipped bit in it would be another record, and this user's
signature (`signing`), which `load_own` demands of all that lies where others may have put it: in the cache and in a
run's folder. A file that the user names needs none, unless it carries host code. The order of checks is `_verify`'s:
a plain file, a record that parses and is whole, the digest, the signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resdeploy import interrupts, scratch, signing
from resdeploy.disk import disk_errors, make_folder
from resdeploy.errors import IntegrityError, MissingInput, ResdeployError
from resdeploy.records import Artifact
from resdeploy.store.atomic import digest, fsync, weights, write_json
from resdeploy.store.typed_json import fingerprint, parse

SEAL = "seal"  # in a sidecar, beside the record
PENDING = "pending"  # in the name of a folder: committed, and not yet in place
TRIES = 100  # of a reader whom writers outrun
UNSIGNED = "E-UNSIGNED"
AGAIN = "Write it again with the command that made it: resdeploy export, quantize, train or build"


def sidecar(path: Path) -> Path:
    """Where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def _seal(artifact: Artifact, name: str) -> dict[str, Any]:
    """The sidecar's document: the record, its path the bare name so that a folder can be moved, and its seal."""
    document = dataclasses.asdict(artifact) | {"path": name}
    sha256 = fingerprint(document)
    return document | {SEAL: {"sha256": sha256, "signature": signing.mac("artifact", sha256)}}


def publish(out: Path, make: Callable[[Path], Artifact]) -> Artifact:
    """Has an artifact made in a folder beside `out`, and puts its parts and its record in place as one.

    Args:
        out: where the file goes; OpenVINO's `.bin` and the sidecar lie beside it.
        make: writes the file to the path it is given, which has the same name, and a `.bin` beside that; returns the
            record. Whatever else it leaves there goes. Where it fails, nothing stays, and its error speaks of `out`.

    Raises:
        NotWritable, DiskFull: what the operating system said. The old artifact then is as it was, or the new one whole.
    """
    with disk_errors(out):
        make_folder(out.parent)
    with scratch.folder(beside=out) as folder:
        try:
            artifact = dataclasses.replace(make(folder / out.name), path=str(out))
        except ResdeployError as e:
            for temporary, final in ((folder / out.name, out), (folder, out.parent)):
                e.what, e.cause, e.fix = (s.replace(str(temporary), str(final)) for s in (e.what, e.cause, e.fix))
            raise
        with disk_errors(out):
            _commit(artifact, folder, out)
    return artifact


def derive(source: Artifact, path: Path, **changes: Any) -> Artifact:
    """The record of the file at `path`, made from `source`: all that is known of that but its checks, and `changes`."""
    derived = {"path": str(path), "sha256": digest(path), "parent": source.sha256, "checks": {}}
    return dataclasses.replace(source, **{**derived, **changes})


def copy_to(artifact: Artifact, out: Path, **changes: Any) -> Artifact:
    """Publishes an artifact of one file under another name, with these changes to its record."""

    def make(path: Path) -> Artifact:
        shutil.copyfile(artifact.path, path)
        return dataclasses.replace(artifact, **changes)

    return publish(out, make)


def _commit(artifact: Artifact, folder: Path, out: Path) -> None:
    ready = folder / PENDING
    ready.mkdir(mode=0o700)
    manifest = sidecar(ready / out.name)
    write_json(manifest, _seal(artifact, out.name))
    for part in (*weights(folder / out.name), folder / out.name):
        part.chmod(stat.S_IMODE(manifest.stat().st_mode))  # the umask's, whatever a vendor thinks of it
        fsync(part)
        part.rename(ready / part.name)
    fsync(ready)
    with interrupts.hold():
        while True:
            try:
                ready.rename(_pending(out))
                break
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not _finish(out):
                    raise
        fsync(out.parent)
        _finish(out)


def _pending(out: Path) -> Path:
    return out.with_name(f".{out.name}.{PENDING}")


def _finish(out: Path) -> bool:
    """Moves into place what is committed of `out`, whoever committed it; whether there was anything.

    Raises:
        OSError: it cannot be done here; PermissionError where the folder is another user's, who alone may open it.
    """
    pending = _pending(out)
    try:
        handle = os.open(pending, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "it belongs to another user", str(pending))
        with contextlib.suppress(OSError):  # no locks here: two may move the same parts, each of which moves once
            fcntl.flock(handle, fcntl.LOCK_EX)
        for name in (sidecar(out).name, *([out.with_suffix(".bin").name] if out.suffix == ".xml" else []), out.name):
            with contextlib.suppress(FileNotFoundError):
                os.replace(name, out.with_name(name), src_dir_fd=handle)  # not by path: it may be the next one's now
        fsync(out.parent)
        if os.listdir(handle):  # nothing of ours, so it was unpacked or copied here
            shutil.rmtree(pending)
        else:
            with contextlib.suppress(OSError):  # done already, or the next one's
                pending.rmdir()
    finally:
        os.close(handle)
    return True


def load(path: Path, *, trusted: bool = False) -> Artifact | None:
    """The artifact of a file that the user names, from its sidecar, or None where there is no sidecar.

    Args:
        path: of the file.
        trusted: the user's word that host code in it may run (`--trust-engine`).

    Raises:
        MissingInput: no such file.
        MalformedInput: the sidecar cannot be read.
        UnsafeInput: external data that must not be read, as `companions`.
        IntegrityError: the file is not the one its sidecar describes, the sidecar was changed, or the file carries host
            code and is not signed by this user.
    """
    return _load(path, own=False, trusted=trusted)


def load_own(path: Path) -> Artifact:
    """The artifact of a file in the cache or in a run's folder, where others may have put theirs.

    Raises:
        MissingInput, UnsafeInput, IntegrityError: as `load`, and if this user has not signed it as it now is.
    """
    artifact = _load(path, own=True, trusted=False)
    if artifact is None:
        raise IntegrityError(f"{path} has lost its sidecar", fix=AGAIN)
    return artifact


def _load(path: Path, *, own: bool, trusted: bool) -> Artifact | None:
    """What `_verify` returns, where a writer may be between two renames, or was killed there."""
    for _ in range(TRIES):
        before = _parts(path)
        try:
            return _verify(path, own=own, trusted=trusted)
        except (MissingInput, IntegrityError):
            if not sidecar(path).is_file():
                raise
            finished = False
            with contextlib.suppress(OSError):  # a folder that we may not write, or not even list
                finished = _finish(path)
            if not finished and _parts(path) == before:
                raise
    return _verify(path, own=own, trusted=trusted)


def _parts(path: Path) -> list[tuple[int, int] | None]:
    """Which files lie there just now."""
    parts: list[tuple[int, int] | None] = []
    for part in (sidecar(path), path.with_suffix(".bin"), path):
        try:
            status = part.stat()
            parts.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            parts.append(None)
    return parts


def _verify(path: Path, *, own: bool, trusted: bool) -> Artifact | None:
    """The order of all checks: a plain file, its record, the digest, the signature where one is needed."""
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    if own and path.is_symlink():
        raise IntegrityError(f"{path} is a link, and nothing that resdeploy wrote", fix=AGAIN)
    manifest = sidecar(path)
    if not manifest.is_file():
        return None
    artifact, seal = _record(manifest)
    if (sha256 := digest(path)) != artifact.sha256:
        raise IntegrityError(
            f"{path} is not the file its sidecar describes (sha256 {sha256[:12]}, recorded {artifact.sha256[:12]})",
            cause="The file was changed or only partly copied",
            fix=f"{AGAIN}, or remove {manifest.name} to treat it as a file of unknown origin",
        )
    host_code = artifact.tools.get("version_compatible") == "yes" and not trusted
    if own or host_code:
        sealed_sha256 = seal.get("sha256")
        by_us = artifact.path == path.name and signing.good(seal.get("signature"), "artifact", str(sealed_sha256))
        if not by_us and not host_code:
            raise IntegrityError(
                f"{path} is not signed by you",
                cause="Somebody else put it there, or your signing key is another one now",
                fix=AGAIN,
                code=UNSIGNED,
            )
        if not by_us:
            raise IntegrityError(
                f"{path} carries code for this machine's processor and is not signed by you",
                cause="A version-compatible engine brings its own runtime, and its record vouches for nothing",
                fix="Build it again from its ONNX file; if you trust it, bench, eval, gate and audit take "
                "--trust-engine",
                code=UNSIGNED,
            )
    return dataclasses.replace(artifact, path=str(path))


def _record(manifest: Path) -> tuple[Artifact, dict[str, Any]]:
    """What a sidecar says, and its seal; one without (an older one, or one written by hand) has an empty seal."""
    data = manifest.read_bytes()
    try:
        document = json.loads(data)
        seal = document.pop(SEAL, {})
        text: str | bytes = json.dumps(document)
    except (ValueError, RecursionError, AttributeError, TypeError):
        document, seal, text = None, {}, data  # not JSON, or no record: `parse` says what is wrong with it
    artifact = parse(Artifact, text, str(manifest))
    if document is None or (seal != {} and (not isinstance(seal, dict) or seal.get("sha256") != fingerprint(document))):
        raise IntegrityError(
            f"{manifest} is not the record that was written",
            cause="It was damaged, or changed by hand",
            fix=f'{AGAIN}, or take "{SEAL}" out of the record if you changed it yourself',
        )
    return artifact, seal


def check_digest(path: Path) -> str:
    """SHA-256 of a file, which is what its sidecar describes if it has one.

    Raises:
        MissingInput, UnsafeInput, IntegrityError: as `load`.
    """
    artifact = load(path)
    return digest(path) if artifact is None else artifact.sha256

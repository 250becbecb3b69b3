"""Artifacts: a file, its companions and their record, which are one.

An artifact takes several renames, and no file system does these at once, so `publish` keeps a redo log, as databases
do. All parts are made and synced in a folder beside the destination (`.NAME.xxxxxxxx.tmp`); then the new record is put
in place, with the name of that folder as `pending`; then the companions, the file, and the record without `pending`.
A reader whom file and record contradict waits for a writer that lives, by a lock on the folder, and finishes what one
that was killed had begun: the parts are all there. So the record is never one of another file for long, a file never
without one, and a failed making (an export that torch contradicts) leaves nothing. The alternative, a record that
holds both digests while the file is replaced, needs no finishing for one file, but knows no answer for two
(OpenVINO's .xml and .bin), of which one is old and one new.

Each record carries a seal: its own digest, since a flipped bit in it would be another record, and this user's
signature (`signing`), which `load_own` demands of all that lies where others may have put it: in the cache and in a
run's folder. A file that the user names needs none, unless it carries host code. The order of checks is `_checked`'s:
a plain file, a record that parses and is whole, the digest, the signature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resdeploy import signing
from resdeploy.errors import IntegrityError, MissingInput, ResdeployError
from resdeploy.records import Artifact
from resdeploy.store.documents import fingerprint, parse
from resdeploy.store.files import companions, digest, disk_errors, fsync, locked, make_folder, sweep, write_json

SEAL, PENDING = "seal", "pending"  # of a sidecar, beside the record
UNSIGNED = "E-UNSIGNED"


def sidecar(path: Path) -> Path:
    """Where the manifest of `path` lies."""
    return path.with_name(path.name + ".json")


def save(artifact: Artifact) -> Artifact:
    """Writes the sidecar of a file that is there already, and returns the artifact."""
    path = Path(artifact.path)
    write_json(sidecar(path), _sealed(artifact, path.name))
    return artifact


def _sealed(artifact: Artifact, name: str) -> dict[str, Any]:
    """The sidecar's document: the record, its path the bare name so that a folder can be moved, and its seal."""
    document = dataclasses.asdict(artifact) | {"path": name}
    said = fingerprint(document)
    return document | {SEAL: {"sha256": said, "signature": signing.mac("artifact", said)}}


def publish(out: Path, make: Callable[[Path], Artifact]) -> Artifact:
    """Has an artifact made in a folder beside `out`, and puts its parts and its record in place as one.

    Args:
        out: where the file goes; its companions and its sidecar lie beside it.
        make: writes the file to the path it is given, which has the same name, and companions beside that; returns the
            record. Where it fails, nothing stays, and its error speaks of `out`.

    Raises:
        NotWritable, DiskFull: what the operating system said. The old artifact then is as it was, or the new one whole.
    """
    with disk_errors(out):
        make_folder(out.parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent.absolute()))
    with contextlib.ExitStack() as stack:
        stack.callback(_discard, folder, out)
        stack.enter_context(locked(folder))  # for as long as its maker lives
        try:
            made = dataclasses.replace(make(folder / out.name), path=str(out))
        except ResdeployError as e:
            for here, wanted in ((folder / out.name, out), (folder, out.parent)):
                e.what, e.cause, e.fix = (s.replace(str(here), str(wanted)) for s in (e.what, e.cause, e.fix))
            raise
        with disk_errors(out):
            _commit(made, folder, out)
    return made


def copied(artifact: Artifact, out: Path, **changes: Any) -> Artifact:
    """Publishes an artifact of one file under another name, with these changes to its record."""

    def make(path: Path) -> Artifact:
        shutil.copyfile(artifact.path, path)
        return dataclasses.replace(artifact, **changes)

    return publish(out, make)


def _commit(made: Artifact, folder: Path, out: Path) -> None:
    staged, manifest, before = folder / out.name, sidecar(out), folder / ".before"
    parts = (*companions(staged), staged)
    for part in parts:
        fsync(part)
    document = _sealed(made, out.name)
    write_json(sidecar(staged), document)
    with locked(out.parent):
        _finish(out)
        sweep(out.parent, out.name)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(manifest, before)
        try:
            write_json(manifest, document | {PENDING: folder.name})
            _move(folder, out)
        except BaseException as e:
            if all(part.exists() for part in parts):  # none has moved: all as it was
                os.replace(before, manifest) if before.exists() else manifest.unlink(missing_ok=True)
                raise
            _move(folder, out)  # what one failure has left over
            if not isinstance(e, OSError):
                raise


def _move(folder: Path, out: Path) -> None:
    """The renames of a publication, or those that are left of it: companions, the file, its record."""
    staged = folder / out.name
    parts = (*companions(staged), staged) if staged.is_file() else ()
    for part in (*parts, sidecar(staged)):
        with contextlib.suppress(FileNotFoundError):  # where locks do not work, another may do the same just now
            os.replace(part, out.with_name(part.name))
    fsync(out.parent)


def _pending(out: Path) -> Path | None:
    """The folder of a publication of `out` that is under way, or whose writer was killed."""
    try:
        name = json.loads(sidecar(out).read_bytes())[PENDING]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None
    if not isinstance(name, str) or not re.fullmatch(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}\.tmp", name):
        return None  # not of ours: it could point anywhere
    folder = out.absolute().with_name(name)
    return folder if folder.is_dir() and not folder.is_symlink() else None


def _finish(out: Path) -> None:
    """Ends the publication that a killed writer of `out` had begun."""
    if (folder := _pending(out)) is not None:
        _move(folder, out)
        shutil.rmtree(folder, ignore_errors=True)


def _discard(folder: Path, out: Path) -> None:
    if _pending(out) != folder:  # else renames kept failing half-way: a later reader finishes them
        shutil.rmtree(folder, ignore_errors=True)


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
    return _consistent(path, own=False, trusted=trusted)


def load_own(path: Path) -> Artifact:
    """The artifact of a file in the cache or in a run's folder, where others may have put theirs.

    Raises:
        MissingInput, UnsafeInput, IntegrityError: as `load`, and if this user has not signed it as it now is.
    """
    found = _consistent(path, own=True, trusted=False)
    if found is None:
        raise IntegrityError(f"{path} has lost its sidecar", fix="Make it again")
    return found


def _consistent(path: Path, *, own: bool, trusted: bool) -> Artifact | None:
    """What `_checked` finds, where a writer may be between two renames, or was killed there."""
    try:
        return _checked(path, own=own, trusted=trusted)
    except (MissingInput, IntegrityError):
        if not sidecar(path).is_file():
            raise
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that we may not write, or not even list
            stack.enter_context(locked(path.parent))
            _finish(path)
        return _checked(path, own=own, trusted=trusted)


def _checked(path: Path, *, own: bool, trusted: bool) -> Artifact | None:
    """The order of all checks: a plain file, its record, the digest, the signature where one is needed."""
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    if own and path.is_symlink():
        raise IntegrityError(f"{path} is a link, and nothing that resdeploy wrote", fix="Make it again")
    manifest = sidecar(path)
    if not manifest.is_file():
        return None
    artifact, seal = _record(manifest)
    if (found := digest(path)) != artifact.sha256:
        raise IntegrityError(
            f"{path} is not the file its sidecar describes (sha256 {found[:12]}, recorded {artifact.sha256[:12]})",
            cause="The file was changed or only partly copied",
            fix=f"Make it again, or remove {manifest.name} to treat it as a file of unknown origin",
        )
    host_code = artifact.tools.get("version_compatible") == "yes" and not trusted
    if own or host_code:
        said = seal.get("sha256")
        by_us = artifact.path == path.name and signing.good(seal.get("signature"), "artifact", str(said))
        if not by_us and not host_code:
            raise IntegrityError(
                f"{path} is not signed by you",
                cause="Somebody else put it there, or your signing key is another one now",
                fix="Make it again",
                code=UNSIGNED,
            )
        if not by_us:
            raise IntegrityError(
                f"{path} carries code for this machine's processor and is not signed by you",
                cause="A version-compatible engine brings its own runtime, and its record vouches for nothing",
                fix="Build it again from its ONNX file, or add --trust-engine if you trust where it came from",
                code=UNSIGNED,
            )
    return dataclasses.replace(artifact, path=str(path))


def _record(manifest: Path) -> tuple[Artifact, dict[str, Any]]:
    """What a sidecar says, and its seal; one without (an older one, or one written by hand) has an empty seal."""
    data = manifest.read_bytes()
    try:
        document = json.loads(data)
        seal = document.pop(SEAL, {})
        document.pop(PENDING, None)
        text: str | bytes = json.dumps(document)
    except (ValueError, RecursionError, AttributeError, TypeError):
        document, seal, text = None, {}, data  # not JSON, or no record: `parse` says what is wrong with it
    artifact = parse(Artifact, text, str(manifest))
    if document is None or (seal != {} and (not isinstance(seal, dict) or seal.get("sha256") != fingerprint(document))):
        raise IntegrityError(
            f"{manifest} is not the record that was written",
            cause="It was damaged, or changed by hand",
            fix=f'Make the file again, or take "{SEAL}" out of the record if you changed it yourself',
        )
    return artifact, seal


def checked_digest(path: Path) -> str:
    """SHA-256 of a file, which is what its sidecar describes if it has one.

    Raises:
        MissingInput, UnsafeInput, IntegrityError: as `load`.
    """
    artifact = load(path)
    return digest(path) if artifact is None else artifact.sha256

"""A file and its record are one, whatever fails or is killed between two writes; and what was planted is not believed.

Failures are made at the calls that reach the disk: the n-th of them, for every n until the operation passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import os
import random
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from resdeploy import scratch, signing, store
from resdeploy.errors import DiskFull, IntegrityError, MalformedInput, MissingInput, NotWritable, ResdeployError
from resdeploy.records import Artifact

KILLED = 77
WRITING = (
    "replace",
    "rename",
    "fsync",
    "mkdir",
    "link",
    "chmod",
)  # what a full disk refuses, and opening files to be written
REMOVING = ("unlink", "rmdir")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here ends the machine's power."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def make(words: str) -> Callable[[Path], Artifact]:
    """Writes a file (and OpenVINO's second one, for .xml) and tells its record."""

    def write(path: Path) -> Artifact:
        path.write_bytes(f"<{words}>".encode() * 50)
        if path.suffix == ".xml":
            path.with_suffix(".bin").write_bytes(words.encode() * 99)
        return Artifact(
            path=str(path),
            format="onnx",
            precision="fp32",
            sha256=store.digest(path),
            notes=(words,),
            checks={"x": 0.1},
        )

    return write


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


class Disk:
    """Counts the calls that reach the disk and fails at one of them, from then on if it stays full."""

    def __init__(
        self, patch: pytest.MonkeyPatch, at: int, fail: Callable[[], None], *, stays: bool = False, kills: bool = False
    ) -> None:
        self.count, self.at, self.fail, self.stays = 0, at, fail, stays
        for name in (*WRITING, *(REMOVING if kills else ())):
            patch.setattr(os, name, self._counted(getattr(os, name)))
        patch.setattr(os, "open", self._counted(os.open, lambda _path, flags, *_: kills or flags & os.O_CREAT))
        patch.setattr(io, "open", self._counted(io.open, lambda _path, mode="r", *_: kills or set(mode) & set("wxa")))
        patch.setattr(Path, "write_bytes", self._half(Path.write_bytes))

    def _due(self) -> bool:
        self.count += 1
        return self.count > self.at if self.stays else self.count == self.at + 1

    def _counted(self, real: Callable[..., Any], counts: Callable[..., Any] = lambda *_: True) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if counts(*args) and self._due():
                self.fail()
            return real(*args, **kwargs)

        return call

    def _half(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Fails once half of the bytes are there."""

        def call(path: Path, data: bytes) -> Any:
            if self._due():
                self.count -= 1
                real(path, data[: len(data) // 2])
                self.count = max(self.count, self.at) + 1
                self.fail()
            return real(path, data)

        return call


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def loaded(path: Path, **trust: bool) -> Artifact:
    """What `store.load` gives where there is a sidecar."""
    found = store.load(path, **trust)
    assert found is not None
    return found


def started(work: Callable[[], None]) -> int:
    """A fork that does the work."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


@pytest.fixture(params=[(name, first) for name in ("m.onnx", "m.xml") for first in (True, False)], ids=str)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Path]:
    """Gives a fresh folder in which the file is written for the first time, or replaced."""
    name, first = request.param
    made = iter(range(10**6))

    def give() -> Path:
        out = tmp_path / str(next(made)) / name
        out.parent.mkdir()
        if not first:
            store.publish(out, make("old"))
        return out

    return give


def found(out: Path) -> str | None:
    """What a reader has: the words of the record, which are those of the file; None before the first writing."""
    try:
        artifact = store.load_own(out)
    except MissingInput:
        return None
    assert store.digest(out) == artifact.sha256
    return artifact.notes[0]


def test_killed_at_any_call_the_reader_has_the_old_artifact_or_the_new(place: Callable[[], Path]) -> None:
    seen = set()
    for n in range(200):
        out = place()
        before = found(out)

        def work(out: Path = out, n: int = n) -> None:
            Disk(pytest.MonkeyPatch(), n, lambda: os._exit(KILLED), kills=True)
            store.publish(out, make("new"))

        status = os.waitstatus_to_exitcode(os.waitpid(started(work), 0)[1])
        assert status in (0, KILLED)
        seen.add(found(out))
        assert found(out) in (before, "new"), n
        if status == 0:
            break
        for left in out.parent.glob(f".*{scratch.UNMARKED}*"):  # killed before it held the lock: days later
            os.utime(left, (0, 0))
        scratch._swept.clear()  # as a process begins
        store.publish(out, make("newer"))
        assert found(out) == "newer"
        assert temporary(out.parent) == []
    assert status == 0
    assert seen == {before, "new"}
    assert n > 10


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
def test_where_the_disk_is_full_at_any_call_the_reader_has_the_old_artifact_or_the_new(
    place: Callable[[], Path], *, stays: bool
) -> None:
    """And nothing temporary stays, unless nothing can be removed or renamed any more, but what is committed."""
    signing.mac("the key is there")
    for n in range(200):
        out = place()
        before = found(out)
        failed = False
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, n, full, stays=stays)
            try:
                store.publish(out, make("new"))
            except (DiskFull, OSError):
                failed = True
        after = found(out)
        assert after == "new" if not failed else after in (before, "new"), n
        if disk.count <= n:
            break
        if not stays:
            assert temporary(out.parent) in ([], [f".{out.name}.pending"]), n
            names = {path.name for path in out.parent.iterdir()}
            assert after is not None or not names & {out.name, store.sidecar(out).name}
            store.publish(out, make("newer"))
            assert found(out) == "newer"
            assert temporary(out.parent) == [], n
    assert disk.count <= n
    assert not failed


def test_a_making_that_fails_leaves_nothing_and_speaks_of_the_place_that_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"

    def fail(path: Path) -> Artifact:
        path.write_bytes(b"half")
        raise MalformedInput(f"{path} is off", cause=f"{path.parent} is full")

    for before in ([], ["m.onnx", "m.onnx.json"]):
        with pytest.raises(MalformedInput) as refused:
            store.publish(out, fail)
        assert refused.value.what == f"{out} is off"
        assert refused.value.cause == f"{tmp_path} is full"
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        store.publish(out, make("good"))
    assert found(out) == "good"


def test_readers_beside_a_writer_see_one_artifact_or_the_other(tmp_path: Path) -> None:
    """Two processes replace both files of a model again and again; no read of it fails."""
    out = tmp_path / "m.xml"
    store.publish(out, make("0"))

    def write() -> None:
        for i in range(40):
            store.publish(out, make(str(i)))

    writers, reads = [started(write), started(write)], 0
    while os.waitpid(writers[0], os.WNOHANG) == (0, 0):
        assert loaded(out).notes[0].isdecimal()
        reads += 1
    assert os.waitstatus_to_exitcode(os.waitpid(writers[1], 0)[1]) == 0
    assert reads > 3
    assert temporary(tmp_path) == []


def test_a_file_is_what_its_record_says_or_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(MissingInput):
        store.load(out)
    out.write_bytes(b"somebody's")
    assert store.load(out) is None
    with pytest.raises(IntegrityError, match="lost its sidecar"):
        store.load_own(out)
    made = store.publish(out, make("mine"))
    assert store.load(out) == store.load_own(out) == made
    good = out.read_bytes()
    for bad in (good[:-1], good + b"x", b"", good[:9] + b"!" + good[10:]):
        out.write_bytes(bad)
        with pytest.raises(IntegrityError, match="not the file its sidecar describes"):
            store.load(out)
    out.unlink()
    os.mkfifo(out)
    with pytest.raises(MissingInput):
        store.load(out)


def test_no_flipped_bit_makes_another_record(tmp_path: Path) -> None:
    """At 9 of 100 places of a record a flipped bit is another number, name or note in a valid document."""
    out = tmp_path / "m.onnx"
    made = store.publish(out, make("a note"))
    manifest = store.sidecar(out)
    good = manifest.read_bytes()
    chosen = random.Random(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(good)
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        manifest.write_bytes(data)
        try:
            assert store.load(out) == made  # in white space
        except (IntegrityError, MalformedInput):
            refused += 1
    assert refused > 1000


def test_a_record_without_a_seal_is_read_as_it_is_and_is_not_ones_own(tmp_path: Path) -> None:
    """Records of older versions, and those that people write."""
    out = tmp_path / "m.onnx"
    made = store.publish(out, make("mine"))
    document = json.loads(store.sidecar(out).read_text())
    del document["seal"]
    store.sidecar(out).write_text(json.dumps(document))
    assert store.load(out) == made
    with pytest.raises(IntegrityError, match="not signed by you"):
        store.load_own(out)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '"seal"', '{"seal": 1}', "\xff", "9" * 5000])
def test_a_record_that_is_none_is_malformed(tmp_path: Path, text: str) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"x")
    store.sidecar(out).write_bytes(text.encode("latin-1"))
    with pytest.raises(MalformedInput):
        store.load(out)


def test_what_another_key_signed_or_another_name_bore_is_not_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "m.onnx", tmp_path / "n.onnx"
    made = store.publish(out, make("mine"))
    out.rename(other)
    store.sidecar(out).rename(store.sidecar(other))
    assert loaded(other).notes == made.notes  # a file that is named may be renamed
    with pytest.raises(IntegrityError, match="not signed by you"):
        store.load_own(other)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    store.publish(other, make("theirs"))
    assert store.load_own(other).notes == ("theirs",)
    monkeypatch.undo()
    assert loaded(other).notes == ("theirs",)
    with pytest.raises(IntegrityError, match="not signed by you"):
        store.load_own(other)
    link = tmp_path / "linked"
    link.mkdir()
    (link / "m.onnx").symlink_to(store.publish(tmp_path / "m.onnx", make("mine")).path)
    store.sidecar(tmp_path / "m.onnx").rename(link / "m.onnx.json")
    with pytest.raises(IntegrityError, match="is a link"):
        store.load_own(link / "m.onnx")


def test_host_code_is_loaded_from_a_named_file_by_signature_or_by_the_users_word(tmp_path: Path) -> None:
    out = tmp_path / "m.engine"

    def host_code(path: Path) -> Artifact:
        return dataclasses.replace(make("engine")(path), format="engine", tools={"version_compatible": "yes"})

    assert loaded(Path(store.publish(out, host_code).path)).notes == ("engine",)
    document = json.loads(store.sidecar(out).read_text())
    document["seal"]["signature"] = "0" * 64
    store.sidecar(out).write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=r"carries code .* not signed by you"):
        store.load(out)
    assert loaded(out, trusted=True).notes == ("engine",)


def test_what_is_planted_as_a_publication_moves_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of an archive, say; through a link; or by another user, whose files nobody takes for ours."""
    out, pending = tmp_path / "m.onnx", tmp_path / ".m.onnx.pending"
    store.publish(out, make("mine"))
    good = out.read_bytes()
    out.write_bytes(b"changed")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/m.onnx").write_bytes(good)
    pending.symlink_to(tmp_path / "kept")
    with pytest.raises(IntegrityError):
        store.load(out)
    assert (tmp_path / "kept/m.onnx").exists()
    with pytest.raises(NotWritable):
        store.publish(out, make("mine"))
    pending.unlink()
    (tmp_path / "kept").rename(pending)
    (pending / "profile").write_text("planted")
    uid = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(IntegrityError):
            store.load(out)
        with pytest.raises(NotWritable, match="another user"):
            store.publish(out, make("mine"))
    assert store.load(out) is not None  # it was whole
    assert not (tmp_path / "profile").exists()
    assert temporary(tmp_path) == []


def test_a_strangers_lock_on_a_folder_holds_nobody_up(tmp_path: Path) -> None:
    """Anyone may lock /tmp: neither a writer nor a reader of a damaged file waits for that."""
    out = tmp_path / "m.onnx"
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        store.publish(out, make("new"))
        assert found(out) == "new"
        out.write_bytes(b"changed")
        with pytest.raises(IntegrityError):
            store.load(out)
    finally:
        os.close(handle)


def test_what_a_killed_writer_left_goes_with_the_next_start_whatever_it_writes_there(tmp_path: Path) -> None:
    """At once, while that of a living one stays."""

    def killed() -> None:
        def die(path: Path) -> Artifact:
            path.write_bytes(b"half")
            os._exit(KILLED)

        store.publish(tmp_path / "a.onnx", die)

    def beside(path: Path) -> Artifact:
        os.waitpid(started(killed), 0)
        assert len(list(tmp_path.glob(".*"))) == 2
        scratch._swept.clear()
        store.publish(tmp_path / "b.onnx", make("b"))
        assert list(tmp_path.glob(".*")) == [path.parent]
        return make("c")(path)

    store.publish(tmp_path / "c.onnx", beside)
    assert temporary(tmp_path) == []


def test_a_signal_at_any_line_of_a_publication_leaves_the_old_artifact_or_the_new_and_no_folder(
    tmp_path: Path,
) -> None:
    """Raised by Python's own handler, at each line in turn until none is left."""
    out, last, ended, seen = tmp_path / "m.xml", 0, False, set()
    left = 0
    mine = ("artifacts.py", "files.py", "scratch.py", "disk.py", "interrupts.py")

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename.endswith(mine) else None

    def line(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return line

    while not ended:
        store.publish(out, make("old"))
        left = last = last + 1
        sys.settrace(trace)
        try:
            store.publish(out, make("new"))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        ended = left > 0
        scratch._remove_all()  # as the program ends: a blow may fall between a block and its `finally`
        seen.add(found(out))
        assert temporary(tmp_path) == [], last
    assert seen == {"old", "new"}
    assert last > 100


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    store.write_bytes(out, b"old")
    with contextlib.suppress(RuntimeError), store.atomic_path(out) as path:
        path.write_bytes(b"half")
        raise RuntimeError("the vendor's")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    for n in range(40):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, n, full)
            with contextlib.suppress(DiskFull):
                store.write_bytes(out, b"old" if n < 39 else b"")
        assert out.read_bytes() == b"old"
        assert temporary(tmp_path) == []
        if disk.count <= n:
            break
    assert 3 < n < 39


def test_a_files_mode_is_the_umasks_whatever_the_vendor_gave_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with store.atomic_path(tmp_path / "f") as path:
            path.write_bytes(b"x")
            path.chmod(0o600)
        made = store.publish(tmp_path / "m.onnx", make("x"))
    finally:
        os.umask(before)
    for name in ("f", made.path, f"{made.path}.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_probe_says_beforehand_what_a_write_would_and_leaves_nothing(tmp_path: Path) -> None:
    store.probe(tmp_path / "not/yet/there.onnx")
    (tmp_path / "file").write_bytes(b"x")
    for bad in (tmp_path, tmp_path / "file/below", Path("/dev/null"), Path("/proc/none")):
        with pytest.raises(NotWritable):
            store.probe(bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_only_old_files_of_the_names_that_we_give_to_work_in_progress_are_swept(tmp_path: Path) -> None:
    old = {tmp_path / name for name in (".m.0123456789ab.tmp.onnx", ".0123456789ab.tmp")}
    kept = {tmp_path / name for name in (".m.tmp.keep", "m.0123456789ab.tmp", ".hidden", ".m.abcd1234.tmp")}
    for path in (*old, *kept):
        path.write_bytes(b"12345")
        os.utime(path, (0, 0))
    (folder := tmp_path / ".m.a123456789ab.tmp").mkdir()
    os.utime(folder, (0, 0))
    (young := tmp_path / ".m.b123456789ab.tmp.onnx").write_bytes(b"x")
    assert store.sweep(tmp_path) == 10
    assert set(tmp_path.iterdir()) == {*kept, folder, young}


def test_errors_of_the_disk_are_said_in_our_words(tmp_path: Path) -> None:
    for code, kind in ((errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, NotWritable)):
        with pytest.raises(kind) as said, store.disk_errors(tmp_path / "f"):
            raise OSError(code, os.strerror(code))
        assert isinstance(said.value, ResdeployError)
        assert str(tmp_path / "f") in said.value.what

"""Cached work is made once, is believed where the user's own key has signed it, and is a help and no condition."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resdeploy import cache, locks, places, scratch, signing, store, waiting
from resdeploy.records import Artifact, Roof

KEY = {"what": "it depends on"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Each test begins as a process does."""
    caplog.set_level(logging.WARNING)
    for remembered in (places._refusal, places._replacement, places._temporary):
        remembered.cache_clear()
    yield
    for remembered in (places._refusal, places._replacement, places._temporary):
        remembered.cache_clear()


def making(words: str = "made", notes: list[str] | None = None) -> Callable[[Path], Artifact]:
    def make(path: Path) -> Artifact:
        if notes is not None:
            notes.append(words)
        path.write_bytes(words.encode())
        if path.suffix == ".xml":
            path.with_suffix(".bin").write_bytes(b"weights")
        return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), notes=(words,))

    return make


def refuse(_path: Path) -> Artifact:
    raise AssertionError("it is there already")


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".engine", ".safetensors"])
def test_an_entry_is_made_once_and_again_where_it_is_not_what_was_made(
    folder: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever became of it: cut, another's with a record that fits, without record, of another name, a link."""
    made = cache.load_or_make(KEY, suffix, making())
    assert cache.load_or_make(KEY, suffix, refuse) == made
    assert caplog.messages == []
    path = Path(made.path)
    good = path.read_bytes()

    def planted() -> None:
        path.write_bytes(b"planted")
        document = json.loads(store.sidecar(path).read_text())
        seal = document.pop("seal")
        document["sha256"] = store.digest(path)
        seal["sha256"] = store.fingerprint(document)
        store.sidecar(path).write_text(json.dumps(document | {"seal": seal}))

    def of_another_entry() -> None:
        other = Path(cache.load_or_make("another", suffix, making("other")).path)
        other.replace(path)
        store.sidecar(other).replace(store.sidecar(path))

    def linked() -> None:
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")

    for spoil in (
        lambda: path.write_bytes(good[:-1]), planted, of_another_entry, linked,
        lambda: store.sidecar(path).unlink(), lambda: store.sidecar(path).write_text("{}"),
    ):  # fmt: skip
        spoil()
        caplog.clear()
        assert cache.load_or_make(KEY, suffix, making()).notes == ("made",)
        assert path.read_bytes() == good
        (said,) = caplog.messages
        assert str(path.name) in said
        assert said.endswith("it is made again")
    caplog.clear()
    path.unlink()
    cache.load_or_make(KEY, suffix, making())
    assert caplog.messages == []  # nothing was wrong with it


def test_what_another_user_signed_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
        cache.load_or_make(KEY, ".onnx", making("theirs"))
    assert cache.load_or_make(KEY, ".onnx", making("mine")).notes == ("mine",)
    assert "is not signed by you" in caplog.text


def unsupported(_handle: int, _how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("locking", [True, False])
def test_sixteen_processes_at_once_have_one_whole_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, locking: bool
) -> None:
    """Made once; where locks do not work, by each, and each has a file that fits its record."""
    signing.mac("there is a key")
    monkeypatch.setattr(locks, "POLL_S", 0.01)
    if not locking:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    go, begin = os.pipe()
    children = []
    for _ in range(16):
        if not (pid := os.fork()):
            status = 1
            try:
                os.close(begin)
                os.read(go, 1)  # all at once: ended when the parent closes its end
                builds: list[str] = []
                made = cache.load_or_make(KEY, ".xml", making("made", builds))
                (tmp_path / f"{os.getpid()}.{len(builds)}").write_text(made.sha256)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(go)
    os.close(begin)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 16
    single = sum(path.suffix == ".1" for path in tmp_path.iterdir())
    assert single == 1 if locking else single > 1
    assert cache.load_or_make(KEY, ".xml", refuse).notes == ("made",)
    assert len({path.read_text() for path in tmp_path.iterdir() if path.is_file()}) == 1


def test_a_record_is_kept_and_one_that_was_changed_is_not_believed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    roof = Roof(rate=1e9, ci95=(0.9e9, 1.1e9), by="stream", valid=True)
    assert cache.recall(Roof, cache.PEAKS, KEY) is None
    cache.keep(cache.PEAKS, KEY, roof)
    assert cache.recall(Roof, cache.PEAKS, KEY) == roof
    (path,) = (folder / "peaks").iterdir()
    good = path.read_text()
    for bad in (good.replace("stream", "planted"), "", "[]", '{"record": {}}', json.dumps(dataclasses.asdict(roof))):
        caplog.clear()
        path.write_text(bad)
        assert cache.recall(Roof, cache.PEAKS, KEY) is None
        assert "it is made again" in caplog.text
    path.write_text(good)
    cache.keep(cache.PEAKS, "another", roof)
    (other,) = (p for p in (folder / "peaks").iterdir() if p != path)
    other.replace(path)
    assert cache.recall(Roof, cache.PEAKS, KEY) is None


def test_doubtful_entries_are_told_apart(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".onnx", ".xml", ".safetensors"):
        cache.load_or_make(KEY, suffix, making())
    cache.keep(cache.PEAKS, KEY, Roof(rate=1.0, ci95=None, by="stream", valid=True))
    (folder / "weights").mkdir()
    (folder / "weights/net-2d711642.pth").write_bytes(b"x")  # sha256sum of one x
    assert cache.doubts() == (5, ())
    (folder / "weights/net-2d711643.pth").write_bytes(b"x")
    cut = next((folder / "artifacts").glob("*.bin"))
    cut.write_bytes(b"")
    (folder / "peaks" / f"{'0' * 32}.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
        theirs = cache.load_or_make("another", ".onnx", making()).path
    checked, doubts = cache.doubts()
    assert checked == 8
    assert {(Path(doubt.file).name, doubt.state) for doubt in doubts} == {
        ("net-2d711643.pth", "damaged"),
        (cut.with_suffix(".xml").name, "damaged"),
        (f"{'0' * 32}.json", "damaged"),
        (Path(theirs).name, "foreign"),
    }


def test_clearing_removes_what_is_ours_and_nobody_holds(folder: Path) -> None:
    """Whoever names a folder of other things as the cache keeps them."""
    own = ("weights/mine.pth", "weights/mynet-20240101.pth", "artifacts/mine.onnx", "notes.txt", "peaks/a.json")
    under_way = "weights/.net-2d711642.0123456789ab.tmp.pth"  # a download of another command
    kept = [folder / name for name in (*own, under_way)]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    gone = [Path(cache.load_or_make(name, ".xml", making()).path) for name in "ab"]
    busy = Path(cache.load_or_make("busy", ".xml", making()).path)
    for name in ("weights/net-2d711642.pth", "bench-1-ab.journal", "tensorrt/timing-10-GPU.cache"):
        gone.append(folder / name)
        gone[-1].parent.mkdir(exist_ok=True)
        gone[-1].write_bytes(b"x")  # sha256sum says 2d711642...
    left = folder / f"artifacts/.{scratch.PREFIX}{scratch._mark()}-1-00000000000a"
    left.mkdir()
    assert [part.entries for part in cache.contents()] == [3, 2, 0, 1, 0, 1]
    assert cache.clear(older_than_s=3600) == (0, 0)  # what a killed process left goes all the same
    assert not left.exists()
    with locks.hold(busy.with_suffix(".lock"), "it"):
        count, freed = cache.clear()
        assert count == 2 * 4 + 3
        assert freed > 15
        assert not any(path.exists() for path in gone)
        assert store.load_own(busy)
        assert all(path.exists() for path in kept)
    cache.clear()
    assert [part.entries for part in cache.contents()] == [0, 1, 0, 0, 0, 0]
    assert all(path.exists() for path in kept)
    assert cache.doubts()[1][0].file == str(folder / "weights/mynet-20240101.pth")  # it is no download of that digest


def test_a_download_under_way_is_no_damaged_one(folder: Path) -> None:
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/.net-2d711642.0123456789ab.tmp.pth").write_bytes(b"half")
    assert cache.doubts() == (0, ())


def test_who_finds_an_entry_whole_waits_for_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of one CI machine that read the same entry do not queue."""
    monkeypatch.setenv(waiting.VARIABLE, "0")
    made = cache.load_or_make(KEY, ".onnx", making())
    with locks.hold(Path(made.path).with_suffix(".lock"), "it"):
        assert cache.load_or_make(KEY, ".onnx", refuse) == made


def test_the_folder_in_place_of_a_cache_goes_however_its_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 at the next start."""
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "file/cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not (pid := os.fork()):
        try:
            cache.load_or_make(KEY, ".onnx", making())
        finally:
            os._exit(0)  # no clean-up runs
    os.waitpid(pid, 0)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(scratch, "_swept", set())
    with scratch.folder():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_a_place_to_write_work_is_kept_for_this_process_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache below a file stands for a read-only file system, which binds root too."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "file/cache"))
    made = cache.load_or_make(KEY, ".onnx", making())
    assert cache.load_or_make(KEY, ".onnx", refuse) == made
    (said,) = caplog.messages
    assert "cannot be written (Not a directory)" in said
    monkeypatch.delenv("RESDEPLOY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    caplog.clear()
    assert cache.load_or_make(KEY, ".onnx", refuse) == made  # there is one such folder a process
    (said,) = caplog.messages
    assert "there is no home folder to keep a cache in" in said
    assert places.cache_dir() == Path(made.path).parents[1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

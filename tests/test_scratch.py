"""Temporary folders, and what killed processes left of theirs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from resdeploy import scratch
from resdeploy.errors import DiskFull

KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from resdeploy import scratch
scratch.MEMORY, scratch.MEMORY_FREE_BYTES = Path(sys.argv[1]), 0
for made in (scratch.Folder(in_memory=True), scratch.Folder(), scratch.Folder(beside=Path(sys.argv[2]))):
    (made.path / "big.npy").write_bytes(b"x")
print("made", flush=True)
if sys.argv[3] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Shared memory and the folder for temporary files."""
    memory, temporary = tmp_path / "memory", tmp_path / "temporary"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(scratch, "MEMORY", memory)
    monkeypatch.setattr(scratch, "MEMORY_FREE_BYTES", 0)
    monkeypatch.setattr(scratch, "_swept", set())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return memory, temporary


def other(bases: tuple[Path, Path], out: Path, ends: str) -> subprocess.Popen[str]:
    """A process that has made a folder in each place, and lives on or is dead."""
    memory, temporary = bases
    command = [sys.executable, "-c", KILLED, str(memory), str(out), ends]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    return process


def names(*folders: Path) -> list[str]:
    return sorted(name for folder in folders for name in os.listdir(folder) if "resdeploy-tmp" in name)


def test_what_a_killed_process_left_goes_with_the_next_start_whichever_base_it_is_in(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    """At once, from shared memory, from TMPDIR and from beside a file; what a living process holds stays."""
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    with other(bases, out, "dies") as dead:
        assert dead.wait(60) == -signal.SIGKILL
    with other(bases, out, "lives") as living:
        assert len(names(*bases, out.parent)) == 3
        scratch.Folder(beside=out).remove()
        left = names(*bases, out.parent)
        assert len(left) == 3
        assert all(f"-{living.pid}-" in name for name in left)
        living.communicate()
    assert names(*bases, out.parent) == []


def test_a_place_is_looked_through_once_by_a_process_and_no_signal_waits_for_that(
    bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others have left may be gigabytes, and one command makes dozens of folders."""
    looked, listed = [], os.listdir

    def look(base: Path) -> list[str]:
        looked.append(base)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return listed(base)

    monkeypatch.setattr(os, "listdir", look)
    for _ in range(3):
        scratch.Folder(in_memory=True).remove()
        scratch.Folder().remove()
    assert sorted(looked) == sorted(bases)


def test_what_others_left_under_our_name_neither_blocks_nor_is_followed(bases: tuple[Path, Path]) -> None:
    """A pipe without a writer, a link to a folder of ours, a file, and folders that merely sound alike."""
    memory, temporary = bases
    stem = f"{scratch.PREFIX}{scratch._mark()}-1-"
    precious = temporary / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("all of it")
    os.mkfifo(memory / f"{stem}00000000000a")
    (memory / f"{stem}00000000000b").symlink_to(precious)
    (memory / f"{stem}00000000000c").write_text("a file")
    (memory / f"{scratch.PREFIX}of-my-own").mkdir()
    (memory / "resdeploy").mkdir()
    before = sorted(os.listdir(memory))
    scratch.Folder(in_memory=True).remove()
    assert sorted(os.listdir(memory)) == before
    assert (precious / "thesis").read_text() == "all of it"


def test_another_users_folder_is_left_alone(bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for root, who could remove it."""
    theirs = bases[0] / f"{scratch.PREFIX}{scratch._mark()}-1-00000000000a"
    theirs.mkdir()
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    scratch.Folder().remove()
    assert theirs.is_dir()
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    scratch._swept.clear()
    scratch.Folder().remove()
    assert not theirs.exists()


@pytest.mark.parametrize("mark", [scratch.UNMARKED, "0123abcd"])
def test_where_a_lock_says_nothing_only_what_nobody_touches_for_days_goes(mark: str, bases: tuple[Path, Path]) -> None:
    """Folders of a place without locks, and of another machine that shares the file system."""
    theirs = bases[1] / f"{scratch.PREFIX}{mark}-1-00000000000a"
    theirs.mkdir()
    scratch.Folder().remove()
    assert theirs.is_dir()
    old = time.time() - scratch.STALE_S - 1
    os.utime(theirs, (old, old))
    scratch._swept.clear()
    scratch.Folder().remove()
    assert not theirs.exists()


def test_a_place_without_locks_does_for_temporary_folders(
    bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none: the folder does not pass for one whose owner is known to be dead."""

    def unsupported(_handle: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", unsupported)
        made = scratch.Folder()
    assert scratch.UNMARKED in made.path.name
    scratch._swept.clear()
    scratch.Folder().remove()
    assert made.path.is_dir()
    made.remove()
    assert names(*bases) == []


def test_a_full_disk_is_told_with_what_helps_there(bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not -o or RESDEPLOY_CACHE, which say where other files go."""

    before = set(scratch._open)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    for in_memory, word in ((False, "TMPDIR"), (True, "--shm-size")):
        with pytest.raises(DiskFull, match=word) as caught:
            scratch.Folder(in_memory=in_memory)
        assert "RESDEPLOY_CACHE" not in str(caught.value)
    with pytest.raises(DiskFull, match=r"writing m\.onnx\. .* -o or RESDEPLOY_CACHE") as caught:
        scratch.Folder(beside=Path("m.onnx"))  # of which TMPDIR says nothing
    assert scratch.PREFIX not in str(caught.value)
    assert scratch._open == before


def test_no_descriptor_left_means_no_folder_left(bases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be locked for want of descriptors is not made."""
    opened = os.open

    def exhausted(path: Any, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY and not flags & os.O_NOFOLLOW:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        scratch.Folder()
    assert names(*bases) == []

"""One at a time, in words, and not for ever. What is held here is held by real processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resdeploy import locks, waiting
from resdeploy.errors import Locked, NotWritable


@contextlib.contextmanager
def holder(path: Path) -> Iterator[int]:
    """A process that holds the lock until it is killed, or until it hears that it may go."""
    held, said = os.pipe()
    if not (pid := os.fork()):
        try:
            with locks.hold(path, "it"):
                os.write(said, b"x")
                signal.pause()
        finally:
            os._exit(0)
    os.close(said)
    assert os.read(held, 1)
    os.close(held)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_held_lock_is_waited_for_with_a_word_that_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["/bin/resdeploy", "build", "https://secret@host/m.onnx"])
    path = tmp_path / "below/x.lock"
    with holder(path) as pid:

        def end(_seconds: float) -> None:
            os.kill(pid, signal.SIGKILL)  # however a process ends, its lock ends with it
            os.waitpid(pid, 0)

        monkeypatch.setattr(time, "sleep", end)
        with locks.hold(path, "the cached x.onnx"):
            assert not locks.free(path)
    assert locks.free(path)
    (said,) = caplog.messages
    assert f"waiting for the cached x.onnx: in use by process {pid} on " in said
    assert "(resdeploy build)" in said
    assert "secret" not in said


def test_a_lock_is_not_waited_for_longer_than_the_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lock"
    monkeypatch.setenv(waiting.VARIABLE, "0")
    with holder(path) as pid:
        with pytest.raises(Locked, match=f"process {pid} on ") as refused, locks.hold(path, "it"):
            pass
        assert refused.value.exit_status == 6
        assert "--lock-timeout" in refused.value.fix
        assert not locks.free(path)
    with locks.hold(path, "it"):
        pass


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache clear` removes it while another waits: who comes later must find the same lock as that one."""
    path = tmp_path / "x.lock"
    with holder(path) as pid:

        def removed(_seconds: float) -> None:
            path.unlink()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

        monkeypatch.setattr(time, "sleep", removed)
        with locks.hold(path, "it"):
            assert not locks.free(path)


def test_a_lock_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    """0644 whatever the umask would shut the second user of a shared cache out."""
    before = os.umask(0o002)
    try:
        with locks.hold(tmp_path / "x.lock", "it"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.lock").stat().st_mode) == 0o664


def test_where_locks_do_not_work_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    path = tmp_path / "x.lock"
    with holder(path):
        monkeypatch.setattr(fcntl, "flock", refuse)
        with locks.hold(path, "it"):
            pass


def test_a_lock_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="levels of symbolic links") as refused, locks.hold(tmp_path / "x.lock", "it"):
        pass
    assert refused.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(NotWritable), locks.hold(Path("/proc/none/x.lock"), "it"):
        pass

"""The process of a lane: a worker with its pipes, the tail of what it printed, and its private folder.

It is asked to die with the thread that started it, and the folder that a killed parent left is swept by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import resdeploy
from resdeploy import store
from resdeploy.backends import machine
from resdeploy.errors import EnvironmentFailure

if TYPE_CHECKING:
    from resdeploy.records import Progress

FOLDER_PREFIX = "resdeploy-lane-"
SHM, SHM_FREE_BYTES = Path("/dev/shm"), 1 << 30  # noqa: S108 (the folder inside is private)
STALE_S = 60.0
NOISE_BYTES, SHOWN_LINES = 1 << 16, 6
GRACE_S = 1.0
# By `-m`, and by `-c` as it is, Python looks for modules in the current folder first: a stranger's numpy.py there would
# be run. `import sys` looks nowhere.
START = (
    "import sys; sys.path = [p for p in sys.path if p]; from resdeploy.backends.worker import main; main(*sys.argv[1:])"
)
# A signal just before select's system call does not interrupt it: Python acts on it at the next return.
DEAF_S = 1.0


class Child:
    """A worker process with its pipes, the tail of what it printed, and its private folder."""

    def __init__(self, backend: str, python: str, threads: int, memory_limit: int) -> None:
        self.oom_kills_before = machine.oom_kills()
        self.noise = bytearray()
        self.folder, self.lock = _private_folder()
        child_reads, self.requests = os.pipe()
        self.replies, child_writes = os.pipe()
        self.pending = b""
        self.progress: Progress | None = None
        try:
            # Another interpreter must find our package without seeing the packages of ours.
            (self.folder / "path").mkdir()
            (self.folder / "path" / "resdeploy").symlink_to(Path(resdeploy.__file__).resolve().parent)
            command = [python, "-c", START, backend, str(child_reads), str(child_writes)]
            self.process = subprocess.Popen(
                [*command, str(os.getpid()), str(self.folder), str(memory_limit)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(child_reads, child_writes),
                start_new_session=True,  # Ctrl-C reaches us alone
                env=_environment(threads, self.folder),
            )
        except OSError as e:
            self._discard()
            raise EnvironmentFailure(f"cannot start {python}: {e.strerror}", fix="Check its path") from e
        finally:
            os.close(child_reads)
            os.close(child_writes)
        assert self.process.stdout is not None
        self.printed: IO[bytes] = self.process.stdout
        for fd in (self.replies, self.printed.fileno()):
            os.set_blocking(fd, False)

    def ask(self, request: str, timeout_s: float) -> dict[str, Any] | None:
        """The answer to one request, or None where none came: the child is dead, or still busy."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):
            os.write(self.requests, request.encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            selector.register(self.printed, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(min(left, DEAF_S)):
                    if key.fileobj is self.printed:
                        if not self._listen():
                            selector.unregister(self.printed)
                        continue
                    data = os.read(self.replies, 1 << 16)
                    if not data:
                        return None
                    self.pending += data
                    if (answer := self._answer()) is not None:
                        return answer
        return None

    def _answer(self) -> dict[str, Any] | None:
        """The answer, where it has come; words of progress before it are passed on."""
        while b"\n" in self.pending:
            line, _, self.pending = self.pending.partition(b"\n")
            found: dict[str, Any] = json.loads(line)
            if "progress" not in found:
                return found
            if self.progress is not None:
                self.progress(*found["progress"])
        return None

    def alive(self) -> bool:
        """Whether it still runs, a dying one given the time to finish."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        return self.process.poll() is None

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return self.process.wait()

    def noise_text(self) -> str:
        """The tail of what it printed to stdout and stderr."""
        while self._listen():
            pass
        return self.noise.decode(errors="replace")

    def last_words(self) -> str:
        """Its last lines in one."""
        lines = [line.strip() for line in self.noise_text().splitlines() if line.strip()]
        return f"Its last output was: {' | '.join(lines[-SHOWN_LINES:])}" if lines else "It printed nothing"

    def end(self) -> None:
        """Kills it with everything it started, reaps it, and removes its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.printed.close()
        self._discard()

    def _listen(self) -> bool:
        """Takes what it printed; False at its end or when there is nothing more for now."""
        try:
            data = os.read(self.printed.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self.noise += data
        del self.noise[:-NOISE_BYTES]
        return bool(data)

    def _discard(self) -> None:
        os.close(self.requests)
        os.close(self.replies)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def _environment(threads: int, folder: Path) -> dict[str, str]:
    """The child's environment: our package, its folder for temporary files, and the threads.

    Thread pools that nobody configures later take their size from it at import.
    """
    path = os.pathsep.join(filter(None, (str(folder / "path"), os.environ.get("PYTHONPATH"))))
    pools = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **pools, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}


def _private_folder() -> tuple[Path, int]:
    """A new folder, in memory where there is room, and the descriptor whose lock says that its owner lives."""
    base = Path(tempfile.gettempdir())
    if os.access(SHM, os.W_OK) and shutil.disk_usage(SHM).free >= SHM_FREE_BYTES:
        base = SHM
    _sweep(base)
    with store.disk_errors(base / FOLDER_PREFIX):
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _sweep(base: Path) -> None:
    """Removes the folders of parents that were killed: nobody holds their lock."""
    for folder in base.glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # another's folder, or gone meanwhile
            if time.time() - folder.stat().st_mtime < STALE_S:
                continue  # perhaps made, but not yet locked
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(handle)

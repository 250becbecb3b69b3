"""The process of a lane: a worker with its pipes, the tail of what it printed, and its private folder.

It is asked to die with the thread that started it (a kill -9 leaves the folder to the next `scratch.Folder`), and no
signal at any moment loses it: it starts and ends whole, and whatever still runs is ended before this program is.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import resdeploy
from resdeploy import interrupts, scratch, store
from resdeploy.backends import machine
from resdeploy.errors import EnvironmentFailure

if TYPE_CHECKING:
    from resdeploy.records import Progress

NOISE_BYTES, SHOWN_LINES = 1 << 16, 6
GRACE_S = 1.0
# By `-m`, and by `-c` as it is, Python looks for modules in the current folder first: a stranger's numpy.py there would
# be run. `import sys` looks nowhere.
START = (
    "import sys; sys.path = [p for p in sys.path if p]; from resdeploy.backends.worker import main; main(*sys.argv[1:])"
)
REAP_S = 30.0  # longest wait for a killed process: one in a driver that hangs is the kernel's to end
# A signal just before select's system call does not interrupt it: Python acts on it at the next return.
DEAF_S = 1.0

_running: set[Child] = set()


class Child:
    """A worker process with its pipes, the tail of what it printed, and its private folder."""

    def __init__(self, backend: str, python: str, threads: int, memory_limit: int) -> None:
        self.oom_kills_before = machine.oom_kills()
        self.noise = bytearray()
        self.pending = b""
        self.progress: Progress | None = None
        with interrupts.hold(), contextlib.ExitStack() as owned:
            folder = scratch.Folder(in_memory=True)
            owned.callback(folder.remove)
            self.folder = folder.path
            with contextlib.ExitStack() as inherited:  # what the child inherits, closed here once it has
                child_reads, self.requests = os.pipe()
                inherited.callback(os.close, child_reads)
                owned.callback(os.close, self.requests)
                self.replies, child_writes = os.pipe()
                inherited.callback(os.close, child_writes)
                owned.callback(os.close, self.replies)
                self.process = self._start(backend, python, threads, memory_limit, child_reads, child_writes)
            owned.callback(self._kill)
            assert self.process.stdout is not None
            self.printed: IO[bytes] = self.process.stdout
            for fd in (self.replies, self.printed.fileno()):
                os.set_blocking(fd, False)
            self._owned = owned.pop_all()
            _running.add(self)

    def _start(
        self, backend: str, python: str, threads: int, memory_limit: int, reads: int, writes: int
    ) -> subprocess.Popen[bytes]:
        # Another interpreter must find our package without seeing the packages of ours.
        link = self.folder / "path" / "resdeploy"
        with store.disk_errors(link, fix=scratch.roomier(self.folder.parent)):
            link.parent.mkdir()
            link.symlink_to(Path(resdeploy.__file__).resolve().parent)
        command = [python, "-c", START, backend, str(reads), str(writes)]
        try:
            return subprocess.Popen(
                [*command, str(os.getpid()), str(self.folder), str(memory_limit)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(reads, writes),
                start_new_session=True,  # Ctrl-C reaches us alone
                env=_environment(threads, self.folder),
            )
        except OSError as e:
            raise EnvironmentFailure(f"cannot start {python}: {e.strerror}", fix="Check its path") from e

    def send(self, request: str) -> None:
        """One request, whose answer `receive` waits for: requests are answered in their order."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.requests, request.encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next answer, or None where none came: the child is dead, or still busy."""
        if (answer := self._answer()) is not None:  # it came together with the one before
            return answer
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            selector.register(self.printed, selectors.EVENT_READ)
            while (remaining_s := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(min(remaining_s, DEAF_S)):
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
            reply: dict[str, Any] = json.loads(line)
            if "progress" not in reply:
                return reply
            if self.progress is not None:
                self.progress(*reply["progress"])
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
        """Kills it with everything it started, reaps it, and removes its folder; once is enough."""
        with interrupts.hold():
            _running.discard(self)
            self._owned.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(REAP_S)
        self.printed.close()

    def _listen(self) -> bool:
        """Takes what it printed; False at its end or when there is nothing more for now."""
        try:
            data = os.read(self.printed.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self.noise += data
        del self.noise[:-NOISE_BYTES]
        return bool(data)


@atexit.register
def _end_all() -> None:
    """Ends what a signal kept from being ended: it may cut in just before a `finally` begins."""
    for child in tuple(_running):
        child.end()


os.register_at_fork(after_in_child=_running.clear)  # they are the parent's


def _environment(threads: int, folder: Path) -> dict[str, str]:
    """The child's environment: our package, its folder for temporary files, and the threads.

    Thread pools that nobody configures later take their size from it at import.
    """
    path = os.pathsep.join(filter(None, (str(folder / "path"), os.environ.get("PYTHONPATH"))))
    pools = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **pools, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}

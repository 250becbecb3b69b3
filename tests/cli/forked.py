"""A process that has imported what commands import, and forks one for each command that it is asked for.

Each command is a process of its own, as a user's is, without the seconds of CPU that importing torch and onnx takes.
Reads requests as JSON lines on stdin, answers each with its exit status; `python -m tests.cli.forked`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
from typing import Any, NoReturn

VENDORS = ("onnx", "onnx_ir", "onnxscript", "scipy.stats", "sklearn.datasets", "torch", "torch.onnx", "pydantic")


def preload() -> None:
    """Imports all of resdeploy and what it imports; nothing of it is run."""
    import resdeploy

    for name in VENDORS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for found in pkgutil.walk_packages(resdeploy.__path__, "resdeploy."):
        if not found.name.endswith(("__main__", "pytest_plugin")):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)


def become(request: dict[str, Any]) -> None:
    """What a new process would have: its own folder, environment, arguments and streams."""
    os.chdir(str(request["cwd"]))
    tempfile.tempdir = None  # looked for anew in the environment
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["resdeploy", *request["args"]]
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY),
    ):
        handle = os.open(str(path), flags)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run() -> int:
    """The status that the command ends with."""
    from resdeploy.__main__ import main as command_line

    try:
        command_line()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


def end(status: int) -> NoReturn:
    """As Python ends a process, but for taking all modules apart, which would copy every page that was shared."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    preload()
    gc.freeze()  # the collector would write to every object, and so copy what is shared with the children
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            end(run())
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

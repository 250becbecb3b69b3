"""A process that has imported what commands import, and forks one for each command that it is asked for.

Each command is a process of its own, as a user's is, without the seconds of CPU that importing torch and onnx takes;
its benches are short (`tests/shortly.py`). Reads JSON lines on stdin: a command, answered with its process, or
`{"wait": PROCESS}`, answered with its exit status; `python -m tests.cli.forked`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
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
from pathlib import Path
from typing import Any, NoReturn

from tests.shortly import time_shortly

VENDORS = [
    *(
        "onnx",
        "onnx_ir",
        "onnxscript",
        "scipy.stats",
        "sklearn.datasets",
        "torch",
        "torch.onnx",
        "pydantic.type_adapter",
    ),
    # What an export imports when it runs, 3 of its 8 s of CPU.
    *("torch._dynamo", "torch._functorch.aot_autograd", "torch._inductor", "torch.export.exported_program"),
    *("torch.onnx._internal.exporter._core", "onnxscript.function_libs.torch_lib.ops", "networkx"),
]


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
    os.sched_setaffinity(0, request["cores"])
    tempfile.tempdir = None  # looked for anew in the environment
    find(request["environment"])
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
    heard: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, handler in heard.items():  # whatever those who started the tests hear
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)


def find(environment: dict[str, str]) -> None:
    """Modules and libraries that are looked for at the start of a process: those that this one does not know."""
    folders = {name: environment.get(name, "").split(os.pathsep) for name in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    sys.path[:0] = [folder for folder in folders["PYTHONPATH"] if folder and folder not in sys.path]
    importlib.invalidate_caches()
    known = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    for folder in set(folders["LD_LIBRARY_PATH"]) - {"", *known}:
        for library in Path(folder).glob("*.so*"):
            ctypes.CDLL(str(library))  # found by its own name from now on


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
    time_shortly()
    gc.freeze()  # the collector would write to every object, and so copy what is shared with the children
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            become(request)
            end(run())
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

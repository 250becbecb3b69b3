"""The command line as a user runs it: a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOUBLES = ROOT / "tests/doubles"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
LONGEST_S = 300


def workers_of(parent: int) -> list[int]:
    """Processes of lanes that this process started, whoever is their parent now; zombies are none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"resdeploy.backends.worker" in command and str(parent).encode() in command.split(b"\0"):
                found.append(int(process.name))
    return found


def left_by(parent: int, *folders: Path) -> list[object]:
    """What a process left that has ended: workers, its folders in shared memory and /tmp, and what hides in `folders`.

    A killed worker is given five seconds to be gone: what has been killed may still be on its way out.
    """
    deadline = time.monotonic() + 5
    while (workers := workers_of(parent)) and time.monotonic() < deadline:
        time.sleep(0.05)
    places = {Path("/dev/shm"), Path(tempfile.gettempdir()), *folders}
    named = [path for place in places for path in place.glob(f"*resdeploy-tmp-*-{parent}-*")]
    return [*workers, *named, *(path for folder in folders for path in folder.rglob(".*"))]


class Commands:
    """Runs commands as processes forked from one that has imported the vendors (`tests/cli/forked.py`)."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None

    def run(self, args: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        if self.server is None:
            command = [sys.executable, "-m", "tests.cli.forked"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
            self.server = subprocess.Popen(command, **pipes)
        with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
            request = {"args": args, "cwd": str(cwd), "environment": environment}
            assert self.server.stdin
            assert self.server.stdout
            self.server.stdin.write(json.dumps(request | {"stdout": stdout.name, "stderr": stderr.name}) + "\n")
            self.server.stdin.flush()
            if not select.select([self.server.stdout], [], [], LONGEST_S)[0]:
                self.end()
                raise subprocess.TimeoutExpired(args, LONGEST_S)
            status = int(self.server.stdout.readline())
            texts = [file.read().decode() for file in (stdout, stderr)]
        return subprocess.CompletedProcess(args, status, *texts)

    def end(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
            self.server = None


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    found = Commands()
    yield found
    found.end()


@pytest.fixture
def resdeploy(tmp_path: Path, commands: Commands) -> Run:
    """Runs `resdeploy ARGS` in an empty folder and returns its exit status and output."""

    def run(*args: object, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return commands.run([*map(str, args)], cwd, {**os.environ, **environment})

    return run


@pytest.fixture
def new_resdeploy(tmp_path: Path) -> Run:
    """As `resdeploy`, in an interpreter of its own: for what one reads or looks for at its start."""

    def run(*args: object, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "resdeploy", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has really learned handwriting, trained and exported by the command line.

    Made once for all of pytest's workers: the first one here makes it while the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    checkpoint, out = shared / "digits.safetensors", shared / "digits.onnx"
    with (shared / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            base = [sys.executable, "-m", "resdeploy"]
            training = ["train", "resnet20", "--data", "digits", "--img-size", "16", "--epochs", "3"]
            subprocess.run([*base, *training, "-o", checkpoint], check=True, capture_output=True)
            subprocess.run([*base, "export", checkpoint, "-o", out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def digits_checkpoint(digits_onnx: Path) -> Path:
    """The checkpoint that `digits_onnx` was exported from."""
    return digits_onnx.with_suffix(".safetensors")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that knows one GPU."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the driver's double")
    folder = tmp_path_factory.mktemp("driver")
    source = DOUBLES / "fake_driver.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def gpu_environment(folder: Path, driver: Path, version: str) -> dict[str, str]:
    """What a process sees of a GPU and of a TensorRT of this version, whose metadata is written under `folder`."""
    about = folder / version / f"tensorrt-{version}.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")
    return {
        "PYTHONPATH": os.pathsep.join(
            map(str, (DOUBLES / "site", about.parent, ROOT, os.environ.get("PYTHONPATH", "")))
        ),
        "LD_LIBRARY_PATH": str(driver),
        "DOUBLE_TENSORRT": version,
        "XDG_CONFIG_HOME": str(folder / "config"),
        "RESDEPLOY_CACHE": str(folder / "cache"),
    }


@pytest.fixture
def on_gpu(new_resdeploy: Run, driver: Path, tmp_path: Path) -> Run:
    """`resdeploy` where a GPU and a TensorRT seem to be."""

    def run(*args: object, version: str = "10.3.0", **environment: str) -> subprocess.CompletedProcess[str]:
        return new_resdeploy(*args, **gpu_environment(tmp_path, driver, version), **environment)

    return run

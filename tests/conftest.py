"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
# `make fast` leaves out the rooms whose tests start commands, train or make whole networks, and files that use torch.
SLOW_ROOMS = ("cli", "train", "study", "models", "gpu")
USES_TORCH = re.compile(
    r"^\s*(import|from) (torch|torchvision|timm)\b|importorskip\(.(torch|timm)\b|models\.resnet", re.MULTILINE
)
# What `make test` leaves out: tests so marked, and folders that are run where the command line names them.
FOLDERS = ("rtx", "browser")
LEFT_OUT = {
    "acceptance": "takes minutes of simulation, of real networks and of whole runs",
    "browser": "tries pages in Chromium, and installs axe-core from npm",
    "rtx": "installs NVIDIA's compiler for GeForce RTX, under NVIDIA's licence, and asks it",
}
TORCH_TOLD: list[str] = []  # once is enough
ALL_CORES = sorted(os.sched_getaffinity(0))
# What tests share with each other.
OF_OTHERS = re.compile(r"^\s*from (?:tests\.(?:\w+\.)*)?(test_\w+) import|import (symbolic|quick)\b", re.MULTILINE)


@functools.cache
def uses_torch(path: Path) -> bool:
    """Whether a test file imports torch, itself or by way of another one's helpers."""
    text = path.read_text(encoding="utf-8")
    others = {f"{name or helper}.py" for name, helper in OF_OTHERS.findall(text)}
    found = (other for other in Path(__file__).parent.rglob("*.py") if other.name in others)
    return bool(USES_TORCH.search(text)) or any(uses_torch(other) for other in found)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only the quick tests, which import no torch")
    parser.addoption(
        "--acceptance", action="store_true", help="only the tests that take minutes, which are left out else"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.name in FOLDERS and not asked_for(config, collection_path.name):
        return True
    if not config.getoption("--fast") or collection_path.suffix != ".py":
        return None
    slow = collection_path.parent.name in SLOW_ROOMS or uses_torch(collection_path)
    return True if slow and collection_path.name.startswith("test_") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes minutes, unless it is asked for or named one by one (`FILE::TEST`)."""
    if config.getoption("--fast"):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]
    if not any("::" in str(argument) for argument in config.invocation_params.args):
        wanted = bool(config.getoption("--acceptance"))
        items[:] = [item for item in items if (item.get_closest_marker("acceptance") is not None) == wanted]


def asked_for(config: pytest.Config, folder: str) -> bool:
    """Whether the command line names something in a folder of this name."""
    return any(folder in Path(str(one).partition("::")[0]).parts for one in config.invocation_params.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what a run of the whole suite has left out."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.getoption("--acceptance"):
        for name, why in LEFT_OUT.items():
            terminalreporter.write_line(f"left out: make {name} {why}")


@pytest.hookimpl(trylast=True)  # after the fixtures have been taken down
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.config.getoption("--fast") and "torch" in sys.modules and not TORCH_TOLD:
        TORCH_TOLD.append(item.nodeid)
        pytest.fail("torch was imported by now: mark the test `slow`, or import less in what it tests")


def pytest_configure(config: pytest.Config) -> None:
    """Leaves one core to each worker, with all that it starts, and hears Ctrl-C.

    Threads of pools wait for each other by spinning: on a machine that other tests keep busy this costs more than what
    they compute. A pool takes as many threads as there are cores when its library is imported, so none is imported
    above. In the background (`make test &`) a shell has us ignore SIGINT, which every child would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under `nohup`
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config, "workerinput"):
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        os.sched_setaffinity(0, {ALL_CORES[number % len(ALL_CORES)]})


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For a test of threads: all cores that pytest was given."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_CORES)
    yield
    os.sched_setaffinity(0, mine)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and images beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real weights and images is not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def private_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's signing key; nor does a fixture of many tests the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("RESDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """Torchvision as an oracle.

    Its import fails beside a torch build that lacks its compiled operators, none of which a classifier uses:
    there, their names are declared first. Where its own library loads, declaring them would abort the process.
    """
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    source = (Path(spec.submodule_search_locations[0]) / "_meta_registrations.py").read_text()
    for name in sorted(set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', source))):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
    return importlib.import_module("torchvision")


@pytest.fixture
def save_answers(tmp_path: Path) -> Callable[[str, int], None]:
    """Writes `NAME.npz`: class ids and labels of 5,000 images, the first few of them wrong."""
    import numpy as np

    def save(name: str, wrong: int) -> None:
        labels = np.zeros(5000, dtype=np.int64)
        answers = labels.copy()
        answers[:wrong] = 1
        np.savez(tmp_path / f"{name}.npz", predictions=answers, labels=labels)

    return save

"""Packages that are imported only where they are needed, and the error where one is missing or broken.

Any import may be the one that fails, so an ImportError is put into words in one place, `failed_import`: the command
line and the workers ask it about whatever they catch. `need` is for doors that can say what the package is for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType

from resdeploy.errors import EnvironmentFailure, PackageMissing

TORCH = "torch>=2.11,<2.14"  # as pyproject.toml has it: the newest that an index has may be another
# What is imported -> what pip installs for it, with what is of no use without the other. Plain requirements, for the
# name of this project may be anybody's in an index, and they hold however it was installed: from an index, a clone or a
# wheel. Upper bounds stand here as in pyproject.toml, which is asked for nothing.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "torch": (TORCH, "onnxscript"),
    "onnxscript": ("onnxscript",),
    "timm": ("timm", TORCH),  # brings torchvision, which brings the torch that it was built for
    "torchvision": ("torchvision", TORCH),
    "sklearn": ("scikit-learn",),
    "jinja2": ("jinja2",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "cuda-bindings>=12.9,<14", "nvidia-ml-py"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"),
    "cuda": ("cuda-bindings>=12.9,<14",),
    "cuda.bindings": ("cuda-bindings>=12.9,<14",),
    "pynvml": ("nvidia-ml-py",),
    # Always installed with us, unless somebody took them away.
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnx_ir": ("onnx-ir",),
    "PIL": ("pillow",),
    "pydantic": ("pydantic",),
    "rich": ("rich",),
    "safetensors": ("safetensors",),
    "scipy": ("scipy",),
    "tomli": ("tomli",),
}


def install(*names: str) -> str:
    """The command that installs packages where we run, given by the names that they are imported by, or else pip's.

    It works as it stands, in the current folder: plain `pip` only where that is this environment's own, and `uv pip`
    where there is none (the environments of uv, `uv tool` and `uvx`).
    """
    requirements = dict.fromkeys(requirement for name in names for requirement in REQUIREMENTS.get(name, (name,)))
    return f"{_pip_install()} {shlex.join(requirements)}"


def _pip_install() -> str:
    executable = Path(sys.executable or "python3")
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {_typed(executable)}"
    pip = shutil.which("pip")
    if pip is not None and Path(pip).parent == executable.parent:
        return "pip install"
    return f"{_typed(executable)} -m pip install"


def _typed(executable: Path) -> str:
    """As a shell in this folder takes it, no longer than it must be."""
    with contextlib.suppress(OSError):  # the folder may be gone
        if executable.is_relative_to(Path.cwd()):
            return shlex.quote(os.path.relpath(executable))
    return shlex.quote(str(executable))


def need(name: str, purpose: str, *, otherwise: str = "") -> None:
    """Nothing where the package is installed; it is not imported.

    Args:
        name: as it is imported.
        purpose: what needs it, the subject of a sentence.
        otherwise: what can be done without it.

    Raises:
        PackageMissing: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise PackageMissing(
            f"{purpose} needs the package {name}, which is not installed",
            fix=f"Run `{install(name)}`" + (f", or {otherwise}" if otherwise else ""),
        )


def load(name: str) -> ModuleType:
    """An imported package, or a part of one.

    Raises:
        PackageMissing, EnvironmentFailure: as `failed_import`.
    """
    try:
        return importlib.import_module(name)
    except Exception as e:  # torchvision beside another torch raises RuntimeError, for one
        raise failed_import(e) or broken_package(name, e) from e


def failed_import(error: BaseException) -> EnvironmentFailure | None:
    """What an import's failure means for the user; None for any other error."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and missing in REQUIREMENTS:
        return PackageMissing(
            f"the package {missing} is not installed, and what was asked for needs it", fix=f"Run `{install(missing)}`"
        )
    culprit = _culprit(error.__traceback__)
    return broken_package(culprit, error) if culprit else None


def broken_package(package: str, error: BaseException) -> EnvironmentFailure:
    """The error of a package that is there and does not load."""
    return EnvironmentFailure(
        f"{package} is installed but cannot be imported",
        cause=f"It raised {type(error).__name__}: {error}",
        fix=f"`python -c 'import {package}'` shows where; install versions that fit each other",
        code="E-BROKEN-PACKAGE",
    )


def _culprit(traceback: TracebackType | None) -> str:
    """The package of the innermost module whose import was under way: not timm, where timm imports torchvision."""
    name = ""
    while traceback is not None:
        code = traceback.tb_frame
        if code.f_code.co_name == "<module>":
            name = str(code.f_globals.get("__name__", "")).partition(".")[0]
        traceback = traceback.tb_next
    return "" if name in ("resdeploy", "__main__") else name

"""Missing and broken packages: what is said of them names what pip can install, and the package at fault."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resdeploy import packages
from resdeploy.errors import EnvironmentFailure, PackageMissing

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "resdeploy").rglob("*.py"))
# Named with torch, whose version it must have; parts of others; and what a packaged folder and Triton's server have.
OTHERS = {"torchvision"}
BROUGHT = {"google", "pydantic_core", "classifier", "triton_python_backend_utils"}


def required() -> set[str]:
    """Names of everything that pyproject.toml requires, in any extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)(?:[<>=;,.\d]|")', text)}


def texts(path: Path) -> Iterator[str]:
    """Every text in a module, parts of f-strings among them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_every_remedy_names_packages_that_the_project_requires() -> None:
    """Never the project itself, which an index does not have, or has from somebody else."""
    known = required() | OTHERS
    for names in packages.REQUIREMENTS.values():
        assert {re.split("[<>=]", name)[0] for name in names} <= known
    for path in SOURCES:
        for text in texts(path):
            assert "resdeploy[" not in text, path
            for said in re.findall(r"pip install (\w[\w-]*)", text):
                assert said in known, path


def test_a_remedy_has_the_upper_bounds_of_the_project() -> None:
    """What pip takes by itself is the newest, which the project may not run with."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounded = set(re.findall(r'"([\w-]+>=[\d.]+,<[\d.]+)"', text))
    assert bounded
    said = {requirement for names in packages.REQUIREMENTS.values() for requirement in names}
    assert bounded == {requirement for requirement in said if "<" in requirement}


def test_a_remedy_is_for_the_environment_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pip on PATH may be another's, and environments of uv have none."""
    environment = tmp_path / "an env/bin"
    environment.mkdir(parents=True)
    for name in ("python", "pip"):
        (environment / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    monkeypatch.setenv("PATH", str(environment))
    assert packages.install("sklearn") == "pip install scikit-learn"
    monkeypatch.setenv("PATH", "/nowhere")
    assert packages.install("torch") == f"'{environment}/python' -m pip install 'torch>=2.11,<2.14' onnxscript"
    monkeypatch.chdir(tmp_path)
    assert packages.install("sklearn") == "'an env/bin/python' -m pip install scikit-learn"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert packages.install("sklearn") == "uv pip install --python 'an env/bin/python' scikit-learn"


def test_every_package_that_is_imported_has_a_remedy() -> None:
    """A new vendor is added to the table with its first import."""
    tops = {name.partition(".")[0] for path in SOURCES for name in imported(path)}
    foreign = tops - set(sys.stdlib_module_names) - {"resdeploy", "typer", "pytest", "tomllib"} - BROUGHT
    assert foreign <= set(packages.REQUIREMENTS)


def test_a_missing_package_is_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`need` says what for, `failed_import` that it is missing; an error of another kind is none of both."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(PackageMissing, match=r"the data set needs the package sklearn.*pip install scikit-learn"):
        packages.need("sklearn", "the data set")
    with pytest.raises(PackageMissing, match="pip install scikit-learn"):
        packages.load("sklearn")
    packages.need("numpy", "nothing")
    assert packages.failed_import(ModuleNotFoundError("no such module", name="resdeploy.nowhere")) is None
    assert packages.failed_import(ValueError("numpy")) is None


@pytest.mark.parametrize("says", ["raise RuntimeError('operator inner::nms does not exist')", "import nowhere_at_all"])
def test_the_package_that_breaks_is_named_and_not_the_one_that_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    """As timm, where torchvision's build does not fit torch's."""
    for name, text in (("outer_of_two", "import inner_of_two"), ("inner_of_two", f"def f():\n    {says}\nf()")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentFailure, match="inner_of_two is installed but cannot be imported") as failure:
        packages.load("outer_of_two")
    assert failure.value.exit_status == 6

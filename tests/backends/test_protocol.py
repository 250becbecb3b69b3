"""Every backend is all that the protocol says, and nobody outside asks which one it is."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from resdeploy import backends
from resdeploy.backends import Backend
from resdeploy.registered_backends import BACKENDS, PREFERENCE

PACKAGE = Path(backends.__file__).parents[1]
FACTS = typing.get_type_hints(Backend)
FUNCTIONS = {name: value for name, value in vars(Backend).items() if inspect.isfunction(value) and name[0] != "_"}


def taken_by(function: typing.Any) -> list[tuple[typing.Any, ...]]:
    """What callers must know of each parameter: its kind and default, and its name where they write it."""
    return [
        (p.kind, p.default, p.name if p.kind is p.KEYWORD_ONLY else "")
        for p in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_every_fact_of_its_type_and_every_function(name: str) -> None:
    """`load` cannot let mypy look at a module that it finds by name, so that it is looked at here."""
    module = backends.load(name)
    for fact, kind in FACTS.items():
        TypeAdapter(kind).validate_python(getattr(module, fact), strict=True)
    for function, declared in FUNCTIONS.items():
        assert taken_by(getattr(module, function)) == taken_by(declared)[1:], function


def test_a_compiled_format_has_one_backend() -> None:
    """So that a file tells which one runs it."""
    compiled = [m for m in map(backends.load, BACKENDS) if m.FORMAT != m.SOURCE]
    assert len({m.FORMAT for m in compiled}) == len({(m.SUFFIXES[0], m.TAG) for m in compiled}) == len(compiled)
    forms: tuple[Any, ...] = ("engine", "tensorrt-rtx", "openvino", "onnx", "checkpoint", None)
    assert [backends.compiler_of(form) for form in forms] == [
        "tensorrt",
        "tensorrt-rtx",
        "openvino",
        None,
        None,
        None,
    ]
    assert "null" not in PREFERENCE


def test_nobody_outside_asks_which_backend_it_is() -> None:
    """No comparison with a backend's name, and no table with such names for keys, in any other room.

    Fusion rules (`Target`) are named after backends too: the rooms that place Q/DQ or judge it ask for those. What is
    packaged runs without us, on a runtime that it names itself.
    """

    def named(nodes: Iterable[ast.AST | None]) -> set[typing.Any]:
        return {node.value for node in nodes if isinstance(node, ast.Constant)} & ({*BACKENDS} - {"null"})

    found = []
    apart = {path for room in ("backends", "packaged") for path in (PACKAGE / room).rglob("*.py")}
    for path in sorted(set(PACKAGE.rglob("*.py")) - apart):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Compare, ast.MatchValue)) and named(ast.walk(node)):
                about = ast.unparse(node)
                if not re.search(r"\b(target|TARGET|providers?)\b", about):
                    found.append(f"{path.relative_to(PACKAGE)}: {about}")
            if isinstance(node, ast.Dict) and len(named(node.keys)) > 1:
                found.append(f"{path.relative_to(PACKAGE)}: a table")
    assert found == [
        "packages.py: a table",  # what pip installs for an import
        "verbs/triton_repository.py: runtime == 'openvino'",  # what Triton calls its own backends
        "verbs/triton_repository.py: runtime == 'onnxruntime'",
    ]

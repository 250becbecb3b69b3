"""deploy/reuse.py: what a cached file depends on."""

from __future__ import annotations

import ast
from pathlib import Path

import resdeploy
from resdeploy.deploy import reuse

ROOT = Path(resdeploy.__file__).parent


def imported(path: Path) -> set[Path]:
    """Our own files that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            assert node.module
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        place = ROOT.parent.joinpath(*name.split("."))
        found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return {file for file in found if file.is_relative_to(ROOT)}


def reached(room: str, files: str = "*.py") -> set[Path]:
    """All of our files that those of a room import, and those that these import."""
    todo, seen = sorted((ROOT / room).glob(files)), set()
    while todo:
        if (path := todo.pop()) not in seen:
            seen.add(path)
            todo += imported(path) if path != ROOT / "__init__.py" else []  # which finds `load` for callers alone
    return seen


def test_whatever_a_cached_file_may_depend_on_is_in_its_key() -> None:
    """An edit of a file that deploying reaches makes what was cached anew."""
    walked = reached("deploy")
    assert ROOT / "graph/qdq_placement.py" in walked  # the walk sees imports inside functions, which the vendors' are
    assert ROOT / "backends/lane.py" in walked
    assert walked <= set(reuse.sources())


def test_what_only_chooses_judges_and_shows_is_in_no_key() -> None:
    hashed = {path.relative_to(ROOT).parts[0] for path in reuse.sources()}
    assert hashed.isdisjoint(reuse.UNCONCERNED)
    assert all((ROOT / name).exists() for name in reuse.UNCONCERNED)
    assert {"deploy", "graph", "quantize", "models", "train", "store"} <= hashed


def test_a_file_that_a_verb_decides_on_depends_on_the_verbs_too() -> None:
    """Which blocks are dropped is `verbs/block_search.py`'s choice."""
    more = set(reuse.sources(by_verb=True)) - set(reuse.sources())
    assert ROOT / "verbs/block_search.py" in more
    decides = reached("verbs", "block_search.py")
    assert decides <= set(reuse.sources(by_verb=True))
    assert ROOT / "judge/pairs.py" in decides
    assert reuse.versions()["resdeploy"] != reuse.versions(by_verb=True)["resdeploy"]

"""docs/architecture.md says what the code is, and the files can be told apart by their names."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "resdeploy"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def test_the_page_says_what_the_code_has() -> None:
    """The table of rooms and files, and the signature of every door."""
    assert generate.generated(PAGE, ROOT) == PAGE, "run: make docs"


def test_the_profile_page_has_every_key_with_its_default() -> None:
    """As the record has them that profiles are read into."""
    assert generate.keys() in (ROOT / "docs/profile.md").read_text(encoding="utf-8"), "run: make docs"


def test_every_file_is_in_the_table() -> None:
    table = generate.table(ROOT)
    assert [name for name, file in MODULES.items() if generate.summary(file) not in table and name != "resdeploy"] == []


def test_a_door_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"graph\.qdq_placement\.walk"):
        generate.signature("graph.qdq_placement.walk", ROOT)


def test_every_module_says_in_one_line_what_it_does() -> None:
    """The first line of its docstring is a whole sentence, and nothing but an empty line follows it."""
    for name, file in MODULES.items():
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first, _, rest = docstring.partition("\n")
        assert re.search(r"[.?]$", first), name
        assert not rest or rest.startswith("\n"), name


def test_no_two_modules_share_a_base_name() -> None:
    """A command's file in cli/ and the one file that does what it says aside."""
    homes = defaultdict(list)
    for file in MODULES.values():
        if file.name != "__init__.py" and file.parent != PACKAGE / "cli":
            homes[file.name].append(file.relative_to(ROOT).as_posix())
    assert [places for places in homes.values() if len(places) > 1] == []


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """What a file imports under another name: the full name of the thing, and the other name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", alias.asname) for alias in node.names if alias.asname)


def test_a_module_of_ours_is_called_by_its_own_name() -> None:
    files = [file for room in ("resdeploy", "tests", "benchmarks") for file in (ROOT / room).rglob("*.py")]
    renamed = [f"{file}: {name} as {other}" for file in files for name, other in imported(file) if name in MODULES]
    assert renamed == []


def test_files_and_functions_can_be_read() -> None:
    """As CONTRIBUTING.md says: files under 480 lines, functions under 70; a command's function is its options."""
    for path in sorted((ROOT / "resdeploy").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 480, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and "cli" not in path.parts:
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 70, (path, node.name)

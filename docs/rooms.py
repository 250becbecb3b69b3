"""Writes the table of rooms and files in docs/architecture.md, from the layers in pyproject.toml and the docstrings.

    make docs
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- rooms -->", "<!-- /rooms -->"


def main() -> None:
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), table(ROOT)), encoding="utf-8")


def put(page: str, block: str) -> str:
    """The page with what stands between the markers replaced."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{block}{END}", page, flags=re.DOTALL)


def table(root: Path) -> str:
    """A line per room, in layers from top to bottom, each followed by a line per module."""
    lines = ["| layer | file | what it does |", "|---:|---|---|"]
    for number, rooms in enumerate(layers(root)):
        for room in rooms:
            lines += _room(root / "resdeploy" / room, "" if number == 0 else str(number))
    return "\n".join(lines) + "\n"


def layers(root: Path) -> list[list[str]]:
    """The rooms of each layer of the import contract, the files above all layers first."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: list[dict[str, Any]] = config["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [contract["exhaustive_ignores"], *(layer.split(" | ") for layer in contract["layers"])]


def _room(place: Path, layer: str) -> list[str]:
    if not place.is_dir():
        return [_line(layer, place.with_suffix(".py"), f"**{place.name}.py**")]
    home = place.parent
    lines = [_line(layer, place / "__init__.py", f"**{place.name}/**")]
    for file in sorted(place.rglob("*.py"), key=lambda file: (file.parent, file.name != "__init__.py", file.name)):
        name = file.relative_to(home).as_posix()
        if file.parent != place or file.name != "__init__.py":
            lines.append(_line("", file, name.removesuffix("__init__.py")))
    return lines


def _line(layer: str, file: Path, shown: str) -> str:
    return f"| {layer} | {shown} | {summary(file)} |".replace("|  |", "| |")


def summary(file: Path) -> str:
    """The first line of a module's docstring; "" where it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    main()

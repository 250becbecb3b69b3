"""Writes what pages take from the code: docs/architecture.md its rooms and doors, docs/profile.md the keys of profiles.

    make docs

The table comes from the layers in pyproject.toml and the first lines of docstrings. Of a door the page itself
says which one it is and what must be known of it (`graph.qdq_placement.plan ...  # where pairs go`); its signature is
filled in. The keys of profiles come from `resdeploy/records/profile.py`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
PROFILE_PAGE = ROOT / "docs/profile.md"


def main() -> None:
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8"), ROOT), encoding="utf-8")
    PROFILE_PAGE.write_text(_put(PROFILE_PAGE.read_text(encoding="utf-8"), "keys", keys()), encoding="utf-8")


def generated(page: str, root: Path) -> str:
    """The page with both parts as the code of `root` has them.

    Raises:
        ValueError: the page lacks a part's markers, or names a door that does not exist.
    """
    page = _put(page, "rooms", table(root))
    doors = _part(page, "doors").strip().splitlines()
    return _put(page, "doors", "\n".join(_door(line, root) for line in doors) + "\n")


def _part(page: str, name: str) -> str:
    """What stands between a part's markers."""
    found = re.search(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    if not found:
        msg = f"there is no <!-- {name} --> ... <!-- /{name} --> in the page"
        raise ValueError(msg)
    return found[1]


def _put(page: str, name: str, block: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return page.replace(begin + _part(page, name) + end, begin + block + end)


# The table


def table(root: Path) -> str:
    """A line per room, in layers from top to bottom, each followed by a line per module."""
    lines = ["| layer | file | what it does |", "|---:|---|---|"]
    for number, rooms in enumerate(layers(root)):
        for room in rooms:
            lines += _room(root / "resdeploy" / room, f"{number or ''}")
    return "\n".join(lines) + "\n"


def layers(root: Path) -> list[list[str]]:
    """The rooms of each layer of the import contract, the files above all layers first."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: list[dict[str, Any]] = config["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [contract["exhaustive_ignores"], *(layer.split(" | ") for layer in contract["layers"])]


def _room(place: Path, layer: str) -> list[str]:
    if not place.is_dir():
        return [_row(layer, f"**{place.name}.py**", place.with_suffix(".py"))]
    files = sorted(place.rglob("*.py"), key=lambda file: (file.parent, file.name != "__init__.py", file.name))
    names = {file: file.relative_to(place.parent).as_posix().removesuffix("__init__.py") for file in files[1:]}
    return [_row(layer, f"**{place.name}/**", files[0]), *(_row("", name, file) for file, name in names.items())]


def _row(layer: str, shown: str, file: Path) -> str:
    return f"| {layer} | {shown} | {summary(file)} |".replace("|  |", "| |")


def summary(file: Path) -> str:
    """The first line of a module's docstring; "" where it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


# The keys of profiles


def keys() -> str:
    """A line per key, in its groups."""
    from resdeploy.records import profile
    from resdeploy.verbs.init import toml

    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key in profile.every_key():
        if key.says.group:
            lines.append(f"| **{key.says.group}** | | |")
        default = "needed" if key.required else "" if key.default is None else f"`{toml(key.default)}`"
        lines.append(f"| `{key.name}` | {default} | {key.says.what} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


# The doors


def _door(line: str, root: Path) -> str:
    """A line of the doors: the name that begins it, its signature, and the note that ends it."""
    named = re.match(r"[a-z][\w.]*\.\w+", line)
    if not named:
        return line  # a heading, a fence, an empty line
    _, mark, note = line.partition("  # ")
    return signature(named[0], root) + mark + note


def signature(name: str, root: Path) -> str:
    """A door as one calls it, without the types of its parameters.

    Raises:
        ValueError: there is none of this name.
    """
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        place = root.joinpath("resdeploy", *parts[:count])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and (found := _definition(file, parts[count:], root)):
                return name + _as_called(found)
    msg = f"docs/architecture.md names the door {name}, and there is none"
    raise ValueError(msg)


def _definition(file: Path, names: Sequence[str], root: Path) -> ast.stmt | None:
    """Where a file defines a name, or a method of a class; followed to the file that it is imported from."""
    body, found = ast.parse(file.read_text(encoding="utf-8")).body, None
    for name in names:
        found = next((node for node in body if _defines(node, name)), None)
        if isinstance(found, ast.ImportFrom) and found.module:
            place = root.joinpath(*found.module.split("."))
            origin = place.with_suffix(".py") if not place.is_dir() else place / "__init__.py"
            return _definition(origin, names, root)
        body = found.body if isinstance(found, ast.ClassDef) else []
    return found


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    return isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)


def _as_called(node: ast.stmt) -> str:
    if isinstance(node, ast.AnnAssign):
        return f": {ast.unparse(node.annotation)}"
    if isinstance(node, ast.FunctionDef):
        return f"({_parameters(node)}) -> {ast.unparse(node.returns) if node.returns else 'None'}"
    assert isinstance(node, ast.ClassDef)
    made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if made:
        return f"({_parameters(made[0])})"
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return f"({', '.join(ast.unparse(f.target) + (f'={ast.unparse(f.value)}' if f.value else '') for f in fields)})"


def _parameters(function: ast.FunctionDef) -> str:
    given = function.args
    for one in (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg):
        if one is not None:
            one.annotation = None
    given.args = [one for one in given.args if one.arg != "self"]
    return ast.unparse(given)


if __name__ == "__main__":
    main()

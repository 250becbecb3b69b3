"""Documents to text: table, JSON, CSV or Markdown, with every cell made harmless.

Names come from files and folders that strangers made, so every cell is made inert in every form: control characters
and direction overrides are shown as escapes, CI log commands (`::set-output`, `##[...]`) are broken up, CSV cells
cannot become formulas (OWASP, "CSV Injection"), and Markdown cells cannot become markup.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from resdeploy import backends, store
from resdeploy.errors import MalformedInput, UnknownName
from resdeploy.registered_backends import BACKENDS
from resdeploy.report.cells import Column, Table, format_cell
from resdeploy.report.table_columns import TABLES

Form = Literal["table", "json", "csv", "md"]
Document = Mapping[str, Any]

_FORMULA = tuple("=+-@\t\r＝＋－＠")
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "no": "bold red", "INVALID": "bold red"}


def render(document: Document, form: str = "table", *, width: int | None = None, color: bool = False) -> str:
    """The document as text that ends with a newline.

    Args:
        document: what a function of `resdeploy.report.documents` made.
        form: `table` for people, `json` (everything), `csv` (the results, one header line), `md`.
        width: columns of the terminal, where cells fold; None: as wide as needed, for files and pipes.
        color: whether tables may hold ANSI colours.

    Raises:
        UnknownName: no such form.
    """
    if form == "json":
        return to_json(document)
    if form == "csv":
        return _csv(document)
    if form == "md":
        return _paragraphs(document, _markdown_table, markdown)
    if form == "table":
        return _paragraphs(document, lambda table, rows: _text_table(table, rows, width, color), inert)
    raise UnknownName(f"there is no format {form!r}", fix=f"Choose one of: {', '.join(get_args(Form))}")


def read_saved(path: Path) -> dict[str, Any] | None:
    """A document written with `--format json`; None where the file is no such document."""
    try:
        document = store.parse_json(path.read_bytes(), str(path))
    except (MalformedInput, OSError):
        return None
    known = isinstance(document, dict) and document.get("command") in TABLES and "results" in document
    return document if known else None


def to_json(document: Document) -> str:
    """JSON in ASCII, indented, with each list of numbers on one line.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    text = json.dumps(document, indent=2, allow_nan=False)
    # A line break never occurs inside a JSON string, so only arrays match.
    text = re.sub(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    return text.replace("##[", r"\u0023#[") + "\n"


def inert(text: str) -> str:
    """Text that no terminal, log viewer or CI runner acts upon; whatever is not printable is shown escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    # Inside a word too, as in `torchvision::nms`: a terminal that breaks its lines may begin one there.
    return re.sub(r":(?=:)", ": ", shown).replace("##[", "## [")


def markdown(text: str) -> str:
    """Text that stands in a Markdown table cell as it is: no HTML, links, images, code, formulas or new cells."""
    return re.sub(r"([\\`*<>|&\[\]!~$])", r"\\\1", inert(text))


def _rows(document: Document, table: Table) -> list[Mapping[str, Any]]:
    found = document.get(table.key) or []
    return [found] if isinstance(found, Mapping) else list(found)


def _csv(document: Document) -> str:
    """The command's first table with unrounded numbers; the header names the JSON keys."""
    table = TABLES[document["command"]][0]
    header: list[str] = []
    for column in table.columns:
        header += [column.path, f"{column.ci}.low", f"{column.ci}.high"] if column.ci else [column.path]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in _rows(document, table):
        cells: list[str] = []
        for column in table.columns:
            cells.append(_csv_cell(column.of(row)))
            if column.ci:
                cells += map(_csv_cell, column.interval_of(row) or (None, None))
        writer.writerow(cells)
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    words = value if isinstance(value, str) else "; ".join(map(str, value))
    words = inert(words)
    return "'" + words if words.lstrip().startswith(_FORMULA) else words


def _paragraphs(
    document: Document, draw: Callable[[Table, Sequence[Mapping[str, Any]]], str], safe: Callable[[str], str]
) -> str:
    """The answers, the tables, then what must be said about the results, then where they were obtained."""
    filled = ((table, _rows(document, table)) for table in TABLES[document["command"]])
    parts = ["\n".join(safe(answer) for answer in answers)] if (answers := document.get("answers")) else []
    parts += [draw(table, rows[: table.most]) + _more(table, rows) for table, rows in filled if rows]
    if notes := document.get("notes"):
        parts.append("\n".join(f"- {safe(note)}" for note in notes))
    if verdict := document.get("verdict"):
        parts.append(f"Verdict: {safe(verdict).upper()}")
    if where := _where(document.get("environment") or {}):
        parts.append(safe(where))
    return "\n\n".join(parts) + "\n"


def _more(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    left = len(rows) - (table.most or len(rows))
    return f"\n\n{left:,} more: --format json lists them all" if left > 0 else ""


def _where(environment: Mapping[str, Any]) -> str:
    cpu = environment.get("cpu")
    if not cpu:
        return ""
    packages = environment.get("packages") or {}
    vendors = [backends.load(name).VENDOR for name in sorted(BACKENDS)]
    runtimes = [f"{name} {packages[name]}" for name in vendors if name in packages]
    vnni = "with VNNI" if cpu.get("vnni") else "without VNNI"
    cores = cpu.get("usable_cores")
    return ", ".join([f"{cpu.get('model')} ({cores} usable cores, {vnni})", *runtimes])


def _markdown_table(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [column for column in table.columns if _worth_showing(column, rows)]

    def cell(column: Column, row: Mapping[str, Any]) -> str:
        text = format_cell(column, row)
        return markdown(text) if column.is_text else text  # the brackets of an interval are ours

    lines = [f"**{table.title}**", ""] if table.title else []
    lines.append("| " + " | ".join(column.title for column in columns) + " |")
    lines.append("|" + "|".join("---" if column.is_text else "---:" for column in columns) + "|")
    lines += ["| " + " | ".join(cell(column, row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _text_table(table: Table, rows: Sequence[Mapping[str, Any]], width: int | None, color: bool) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    columns = [column for column in table.columns if _worth_showing(column, rows)]
    grid = Grid(
        title=table.title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        grid.add_column(column.title, justify="left" if column.is_text else "right", overflow="fold")
    for row in rows:
        cells = [inert(format_cell(column, row)) for column in columns]
        grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))  # Text: no markup is parsed
    text = io.StringIO()
    console = Console(
        file=text,
        width=width or 10_000,
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    console.print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _worth_showing(column: Column, rows: Sequence[Mapping[str, Any]]) -> bool:
    """A column without any value says nothing to a person; the CSV keeps it for programs."""
    return any(column.of(row) not in (None, "", [], ()) for row in rows)

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from rich.cells import cell_len

from resdeploy import backends, store
from resdeploy.errors import MalformedInput, UnknownName
from resdeploy.registered_backends import BACKENDS
from resdeploy.report.cells import TONES, Column, Table, Tone, format_cell
from resdeploy.report.layout import GAP, Layout, Strip, arrange, is_worth_showing
from resdeploy.report.plain_text import fold, inert, no_formula
from resdeploy.report.table_columns import TABLES

Form = Literal["table", "json", "csv", "md"]
Document = Mapping[str, Any]

BOLD, GREEN, YELLOW, RED = "1", "32", "33", "1;31"  # ECMA-48, select graphic rendition
_COLOURS: Mapping[Tone, str] = {"good": GREEN, "doubtful": YELLOW, "bad": RED}
_STYLES = {word: _COLOURS[tone] for word, tone in TONES.items()}
PIPED = 120  # columns where no terminal says how many there are: a log is read in a window


def render(
    document: Document, form: str = "table", *, width: int | None = None, wide: bool = False, color: bool = False
) -> str:
    """The document as text that ends with a newline.

    Args:
        document: what a function of `resdeploy.report.documents` made.
        form: `table` for people, `json` (everything), `csv` (the results, one header line), `md`.
        width: columns of the terminal; None: there is none, and lines have at most `PIPED`.
        wide: tables with all columns, however long their lines are then.
        color: whether tables may hold ANSI colours.

    Raises:
        UnknownName: no such form.
    """
    if form == "json":
        return to_json(document)
    if form == "csv":
        return _csv(document)
    if form == "md":
        return _markdown(document)
    if form == "table":
        return _text(document, None if wide else width or PIPED, color)
    raise UnknownName(f"there is no format {form!r}", fix=f"Choose one of: {', '.join(get_args(Form))}")


def read_saved(path: Path) -> dict[str, Any] | None:
    """A document written with `--format json`; None where the file is no such document.

    Raises:
        MalformedInput: the beginning of such a document, whose end is missing.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        document = store.parse_json(content, str(path))
    except MalformedInput as e:
        if re.match(rb'\s*\{\s*"schema_version"', content):
            raise MalformedInput(
                f"{path} is a saved result that was cut short: its end is missing",
                cause="The disk was full, or it was copied or written only in part",
                fix="Copy it again, or repeat the command: `-o FILE` writes it whole or not at all",
            ) from e
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


def markdown(text: str) -> str:
    """Text that stands in a Markdown table cell as it is: no HTML, links, images, code, formulas or new cells."""
    return re.sub(r"([\\`*<>|&\[\]!~$])", r"\\\1", inert(text))


def _rows(document: Document, table: Table) -> list[Mapping[str, Any]]:
    found = document.get(table.key) or []
    return [found] if isinstance(found, Mapping) else list(found)


def _csv(document: Document) -> str:
    """The command's first table with unrounded numbers, each row with its speed-up; the header names the JSON keys."""
    table = TABLES[document["command"]][0]
    speedups = {found["candidate"]: found for found in document.get("comparisons") or () if "candidate" in found}
    header: list[str] = []
    for column in table.columns:
        header += [column.path, f"{column.ci}.low", f"{column.ci}.high"] if column.ci else [column.path]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in _rows(document, table):
        cells: list[str] = []
        whole = {**row, "comparison": speedups.get(row.get("label"))}
        for column in table.columns:
            cells.append(_csv_cell(column.of(whole)))
            if column.ci:
                cells += map(_csv_cell, column.interval_of(whole) or (None, None))
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
    return no_formula(inert(words))


def _text(document: Document, width: int | None, color: bool) -> str:
    """The verdict, the answers, the tables, then what must be said about the results and where they were obtained."""
    parts = [_styled(line, _STYLES.get(document["verdict"], ""), color) for line in _verdict(document)]
    if answers := document.get("answers"):
        parts.append("\n".join(line for answer in answers for line in fold(inert(answer), width, "  ")))
    left_out: dict[str, None] = {}
    for table, rows in filled(document):
        layout = arrange(table, rows[: table.most], width)
        left_out |= dict.fromkeys(layout.left_out)
        parts.append(_text_table(layout, table.title, width, color) + _more(table, rows))
    if left_out:
        parts.append("\n".join(fold(f"No room for: {', '.join(left_out)}. --wide shows all.", width)))
    if notes := document.get("notes"):
        parts.append("\n".join(line for note in notes for line in fold(f"- {inert(note)}", width, "  ")))
    if place := where(document.get("environment") or {}):
        parts.append("\n".join(fold(inert(place), width)))
    return "\n\n".join(parts) + "\n"


def _markdown(document: Document) -> str:
    """As `_text`, in Markdown, with all columns."""
    parts = _verdict(document)
    parts += ["\n".join(markdown(answer) for answer in answers)] if (answers := document.get("answers")) else []
    parts += [_markdown_table(table, rows[: table.most]) + _more(table, rows) for table, rows in filled(document)]
    if notes := document.get("notes"):
        parts.append("\n".join(f"- {markdown(note)}" for note in notes))
    if place := where(document.get("environment") or {}):
        parts.append(markdown(place))
    return "\n\n".join(parts) + "\n"


def _verdict(document: Document) -> list[str]:
    verdict = document.get("verdict")
    return [f"Verdict: {inert(verdict).upper()}"] if verdict else []


def filled(document: Document) -> list[tuple[Table, list[Mapping[str, Any]]]]:
    """The tables of a document that have rows, each with all of them."""
    tables = ((table, _rows(document, table)) for table in TABLES[document["command"]])
    return [(table, rows) for table, rows in tables if rows]


def _more(table: Table, rows: Sequence[Mapping[str, Any]]) -> str:
    left = len(rows) - (table.most or len(rows))
    return f"\n\n{left:,} more: --format json lists them all" if left > 0 else ""


def where(environment: Mapping[str, Any]) -> str:
    """The machine and the runtimes in a line; "" where the document says nothing of them."""
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
    columns = [column for column in table.columns if is_worth_showing(column, rows)]

    def cell(column: Column, row: Mapping[str, Any]) -> str:
        text = format_cell(column, row)
        return markdown(text) if column.is_text else text  # the brackets of an interval are ours

    lines = [f"**{table.title}**", ""] if table.title else []
    lines.append("| " + " | ".join(column.title for column in columns) + " |")
    lines.append("|" + "|".join("---" if column.is_text else "---:" for column in columns) + "|")
    lines += ["| " + " | ".join(cell(column, row) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _text_table(layout: Layout, title: str, width: int | None, color: bool) -> str:
    """A table for people: its title, what all rows share, the rows, and the reasons."""
    parts = [_styled(line, BOLD, color) for line in fold(title, width)] if title else []
    parts += fold(layout.above, width) if layout.above else []
    parts += ["", *_grid(layout, width, color)] if parts else _grid(layout, width, color)
    if layout.below:
        parts += ["", *(line for reason in layout.below for line in fold(f"- {reason}", width, "  "))]
    return "\n".join(parts)


def _grid(layout: Layout, width: int | None, color: bool) -> list[str]:
    strips, indent = layout.strips, " " * GAP if layout.headings else ""
    titles = _side_by_side(strips, [strip.title for strip in strips], color=False)
    lines = [indent + _styled(line, BOLD, color) for line in titles]
    lines.append("─" * (len(indent) + sum(strip.width for strip in strips) + GAP * (len(strips) - 1)))
    called = ""
    for row in range(len(strips[0].cells)):
        if layout.headings and layout.headings[row] != called:
            called = layout.headings[row]
            lines += fold(called, width)
        lines += [indent + line for line in _side_by_side(strips, [strip.cells[row] for strip in strips], color=color)]
    return lines


def _side_by_side(strips: Sequence[Strip], cells: Sequence[list[str]], *, color: bool) -> list[str]:
    """Cells of one row, in as many lines as the highest of them has."""
    height = max(map(len, cells))
    lines = []
    for number in range(height):
        padded = []
        for strip, cell in zip(strips, cells, strict=True):
            text = cell[number] if number < len(cell) else ""
            blank = " " * (strip.width - cell_len(text))
            shown = _styled(text, _STYLES.get(" ".join(cell), ""), color)
            padded.append(blank + shown if strip.right else shown + blank)
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _styled(text: str, style: str, color: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if color and style and text else text

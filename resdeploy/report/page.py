"""Documents as one HTML page that needs nothing else: the verdict first, the terminal's tables, charts, thumbnails.

Every word goes through `inert` and jinja2's escapes, in one place (`_finalize`). The Content-Security-Policy permits
the page's own style and script by their hashes and nothing else: no request, no other script, no form
(https://www.w3.org/TR/CSP3/).
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from resdeploy.errors import MalformedInput, UsageError
from resdeploy.report import document_charts
from resdeploy.report.cells import TONES, Column, Table
from resdeploy.report.layout import Layout, Strip, arrange, is_worth_showing
from resdeploy.report.plain_text import inert, no_formula
from resdeploy.report.render import filled, where

LARGEST = 2_000_000  # bytes of a page
LONG = 24  # letters of a word that may be broken, as those of files may
ROWS = (1000, 200, 50, 10)  # most rows of a table: the first with which the page is small enough
THUMBNAILS = 60  # and at most as many as the table of flipped images has rows

Document = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Cell:
    """A cell of a table, or the title of a column."""

    text: str
    kind: str  # its CSS class: a number, a tone, `long` where a word may be broken, or ""
    key: float | None = None  # what a number is sorted by


@dataclass(frozen=True)
class _Raw:
    """A number as it is in the JSON, with the ends of its interval."""

    of: str
    column: str
    value: str
    low: str
    high: str


@dataclass(frozen=True)
class _Shown:
    """A table on the page."""

    title: str
    layout: Layout
    titles: Sequence[_Cell]
    cells: Sequence[Sequence[_Cell]]  # by row
    raw: Sequence[_Raw]
    more: int  # rows that are left out
    charts: Mapping[str, str]


@dataclass(frozen=True)
class _Flipped:
    """A flipped image: its thumbnail, and what the page says of it."""

    name: str
    address: str
    words: str


def render_page(named: Sequence[tuple[str, Document]], pictures: Mapping[str, str] | None = None) -> str:
    """The page, UTF-8, of at most `LARGEST` bytes.

    Args:
        named: documents, each with what its file is called.
        pictures: `data:` URLs of thumbnails, by the name that a gate's document has for the image.

    Raises:
        UsageError: it would be larger, even with the first rows of each table alone.
        MalformedInput: a document holds other types than our commands write.
    """
    for most in ROWS:
        results = [_result_or_refusal(name, document, pictures or {}, most) for name, document in named]
        page: str = _template().render(results=results, title=_title(results), **_inline())
        if len(page.encode()) <= LARGEST:
            return page
    raise UsageError(
        f"the page would be larger than {LARGEST / 1e6:g} MB, even with {ROWS[-1]} rows of each table",
        fix="Give fewer results to one page",
    )


def names_of_flipped(documents: Iterable[Document]) -> tuple[str, ...]:
    """The flipped images that have room on the page, those of each gate as its table has them."""
    rows = [row for document in documents for row in _flipped(document)[:THUMBNAILS]]
    return tuple(dict.fromkeys(str(row.get("image")) for row in rows))


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("resdeploy.report")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _finalize(value: object) -> object:
    """What is put out: our own markup as it is, any other value as text that nothing acts upon."""
    return value if hasattr(value, "__html__") else inert(str(value))


def _inline() -> dict[str, str]:
    """Style and script, and the policy that permits them by their hashes."""
    folder = Path(__file__).parent / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    permitted = (f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (style, script))
    policy = "default-src 'none'; img-src data:; style-src {}; script-src {}; base-uri 'none'; form-action 'none'"
    return {"style": style, "script": script, "policy": policy.format(*permitted)}


def _title(results: Sequence[Mapping[str, Any]]) -> str:
    """Of the page: what stands on a browser's tab, a single verdict first."""
    if len(results) > 1:
        return f"resdeploy: {len(results)} results"
    verdict = results[0]["verdict"]
    return (f"{str(verdict).upper()}: " if verdict else "") + str(results[0]["title"])


def _result_or_refusal(name: str, document: Document, pictures: Mapping[str, str], most: int) -> dict[str, Any]:
    """A document as the template has it; nobody has looked at the types in it before."""
    try:
        return _result(name, document, pictures, most)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise MalformedInput(
            f"{name or 'the result'} is not as a command of resdeploy writes it ({type(e).__name__}: {e})",
            cause="The file was changed, or is of another version",
            fix="Repeat the command with --format json -o FILE",
        ) from e


def _result(name: str, document: Document, pictures: Mapping[str, str], most: int) -> dict[str, Any]:
    verdict, environment = document.get("verdict"), document.get("environment") or {}
    of = document.get("profile") or document.get("subject")
    return {
        "name": name,
        "title": f"resdeploy {document['command']}" + (f" {of}" if of else ""),
        "verdict": verdict,
        "tone": TONES.get(str(verdict)),
        "answers": list(document.get("answers") or ()),
        "tables": [_shown(table, rows, most) for table, rows in filled(document)],
        "curves": document_charts.curves(document),
        "flipped": _thumbnails(document, pictures, most),
        "notes": list(document.get("notes") or ()),
        "where": ": ".join(filter(None, (name, where(environment)))),
        "packages": dict(environment.get("packages") or {}),
    }


def _shown(table: Table, rows: Sequence[Row], most: int) -> _Shown:
    kept = rows[:most]
    layout = arrange(table, kept, None)
    drawn = [column for column in table.columns if column.ci and is_worth_showing(column, kept)]
    raw = (_raw(name, column, row) for name, row in zip(layout.names, kept, strict=True) for column in drawn)
    return _Shown(
        title=table.title or "results",
        layout=layout,
        titles=[_heading(strip) for strip in layout.strips],
        cells=[[_cell(strip, k, row) for strip in layout.strips] for k, row in enumerate(kept)],
        raw=[each for each in raw if each is not None],
        more=len(rows) - len(kept),
        charts=document_charts.intervals(table, kept, layout),
    )


def _heading(strip: Strip) -> _Cell:
    return _Cell(strip.column.title or "there", "number" if strip.right else "")


def _cell(strip: Strip, number: int, row: Row) -> _Cell:
    text, value = " ".join(strip.cells[number]), strip.column.of(row)
    if not strip.column.is_text:
        return _Cell(text, "number", value if isinstance(value, int | float) else None)
    longest = max(map(len, text.split()), default=0)
    kind = TONES.get(text) or ("long" if longest > LONG else "")
    return _Cell(text if value is None else no_formula(text), kind)


def _raw(name: str, column: Column, row: Row) -> _Raw | None:
    value = column.of(row)
    if value is None:
        return None
    interval = column.interval_of(row)
    ends = ("open" if end is None else repr(end) for end in interval) if interval else ("-", "-")
    return _Raw(no_formula(name), column.title.partition(" [")[0], repr(value), *ends)


def _flipped(document: Document) -> list[Row]:
    """Images that flipped, as a gate's document has them."""
    return [row for row in document.get("flipped") or () if isinstance(row, Mapping)]


def _thumbnails(document: Document, pictures: Mapping[str, str], most: int) -> list[_Flipped]:
    shown = []
    for row in _flipped(document)[: min(most, THUMBNAILS)]:
        name = str(row.get("image"))
        if name in pictures:
            was, now, label = (
                row.get(f"{key}_name") or row.get(older)
                for key, older in (("baseline", "baseline"), ("candidate", "candidate_class"), ("label", "label"))
            )
            words = f"{row.get('effect')}: {was} became {now}, labelled {label}; {row.get('candidate')}"
            shown.append(_Flipped(name=name, address=pictures[name], words=words))
    return shown

"""How a table stands in so many columns: what is said above and below it, what there is no room for, what wraps.

No word is ever broken. What all rows share stands above the table and reasons below it. Where the rest is too wide,
titles wrap, then columns are left out, the highest `rank` first, then cells wrap; and where that does not do, what a
row is called stands on a line of its own, above its numbers. A word that is still too long sticks out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len

from resdeploy.report.cells import Column, Table, format_cell
from resdeploy.report.plain_text import fold, inert

GAP = 2  # blanks between columns

Row = Mapping[str, Any]
_Titles = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A column as it stands: its title and its cells in lines, all of at most `width` columns."""

    column: Column
    title: list[str]
    cells: list[list[str]]
    width: int

    @property
    def right(self) -> bool:
        """Numbers are."""
        return not self.column.is_text


_Fit = tuple[tuple[Strip, ...], _Titles, int]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A table arranged."""

    above: str = ""  # what all rows share
    strips: tuple[Strip, ...] = ()
    names: tuple[str, ...] = ()  # what each row is called in a sentence
    headings: tuple[str, ...] = ()  # of each row, where it is called by a line of its own; (): by its first cells
    below: tuple[str, ...] = ()  # reasons, each with the rows that it is of
    left_out: tuple[str, ...] = ()  # titles


def arrange(table: Table, rows: Sequence[Row], width: int | None) -> Layout:
    """The rows of `table` in `width` columns; None: all of the table, as wide as it is."""
    columns = [column for column in table.columns if is_worth_showing(column, rows)]
    reasons = [column for column in columns if column.role == "reason"]
    common, shown = _split_common([column for column in columns if column not in reasons], rows)
    names = [column for column in shown if column.role in ("name", "common")]
    called_by = tuple(_name(names, row) for row in rows)
    strips, left_out, called = _fit(shown, rows, width)
    return Layout(
        above=", ".join(f"{column.title} {_values(column, rows)[0]}" for column in common),
        strips=strips,
        names=called_by,
        headings=tuple(_name(shown[:called], row) for row in rows) if called else (),
        below=_reasons(reasons, called_by, rows),
        left_out=left_out,
    )


def is_worth_showing(column: Column, rows: Sequence[Row]) -> bool:
    """A column without any value says nothing to a person; the CSV keeps it for programs."""
    return column.role != "program" and any(column.of(row) not in (None, "", [], ()) for row in rows)


def _split_common(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Column], list[Column]]:
    """Columns that say the same of all rows, and the others; a row that failed has no value and does not differ."""
    common = [column for column in columns if column.role == "common" and len(_values(column, rows)) == 1]
    rest = [column for column in columns if column not in common]
    return (common, rest) if rest else ([], list(columns))


def _values(column: Column, rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(_cell(column, row) for row in rows if column.of(row) is not None))


def _cell(column: Column, row: Row) -> str:
    return inert(format_cell(column, row))


def _fit(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> _Fit:
    """The columns that there is room for, the titles of those left out, and how many columns became headings."""
    kept, left_out = _drop(columns, rows, width)
    if width is None or _total(kept) <= width:
        return kept, left_out, 0
    if (wrapped := _wrap(kept, width, most_lines=2)) is not None:
        return wrapped, left_out, 0
    leading = next((k for k, column in enumerate(columns) if column.role not in ("name", "common")), len(columns) - 1)
    for called in range(1, leading + 1):
        kept, left_out = _drop(columns[called:], rows, width - GAP)
        if (wrapped := _wrap(kept, width - GAP)) is not None:
            return wrapped, left_out, called
    return kept, left_out, leading


def _drop(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> tuple[tuple[Strip, ...], _Titles]:
    """Columns without those of high rank, as many as must go; too wide still where there are only main ones."""
    kept, left_out = list(columns), list[str]()
    for rank in sorted({rank for column in columns for rank in (column.rank, column.ci_rank)} | {0}, reverse=True):
        natural = [_strip(column, rows) for column in kept]
        narrow = [_narrow_title(strip) for strip in natural]
        for strips in (natural, narrow):
            if width is None or _total(strips) <= width:
                return tuple(strips), tuple(left_out)
        if rank:
            left_out += [column.title for column in kept if column.rank == rank]
            kept = [_without_interval(c) if c.ci_rank == rank else c for c in kept if c.rank != rank]
    return tuple(narrow), tuple(left_out)


def _without_interval(column: Column) -> Column:
    return replace(column, title=column.title.partition(" [")[0], ci="")


def _strip(column: Column, rows: Sequence[Row]) -> Strip:
    cells = [[_cell(column, row)] for row in rows]
    return _sized(column, [column.title], cells)


def _sized(column: Column, title: list[str], cells: list[list[str]]) -> Strip:
    return Strip(column=column, title=title, cells=cells, width=max(map(cell_len, itertools.chain(title, *cells))))


def _narrow_title(strip: Strip) -> Strip:
    """With the title in as many lines as its cells' width asks for."""
    return _fold_strip(strip, max(cell_len(line) for cell in strip.cells for line in cell), cells_too=False)


def _fold_strip(strip: Strip, width: int, *, cells_too: bool = True) -> Strip:
    cells = [fold(" ".join(cell), width) for cell in strip.cells] if cells_too else strip.cells
    return _sized(strip.column, fold(" ".join(strip.title), width), cells)


def _wrap(strips: Sequence[Strip], width: int, *, most_lines: int | None = None) -> tuple[Strip, ...] | None:
    """Cells wrapped too, the widest column first; None: a word is too long for that, or a cell too high."""
    folded = list(strips)
    closed: set[int] = set()  # those that cannot be narrower
    while _total(folded) > width:
        open_ones = [k for k in range(len(folded)) if k not in closed]
        if not open_ones:
            return None
        widest = max(open_ones, key=lambda k: folded[k].width)
        narrower = _fold_strip(folded[widest], folded[widest].width - 1)
        if narrower.width >= folded[widest].width:
            closed.add(widest)
        else:
            folded[widest] = narrower
    high = most_lines is not None and any(len(cell) > most_lines for strip in folded for cell in strip.cells)
    return None if high else tuple(folded)


def _total(strips: Sequence[Strip]) -> int:
    return sum(strip.width for strip in strips) + GAP * (len(strips) - 1)


def _name(names: Sequence[Column], row: Row) -> str:
    """What the row is called in a sentence."""
    return " ".join(cell for column in names if (cell := _cell(column, row)) not in ("", "-"))


def _reasons(reasons: Sequence[Column], names: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """A line per reason, with the rows that it is of; what is true of all rows says so."""
    told: dict[str, list[str]] = {}
    for name, row in zip(names, rows, strict=True):
        parts = [(column.title, _cell(column, row)) for column in reasons if column.of(row) not in (None, "", [], ())]
        if parts:
            (_, first), *others = parts
            told.setdefault("; ".join([first, *(f"{title}: {text}" for title, text in others)]), []).append(name)
    return tuple(
        f"{'all' if len(whose) == len(rows) > 1 else ', '.join(dict.fromkeys(whose))}: {reason}".removeprefix(": ")
        for reason, whose in told.items()
    )

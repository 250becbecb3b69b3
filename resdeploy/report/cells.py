"""How a column of a table is described, and how its values are written for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# name: says which row this is; common: stands above the table where all rows share it, and tells them apart elsewhere;
# reason: a sentence, which stands below the table; program: in CSV alone.
Role = Literal["value", "name", "common", "reason", "program"]

Tone = Literal["good", "doubtful", "bad"]
TONES: Mapping[str, Tone] = {
    "pass": "good", "fail": "bad", "inconclusive": "doubtful", "no": "bad", "INVALID": "bad",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column: its title, where its value lies in a row (`latency_ms.p50`), how it is written, what it is for."""

    title: str
    path: str
    kind: str = "text"
    ci: str = ""  # where its interval lies
    role: Role = "value"
    rank: int = 0  # 0: always shown to a person; else the higher, the sooner there is no room for it
    ci_rank: int = 0  # likewise of its interval
    drawn: bool = False  # in a chart, a dot per row with its interval
    older: str = ""  # where the value lies in documents that have no `path` yet

    def of(self, row: Mapping[str, Any]) -> Any:
        """The value, or None."""
        value = _look(row, self.path)
        return _look(row, self.older) if value is None and self.older else value

    def interval_of(self, row: Mapping[str, Any]) -> tuple[float, float] | None:
        """The interval, or None."""
        ends = _look(row, self.ci) if self.ci else None
        return (ends[0], ends[1]) if ends else None

    @property
    def is_text(self) -> bool:
        return self.kind in ("text", "flag")


@dataclass(frozen=True)
class Quantities:
    """Keys of rows that are of several quantities, each of which is drawn in a chart of its own; "": no such key."""

    name: str = ""
    unit: str = ""
    limit: str = ""  # what the value must not exceed


@dataclass(frozen=True)
class Table:
    """Rows of the document's list (or mapping) `key`."""

    key: str
    columns: tuple[Column, ...]
    title: str = ""
    most: int | None = None  # rows shown on a terminal; programs get all of them
    quantities: Quantities = Quantities()


def _look(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


WRITERS: Mapping[str, Callable[[Any], str]] = {
    "text": lambda v: "; ".join(map(str, v)) if isinstance(v, list | tuple) else str(v),
    "flag": lambda v: "yes" if v else "no",
    "count": lambda v: f"{v:,}",
    "millions": lambda v: f"{v / 1e6:.2f} M",
    "giga": lambda v: f"{v / 1e9:.2f} G" if v >= 1e8 else f"{v / 1e6:.1f} M" if v >= 1e5 else f"{v / 1e3:.1f} k",
    "megabytes": lambda v: f"{v / 1e6:.1f}",
    "ms": lambda v: f"{v:.4g}" if v < 1000 else f"{v:,.0f}",
    "seconds": lambda v: f"{v:.2f}",
    "rate": lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}",
    "percent": lambda v: f"{v:.2f}",
    "points": lambda v: f"{v:+.2f}",
    "ratio": lambda v: f"{v:.2f}x",
    "thousandths": lambda v: f"{v:.3f}x",
    "number": lambda v: f"{v:.4g}",
    "shape": lambda v: "x".join(map(str, v)),
}


def format_cell(column: Column, row: Mapping[str, Any]) -> str:
    """The cell for a person: the value and, in brackets, its interval; `-` where there is none."""
    value = column.of(row)
    if value is None:
        return "-"
    write = WRITERS[column.kind]
    interval = column.interval_of(row)
    if interval is None:
        return write(value)
    low, high = ("" if bound is None else write(bound) for bound in interval)
    return f"{write(value)} [{low.removesuffix('x')}, {high.removesuffix('x')}]"

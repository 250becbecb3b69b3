"""The charts of a document: of each column that is drawn the intervals of its rows, and the curves of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resdeploy.report import interval_chart, study_charts
from resdeploy.report.cells import WRITERS, Column, Table, format_cell
from resdeploy.report.layout import Layout

CURVES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "study degradation": study_charts.degradation,
    "study lesion": study_charts.lesion,
}
NO_EFFECT = {"ratio": 1.0, "points": 0.0}  # by how a column is written
MOST = 30  # dots in a chart; of more rows the table is the better picture

Row = Mapping[str, Any]


def curves(document: Mapping[str, Any]) -> dict[str, str]:
    """SVG by name: what is drawn of a whole document rather than of one of its tables."""
    draw = CURVES.get(document["command"])
    return draw(document) if draw else {}


def intervals(table: Table, rows: Sequence[Row], layout: Layout) -> dict[str, str]:
    """SVG by title: a chart for each drawn column, and for each quantity where the rows have several.

    A row that is INVALID claims nothing: it stands in the table alone.

    Args:
        table: which columns are drawn.
        rows: of the document.
        layout: of the same rows: what they are called.
    """
    keys = table.quantities
    groups: dict[str, list[tuple[str, Row]]] = {}
    for name, row in zip(layout.names, rows, strict=True):
        quantity = str(row.get(keys.name) or "")
        groups.setdefault(quantity, []).append((name.removesuffix(f" {quantity}"), row))
    charts: dict[str, str] = {}
    for column in table.columns:
        for quantity, called in groups.items() if column.drawn else ():
            unit = called[0][1].get(keys.unit)
            title = (f"{quantity}: " if quantity else "") + column.title + (f" ({unit})" if unit else "")
            shown = [(name, row) for name, row in called if column.of(row) is not None and row.get("valid", True)]
            if svg := _chart(keys.limit, column, title, shown):
                charts[title] = svg
    return charts


def _chart(limit: str, column: Column, title: str, called: Sequence[tuple[str, Row]]) -> str:
    """One number without an interval is no picture."""
    estimates = [_estimate(limit, column, name, row) for name, row in called]
    has_intervals = any(e.low is not None or e.high is not None for e in estimates)
    if not 1 <= len(estimates) <= MOST or not (has_intervals or (len(estimates) > 1 and not column.ci)):
        return ""
    write = WRITERS[column.kind]
    return interval_chart.intervals(estimates, title=title, write=write, reference=NO_EFFECT.get(column.kind))


def _estimate(limit: str, column: Column, name: str, row: Row) -> interval_chart.Estimate:
    low, high = column.interval_of(row) or (None, None)
    text, value = format_cell(column, row), column.of(row)
    return interval_chart.Estimate(name=name, text=text, value=value, low=low, high=high, limit=row.get(limit))

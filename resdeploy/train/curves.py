"""The curves of a training: a CSV, a chart, and one line per epoch on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resdeploy import store
from resdeploy.report import chart
from resdeploy.train.state import Epoch


def paths(out: Path) -> tuple[Path, Path]:
    """Where the curves of the checkpoint `out` lie: CSV and chart."""
    return out.with_name(f"{out.stem}.history.csv"), out.with_name(f"{out.stem}.history.svg")


def write(out: Path, history: Sequence[Epoch]) -> None:
    """Writes the CSV and the chart of all epochs so far."""
    table, picture = paths(out)
    text = io.StringIO()
    rows = csv.DictWriter(text, list(asdict(history[0])), lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(line) for line in history)
    store.write_bytes(table, text.getvalue().encode())
    epochs = [float(line.epoch) for line in history]
    lines = [chart.Line(name="training", xs=epochs, ys=[100 - line.train_top1 for line in history])]
    held_out = [100 - line.held_out_top1 for line in history if line.held_out_top1 is not None]
    if held_out:
        lines.append(chart.Line(name="held out", xs=epochs, ys=held_out))
    drawn = chart.lines(lines, title=f"{out.stem}: error by epoch", x="epoch", y="error (%)")
    store.write_bytes(picture, drawn.encode())


def read(out: Path) -> list[Epoch]:
    """What `write` wrote, number by number; nothing where there is no such file."""
    table, _ = paths(out)
    if not table.is_file():
        return []
    rows = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
    return [Epoch(**{name: _number(name, text) for name, text in row.items()}) for row in rows]


def _number(name: str, text: str) -> Any:
    if name in ("epoch", "steps"):
        return int(text)
    return float(text) if text else None


def describe(line: Epoch, epochs: int) -> str:
    """An epoch in one line."""
    held_out = "" if line.held_out_top1 is None else f", held out {line.held_out_top1:.2f} %"
    return (
        f"epoch {line.epoch:>{len(str(epochs))}}/{epochs}: loss {line.train_loss:.4f}, "
        f"training {line.train_top1:.2f} %{held_out}, {line.seconds:.1f} s"
    )

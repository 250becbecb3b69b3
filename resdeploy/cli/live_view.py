"""What is drawn on a terminal while a command works: progress bars, and the rows of a bench as they are measured."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resdeploy.cli import console

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress as Bars

    from resdeploy.measure.interleaved import Starting, Watch
    from resdeploy.records import Failure, Measurement, Progress


@contextlib.contextmanager
def live(*, quiet: bool = False) -> Iterator[tuple[Progress, Watch | None, Starting | None]]:
    """As `progress`, and what each row of a bench measures so far: its blocks, its median and its images per second.

    The row that runs now is marked.
    """
    if quiet or not sys.stderr.isatty():
        with progress(quiet=quiet) as report:
            yield report, None, None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from resdeploy.report.plain_text import inert

    rows: dict[str, tuple[str, str, str]] = {}
    current = ""
    shown = bars()
    tasks: dict[str, Any] = {}
    with Live(shown, console=Console(stderr=True), transient=True) as drawn, _notes_above(drawn):

        def draw() -> None:
            table = Table("", "running", "blocks", "median ms", "images/s", box=None, pad_edge=False)
            for label, cells in rows.items():
                table.add_row(">" if label == current else "", Text(inert(label)), *cells)
            drawn.update(Group(table, shown) if rows else shown)

        def report(what: str, done: int, total: int) -> None:
            _advance(shown, tasks, what, done, total)
            draw()

        def watch(outcome: Measurement | Failure, _done: int, _total: int) -> None:
            rows[outcome.label] = _so_far(outcome)
            draw()

        def starting(label: str) -> None:
            nonlocal current
            current = label
            rows.setdefault(label, ("starts", "-", "-"))
            draw()

        yield report, watch, starting


@contextlib.contextmanager
def _notes_above(drawn: Live) -> Iterator[None]:
    """While something is drawn on the terminal, notes are printed by it, or they would stand in its midst."""
    console.view = drawn
    try:
        yield
    finally:
        console.view = None


def _so_far(outcome: Measurement | Failure) -> tuple[str, str, str]:
    """Cells of the live view; the median is of the compute time."""
    from resdeploy.records import Failure

    if isinstance(outcome, Failure):
        return f"failed ({outcome.error_code})", "-", "-"
    times = sorted(time_s for block in outcome.blocks for time_s in block.run_s)
    if not times:
        return "warm", "-", "-"
    wall_s = sum(block.wall_s for block in outcome.blocks)
    rate = outcome.batch_size * len(times) / wall_s if wall_s else 0.0
    return str(len(outcome.blocks)), f"{1e3 * times[len(times) // 2]:.4g}", f"{rate:,.1f}"


def bars() -> Bars:
    """Progress bars with the time that remains, not yet drawn."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    # No markup: a description may name a file.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns)


def _advance(shown: Bars, tasks: dict[str, Any], what: str, done: int, total: int) -> None:
    if what not in tasks:
        from resdeploy.report.plain_text import inert

        tasks[what] = shown.add_task(inert(what), total=total)
    shown.update(tasks[what], completed=done, total=total)
    if done >= total:
        shown.remove_task(tasks.pop(what))


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A callback that draws bars on stderr; silent where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.live import Live

    shown = bars()
    tasks: dict[str, Any] = {}
    with Live(shown, console=Console(stderr=True), transient=True) as drawn, _notes_above(drawn):
        yield lambda what, done, total: _advance(shown, tasks, what, done, total)

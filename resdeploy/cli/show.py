"""`resdeploy show`."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options


def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A saved JSON result, or the journal of a bench.")
    ] = None,
    fmt: options.Format = "table",
    output: options.Output = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show a saved result again, in any form; without FILE, what the last bench that was cut short had measured.

    Examples: resdeploy show a.json --format md · resdeploy show
    """
    from resdeploy.measure import journal
    from resdeploy.pipeline import bench as timing
    from resdeploy.report import documents, render

    path = file or journal.default()
    saved = render.saved(path)
    if saved is None:
        outcomes, where = journal.load(path)
        saved = documents.bench(timing.summaries(outcomes), (), where)
        saved |= {"cut_short": True, "notes": [journal.told(outcomes), *saved["notes"]]}
    console.emit(saved, fmt, output)

"""`resdeploy show`: a saved result again, or what an interrupted bench had measured."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options


def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A saved JSON result, or the journal of a bench.")
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    verbose: options.Verbose = 0,
) -> None:
    """Show a saved result again, in any form; without FILE, what the last bench that was cut short had measured.

    Where no bench was cut short and one still goes on, what that has measured so far.

    Examples: resdeploy show a.json --format md · resdeploy show
    """
    from resdeploy.measure import journal, one_run
    from resdeploy.report import documents, render

    path = file or journal.latest()
    saved = render.read_saved(path)
    if saved is None:
        going_on = journal.goes_on(path)  # asked first: a run that ends meanwhile leaves no journal to load
        outcomes, where = journal.load(path)
        saved = documents.bench(one_run.summaries(outcomes), (), where)
        saved |= {"cut_short": True, "notes": [journal.note_unfinished(outcomes, going_on=going_on), *saved["notes"]]}
    console.emit(saved, fmt, output)

"""`resdeploy report`: saved results on one page."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="JSON that a command has written.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The page to write.", callback=options.page, rich_help_panel=options.OUTPUT
        ),
    ] = Path("report.html"),
    images: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Show the images that a gate names as flipped: what it had as --data."),
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Put saved results on one HTML page that needs nothing else: verdicts, tables that sort, charts.

    Examples: resdeploy report runs/mine/results.json ·
    resdeploy report gate.json bench.json --images cifar10/test -o gate.html
    """
    from resdeploy import store
    from resdeploy.verbs import report

    options.distinct([output], map(str, results))
    store.write_bytes(output, report.report(results, images).encode())
    console.note(f"wrote {output}", quiet=quiet)

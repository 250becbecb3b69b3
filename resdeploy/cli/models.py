"""`resdeploy models`."""

from typing import Annotated

import typer

from resdeploy.cli import console, options


def models(
    name: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
    fmt: options.Format = "table",
    output: options.Output = None,
    verbose: options.Verbose = 0,
) -> None:
    """List the zoo: family, parameters, MACs, input, published accuracy.

    Example: resdeploy models resnext
    """
    from resdeploy.measure import environment
    from resdeploy.models import zoo
    from resdeploy.report import documents

    entries = [entry for entry in zoo.ENTRIES.values() if name in entry.name]
    console.emit(documents.models(entries, environment.capture()), fmt, output)

"""`resdeploy merge`: its options, and the accuracy of an evaluation in shards once all of them are there."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options


def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="PART...", help="What eval --shard --predictions wrote, of every shard.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The predictions to write (.npz, .json, .csv).", callback=options.writable),
    ],
    fmt: options.Format = "table",
    wide: options.Wide = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Put the shards of an evaluation together: the predictions of one process, bit for bit, and their accuracy.

    Example: resdeploy merge r50.*-of-3.npz -o r50.npz
    """
    from resdeploy.measure import environment, prediction_files
    from resdeploy.report import evaluations
    from resdeploy.verbs import merge

    options.distinct((output,), map(str, parts))
    whole = merge.merge(parts, output)
    console.note(f"wrote {output}", quiet=quiet)
    document = evaluations.merged(whole, prediction_files.score(whole), len(parts), environment.capture())
    console.emit(document, fmt, quiet=quiet)

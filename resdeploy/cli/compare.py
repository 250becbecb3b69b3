"""`resdeploy compare`: its options, and what changed between two saved results."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy import vocabulary
from resdeploy.cli import console, options


def compare(
    baseline: Annotated[Path, typer.Argument(metavar="A.json", help="A saved result of bench, eval or run.")],
    candidate: Annotated[Path, typer.Argument(metavar="B.json", help="A later one of the same command.")],
    noise: Annotated[
        float,
        typer.Option(min=0.0, max=100.0, help="What two runs differ by anyway, in percent: widens intervals of times."),
    ] = vocabulary.NOISE_PCT,
    seed: options.Seed = 0,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what got slower, bigger or less exact from one saved result to another. It judges nothing: exit 0.

    Example: resdeploy compare main.json branch.json, each from resdeploy bench r50.onnx --format json -o FILE
    """
    from resdeploy.measure import environment
    from resdeploy.report import documents
    from resdeploy.verbs import compare

    comparison = compare.compare(baseline, candidate, noise_pct=noise, seed=seed)
    for warning in comparison.warnings:
        console.note(f"warning: {warning}", quiet=quiet)
    console.emit(
        documents.compare(comparison.changes, (*comparison.warnings, *comparison.notes), environment.capture()),
        fmt,
        output,
        quiet=quiet,
    )

"""`resdeploy run`: a profile carried out, and its results."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, options
from resdeploy.cli.gate import EXIT


def run(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE.toml", help="A deployment profile, or the name of one that comes along.")
    ],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the files go; default: runs/NAME.", show_default=False)
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Run a whole profile: train, export, quantize, build, evaluate, bench, gate.

    Steps whose inputs are unchanged are skipped, so an interrupted run goes on where it stopped.

    Examples: resdeploy run mine.toml · resdeploy run quickstart
    """
    from resdeploy import run, store
    from resdeploy.deploy.model_string import Request
    from resdeploy.report import documents

    wanted = store.read_profile(store.find_profile(profile))
    console.name_program(wanted.model)
    with console.progress(quiet=quiet) as progress:
        result = run.run(
            wanted, folder or Path("runs") / wanted.name, progress=progress, note=lambda t: console.note(t, quiet=quiet)
        )
    if wanted.data is not None:
        requests, specs = [Request(model=wanted.model)], [source.model for source in result.bench.sources]
        console.tell_sight(requests, specs, "the profile", quiet=quiet)
    console.announce(*result.bench.sources, quiet=quiet)
    document = documents.run(wanted.name, run.result_rows(result), result.verdict, result.environment)
    store.write_json(result.folder / "results.json", document)
    console.emit(document, fmt, output, quiet=quiet)
    console.note(f"Everything is in {result.folder}; the numbers in {result.folder / 'results.json'}", quiet=quiet)
    if result.failures:
        raise typer.Exit(max(failure.exit_status for failure in result.failures))
    raise typer.Exit(EXIT[result.verdict.state] if result.verdict else 0)

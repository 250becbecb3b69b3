"""`resdeploy run`: a profile carried out, and its results."""

from pathlib import Path
from typing import Annotated

import typer

from resdeploy.cli import console, live_view, options
from resdeploy.cli.gate import EXIT
from resdeploy.vocabulary import STEPS


def run(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE.toml", help="A deployment profile, or the name of one that comes along.")
    ],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the files go; default: runs/NAME.", show_default=False)
    ] = None,
    again: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP",
            help=f"Carry out anew although nothing has changed: {', '.join(STEPS)}; may be repeated.",
        ),
    ] = None,
    fmt: options.Format = "table",
    wide: options.Wide = False,
    report: options.Report = None,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Run a whole profile: train, export, prune, quantize, build, audit, evaluate, bench, gate.

    Steps whose inputs are unchanged are skipped, so an interrupted run goes on where it stopped. Paths in a profile are
    relative to its file. `resdeploy init` writes a profile with every key explained.

    Examples: resdeploy run mine.toml · resdeploy run quickstart · resdeploy run mine.toml --again bench
    """
    from resdeploy import store
    from resdeploy.deploy.model_string import Request
    from resdeploy.report import documents
    from resdeploy.run import relative_paths, run

    path = store.find_profile(profile)
    options.distinct((output, report), (str(path),))
    wanted = store.read_profile(path)
    if path == Path(profile):  # else it came along, and its paths are examples
        wanted = relative_paths.seen_from_here(wanted, path.parent)
    console.name_program(wanted.model)
    with live_view.progress(quiet=quiet) as progress:
        result = run.run(
            wanted,
            folder or Path("runs") / wanted.name,
            progress=progress,
            note=lambda t: console.note(t, quiet=quiet),
            again=options.steps(again or ()),
        )
    if wanted.data is not None:
        requests, specs = [Request(model=wanted.model)], [source.model for source in result.bench.sources]
        console.tell_preprocessing(requests, specs, "the profile", quiet=quiet)
    console.announce(*result.bench.sources, quiet=quiet)
    document = documents.run(wanted.name, run.result_rows(result), result.verdict, result.environment)
    store.write_json(result.folder / "results.json", document)
    console.emit(document, fmt, output, quiet=quiet)
    if report is not None:
        store.write_bytes(report, console.page_form()(document).encode())
        console.note(f"wrote {report}", quiet=quiet)
    console.note(f"Everything is in {result.folder}; the numbers in {result.folder / 'results.json'}", quiet=quiet)
    if result.failures:
        raise typer.Exit(max(failure.exit_status for failure in result.failures))
    state = result.verdict.state if result.verdict else "pass"
    if state == "inconclusive" and wanted.on_inconclusive == "warn":
        console.note("warning: the verdict is inconclusive; exit 0, since on_inconclusive is warn", quiet=quiet)
        return
    raise typer.Exit(EXIT[state])

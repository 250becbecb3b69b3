"""`resdeploy cache`: what is kept of earlier commands."""

from typing import Annotated

import typer

from resdeploy.cli import console, options
from resdeploy.cli.help_text import App
from resdeploy.errors import UsageError

app = App(
    help="What is kept of earlier commands: where it is, whether it is whole, and how to be rid of it.\n\n"
    "Examples: resdeploy cache · resdeploy cache verify · resdeploy cache clear --older-than 30",
    invoke_without_command=True,
)
DAY_S = 86400.0


@app.callback()
def cache(
    context: typer.Context, fmt: options.Format = "table", output: options.Output = None, verbose: options.Verbose = 0
) -> None:
    if (verb := context.invoked_subcommand) is not None:
        if (fmt, output, verbose) != ("table", None, 0):
            raise UsageError(f"an option before {verb} is one of `cache` alone", fix=f"Write it after {verb}")
        return
    from resdeploy import cache, places
    from resdeploy.measure import environment
    from resdeploy.report import documents

    folder = str(places.cache_dir())
    console.emit(documents.cache(folder, cache.contents(), environment.capture()), fmt, output)


@app.command()
def verify(
    fmt: options.Format = "table",
    wide: options.Wide = False,
    output: options.Output = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Read every entry, and name those that are damaged or not signed by you: exit 5 if there are any.

    Such an entry is never used: a command that needs it makes it again.

    Examples: resdeploy cache verify · resdeploy cache verify --format json
    """
    from resdeploy import cache
    from resdeploy.measure import environment
    from resdeploy.report import documents

    checked, doubts = cache.doubts()
    console.emit(documents.cache_verify(checked, doubts, environment.capture()), fmt, output)
    advice = f"; {len(doubts)} will be made again where they are needed, or: resdeploy cache clear" if doubts else ""
    console.note(f"{checked - len(doubts)} of {checked} entries are whole and yours{advice}", quiet=quiet)
    if doubts:
        raise typer.Exit(5)


@app.command()
def clear(
    older_than: Annotated[float, typer.Option(min=0.0, metavar="DAYS", help="Only what was written before.")] = 0.0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Remove the entries, downloads and journals, and what killed commands have left behind.

    What a running command makes just now stays; one that is about to open an entry may find it gone.

    Examples: resdeploy cache clear · resdeploy cache clear --older-than 30
    """
    from resdeploy import cache, places

    count, freed = cache.clear(older_than_s=older_than * DAY_S)
    console.note(f"removed {count} files from {places.cache_dir()}: {freed / 1e6:.1f} MB", quiet=quiet)

"""The command line: the only room that talks.

Each verb is one file that parses, calls one function of the rooms below, and renders. This file holds the list of
verbs and the one place where failures become exit codes (the table is in `resdeploy.errors`).

The verb files do without `from __future__ import annotations`: Typer would evaluate all 150 annotations three times,
which `--help` pays for (benchmarks/startup.py).
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import typer

from resdeploy import __version__, interrupts, waiting
from resdeploy.cli import (
    audit,
    bench,
    build,
    cache,
    compare,
    console,
    cost,
    doctor,
    evaluate,
    export,
    gate,
    init,
    merge,
    models,
    package,
    predict,
    prune,
    quantize,
    report,
    run,
    show,
    study,
    train,
)
from resdeploy.cli.help_text import App, Group, usage

INTERRUPTED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
BROKEN_PIPE = 141
WORDS = {  # of pydantic, which reads options for Typer from 0.27 on
    "Value error, ": "",
    "Input should be a valid number, unable to parse string as a number": "a number is expected, such as 0.5",
    "Input should be a valid integer, unable to parse string as an integer": "a whole number is expected",
}


class _Uncaught(Exception):
    """Carries, as its cause, an error that Typer would take for its own."""


@contextlib.contextmanager
def _hide_from_typer() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as e:
        raise _Uncaught from e
    except Exception as e:
        if hasattr(e, "format_message") and type(e).__name__ != "NoArgsIsHelpError":  # that one shows the help
            e.show = functools.partial(_show_misuse, e)  # type: ignore[attr-defined]
        raise


def _show_misuse(error: Any, file: Any = None) -> None:
    """What Typer says of options that cannot be meant, in lines that end between words; `file` is always stderr."""
    told = error.format_message()
    for theirs, ours in WORDS.items():
        told = told.replace(theirs, ours)
    if context := getattr(error, "ctx", None):
        console.say(f"Usage: {usage(context.command, context)}\nTry '{context.command_path} --help' for help.\n")
    console.say(f"Error: {told}")


ALL, AROUND = "All of it, from a profile", "This machine"
MAKE, MEASURE, JUDGE, STUDY = "Make a model", "Measure", "Judge", "Study"


class _Verbs(Group):
    """Any EOFError is Ctrl-D to Typer, and any BrokenPipeError `| head`: it would exit 1, which is a failed gate's."""

    panels = (ALL, MAKE, MEASURE, JUDGE, STUDY, AROUND)

    def make_context(self, *args: Any, **options: Any) -> Any:  # prints the version
        with _hide_from_typer():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _hide_from_typer():
            return super().invoke(ctx)


app = App(
    cls=_Verbs,
    help="A ResNet from weights to a deployment that can be trusted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples: resdeploy doctor · resdeploy run quickstart · resdeploy bench --precision int8",
)
app.command("init", rich_help_panel=ALL)(init.init)
app.command("run", rich_help_panel=ALL)(run.run)
app.command("export", rich_help_panel=MAKE)(export.export)
app.command("train", rich_help_panel=MAKE)(train.train)
app.command("quantize", rich_help_panel=MAKE)(quantize.quantize)
app.command("prune", rich_help_panel=MAKE)(prune.prune)
app.command("build", rich_help_panel=MAKE)(build.build)
app.command("package", rich_help_panel=MAKE)(package.package)
app.command("bench", rich_help_panel=MEASURE)(bench.bench)
app.command("eval", rich_help_panel=MEASURE)(evaluate.evaluate)
app.command("merge", rich_help_panel=MEASURE)(merge.merge)
app.command("predict", rich_help_panel=MEASURE)(predict.predict)
app.command("cost", rich_help_panel=MEASURE)(cost.cost)
app.command("models", rich_help_panel=MEASURE)(models.models)
app.command("show", rich_help_panel=MEASURE)(show.show)
app.command("report", rich_help_panel=MEASURE)(report.report)
app.command("gate", rich_help_panel=JUDGE)(gate.gate)
app.command("audit", rich_help_panel=JUDGE)(audit.audit)
app.command("compare", rich_help_panel=JUDGE)(compare.compare)
app.add_typer(study.app, name="study", rich_help_panel=STUDY)
app.command("doctor", rich_help_panel=AROUND)(doctor.doctor)
app.add_typer(cache.app, name="cache", rich_help_panel=AROUND)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
    lock_timeout: float | None = typer.Option(
        None,
        min=0.0,
        envvar="RESDEPLOY_LOCK_TIMEOUT",
        metavar="SECONDS",
        show_default="an hour",
        help="Longest wait for another resdeploy that holds a cache entry or a run's folder.",
    ),
) -> None:
    waiting.set_timeout(lock_timeout)
    context.call_on_close(lambda: waiting.set_timeout(None))  # a second command in this process starts anew
    console.show_warnings()


def main() -> None:
    """Runs the command line and exits with the status that `resdeploy.errors` lists."""
    interrupts.listen()
    console.adapt_streams()
    try:
        app()
    except interrupts.Interrupted as e:
        _leave(INTERRUPTED[e.number], 128 + e.number)
    except Exception as e:  # noqa: BLE001 - every failure ends here, as an exit status
        if console.verbosity > 1:
            traceback.print_exc()
        caught = e.__cause__ if isinstance(e, _Uncaught) else e
        if isinstance(caught, BrokenPipeError):  # a reader of --version has left; nobody is there to be told
            console.silence(sys.stdout, sys.stderr)
            sys.exit(BROKEN_PIPE)
        assert isinstance(caught, Exception)
        error = console.in_our_words(caught)
        _leave(str(error), error.exit_status)


def _leave(message: str, status: int) -> None:
    console.say(message)
    sys.exit(status)

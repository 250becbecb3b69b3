"""The command line: the only room that talks.

Each verb is one file that parses, calls one function of `resdeploy.pipeline`, and renders. This file holds the list of
verbs and the one place where failures become exit codes (the table is in `resdeploy.errors`).

The verb files do without `from __future__ import annotations`: Typer would evaluate all 150 annotations three times,
which `--help` pays for (benchmarks/startup.py).
"""

from __future__ import annotations

import signal
import sys
import traceback

import typer

from resdeploy import __version__, interrupts
from resdeploy.cli import (
    audit,
    bench,
    build,
    compare,
    console,
    cost,
    doctor,
    evaluate,
    export,
    gate,
    models,
    prune,
    quantize,
    run,
    show,
    study,
    train,
)
from resdeploy.errors import EnvironmentFailure, OutOfMemory, ResdeployError

INTERRUPTED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}

app = typer.Typer(
    help="A ResNet from weights to a deployment that can be trusted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: resdeploy doctor · resdeploy export resnet50 · resdeploy bench --precision int8",
)
app.command("models")(models.models)
app.command("cost")(cost.cost)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("prune")(prune.prune)
app.command("quantize")(quantize.quantize)
app.command("build")(build.build)
app.command("bench")(bench.bench)
app.command("show")(show.show)
app.command("eval")(evaluate.evaluate)
app.command("gate")(gate.gate)
app.command("compare")(compare.compare)
app.add_typer(study.app, name="study")
app.command("audit")(audit.audit)
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"resdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


def main() -> None:
    """Runs the command line and exits with the status that `resdeploy.errors` lists."""
    interrupts.listen()
    try:
        app()
    except interrupts.Interrupted as e:
        _leave(INTERRUPTED[e.number], 128 + e.number)
    except Exception as e:  # noqa: BLE001 - every failure ends here, as an exit status
        if console.verbosity > 1:
            traceback.print_exc()
        error = _in_our_words(e)
        _leave(str(error), error.exit_status)


def _in_our_words(error: Exception) -> ResdeployError:
    if isinstance(error, ResdeployError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("this process ran out of memory", fix="Use a smaller batch size")
    if isinstance(error, OSError) and error.errno is not None:
        return EnvironmentFailure(
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror}",
            fix="Check its permissions and the disk it is on",
        )
    return ResdeployError(
        f"{type(error).__name__}: {error}",
        cause="This is a defect of resdeploy",
        fix="Run the command again with -vv and report the traceback",
    )


def _leave(message: str, status: int) -> None:
    console.say(message)
    sys.exit(status)

"""What verbs print: results to stdout or a file, notes and progress bars to stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from resdeploy.measure.bench import Watch
    from resdeploy.records import Artifact, Failure, Measurement, Precision, Progress

verbosity = 0  # how often -v was given


def set_verbosity(level: int) -> int:
    """Keeps what `-v` says, for `announce` and for `main`."""
    global verbosity
    verbosity = level
    return level


def note(message: str, *, quiet: bool = False) -> None:
    """One line for the person, on stderr."""
    if not quiet:
        typer.echo(message, err=True)


def chosen(backend: str, precision: Precision | None, *, quiet: bool = False) -> None:
    """Says which backend `auto` stands for and why; nothing where the person has named one.

    Raises:
        BackendMissing: none is here.
    """
    from resdeploy.backends import choose

    if "auto" in backend.split(","):
        name, why = choose.pick("auto", precision or "fp32")
        note(f"backend {name}: {why}", quiet=quiet)


def announce(*artifacts: Artifact, quiet: bool = False) -> None:
    """Says, once, what a person must know about files before trusting them; with `-v` also which files they are."""
    from resdeploy.backends import machine

    messages: dict[str, None] = {}
    for artifact in artifacts:
        name = artifact.model.name if artifact.model else artifact.path
        if verbosity:
            messages[f"{name}: {artifact.path} ({_facts(artifact)})"] = None
        if artifact.weights is not None and artifact.weights.random:
            messages[f"{name}: random weights (seed {artifact.weights.seed}): good for timing, not for accuracy"] = None
        if artifact.calibration is not None and artifact.calibration.synthetic:
            messages[f"{name}: calibrated on synthetic images: good for timing, refused by gate"] = None
        if artifact.machine == "vnni" and not machine.cpu().vnni:
            messages[
                f"{name}: its INT8 weights saturate on this CPU, which has no VNNI: it loses accuracy here; "
                "quantize it again with --portable"
            ] = None
        messages |= dict.fromkeys(f"{name}: {line}" for line in artifact.notes)
    for message in messages:
        note(message, quiet=quiet)


def wrote(artifact: Artifact, *, quiet: bool = False) -> None:
    """Names the file written and the error it was checked to."""
    note(f"wrote {artifact.path} ({_facts(artifact)})", quiet=quiet)


def _facts(artifact: Artifact) -> str:
    from resdeploy import store

    path = Path(artifact.path)
    size_mb = sum(part.stat().st_size for part in (path, *store.companions(path))) / 1e6
    checks = (f"{name} {value:.3g}" for name, value in artifact.checks.items())
    return ", ".join((f"{size_mb:.1f} MB", artifact.precision, *checks))


def emit(document: dict[str, Any], fmt: str, output: Path | None = None) -> None:
    """Renders a result to stdout, or writes it to `output` (atomically)."""
    from resdeploy import store
    from resdeploy.report import render

    tty = output is None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if tty else None
    text = render.render(document, fmt, width=width, color=tty and "NO_COLOR" not in os.environ)
    if output is None:
        _to_stdout(text if text.endswith("\n") else text + "\n")
    else:
        store.write_bytes(output, text.encode())


def files(document: Mapping[str, Any], *wanted: tuple[Path | None, Callable[[Mapping[str, Any]], str]]) -> None:
    """Writes the document in each form that has a path."""
    from resdeploy import store

    for path, form in wanted:
        if path is not None:
            store.write_bytes(path, form(document).encode())


def github(document: Mapping[str, Any], *, wanted: bool | None) -> None:
    """GitHub's annotations on stderr and its step summary, where asked for or where a GitHub job runs us.

    On stderr, since stdout is the result's alone; the runner reads both.
    """
    if not (os.environ.get("GITHUB_ACTIONS") == "true" if wanted is None else wanted):
        return
    from resdeploy.report import ci

    sys.stderr.write(ci.commands(document))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:  # several steps write to one file, each its part
            file.write(ci.comment(document))


def _to_stdout(text: str) -> None:
    """Writes the result; a reader of a pipe who has left, as `| head` does, is not worth a word.

    Raises:
        OSError: standard output is a file on a full disk, or the like.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as e:
        # Python flushes again when it ends, and would exit 120 for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(e, BrokenPipeError):
            raise OSError(e.errno, e.strerror, "standard output") from e


@contextlib.contextmanager
def live(*, quiet: bool = False) -> Iterator[tuple[Progress, Watch | None]]:
    """As `progress`, and what each row of a bench measures so far: its blocks, its median and its images a second."""
    if quiet or not sys.stderr.isatty():
        with progress(quiet=quiet) as report:
            yield report, None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from resdeploy.report.render import inert

    rows: dict[str, tuple[str, str, str]] = {}
    shown = bars()
    tasks: dict[str, Any] = {}
    with Live(shown, console=Console(stderr=True), transient=True) as view:

        def draw() -> None:
            table = Table("now", "blocks", "median ms", "images/s", box=None, pad_edge=False)
            for label, cells in rows.items():
                table.add_row(Text(inert(label)), *cells)
            view.update(Group(table, shown) if rows else shown)

        def report(what: str, done: int, total: int) -> None:
            _advance(shown, tasks, what, done, total)
            draw()

        def watch(outcome: Measurement | Failure, _done: int, _total: int) -> None:
            rows[outcome.label] = _so_far(outcome)
            draw()

        yield report, watch


def _so_far(outcome: Measurement | Failure) -> tuple[str, str, str]:
    """Cells of the live view; the median is of the compute time."""
    from resdeploy.records import Failure

    if isinstance(outcome, Failure):
        return f"failed ({outcome.error_code})", "-", "-"
    times = sorted(time_s for block in outcome.blocks for time_s in block.run_s)
    if not times:
        return "warm", "-", "-"
    wall_s = sum(block.wall_s for block in outcome.blocks)
    rate = outcome.batch_size * len(times) / wall_s if wall_s else 0.0
    return str(len(outcome.blocks)), f"{1e3 * times[len(times) // 2]:.4g}", f"{rate:,.1f}"


def bars() -> Bars:
    """Progress bars with the time that remains, not yet drawn."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bars(*columns)


def _advance(shown: Bars, tasks: dict[str, Any], what: str, done: int, total: int) -> None:
    if what not in tasks:
        tasks[what] = shown.add_task(what, total=total)
    shown.update(tasks[what], completed=done, total=total)
    if done >= total:
        shown.remove_task(tasks.pop(what))


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A callback that draws bars on stderr; silent where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.live import Live

    shown = bars()
    tasks: dict[str, Any] = {}
    with Live(shown, console=Console(stderr=True), transient=True):
        yield lambda what, done, total: _advance(shown, tasks, what, done, total)

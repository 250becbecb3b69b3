"""What commands print: results to stdout or a file, notes and progress bars to stderr."""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from resdeploy import packages
from resdeploy.errors import DiskFull, EnvironmentFailure, OutOfMemory, ResdeployError, UsageError

if TYPE_CHECKING:
    from rich.live import Live

    from resdeploy.deploy.model_string import Request
    from resdeploy.records import Artifact, BackendName, ModelSpec, Precision

verbosity = 0  # how often -v was given
silent = False  # whether -q was
wide = False  # whether --wide was
view: Live | None = None  # what is drawn on the terminal now

# What a terminal or a log without UTF-8 shows of our signs; of others the escape.
PLAIN = {
    "─": "-", "━": "-", "│": "|", "·": "|", "×": "x", "±": "+-", "→": "->", "…": "...", "–": "-", "—": "-",
    "“": '"', "”": '"', "‘": "'", "’": "'", "≤": "<=", "≥": ">=",
}  # fmt: skip
PLAINLY = "resdeploy.plainly"  # how Python is told of the error handler


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("unicode_escape").decode("ascii") for c in lost), error.end


def adapt_streams() -> None:
    """Makes stdout and stderr take any text, whatever their encoding; a stream that is closed stays unused."""
    codecs.register_error(PLAINLY, _plainly)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file opened would be it, and get what a vendor prints
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAINLY)


def silence(*streams: TextIO) -> None:
    """Nothing more gets out of them. Python flushes them again when it ends, and would exit 120 for an error then."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def in_our_words(error: Exception) -> ResdeployError:
    """Any error as one that says what to do; `E-INTERNAL` is left for what nobody foresaw."""
    if isinstance(error, ResdeployError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("this process ran out of memory", fix="Use a smaller batch size")
    if failed := packages.failed_import(error):
        return failed
    if isinstance(error, OSError):
        return _os_refusal(error)
    return ResdeployError(
        f"{type(error).__name__}: {error}",
        cause="This is a defect of resdeploy",
        fix="Run the command again with -vv and report the traceback",
    )


def _os_refusal(error: OSError) -> ResdeployError:
    what = f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}"
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
        return UsageError(what, fix="Check the path")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(what, fix="Free some space, or write elsewhere with -o, RESDEPLOY_CACHE or TMPDIR")
    if error.errno == errno.EFBIG:
        return DiskFull(what, fix="Allow larger files: ulimit -f unlimited")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return EnvironmentFailure(what, fix="Allow more open files: ulimit -n 4096")
    return EnvironmentFailure(what, fix="Check its permissions and the disk it is on")


def set_verbosity(level: int) -> int:
    """Keeps what `-v` says, for `announce` and for `main`."""
    global verbosity
    verbosity = level
    return level


def set_silent(quiet: bool) -> bool:
    """Keeps what `-q` says, for `name_program` and the warnings."""
    global silent
    silent = quiet
    return quiet


def set_wide(wanted: bool) -> bool:
    """Keeps what `--wide` says, for `emit`."""
    global wide
    wide = wanted
    return wanted


class _WarningHandler(logging.Handler):
    """Shows warnings on stderr: a file that is made again, a lock that is waited for."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage(), quiet=silent)


def show_warnings() -> None:
    """From now on shows what the rooms below log; only `cli` prints."""
    set_silent(False)
    set_wide(False)
    logging.getLogger("resdeploy").handlers[:] = [_WarningHandler(logging.WARNING)]


def note(message: str, *, quiet: bool = False) -> None:
    """One line for the person, on stderr."""
    if not quiet:
        say(message)


def say(message: str) -> None:
    """Words on stderr, in which a file's name cannot move the cursor or give a CI runner a command.

    On a terminal lines end between words; in a log a sentence is a line, which can be searched for.
    """
    from resdeploy.report.plain_text import fold, inert

    text = "\n".join(line for part in message.split("\n") for line in fold(inert(part), _columns()))
    if view is None:
        _to_stderr(text + "\n")
    else:  # above what it draws
        view.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _columns() -> int | None:
    """How long a line may be that a person reads; None: a log takes any."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def _to_stderr(text: str) -> None:
    """Where nobody can be told any more (`2>&1 | head`), the work goes on all the same."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def name_program(model: str) -> None:
    """Says that Python code will be run, where `model` names some; it may be, since the person has typed that name."""
    from resdeploy.models import foreign

    if foreign.FACTORY.fullmatch(model) and foreign.is_factory(model):
        module = model.partition(":")[0]
        where = f"the current folder, {Path.cwd()}, is searched for it last"
        note(f"{model} is a program: {module} is imported and run, and {where}", quiet=silent)


def chosen(backend: str, precisions: Iterable[Precision | None], *, quiet: bool = False) -> None:
    """Says which backend `auto` stands for in these precisions; nothing where the person has named one.

    Raises:
        BackendMissing: none is here.
    """
    from resdeploy.backends import choose

    if "auto" in backend.split(","):
        picked = dict(choose.pick("auto", precision or "fp32") for precision in dict.fromkeys(precisions))
        for name, why in picked.items():
            tell_choice(name, why, quiet=quiet)


def tell_choice(backend: BackendName, why: str, *, quiet: bool = False) -> None:
    """Names the backend that was chosen and its version; `-v` says why this one."""
    from resdeploy import backends

    version = backends.load(backend).available().version
    note(f"{backend} {version} (auto{f': {why}' if verbosity else ''})", quiet=quiet)


def tell_preprocessing(
    requests: Iterable[Request], specs: Iterable[ModelSpec | None], change: str | None = None, *, quiet: bool = False
) -> None:
    """Says what the models see of an image, who says so, and what changes it (None: the usual options).

    Args:
        requests: as they were typed.
        specs: of what was made of them; None: of a file that says nothing.
        change: options, or a place.
        quiet: not a word.
    """
    from resdeploy.report import sentences

    says = " and ".join(dict.fromkeys(request.seen_by for request in requests))
    for line in sentences.seen_by(
        (spec for spec in specs if spec is not None), says, change or sentences.SIGHT_OPTIONS
    ):
        note(line, quiet=quiet)


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
    from resdeploy.report import sentences

    size_mb = store.size_bytes(Path(artifact.path)) / 1e6
    return ", ".join((f"{size_mb:.1f} MB", artifact.precision, *sentences.checked(artifact)))


def print_text(text: str) -> None:
    """A result that is a file's own text, to stdout as it is."""
    _to_stdout(text)


def emit(document: dict[str, Any], fmt: str, output: Path | None = None, *, quiet: bool = False) -> None:
    """Renders a result to stdout, or writes it to `output` (atomically) and says so."""
    from resdeploy import store
    from resdeploy.report import render

    tty = output is None and sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if tty else None
    text = render.render(document, fmt, width=width, wide=wide, color=tty and "NO_COLOR" not in os.environ)
    if output is None:
        _to_stdout(text if text.endswith("\n") else text + "\n")
    else:
        store.write_bytes(output, text.encode())
        invalid = sum(row.get("state") == "INVALID" for row in document["results"])
        doubt = f"; {invalid} of {len(document['results'])} rows are INVALID, the file says why" if invalid else ""
        note(f"wrote {output}{doubt}", quiet=quiet)


Form = Callable[[Mapping[str, Any]], str]


def page_form(images: str | None = None) -> Form:
    """The form of an HTML page that shows the flipped ones of `images`."""
    from resdeploy.verbs import report

    return lambda document: report.page_of([("", document)], images)


def publish(
    document: dict[str, Any],
    fmt: str,
    output: Path | None,
    files: Mapping[Path | None, Form],
    *,
    github: bool | None,
    quiet: bool,
) -> None:
    """The result, the document in each form that has a path, and GitHub's step summary and annotations.

    Each output is tried, whatever became of the others. Annotations go to stderr, since stdout is the result's alone
    (the runner reads both), and come last: no notice tells of a pass where an output of it is missing.

    Args:
        document: the gate's.
        fmt: form of the result.
        output: where it goes; None: stdout.
        files: forms by path; without a path none is wanted.
        github: whether GitHub is to be told; None: where a GitHub job runs us.
        quiet: whether nothing is said of a file written.

    Raises:
        EnvironmentFailure: one or more could not be written.
    """
    from resdeploy import store
    from resdeploy.report import ci

    on_github = _is_github(github)
    summary = os.environ.get("GITHUB_STEP_SUMMARY") if on_github else None
    tries: list[Callable[[], None]] = [lambda: emit(document, fmt, output, quiet=quiet)]
    for path, form in files.items():
        if path is not None:
            tries.append(
                functools.partial(lambda path, form: store.write_bytes(path, form(document).encode()), path, form)
            )
    if summary:
        tries.append(lambda: _append(Path(summary), ci.comment(document)))
    lost = []
    for write in tries:
        try:
            write()
        except OSError as e:
            lost.append(f"{e.filename or 'a file'} cannot be written: {e.strerror}")
        except ResdeployError as e:
            lost.append(e.what)
    if on_github and (not lost or document["verdict"] != "pass"):
        _to_stderr(ci.commands(document))
    if lost:
        raise EnvironmentFailure(
            f"{len(lost)} of {len(tries)} outputs could not be written: {'; '.join(lost)}",
            cause=f"The verdict, {document['verdict']}, stands, and the other outputs are there",
            fix="Check the permissions and the disk, and run the command again",
        )


def _is_github(github: bool | None) -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github


@contextlib.contextmanager
def report_errors(junit: Path | None, *, github: bool | None) -> Iterator[None]:
    """CI hears of a gate that ends before its verdict, too: an annotation, and a JUnit file with the reason."""
    try:
        yield
    except Exception as e:
        from resdeploy import store
        from resdeploy.report import ci

        why = str(in_our_words(e))
        if _is_github(github):
            _to_stderr(ci.error_command(why))
        if junit is not None:
            with contextlib.suppress(EnvironmentFailure, OSError):  # the first error is the one to tell
                store.write_bytes(junit, ci.junit_error(why).encode())
        raise


def _append(path: Path, text: str) -> None:
    """Several steps of a job write to one file, each its part."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _to_stdout(text: str) -> None:
    """Writes the result; a reader of a pipe who has left, as `| head` does, is not worth a word.

    Raises:
        OSError: standard output is a file on a full disk, or the like.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", "standard output")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as e:
        silence(sys.stdout)
        if not isinstance(e, BrokenPipeError):
            raise OSError(e.errno, e.strerror, "standard output") from e

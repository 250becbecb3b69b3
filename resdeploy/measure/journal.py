"""A bench's journal: every measured block is on disk at once, so that a killed run loses nothing.

One JSON line per event: first what the run is, then a row without its blocks whenever it is opened, each block as it is
timed, each failure. A line is written whole and synced before the next block begins; a torn last line, all that a kill
or a power cut can leave, is passed over.

Several runs may go on at once, so each has a journal of its own and holds a lock on it, which ends with its process
however that ends: a journal that nobody holds is of a run that was cut short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resdeploy import places, store
from resdeploy.errors import MalformedInput, MissingInput, ResdeployError
from resdeploy.measure import environment
from resdeploy.records import Block, Failure, Measurement

VERSION = 1
NAMES = "bench*.journal"
KEPT = 8  # journals of runs that were cut short; a run that begins removes older ones
Outcome = Measurement | Failure


def of_this_run() -> Path:
    """Where a run that begins now keeps its journal: a new name at each call."""
    return places.writable_cache() / f"bench-{os.getpid()}-{secrets.token_hex(4)}.journal"


def latest() -> Path:
    """The newest journal of a run that was cut short; where there is none, the newest of those that go on.

    One that holds an outcome goes before one that holds none yet: a run that failed at once hides nothing.

    Raises:
        MissingInput: there is no journal.
    """
    journals = _newest_first(places.cache_dir())
    if not journals:
        raise MissingInput(
            f"there is no journal in {places.cache_dir()}", fix="One is kept while `resdeploy bench` runs"
        )
    telling = [path for path in journals if _tells(path)] or journals
    return next((path for path in telling if not goes_on(path)), telling[0])


def _tells(path: Path) -> bool:
    """Whether it holds a block or a failure, or cannot be read, which is to be said."""
    try:
        return any(kind in ("block", "failure") for kind, _ in _lines(path))
    except ResdeployError:
        return True


def goes_on(path: Path) -> bool:
    """Whether a living run holds this journal; False where locks do not work (some network file systems)."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as e:
        return isinstance(e, BlockingIOError)
    return False


def _newest_first(folder: Path) -> list[Path]:
    """Journals by their last line."""
    times_ns: dict[Path, int] = {}
    for path in folder.glob(NAMES):
        with contextlib.suppress(FileNotFoundError):  # its run has just ended well
            times_ns[path] = path.stat().st_mtime_ns
    return sorted(times_ns, key=times_ns.__getitem__, reverse=True)


def _remove_old(folder: Path) -> None:
    for path in [path for path in _newest_first(folder) if not goes_on(path)][KEPT:]:
        with contextlib.suppress(OSError):  # another run that begins may be quicker
            path.unlink()


@contextlib.contextmanager
def open_journal(
    path: Path | None, failures: Sequence[Failure] = ()
) -> Iterator[Callable[[Outcome, int, int], None] | None]:
    """Yields what to call after each block; the journal is locked meanwhile, and removed once the run has ended well.

    Args:
        path: of the journal, a new file; None: nothing is kept.
        failures: rows that could not be built.

    Raises:
        NotWritable, DiskFull: what the operating system said.
    """
    if path is None:
        yield None
        return
    with store.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old(path.parent)
        file = path.open("x", encoding="utf-8")
    written: dict[str, int] = {}  # blocks of each row

    def write(kind: str, value: Any) -> None:
        file.write(json.dumps({kind: value}, allow_nan=False) + "\n")

    def keep(outcome: Outcome, _done: int, _total: int) -> None:
        with store.disk_errors(path):
            if isinstance(outcome, Failure):
                write("failure", dataclasses.asdict(outcome))
            else:
                new = outcome.blocks[written.get(outcome.label, 0) :]
                if not new:
                    write("row", dataclasses.asdict(dataclasses.replace(outcome, blocks=())))
                for block in new:
                    write("block", {"label": outcome.label, **dataclasses.asdict(block)})
                written[outcome.label] = len(outcome.blocks)
            file.flush()
            os.fsync(file.fileno())

    with file:
        with contextlib.suppress(OSError):  # no locks here: `show` takes the run for one that was cut short
            fcntl.flock(file, fcntl.LOCK_EX)
        write("run", {"version": VERSION, "environment": environment.capture()})
        for failure in failures:
            keep(failure, 0, 0)
        yield keep
        path.unlink(missing_ok=True)


def note_unfinished(outcomes: Sequence[Outcome], *, going_on: bool = False) -> str:
    """What must be known of a run that did not come to its end, or has not yet."""
    blocks = [len(outcome.blocks) for outcome in outcomes if isinstance(outcome, Measurement)]
    counts = f"{min(blocks)} to {max(blocks)} blocks" if blocks else "no block"
    state = "still goes on" if going_on else "was cut short"
    return f"the run {state}, with {counts} a row: rows are not compared, and doubts are only those so far"


def load(path: Path) -> tuple[tuple[Outcome, ...], dict[str, Any]]:
    """What a journal holds: the outcomes so far, rows without a block left out, and the environment.

    Raises:
        MissingInput: no such file, or no block was timed.
        MalformedInput: it is no journal.
    """
    content = _Content(path)
    for kind, value in _lines(path):
        content.add(kind, value)
    return content.outcomes(), content.environment


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What kind of event each line of a journal is, and its record; a torn last line is passed over."""
    lines = _read(path)
    for number, line in enumerate(lines):
        try:
            ((kind, value),) = store.parse_json(line, str(path)).items()
        except (MalformedInput, ValueError, AttributeError) as e:
            if number == len(lines) - 1 and number:
                return
            raise MalformedInput(f"{path}, line {number + 1}, is no part of a journal of bench") from e
        if (kind == "run") != (number == 0):
            raise MalformedInput(f"{path} is neither a saved result nor a journal of bench")
        if not isinstance(value, dict):
            raise MalformedInput(f"{path}, line {number + 1}, is no part of a journal of bench")
        yield kind, value


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as e:
        raise MissingInput(f"there is no journal {path}", fix="It is kept while `resdeploy bench` runs") from e
    except IsADirectoryError as e:
        raise MissingInput(f"{path} is a folder", fix="Name a saved result or a journal in it") from e
    except UnicodeDecodeError as e:
        raise MalformedInput(f"{path} is no journal of bench") from e


class _Content:
    """What a journal's lines add up to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment: dict[str, Any] = {}
        self.rows: dict[str, Measurement] = {}
        self.blocks: dict[str, list[Block]] = {}
        self.failures: dict[str, Failure] = {}

    def add(self, kind: str, value: dict[str, Any]) -> None:
        """Takes in one line; a kind that this version does not know is passed over."""
        where = str(self.path)
        if kind == "run":
            self.environment = value.get("environment") or {}
            if not isinstance(self.environment, dict):
                raise MalformedInput(f"{self.path} is no journal of bench: its environment is no record")
        elif kind == "row":
            row = store.parse(Measurement, json.dumps(value), where)
            self.rows[row.label] = row
        elif kind == "block":
            label = str(value.pop("label", ""))
            self.blocks.setdefault(label, []).append(store.parse(Block, json.dumps(value), where))
        elif kind == "failure":
            failure = store.parse(Failure, json.dumps(value), where)
            self.failures[failure.label] = failure

    def outcomes(self) -> tuple[Outcome, ...]:
        """Failures, then the rows that have blocks and did not fail later."""
        rows = [
            dataclasses.replace(self.rows[label], blocks=tuple(blocks))
            for label, blocks in self.blocks.items()
            if label in self.rows
        ]
        outcomes: list[Outcome] = [*self.failures.values(), *(row for row in rows if row.label not in self.failures)]
        if not outcomes:
            raise MissingInput(
                f"{self.path}: the run was ended before its first block, or is still before it",
                fix="Wait, or run it again",
            )
        return tuple(outcomes)

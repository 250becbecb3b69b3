"""Saved results of `bench`, `eval` and `run`: the JSON documents read back as what a comparison needs, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resdeploy import store
from resdeploy.errors import MalformedInput, MissingInput, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Times = NDArray[np.float64]

MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedRow:
    """One measured row of a saved bench; `blocks_s` are seconds per image, one array per block, as it is judged by."""

    label: str
    model: str
    backend: str
    precision: str
    batch_size: int
    scenario: str
    blocks_s: tuple[Times, ...]
    size_bytes: int | None
    peak_rss_bytes: int | None
    sha256: str = ""
    weights: str = ""
    threads: int | None = None
    streams: int = 1
    scope: str = "compute"
    valid: bool = True  # what the run itself knew of: throttling, remembered results

    @property
    def key(self) -> tuple[object, ...]:
        """What must be equal for two runs' rows to be of one thing."""
        how = (self.scenario, self.scope, self.threads, self.streams)
        return (self.model, self.backend, self.precision, self.batch_size, *how)


@dataclass(frozen=True, kw_only=True)
class SavedScore:
    """The accuracy in one row of a saved evaluation."""

    model: str
    backend: str
    precision: str
    correct: int
    correct_top5: int | None
    total: int
    data_fingerprint: str = ""
    preprocessing_fingerprint: str = ""

    @property
    def label(self) -> str:
        return f"{self.model} {self.backend} {self.precision}"

    @property
    def key(self) -> tuple[object, ...]:
        """As `SavedRow.key`."""
        return (self.model, self.backend, self.precision)


Row = TypeVar("Row", SavedRow, SavedScore)


@dataclass(frozen=True, kw_only=True)
class SavedBench:
    """A saved bench: its rows that were measured, and the machine and versions they were measured on."""

    path: Path
    rows: tuple[SavedRow, ...]
    failed: tuple[str, ...] = ()  # labels of the rows that hold an error instead
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """Processor, cores and GPU; "": the file does not tell."""
        cpu, gpu = self.environment.get("cpu") or {}, self.environment.get("gpu") or {}
        if not cpu.get("model"):
            return ""
        own = f"{cpu['model']} ({cpu.get('usable_cores', '?')} usable cores)"
        return f"{own}, {gpu.get('name')} (driver {gpu.get('driver')})" if gpu else own

    @property
    def tools(self) -> dict[str, str]:
        return dict(self.environment.get("packages") or {})


def is_bench(path: Path) -> bool:
    """Whether a file is a saved result of `bench` rather than predictions; a file that cannot be read is neither."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        document = store.parse_json(path.read_bytes(), str(path))
    except (MalformedInput, OSError):
        return False
    return isinstance(document, dict) and document.get("command") == "bench"


def read(path: Path) -> dict[str, Any]:
    """The JSON document of a saved result.

    Raises:
        MissingInput: no such file.
        MalformedInput: no JSON document of ours.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="resdeploy bench MODEL --format json -o FILE writes one")
    if path.stat().st_size > MAX_BYTES:
        raise MalformedInput(f"{path} is larger than {MAX_BYTES >> 30} GiB", cause="It is no saved result")
    with _translate_errors(path):
        document = store.parse_json(path.read_bytes(), str(path))
        if not isinstance(document["results"], list) or not isinstance(document["command"], str):
            msg = "its results are no list"
            raise TypeError(msg)
        return dict(document)


def load(path: Path) -> SavedBench:
    """The measured rows of a JSON document of `bench` or `run`.

    Raises:
        MissingInput: no such file.
        MalformedInput: not such a document, or its numbers contradict each other.
        UsageError: no row of it was measured.
    """
    document = read(path)
    with _translate_errors(path):
        rows = tuple(_row(row) for row in document["results"] if "error" not in row)
        failed = tuple(str(row.get("label", "?")) for row in document["results"] if "error" in row)
        environment = dict(document.get("environment") or {})
        for part in ("cpu", "gpu", "packages"):
            environment[part] = dict(environment.get(part) or {})
    if not rows:
        raise UsageError(f"{path} holds no row that was measured", fix="Look at its errors, and measure again")
    return SavedBench(path=path, rows=rows, failed=failed, environment=environment)


def load_scores(path: Path) -> tuple[SavedScore, ...]:
    """The accuracies in a JSON document of `eval` or `run`; rows without one are left out.

    Raises:
        MissingInput, MalformedInput: as `load`.
    """
    document = read(path)
    with _translate_errors(path):
        return tuple(_score(row) for row in document["results"] if row.get("total"))


def in_common(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of one thing on both sides (equal `key`), in the order of `after`.

    Or the only row of each side, which may be of another model, backend or precision, but measured in the same way.
    Where one side has several rows of one key (files of one model's name), their labels tell them apart.
    """
    if len(before) == len(after) == 1 and before[0].key[3:] == after[0].key[3:]:
        return [(before[0], after[0])]
    ambiguous = any(len({row.key for row in rows}) < len(rows) for rows in (before, after))

    def name(row: Row) -> tuple[object, ...]:
        return (*row.key, row.label) if ambiguous else row.key

    earlier = {name(row): row for row in before}
    return [(earlier[name(row)], row) for row in after if name(row) in earlier]


def _why(error: Exception) -> str:
    return f"it holds no {error}" if isinstance(error, KeyError) else str(error)[:200]


@contextlib.contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Turns what a document that is not ours leads to into an error of ours."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as e:
        raise MalformedInput(
            f"{path} cannot be read as a saved result: {_why(e)}",
            fix="Write it again: resdeploy bench MODEL --format json -o FILE",
        ) from e


def _row(row: dict[str, Any]) -> SavedRow:
    times = np.asarray(row["samples_ms"], dtype=np.float64) / 1e3
    sizes = [int(n) for n in row["block_sizes"]]
    if sum(sizes) != len(times) or not all(n > 0 for n in sizes) or not np.isfinite(times).all() or (times <= 0).any():
        msg = "samples_ms and block_sizes do not fit each other"
        raise ValueError(msg)
    batch = int(row["batch_size"])
    if batch < 1:
        msg = f"a batch size of {batch}"
        raise ValueError(msg)
    if row["scenario"] != "offline":
        blocks = np.split(times / batch, np.cumsum(sizes)[:-1])
    else:  # queries overlap: a block counts as one, by its wall time (as `summary.per_image_s` has it)
        walls = np.asarray(row["block_walls_s"], dtype=np.float64)
        if not np.isfinite(walls).all() or (walls <= 0).any():
            msg = "block_walls_s are not positive"
            raise ValueError(msg)
        blocks = [np.array([wall_s / (queries * batch)]) for wall_s, queries in zip(walls, sizes, strict=True)]
    return SavedRow(
        label=str(row["label"]),
        model=str(row["model"]),
        backend=str(row["backend"]),
        precision=str(row["precision"]),
        batch_size=batch,
        scenario=str(row["scenario"]),
        blocks_s=tuple(blocks),
        size_bytes=_count(row, "size_bytes"),
        peak_rss_bytes=_count(row, "peak_rss_bytes"),
        sha256=str(row.get("sha256") or ""),
        weights=str(row.get("weights") or ""),
        threads=_count(row, "threads"),
        streams=int(row.get("streams") or 1),
        scope=str(row.get("scope") or "compute"),
        valid=bool(row.get("valid", True)),
    )


def _count(row: dict[str, Any], name: str) -> int | None:
    """A number of things that a row may leave out."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or value < 0:
        msg = f"{name} is {value!r}"
        raise ValueError(msg)
    return value


def _score(row: dict[str, Any]) -> SavedScore:
    correct, total, top5 = int(row["correct"]), int(row["total"]), row.get("top5")
    if not 0 <= correct <= total:
        msg = f"{correct} of {total} images right"
        raise ValueError(msg)
    return SavedScore(
        model=str(row["model"]),
        backend=str(row["backend"]),
        precision=str(row["precision"]),
        correct=correct,
        correct_top5=None if top5 is None else round(float(top5) * total / 100),
        total=total,
        data_fingerprint=str(row.get("data_fingerprint") or ""),
        preprocessing_fingerprint=str(row.get("preprocessing_fingerprint") or ""),
    )

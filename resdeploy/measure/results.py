"""Saved results of `bench`: the JSON document read back as what a comparison needs, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.errors import MalformedInput, MissingInput, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Times = NDArray[np.float64]

MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedRow:
    """One measured row of a saved bench; `blocks_s` are seconds an image, one array a block, as it is judged by."""

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

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What must be equal for two runs' rows to be of one thing."""
        return (self.model, self.backend, self.precision, self.batch_size, self.scenario)


@dataclass(frozen=True, kw_only=True)
class SavedBench:
    """A saved bench: its rows that were measured, and the machine and versions they were measured on."""

    path: Path
    rows: tuple[SavedRow, ...]
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        cpu = self.environment.get("cpu") or {}
        return f"{cpu.get('model', 'unknown')} ({cpu.get('usable_cores', '?')} usable cores)"

    @property
    def tools(self) -> dict[str, str]:
        return dict(self.environment.get("packages") or {})


def is_bench(path: Path) -> bool:
    """Whether a file is a saved result of `bench` rather than predictions; a file that cannot be read is neither."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(document, dict) and document.get("command") == "bench"


def load(path: Path) -> SavedBench:
    """The measured rows of a bench's JSON document.

    Raises:
        MissingInput: no such file.
        MalformedInput: not such a document, or its numbers contradict each other.
        UsageError: no row of it was measured.
    """
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="resdeploy bench MODEL --format json -o FILE writes one")
    if path.stat().st_size > MAX_BYTES:
        raise MalformedInput(f"{path} is larger than {MAX_BYTES >> 30} GiB", cause="It is no result of bench")
    try:
        document = json.loads(path.read_bytes())
        rows = tuple(_row(row) for row in document["results"] if "error" not in row)
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise MalformedInput(
            f"{path} cannot be read as a result of bench: {type(e).__name__}: {str(e)[:200]}",
            fix="Write it again: resdeploy bench MODEL --format json -o FILE",
        ) from e
    if not rows:
        raise UsageError(f"{path} holds no row that was measured", fix="Look at its errors, and measure again")
    return SavedBench(path=path, rows=rows, environment=dict(document.get("environment") or {}))


def _row(row: dict[str, Any]) -> SavedRow:
    times = np.asarray(row["samples_ms"], dtype=np.float64) / 1e3
    sizes = [int(n) for n in row["block_sizes"]]
    if sum(sizes) != len(times) or not all(n > 0 for n in sizes) or not np.isfinite(times).all() or (times <= 0).any():
        msg = "samples_ms and block_sizes do not fit each other"
        raise ValueError(msg)
    batch = int(row["batch_size"])
    if row["scenario"] == "single-stream":
        blocks = np.split(times / batch, np.cumsum(sizes)[:-1])
    else:  # queries overlap: a block counts as one, by its wall time (as `summary.per_image_s` has it)
        walls = zip(row["block_walls_s"], sizes, strict=True)
        blocks = [np.array([float(wall_s) / (queries * batch)]) for wall_s, queries in walls]
    return SavedRow(
        label=str(row["label"]),
        model=str(row["model"]),
        backend=str(row["backend"]),
        precision=str(row["precision"]),
        batch_size=batch,
        scenario=str(row["scenario"]),
        blocks_s=tuple(blocks),
        size_bytes=row.get("size_bytes"),
        peak_rss_bytes=row.get("peak_rss_bytes"),
        sha256=str(row.get("sha256") or ""),
        weights=str(row.get("weights") or ""),
    )

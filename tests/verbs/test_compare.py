"""`compare` on saved results: what is called a change, and what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy import stats
from resdeploy.errors import MalformedInput, MissingInput, UsageError
from resdeploy.measure.summary import summarise
from resdeploy.records import Block, Change, Execution, Measurement
from resdeploy.report import documents
from resdeploy.verbs.compare import compare

HERE = {"cpu": {"model": "Xeon", "usable_cores": 2}, "packages": {"openvino": "2026.4"}, "resdeploy": "0.1"}


def measurement(median_s: float, seed: int, **fields: Any) -> Measurement:
    """16 blocks of 40 times with 1 % of noise."""
    times = median_s * np.random.default_rng(seed).normal(1, 0.01, (16, 40))
    blocks = tuple(
        Block(put_s=(0.0,) * 40, run_s=tuple(row), get_s=(0.0,) * 40, started_s=k, wall_s=sum(row))
        for k, row in enumerate(times.tolist())
    )
    known: dict[str, Any] = {
        "label": "m null b1", "model": "m", "backend": "null", "precision": "fp32", "batch_size": 1,
        "scenario": "single-stream", "sha256": "0" * 64, "execution": Execution(), "blocks": blocks,
        "size_bytes": 1000, "peak_rss_bytes": 100_000_000,
    }  # fmt: skip
    return Measurement(**known | fields)


@pytest.fixture
def save(tmp_path: Path):
    """Writes the document that `bench` writes."""

    def write(name: str, *rows: Measurement, environment: dict[str, Any] = HERE) -> Path:
        document = documents.bench([summarise(row) for row in rows], [], environment)
        (tmp_path / name).write_text(json.dumps(document))
        return tmp_path / name

    return write


def found(changes: tuple[Change, ...], quantity: str = "time per image") -> list[str]:
    return [change.finding for change in changes if change.quantity == quantity]


def test_equal_models_show_no_difference_in_anything(save) -> None:
    """Two runs of one model: no difference in time and memory, the same file, no warning."""
    result = compare(save("a.json", measurement(0.01, 0)), save("b.json", measurement(0.01, 1)))
    assert [change.finding for change in result.changes] == ["equal within 5 %", "the same", "no difference found"]
    assert result.warnings == ()


def test_a_slower_bigger_model_is_found_with_an_interval_that_holds_the_true_ratio(save) -> None:
    """10 % more time and 20 % more bytes and memory."""
    after = measurement(0.011, 1, size_bytes=1200, peak_rss_bytes=120_000_000)
    slower, size, memory = compare(save("a.json", measurement(0.01, 0)), save("b.json", after)).changes
    assert slower.interval is not None
    assert slower.interval[0] < 10 < slower.interval[1]
    assert (slower.finding, size.finding, memory.finding) == ("slower", "bigger", "bigger")
    assert size.change == pytest.approx(20)
    back = compare(save("a.json", after), save("b.json", measurement(0.01, 0))).changes
    assert [change.finding for change in back] == ["faster", "smaller", "smaller"]


def test_what_two_runs_differ_by_anyway_is_no_difference(save) -> None:
    """2 % is within what separate runs differ by; who knows his machine better says so."""
    a, b = save("a.json", measurement(0.01, 0)), save("b.json", measurement(0.0102, 1))
    assert found(compare(a, b).changes) == ["undecided"]  # 2 to 6 % slower, by what it can tell
    assert found(compare(a, b, noise_pct=0.5).changes) == ["slower"]
    (own, *_), (wide, *_) = compare(a, b, noise_pct=0).changes, compare(a, b, noise_pct=5).changes
    assert own.interval is not None
    assert wide.interval is not None
    assert [1 + end / 100 for end in wide.interval] == pytest.approx(
        [(1 + own.interval[0] / 100) / 1.05, (1 + own.interval[1] / 100) * 1.05]
    )


def test_a_side_that_wandered_decides_nothing(save) -> None:
    """However large the ratio; the reason is named."""
    drifting = measurement(0.02, 1)
    blocks = tuple(
        dataclasses.replace(block, run_s=tuple(t * (1 + k / 50) for t in block.run_s))
        for k, block in enumerate(drifting.blocks)
    )
    later = save("b.json", dataclasses.replace(drifting, blocks=blocks))
    (finding,) = found(compare(save("a.json", measurement(0.01, 0)), later).changes)
    assert finding.startswith("undecided (after: drift")


def test_another_machine_and_other_versions_are_warned_of(save) -> None:
    """Each difference is named with both sides."""
    there = {**HERE, "cpu": {"model": "EPYC", "usable_cores": 2}, "packages": {"openvino": "2027.0"}}
    result = compare(save("a.json", measurement(0.01, 0)), save("b.json", measurement(0.01, 1), environment=there))
    assert result.warnings == (
        "another processor: Xeon, then EPYC; measure both on one machine",
        "other versions: openvino 2026.4 -> 2027.0",
    )


def test_rows_are_matched_by_what_they_are_and_the_others_named(save) -> None:
    """Batch sizes and threads tell rows apart; a row of one side only is said."""
    eight = measurement(0.04, 2, label="m null b8", batch_size=8)
    two = measurement(0.02, 3, label="m null b1 t2", execution=Execution(threads=2))
    result = compare(save("a.json", measurement(0.01, 0), eight, two), save("b.json", two, measurement(0.01, 1)))
    assert [c.subject for c in result.changes if c.quantity == "time per image"] == ["m null b1 t2", "m null b1"]
    assert result.notes[-1] == "m null b8: only in the first file"


def evaluated(folder: Path, name: str, correct: int, *, data: str = "d", total: int = 10_000) -> Path:
    row = {
        "model": "m", "backend": "null", "precision": "fp32", "top1": 100 * correct / total, "top5": None,
        "correct": correct, "total": total, "data_fingerprint": data, "preprocessing_fingerprint": "p",
    }  # fmt: skip
    (folder / name).write_text(json.dumps({"command": "eval", "results": [row], "environment": HERE}))
    return folder / name


@pytest.mark.parametrize(
    ("correct", "data", "finding"),
    [
        (9000, "d", "no difference found"),
        (8970, "d", "no difference found"),
        (8800, "d", "less exact"),
        (9200, "d", "more exact"),
        (8800, "other", "no claim (other images)"),
    ],
)
def test_a_drop_in_accuracy_is_found_beyond_chance(tmp_path: Path, correct: int, data: str, finding: str) -> None:
    """Of 10,000 images, 30 fewer right is chance and 200 fewer is not; other images say nothing."""
    a, b = evaluated(tmp_path, "a.json", 9000), evaluated(tmp_path, "b.json", correct, data=data)
    (change,) = compare(a, b).changes
    assert change.finding == finding
    assert change.change == pytest.approx((correct - 9000) / 100)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """His example (b): 9/10 against 3/10, method 10, is 0.1705 to 0.8090."""
    assert stats.newcombe_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path, save) -> None:
    """A missing file, no JSON, another command, and rows of nothing in common."""
    a = save("a.json", measurement(0.01, 0))
    with pytest.raises(MissingInput):
        compare(a, tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(MalformedInput):
        compare(a, tmp_path / "x.json")
    with pytest.raises(UsageError, match="a result of bench and"):
        compare(a, evaluated(tmp_path, "e.json", 9))
    many = save("m.json", *(measurement(0.01, k, batch_size=2 + k, label=f"{k}") for k in range(2)))
    with pytest.raises(UsageError, match="no row of the same"):
        compare(a, many)

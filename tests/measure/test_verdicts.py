"""benchmarks/verdicts.py: recorded turns played to the real run, from a trace whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import verdicts
from resdeploy.measure import summary


def trace(*, restart: float = 0.01, turn: float = 0.04, smaller: float = 0.97) -> dict[str, Any]:
    """Thirty pairs of processes of each length; every fourth turn waits and takes twice as long in one lane alone."""
    rng = np.random.default_rng(0)
    generations = []
    for length_s in (0.05, 0.1, 0.2):
        for _ in range(30):
            moods = rng.normal(0, turn, 12)
            rows = {}
            for side, (name, factor) in enumerate({"a": 1.0, "copy": 1.0, "smaller": smaller}.items()):
                waits = np.where(np.arange(12) % 4 == side, 300, 0)
                times = 5000 * factor * np.exp(rng.normal(0, restart) + moods + rng.normal(0, 0.01, 12))
                rows[name] = {
                    "query_us": (times * np.where(waits > 0, 2, 1)).tolist(),
                    "cpu_us": [9000.0] * 12,
                    "waited_ms": waits.tolist(),
                    "started_ms": [1e3 * 3 * length_s * k + 400 * length_s * side for k in range(12)],
                }
            opened = dict.fromkeys(rows, 0.5)
            generations.append(
                {"kind": "turns", "length_s": length_s, "open_s": opened, "rows": rows, "seconds": 9.0, "others": 0.0}
            )
    return {"generations": generations, "environment": {}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file for the artifacts, which no lane reads."""
    (tmp_path / "m.onnx").write_bytes(b"x")
    return tmp_path / "m.onnx"


def test_the_truth_of_a_trace_is_that_of_its_quiet_turns() -> None:
    """3 % less, although turns that waited took twice as long."""
    document = trace()
    assert verdicts.pool(document, ("a", "copy")).truth == pytest.approx(1, abs=0.006)
    assert verdicts.pool(document, ("smaller", "a")).truth == pytest.approx(1 / 0.97, abs=0.006)
    assert verdicts.pool(document, ("a", "copy"), 1.2).truth == pytest.approx(1.2, abs=0.007)


def test_copies_are_not_called_different_and_three_percent_is_found_in_its_time(file: Path) -> None:
    """Ten runs of each on the played machine, within 120 of its seconds."""
    document = trace()
    equal, slower = verdicts.pool(document, ("a", "copy")), verdicts.pool(document, ("smaller", "a"))
    found: dict[str, list[str]] = {"equal": [], "slower": []}
    for seed in range(10):
        for name, played in (("equal", equal), ("slower", slower)):
            sides = verdicts.play(file, played, seed, 120.0)
            assert summary.span_s(*sides) <= 120
            found[name].append(summary.compare(*sides).verdict)
    assert set(found["equal"]) <= {"equal", "undecided"}
    assert found["slower"].count("slower") >= 9


def test_a_gate_fails_what_is_ten_percent_slower_and_passes_a_copy(file: Path) -> None:
    """With a limit of 5 %, in at least nine of ten runs each."""
    document = trace()
    assert verdicts.gated(file, verdicts.pool(document, ("a", "copy")), 10).get("pass", 0) >= 9
    assert verdicts.gated(file, verdicts.pool(document, ("a", "copy"), 1.1), 10).get("fail", 0) >= 9

"""`resdeploy bench` where a backend fails: its row says so, the others finish, the exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from resdeploy.measure import interleaved
from tests.cli.conftest import Run

PROFILE = """
name = "faulty"
model = "{model}"
data = "digits"
precisions = ["fp32"]
backends = ["null", "onnxruntime"]
duration_s = 0.2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A graph that averages over positions: it opens at once in every backend."""
    mean = onnx.helper.make_node("GlobalAveragePool", ["x"], ["m"], name="pool")
    flat = onnx.helper.make_node("Flatten", ["m"], ["y"], name="flatten")
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3, 8, 8)), ("y", (1, 3)))]
    graph = onnx.helper.make_graph([mean, flat], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.mark.acceptance
def test_a_bench_that_waits_for_a_quiet_machine_says_how_that_went(resdeploy: Run, small: Path) -> None:
    """The first note; what kind of machine the test meets is left open."""
    backend = ("--backend", "null", "--duration", "0.1", "--format", "json")
    done = resdeploy("bench", small, *backend, "--wait-quiet", 1)
    assert done.returncode == 0, done.stderr
    note = json.loads(done.stdout)["notes"][0]
    assert note.startswith(("waited ", "the machine never got quiet in the 1.")), note
    assert resdeploy("bench", small, *backend, "--wait-quiet", 0.5).returncode == 2  # no second fits in


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("kill", 7, "SIGKILL"),
        ("crash", 7, "SIGSEGV"),
        ("hang", 7, "did not answer within 30 s"),
        ("oom", 6, "memory"),
    ],
)
def test_a_backend_that_fails_is_a_row_and_the_other_is_measured(
    resdeploy: Run, small: Path, fault: str, status: int, words: str
) -> None:
    """The null backend fails at its first query; ONNX Runtime's row in the same run has its blocks and times."""
    backends = ("--backend", "null,onnxruntime", "--timeout", "30", "--duration", "0.2", "--format", "json")
    done = resdeploy("bench", small, *backends, RESDEPLOY_NULL_FAULT=fault)
    assert done.returncode == status, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)["results"]}
    assert words in rows["null"]["error"]["message"]
    assert not rows["null"].get("samples_ms")
    assert len(rows["onnxruntime"]["block_sizes"]) >= interleaved.TURNS
    assert min(rows["onnxruntime"]["samples_ms"]) > 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_two_copies_of_one_file_execute_the_same_kernels(resdeploy: Run, digits_onnx: Path, backend: str) -> None:
    """The comparison says so in the JSON, and in a note in words."""
    copy = digits_onnx.with_name("copy.onnx")
    copy.write_bytes(digits_onnx.read_bytes())
    short = ("--backend", backend, "--duration", "0.1", "--max-time", "1", "--format", "json")
    done = resdeploy("bench", digits_onnx, copy, *short)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [row["kernels"] for row in document["comparisons"]] == ["same"]
    assert [note for note in document["notes"] if "execute the same kernels on the same shapes and types" in note]


def test_a_backend_that_fails_is_a_row_of_run_too(resdeploy: Run, digits_onnx: Path, tmp_path: Path) -> None:
    """A profile of two backends, one of which dies when it is timed: the other's row is in the result, exit 7."""
    (tmp_path / "faulty.toml").write_text(PROFILE.format(model=digits_onnx))
    done = resdeploy("run", "faulty.toml", "--format", "json", RESDEPLOY_NULL_FAULT="kill")
    assert done.returncode == 7, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)["results"]}
    assert "SIGKILL" in json.dumps(rows["null"])
    assert rows["onnxruntime"]["latency_ms"]["p50"] > 0


def test_the_scope_jpeg_reads_the_files_and_needs_them(resdeploy: Run, digits_onnx: Path, tmp_path: Path) -> None:
    """It is a row of its own; without files it is refused, a broken one ends the row and is named."""
    folder = tmp_path / "images" / "class"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(3):
        pixels = noise.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    base = ("bench", digits_onnx, "--backend", "null", "--duration", "0.2", "--format", "json")
    done = resdeploy(*base, "--scope", "jpeg", "--data", folder.parent)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["results"]
    assert row["scope"] == "jpeg"
    assert resdeploy(*base, "--scope", "jpeg").returncode == 2
    (folder / "1.jpg").write_bytes(b"no picture")
    broken = resdeploy(*base, "--scope", "jpeg", "--data", folder.parent)
    assert broken.returncode != 0
    assert "1.jpg" in broken.stderr

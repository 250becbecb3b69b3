"""`resdeploy audit` as a user runs it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

DATA = Path(__file__).parents[1] / "data/inspector"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    for packed in DATA.glob("*.gz"):
        (tmp_path / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return tmp_path


@pytest.mark.parametrize(
    ("variant", "status", "verdict"), [("fp16", 0, "pass"), ("qat", 1, "fail"), ("qat-residual", 1, "fail")]
)
def test_the_exit_code_is_the_verdict(resdeploy: Run, saved: Path, variant: str, status: int, verdict: str) -> None:
    times = f"resnet18-{variant}.profile.json"
    done = resdeploy("audit", f"resnet18-{variant}.graph.json", "--times", times, "--format", "json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"]) == (status, verdict)
    assert len(document["blocks"]) == 8
    assert {"name", "fused", "precision", "executed_as"} <= document["blocks"][0].keys()
    total = sum(row.get("averageMs", 0) for row in json.loads((saved / times).read_text()))
    assert sum(layer["time_ms"] for layer in document["layers"]) == pytest.approx(total, abs=1e-4)


def test_names_without_types_are_inconclusive(resdeploy: Run, saved: Path) -> None:
    document = json.loads((saved / "resnet18-fp16.graph.json").read_text())
    document["Layers"] = [layer["Name"] for layer in document["Layers"]]
    (saved / "names.json").write_text(json.dumps(document))
    assert resdeploy("audit", "names.json", "--precision", "fp16").returncode == 3


def test_an_engine_without_layers_is_inconclusive(resdeploy: Run, tmp_path: Path) -> None:
    """Nothing was recognised, so nothing passed."""
    (tmp_path / "empty.json").write_text('{"Layers": []}')
    done = resdeploy("audit", "empty.json")
    assert done.returncode == 3, done.stdout
    assert "no convolution or residual block was recognised" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("gone.json",), 2, "there is no file gone.json"),
        (("resnet18-fp16.profile.json",), 4, "no list of Layers"),
        (("resnet18-fp16.graph.json", "--times", "resnet18-fp16.graph.json"), 4, "no profile of this engine"),
        (("resnet18-fp16.graph.json", "--precision", "int8"), 1, ""),
        (("resnet20", "--times", "resnet18-fp16.profile.json"), 2, "--times belongs to saved inspector JSON"),
    ],
)
def test_refusals(resdeploy: Run, saved: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = resdeploy("audit", *arguments)
    assert done.returncode == status
    assert words in done.stderr


@pytest.mark.parametrize(("backend", "status"), [("openvino", 0), ("onnxruntime", 1)])
def test_a_model_is_audited_where_it_runs(resdeploy: Run, digits_onnx: Path, backend: str, status: int) -> None:
    """INT8 in OpenVINO is fused whole; ONNX Runtime has no convolution that adds 8-bit tensors, and it is said."""
    done = resdeploy(
        "audit", digits_onnx, "--precision", "int8", "--calib-data", "digits", "--backend", backend, "--format", "json"
    )
    document = json.loads(done.stdout)
    assert done.returncode == status, done.stdout
    assert [block["precision"] for block in document["blocks"]] == ["int8"] * 9
    assert [block["fused"] for block in document["blocks"]] == [backend == "openvino"] * 9
    assert all(layer["time_ms"] is not None for layer in document["layers"])
    if backend == "onnxruntime":
        assert "QLinearAdd" in document["blocks"][0]["reason"]


def test_fp32_is_fused_whole_in_openvino(resdeploy: Run, digits_onnx: Path) -> None:
    done = resdeploy("audit", digits_onnx, "--backend", "openvino")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: PASS" in done.stdout


def test_what_onnxruntime_leaves_apart_is_named(resdeploy: Run, digits_onnx: Path) -> None:
    """Its sums stay fused up to the first padded shortcut, whose Pad breaks its blocked layout."""
    done = resdeploy("audit", digits_onnx, "--backend", "onnxruntime", "--format", "json")
    blocks = json.loads(done.stdout)["blocks"]
    assert [block["fused"] is not None for block in blocks] == [True] * 9
    assert done.returncode == (0 if all(block["fused"] for block in blocks) else 1)
    assert all(block["reason"] for block in blocks if not block["fused"])

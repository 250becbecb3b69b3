"""`resdeploy cost` and `models`: roofs and charts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from resdeploy.cli import app
from resdeploy.graph import peak

SHAPE = (16, 8, 2, 3)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "chain.onnx"
    onnx.save(peak.chain(*SHAPE), path)
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["cost", *arguments])


def test_the_roofs_of_a_gpu_bound_a_network_and_are_drawn(model: str, tmp_path: Path) -> None:
    """The time allowed is the sum over layers; FLOPs over the T4's 65 TFLOP/s are its floor."""
    chart = tmp_path / "roofs.svg"
    done = run(
        model, "--roofline", "t4", "--precision", "fp16", "--per-layer", "--chart", str(chart), "--format", "json"
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    (row,) = document["rooflines"]
    layers = document["roofline_layers"]
    assert row["allowed_ms"] == pytest.approx(sum(layer["allowed_ms"] for layer in layers))
    assert row["allowed_ms"] >= 2e3 * peak.macs(*SHAPE) / 65e12
    assert row["p50_ms"] is None
    bf16 = next(roof for roof in document["roofs"] if roof["of"] == "arithmetic in bf16")
    assert "rate" not in bf16
    assert "no BF16" in bf16["missing"]
    ET.fromstring(chart.read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--roofline", "t4", "--precision", "bf16"), "no BF16"),
        (("--roofline", "v100"), "no roofs are known"),
        (("--roofline", "t4", "--measure"), "says nothing of"),
        (("--precision", "fp16"), "belongs to --roofline"),
        (("--roofline", "t4", "--precision", "int4"), "int4"),
    ],
)
def test_what_has_no_roof_is_refused_with_the_reason(model: str, arguments: tuple[str, ...], words: str) -> None:
    """Never a number that nobody has measured or printed."""
    done = run(model, *arguments)
    assert done.exit_code != 0
    assert words in f"{done.output}{done.exception}"


def test_published_accuracies_are_drawn_over_macs(tmp_path: Path) -> None:
    """Every network of a family with a figure is a dot; a paper's ten crops are a ring."""
    chart = tmp_path / "accuracy.svg"
    done = CliRunner().invoke(app, ["models", "vgg", "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    root = ET.fromstring(chart.read_text())
    dots = [dot for dot in root.iter() if dot.tag.endswith("circle")]
    assert len(dots) == 8
    assert all(dot.attrib["fill"] != "none" for dot in dots)

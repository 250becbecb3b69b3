"""`resdeploy cost` and `models`: roofs and charts."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from resdeploy import store
from resdeploy.cli import app
from resdeploy.cost import peak_graphs
from resdeploy.records import Artifact
from resdeploy.report.chart import RIGHT, WIDTH
from tests.shortly import time_shortly

SHAPE = (16, 8, 2, 3)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "chain.onnx"
    onnx.save(peak_graphs.chain(*SHAPE), path)
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, ["cost", *arguments])


def dots_of(root: ET.Element) -> list[ET.Element]:
    """Those of the plot, without the marks beside names."""
    dots = (dot for dot in root.iter() if dot.tag.endswith("circle"))
    return [dot for dot in dots if float(dot.attrib["cx"]) < WIDTH - RIGHT]


def test_the_roofs_of_a_gpu_bound_a_network_and_are_drawn(model: str, tmp_path: Path) -> None:
    """The time allowed is the sum over layers; FLOPs over the T4's 65 TFLOP/s are its floor."""
    chart = tmp_path / "roofs.svg"
    done = run(
        model, "--roofline", "t4", "--precision", "fp16", "--per-layer", "--chart", str(chart), "--format", "json"
    )
    assert done.exit_code == 0, done.output
    assert f"wrote {chart}" in done.stderr
    document = json.loads(done.stdout)
    (row,) = document["rooflines"]
    layers = document["roofline_layers"]
    assert row["allowed_ms"] == pytest.approx(sum(layer["allowed_ms"] for layer in layers))
    assert row["allowed_ms"] >= 2e3 * peak_graphs.macs(*SHAPE) / 65e12
    assert row["p50_ms"] is None
    assert any("unverified" in note for note in document["notes"])
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
        (("--roofline", "machine", "--against", "basic", "--measure"), "in two commands"),
        (("--precision", "fp16"), "belongs to --roofline"),
        (("--roofline", "t4", "--precision", "int4"), "int4"),
    ],
)
def test_what_has_no_roof_is_refused_with_the_reason(model: str, arguments: tuple[str, ...], words: str) -> None:
    """Never a number that nobody has measured or printed."""
    done = run(model, *arguments)
    assert done.exit_code == 2 or done.exception.exit_status == 2
    assert words in f"{done.output}{done.exception}{getattr(done.exception, 'fix', '')}"


def test_a_command_that_fails_leaves_no_chart(model: str, tmp_path: Path) -> None:
    """The chart is of the whole report: the roofs alone would have given one."""
    chart = tmp_path / "roofs.svg"
    done = run(model, "--roofline", "t4", "--against", "naive", "--chart", str(chart))
    assert "no 1x1 convolutions" in str(done.exception)
    assert not chart.exists()


def test_published_accuracies_are_drawn_over_macs(tmp_path: Path) -> None:
    """Every network of a family with a figure is a dot; a paper's ten crops are a ring."""
    chart = tmp_path / "accuracy.svg"
    done = CliRunner().invoke(app, ["models", "vgg", "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    assert f"wrote {chart}" in done.stderr
    root = ET.fromstring(chart.read_text())
    dots = dots_of(root)
    assert len(dots) == 8
    assert all(dot.attrib["fill"] != "none" for dot in dots)


def test_accuracies_of_larger_images_are_not_drawn_over_the_macs_of_smaller_ones(tmp_path: Path) -> None:
    """ResNet-152's own figure, at 224 pixels, is a dot; pre-activation's, at 320, is none. v1's is of one crop."""
    chart = tmp_path / "accuracy.svg"
    done = CliRunner().invoke(app, ["models", "resnet152", "--chart", str(chart)])
    assert done.exit_code == 0, done.output
    root = ET.fromstring(chart.read_text())
    dots = dots_of(root)
    assert [dot.attrib["fill"] == "none" for dot in dots] == [False, False]
    text = " ".join("".join(part.itertext()) for part in root.iter())
    assert "resnet152_v1" in text
    assert "preresnet152" not in text


def test_bottlenecks_are_timed_beside_their_basic_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--against basic --measure`: the counts, then both networks in one run, compared with the bottlenecks."""
    torch = pytest.importorskip("torch")
    from resdeploy.deploy import export
    from resdeploy.graph import files
    from resdeploy.graph.canonical import form
    from resdeploy.models import resnet, zoo
    from tests.graph import symbolic

    def small(request, out=None, **_: object) -> Artifact:
        """The network with one block a stage, instead of an export of minutes."""
        spec, path = zoo.spec(request.model), tmp_path / f"{request.model}.onnx"
        with torch.device("meta"):
            net = resnet.ResNet(dataclasses.replace(resnet.VARIANTS[request.model], depths=(1, 1, 1)), 10).eval()
        files.save_model(form.canonicalise(symbolic.graph(net, spec.input_shape, values=True)), path)
        return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=spec)

    monkeypatch.setattr(export, "to_onnx", small)
    monkeypatch.setattr(zoo, "COUNTERFACTUALS", {"resnet164": ("resnet20_b",)})
    time_shortly(monkeypatch.setattr, blocks=8)
    options = ("--against", "basic", "--measure", "--backend", "null", "--duration", "0.1", "--format", "json")
    done = run("resnet164", *options)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    timed = {row["model"]: row for row in document["measured"]}
    assert set(timed) == {"resnet164", "resnet20_b"}
    assert all(row["latency_ms"]["p50"] > 0 and row["backend"] == "null" for row in timed.values())
    (ratio,) = document["comparisons"]
    assert (ratio["baseline"].split()[0], ratio["candidate"].split()[0]) == ("resnet164", "resnet20_b")
    assert ratio["speedup"] > 0
    whole = [row for row in document["against_quarter_width"] if row["scope"] == "network"]
    assert [row["macs"] for row in whole] == [document["results"][0]["macs"]]


def saved_bench(path: Path, rows: dict[str, float], *, invalid: tuple[str, ...] = (), precision: str = "fp32") -> Path:
    """What `bench --format json -o` leaves: a row per network, so many ms in each of 16 blocks."""
    results = [
        {
            "label": name, "model": name, "backend": "openvino", "precision": precision, "batch_size": 1,
            "scenario": "single-stream", "valid": name not in invalid, "samples_ms": [ms] * 48, "block_sizes": [3] * 16,
        }
        for name, ms in rows.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"schema_version": 1, "command": "bench", "environment": {}, "results": results}))
    return path


def test_accuracies_are_drawn_over_the_latencies_of_a_saved_bench(tmp_path: Path) -> None:
    """Each network of the bench and no other, at its time; a network without a published accuracy is left out."""
    bench = saved_bench(tmp_path / "b.json", {"resnet18": 10.0, "resnet50": 20.0, "mine": 5.0})
    chart = tmp_path / "c.svg"
    done = CliRunner().invoke(app, ["models", "--chart", str(chart), "--latencies", str(bench)])
    assert done.exit_code == 0, done.output
    drawn = chart.read_text()
    assert "median ms per image, openvino fp32 batch 1" in drawn
    assert "resnet18" in drawn
    assert "resnet50" in drawn
    assert "mine" not in drawn
    assert "vgg16" not in drawn


def test_unreliable_latencies_are_not_drawn(tmp_path: Path) -> None:
    """Exit 2, the row named, no chart."""
    bench = saved_bench(tmp_path / "b.json", {"resnet18": 10.0, "resnet50": 20.0}, invalid=("resnet50",))
    chart = tmp_path / "c.svg"
    done = CliRunner().invoke(app, ["models", "--chart", str(chart), "--latencies", str(bench)])
    assert done.exit_code != 0
    assert "resnet50" in str(done.exception)
    assert not chart.exists()

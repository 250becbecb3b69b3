"""`resdeploy quantize`: reports, the search within a budget, and every bad input with its exit status."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from resdeploy import store
from resdeploy.cli import app
from resdeploy.deploy import calibration, export, lower
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.errors import OutputLost, ResdeployError, UsageError
from resdeploy.quantize import fidelity
from resdeploy.records import Artifact, Precision
from resdeploy.report import mixed, render
from resdeploy.verbs import precision_ladder, quantize
from tests.cli.conftest import Run
from tests.cli.test_bad_input import files_in, refused
from tests.shortly import time_shortly


@pytest.mark.acceptance
def test_a_search_within_a_budget_that_the_images_can_show_writes_the_fastest(
    tmp_path: Path, digits_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model chosen is shown to be within the budget, is the fastest measured, and says how it was chosen."""
    monkeypatch.setattr(precision_ladder, "SHARES", (1 / 4,))
    time_shortly(monkeypatch.setattr, blocks=2)
    source = export.to_onnx(Request(model=str(digits_onnx)), progress=lambda *_: None)
    plan = calibration.CalibrationPlan(data="digits", samples=64)
    wanted = quantize.QuantizeGoal(max_drop_pp=5.0, data="digits", duration_s=0.1)
    out = tmp_path / "m.onnx"
    done = quantize.quantize(source, "int8", "openvino", plan, out, wanted, progress=lambda *_: None)
    assert done.is_within_budget is True
    document = mixed.search("digits", done.candidates, done.layers, {})
    json.loads(render.render(document, "json"))
    assert [row["label"] for row in document["results"]][::2] == ["fp16", "int8"]
    (chosen,) = [row for row in document["results"] if row["chosen"]]
    assert chosen["state"] == "pass"
    assert chosen["check"]["interval"][1] <= 5
    timed = [row["timing"]["latency_ms"]["p50"] for row in document["results"] if row["timing"]]
    assert chosen["timing"]["latency_ms"]["p50"] == min(timed)
    assert {row["kind"] for row in document["layers"]} == {"Conv", "Gemm", "block"}
    record = store.load(out)
    assert record is not None
    assert any("chosen by search" in note for note in record.notes)
    assert record.checks["drop_at_most_pp"] == pytest.approx(chosen["check"]["interval"][1])
    assert set(files_in(tmp_path)) == {Path("m.onnx"), Path("m.onnx.json")}


def test_a_budget_that_the_images_cannot_show_is_exit_1_and_the_best_is_kept(
    resdeploy: Run, tmp_path: Path, digits_onnx: Path
) -> None:
    """360 images cannot show a drop below 0.1 points even where nothing changed: said, saved, not timed."""
    args = ["--calib-data", "digits", "--calib-samples", 20, "--data", "digits", "--max-drop", 0.1]
    done = resdeploy("quantize", digits_onnx, *args, "-o", "m.onnx")
    assert done.returncode == 1, done.stderr
    assert "inconclusive" in done.stdout
    assert "images would decide" in done.stdout
    assert files_in(tmp_path) == {Path("m.onnx"), Path("m.onnx.json")}


def test_judging_on_the_calibration_images_is_refused(digits_onnx: Path, tmp_path: Path) -> None:
    """A folder without splits is the same images twice."""
    images = tmp_path / "images"
    for label in range(10):
        (images / str(label)).mkdir(parents=True)
        pixels = np.random.default_rng(label).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(images / str(label) / "0.png")
    source = export.to_onnx(Request(model=str(digits_onnx)), progress=lambda *_: None)
    plan = calibration.CalibrationPlan(data=str(images))
    wanted = quantize.QuantizeGoal(max_drop_pp=1.0, data=str(images))
    with pytest.raises(ResdeployError, match="also used to calibrate"):
        quantize.quantize(source, "int8", "openvino", plan, tmp_path / "x.onnx", wanted, progress=lambda *_: None)
    assert not list(tmp_path.glob("x.onnx*"))


@pytest.mark.parametrize(
    ("wanted", "precision", "plan", "word"),
    [
        (quantize.QuantizeGoal(max_drop_pp=1.0), "int8", calibration.CalibrationPlan(), "--data"),
        (quantize.QuantizeGoal(data="digits"), "int8", calibration.CalibrationPlan(), "--max-drop"),
        (quantize.QuantizeGoal(sensitivity=True), "fp16", calibration.CalibrationPlan(), "INT8"),
        (quantize.QuantizeGoal(), "fp16", calibration.CalibrationPlan(data="digits", method="mse"), "--calib-method"),
        (quantize.QuantizeGoal(), "bf16", calibration.CalibrationPlan(effort="high"), "--effort"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(
    wanted: quantize.QuantizeGoal, precision: Precision, plan: calibration.CalibrationPlan, word: str
) -> None:
    """Before any work, exit 2."""
    with pytest.raises(ResdeployError) as caught:
        wanted.refuse_nonsense(precision, plan)
    assert word in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_search_for_what_runs_elsewhere_is_refused_before_any_work(tmp_path: Path) -> None:
    """Exit 2, nothing calibrated or written, and the next command judges the file where it runs."""
    source = Artifact(path="never_read.onnx", format="onnx", precision="fp32", sha256="0" * 64)
    wanted = quantize.QuantizeGoal(max_drop_pp=0.3, data="digits")
    out, plan = tmp_path / "x.onnx", calibration.CalibrationPlan(data="digits")
    with pytest.raises(UsageError, match="TensorRT-RTX builds here but runs on RTX GPUs alone") as caught:
        quantize.quantize(source, "int8", "tensorrt-rtx", plan, out, wanted, progress=lambda *_: None)
    assert caught.value.exit_status == 2
    assert "resdeploy gate --baseline F.onnx --candidate F.int8.onnx --backend onnxruntime" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_int8_for_tensorrt_rtx_is_written_with_the_advice_that_fp16_may_be_better() -> None:
    """Said of INT8 for that compiler alone, with the command that counts this file's own kernels."""
    made = Artifact(path="f.onnx", format="onnx", precision="int8", sha256="0" * 64, target="tensorrt-rtx")
    advice = quantize.Quantized(artifact=made).advice
    assert advice.startswith("INT8 may gain nothing on TensorRT-RTX")
    assert "in FP16" in advice
    assert "resdeploy audit f.onnx --backend tensorrt-rtx" in advice
    for other in (dataclasses.replace(made, target="tensorrt"), dataclasses.replace(made, precision="fp16")):
        assert quantize.Quantized(artifact=other).advice == ""


def saved(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], opset: int = 17) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("logits", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def classifier(path: Path, weight: np.ndarray, opset: int = 17) -> Path:
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    return saved(path, nodes, {"w": weight}, opset)


WEIGHT = np.random.default_rng(0).standard_normal((10, 3, 3, 3)).astype(np.float32)
SEEN = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--resize", 16]


def no_convolution(path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    saved(path, nodes, {})


def not_finite(path: Path) -> None:
    weight = WEIGHT.copy()
    weight[0, 0, 0, 0] = np.nan
    classifier(path, weight)


def overflowing(path: Path) -> None:
    classifier(path, np.full_like(WEIGHT, 3e38))


def outside(path: Path) -> None:
    model = onnx.load(classifier(path, WEIGHT))
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, path)
    for tensor in model.graph.initializer:
        entry = next(e for e in tensor.external_data if e.key == "location")
        entry.value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    path.with_name("w.bin").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("make_bad", "status", "words"),
    [
        (no_convolution, 2, ["nothing to quantize"]),
        (not_finite, 4, ["'w'", "NaN"]),
        (overflowing, 4, ["activation", "not finite"]),
        (outside, 4, ["E-EXTDATA"]),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_left(
    resdeploy: Run, tmp_path: Path, make_bad: object, status: int, words: list[str]
) -> None:
    """No convolution, weights or activations that are not finite (named), external data outside its folder."""
    make_bad(tmp_path / "bad.onnx")  # type: ignore[operator]
    before = files_in(tmp_path)
    done = resdeploy("quantize", "bad.onnx", "--calib-data", "digits", "--calib-samples", 8, *SEEN, "-o", "x.onnx")
    refused(done, status, *words)
    assert files_in(tmp_path) == before


def test_an_old_opset_is_brought_up_and_one_image_is_told(resdeploy: Run, tmp_path: Path) -> None:
    """Opset 11 cannot hold per-channel scales; the INT8 file is at 17, made from a single image and saying so."""
    classifier(tmp_path / "old.onnx", WEIGHT, opset=11)
    done = resdeploy("quantize", "old.onnx", "--calib-data", "digits", "--calib-samples", 1, *SEEN, "-o", "x.onnx")
    assert done.returncode == 0, done.stderr
    assert "a single image" in done.stderr
    assert onnx.load(tmp_path / "x.onnx").opset_import[0].version == 17
    refused(resdeploy("quantize", "x.onnx", "--calib-data", "digits", "-o", "y.onnx"), 2, "already")
    assert not (tmp_path / "y.onnx").exists()


def test_no_images_are_refused(resdeploy: Run, tmp_path: Path) -> None:
    """An empty folder exits 2 and is named."""
    classifier(tmp_path / "a.onnx", WEIGHT)
    (tmp_path / "none").mkdir()
    refused(resdeploy("quantize", "a.onnx", "--calib-data", "none", *SEEN, "-o", "x.onnx"), 2, "none")
    assert files_in(tmp_path) == {Path("a.onnx"), Path("none")}


def lost(path: Path) -> None:
    """A border of -FLT_MAX before max pooling with holes: no range of 256 steps holds it and the values inside."""
    weights = {
        "w": WEIGHT / 5,
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
        "filler": np.array(np.finfo(np.float32).min),
        "w2": np.random.default_rng(1).standard_normal((10, 10, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], "conv"),
        helper.make_node("Pad", ["c", "pads", "filler"], ["b"], "pad"),
        helper.make_node("MaxPool", ["b"], ["m"], "pool", kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["m", "w2"], ["c2"], "conv2"),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "average"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    saved(path, nodes, weights)


def test_a_file_whose_output_is_lost_is_exit_1_and_force_writes_it(
    resdeploy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is named, what was at -o stays, the cache gives nothing out; --force writes it and the record tells."""
    lost(tmp_path / "a.onnx")
    (tmp_path / "x.onnx").write_bytes(b"before")
    before = files_in(tmp_path)
    arguments = ["quantize", "a.onnx", "--calib-data", "digits", "--calib-samples", 8, *SEEN, "-o", "x.onnx"]
    refused(resdeploy(*arguments), 1, "E-OUTPUT-LOST", "pool (MaxPool)", "256 steps", "--force")
    assert files_in(tmp_path) == before
    assert (tmp_path / "x.onnx").read_bytes() == b"before"
    source = export.to_onnx(
        Request(
            model=str(tmp_path / "a.onnx"), override=PreprocessingOverride(mean=(0.5,) * 3, std=(0.5,) * 3, resize=16)
        ),
        progress=lambda *_: None,
    )
    plan = calibration.CalibrationPlan(data="digits", samples=8)
    for _ in ("made", "found in the cache"):
        with pytest.raises(OutputLost):
            lower.lower(source, "int8", "openvino", plan, progress=lambda *_: None)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*map(str, arguments), "--force"])
    assert done.exit_code == 0, done.stderr
    assert "nothing to do with its source's" in done.stderr
    assert "dB of signal to noise" in done.stderr
    record = store.load(tmp_path / "x.onnx")
    assert record is not None
    assert record.checks["snr_db"] < 3
    assert any("pool (MaxPool)" in note for note in record.notes)


def test_an_fp16_file_that_overflows_is_refused_and_images_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--calib-data is for FP16 too; a foreign file that does not say how it sees images is compared on noise."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], "loud"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["c2"], "quiet"),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    quiet = np.random.default_rng(1).standard_normal((10, 10, 1, 1)).astype(np.float32) / 1e4
    saved(tmp_path / "a.onnx", nodes, {"w": WEIGHT * 1.5e4, "w2": quiet})
    monkeypatch.chdir(tmp_path)
    arguments = ["quantize", "a.onnx", "--precision", "fp16", "-o", "x.onnx"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, OutputLost)
    assert "it breaks at loud (Conv)" in str(done.exception)
    assert "--calib-data" in str(done.exception)
    assert files_in(tmp_path) == {Path("a.onnx")}
    done = CliRunner().invoke(app, [*arguments, "--calib-data", "digits", "--calib-samples", "8", *map(str, SEEN)])
    assert done.exit_code == 0, done.stderr
    assert "kept in FP32, their values overflow: loud" in done.stderr
    record = store.load(tmp_path / "x.onnx")
    assert record is not None
    assert record.checks["snr_db"] > 40


@pytest.mark.acceptance
def test_a_search_does_not_write_a_lost_candidate(
    tmp_path: Path, digits_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that is lost only loses; where the best one is, nothing is written."""
    monkeypatch.setattr(precision_ladder, "SHARES", (1 / 4,))
    monkeypatch.setattr(fidelity, "LOST_DB", fidelity.LIMIT_DB + 1)  # whatever the output
    source = export.to_onnx(Request(model=str(digits_onnx)), progress=lambda *_: None)
    plan = calibration.CalibrationPlan(data="digits", samples=20)
    wanted = quantize.QuantizeGoal(max_drop_pp=0.1, data="digits")
    with pytest.raises(OutputLost, match="FP16"):
        quantize.quantize(source, "int8", "openvino", plan, tmp_path / "x.onnx", wanted, progress=lambda *_: None)
    assert not files_in(tmp_path)

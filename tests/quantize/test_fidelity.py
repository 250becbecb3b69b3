"""A file whose output has nothing to do with its source's is found before it is written, with the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.errors import OutputLost
from resdeploy.graph import cast, files
from resdeploy.graph.canonical import form
from resdeploy.quantize import fidelity, overflow, ptq
from resdeploy.records import Artifact, Likeness, Target, Weights
from tests.quantize.test_overflow import logits, loud
from tests.quantize.test_ptq import calibration, here
from tests.quantize.test_sensitivity import network
from tests.sessions import session

Images = NDArray[np.float32]
TARGETS = get_args(Target)
PADDED = float(np.finfo(np.float32).min)


def padded(filler: float) -> onnx.ModelProto:
    """Max pooling behind a border: one of -FLT_MAX is no value. Its windows have holes, so the border stays a Pad."""
    random, node = np.random.default_rng(5), helper.make_node
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 1, 1), "w2": (10, 16)}
    weights = {name: (random.standard_normal(shape) / 5).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "filler": np.array(filler, np.float32)}
    nodes = [
        node("Conv", ["input", "w0", "b0"], ["c0"], "conv0", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"], "relu0"),
        node("Pad", ["r0", "pads", "filler"], ["border"], "pad"),
        node("MaxPool", ["border"], ["pooled"], "pool", kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 2]),
        node("Conv", ["pooled", "w1"], ["c1"], "conv1"),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("GlobalAveragePool", ["r1"], ["p"], "avgpool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w2"], ["logits"], "fc", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [value("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def source_of(model: onnx.ModelProto, path: Path, weights: Weights | None = None) -> Artifact:
    onnx.save(model, path)
    return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), weights=weights)


@pytest.fixture
def images() -> Images:
    """With a mean of their own each, so that the logits differ."""
    random = np.random.default_rng(1)
    return (random.standard_normal((11, 3, 12, 12)) + random.standard_normal((11, 3, 1, 1))).astype(np.float32)


def as_written(model: onnx.ModelProto, images: Images) -> NDArray[np.float64]:
    """ONNX Runtime without its optimisations: every Q/DQ node as it stands, no kernel that may saturate."""
    opened = session(model, exactly=True)
    return np.asarray(opened.run(None, {"input": images})[0], np.float64)


def ratio_db(reference: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    r, g = reference - reference.mean(0), found - found.mean(0)
    return float(10 * np.log10((r**2).sum() / ((r - g) ** 2).sum()))


@pytest.mark.parametrize("batch", ["batch", 4])
@pytest.mark.parametrize("target", TARGETS)
def test_the_record_holds_the_ratio_that_the_file_has_in_onnx_runtime(
    images: Images, tmp_path: Path, target: Target, batch: int | str
) -> None:
    """Of signal to noise of the logits on the calibration images, of a fixed batch size too."""
    source = source_of(network(batch), tmp_path / "fp32.onnx")
    out = tmp_path / "int8.onnx"
    made = ptq.quantize(source, [images[:8]], calibration=calibration(8), target=target, out=out, run=here)
    halves = [images[:4], images[4:8]]
    exact, found = (
        np.concatenate([as_written(files.load_model(path), half) for half in halves])
        for path in (Path(source.path), out)
    )
    # ONNX Runtime's CPU kernels keep in FP32 what that target's file rounds to FP16.
    tolerance = 0.4 if target == "tensorrt-rtx" else 0.1
    assert made.checks["snr_db"] == pytest.approx(ratio_db(exact, found), abs=tolerance)
    assert made.checks["snr_db"] > 15


@pytest.mark.parametrize(("precision", "apart_db"), [("fp16", 1.0), ("bf16", 6.0)])
def test_half_precisions_are_compared_as_onnx_defines_them(images: Images, precision: str, apart_db: float) -> None:
    """Every value is rounded to its type, which no CPU without such arithmetic does by itself.

    ONNX's reference rounds what it sums too, which runtimes do not: with BF16's 8 bits that tells.
    """
    model = form.canonicalise(network())
    half = cast.to_half(model, precision)  # type: ignore[arg-type]
    found = fidelity.compare(model, half, list(images), run=here).snr_db
    expected = ratio_db(as_written(model, images), np.asarray(logits(half, images), np.float64))
    assert found == pytest.approx(expected, abs=apart_db)
    assert found is not None
    assert found > 30


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_output_lost_in_one_range_is_refused_with_the_layer_and_the_range(
    images: Images, tmp_path: Path, target: Target
) -> None:
    """Nothing is written, and a file that was there stays; with a border of 0 the same network is a good one."""
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"before")
    source = source_of(padded(PADDED), tmp_path / "fp32.onnx")
    with pytest.raises(OutputLost, match=r"0\.0 dB.* 11 images; it breaks at pool \(MaxPool\)") as caught:
        ptq.quantize(source, [images], calibration=calibration(11), target=target, out=out, run=here)
    assert caught.value.exit_status == 1
    assert "256 steps from -3.4e+38" in caught.value.what
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32.onnx", "int8.onnx"]
    source = source_of(padded(0.0), tmp_path / "fp32.onnx")
    made = ptq.quantize(source, [images], calibration=calibration(11), target=target, out=out, run=here)
    assert made.checks["snr_db"] > 15
    assert not any("its output" in note for note in made.notes)


def test_force_random_weights_and_synthetic_images_write_it_and_say_so(images: Images, tmp_path: Path) -> None:
    """Files that are good for timing only are warned of; the record holds the figure and the layer."""
    trained = source_of(padded(PADDED), tmp_path / "fp32.onnx")
    random = dataclasses.replace(trained, weights=Weights(source="random", seed=0))
    synthetic = dataclasses.replace(calibration(11), data="synthetic")
    for source, how, force in (
        (trained, calibration(11), True),
        (random, calibration(11), False),
        (trained, synthetic, False),
    ):
        out = tmp_path / "int8.onnx"
        options = ptq.FileOptions(force=force)
        made = ptq.quantize(source, [images], options, calibration=how, target="openvino", out=out, run=here)
        assert made.checks["snr_db"] < 1
        assert any(note.startswith(fidelity.LOST) and "pool (MaxPool)" in note for note in made.notes)
        assert made.sha256 == store.digest(out)
        out.unlink()


def test_what_fp16_cannot_hold_is_lost_and_right_where_it_is_kept(images: Images) -> None:
    """The layer is the first that overflows; ONNX Runtime on a CPU would compute the file in FP32 and see nothing."""
    model = loud(3e4)
    broken = fidelity.compare(model, cast.to_half(model, "fp16"), list(images), run=here)
    assert broken.snr_db == -fidelity.LIMIT_DB
    assert "not finite" in fidelity.notes(broken)[0]
    assert "it breaks at one." in fidelity.notes(broken)[0]
    record = Artifact(path="a.onnx", format="onnx", precision="fp16", sha256="", likeness=broken)  # and no note
    with pytest.raises(OutputLost, match=r"not finite.*it breaks at one\..*--calib-data"):
        fidelity.refuse_lost(record)
    kept = overflow.find_overflowing(model, [images], run=here)
    mended = fidelity.compare(model, cast.to_half(model, "fp16", keep=kept), list(images), run=here)
    assert mended.snr_db is not None
    assert mended.snr_db > 40


def values(*rows: Sequence[float]) -> NDArray[np.float64]:
    return np.array(rows, np.float64)


@pytest.mark.parametrize(
    ("reference", "found", "expected"),
    [
        (values([1, 2], [3, 1]), values([1, 2], [3, 1]), fidelity.LIMIT_DB),  # identical
        (values([1, 2], [3, 1]), values([11, 12], [13, 11]), fidelity.LIMIT_DB),  # a constant apart: no image differs
        (values([1, -1], [-1, 1]), values([0, 0], [0, 0]), 0.0),  # gone
        (values([1, -1], [-1, 1]), values([np.nan, 0], [0, 0]), -fidelity.LIMIT_DB),
        (values([3, 4]), values([3, 4.5]), None),  # one image
        (values([3, 4], [3, 4], [3, 4]), values([3, 4.5], [3, 4.5], [3, 4.5]), None),  # all alike
        (values([3, 4], [3, 4 + 1e-3]), values([3, 4.5], [3, 4.5]), None),  # or nearly
        (
            values([50, -50], [50, -50], [-50, 50]),
            values([49, -49], [51, -51], [-50, 50]),
            35.2,
        ),  # 2 classes, sure of all
        (values([0, 0], [0, 0]), values([1, 2], [3, 4]), None),  # a dead source
        (values([np.inf, 0], [0, 1]), values([1, 2], [3, 4]), None),
    ],
)
def test_signal_to_noise_of_images_that_tell_and_of_those_that_do_not(
    reference: NDArray[np.float64], found: NDArray[np.float64], expected: float | None
) -> None:
    """About the mean over images, of identical or constant outputs, and bounded, since records are JSON."""
    assert fidelity.snr_db(reference, found) == (None if expected is None else pytest.approx(expected, abs=0.1))


@pytest.mark.parametrize(("snr_db", "words"), [(2.9, fidelity.LOST), (3.1, "differs much"), (9.9, "differs much")])
def test_a_poor_file_is_noted(snr_db: float, words: str) -> None:
    """Below 10 dB a note, below 3 dB an error's words; above neither."""
    (note,) = fidelity.notes(Likeness(snr_db=snr_db, images=8))
    assert words in note
    assert f"{snr_db} dB" in note
    assert not fidelity.notes(Likeness(snr_db=10.1, images=8))


def test_the_images_compared_are_a_batch_whatever_their_size() -> None:
    """Two at least, 64 at most."""
    assert [fidelity.images_to_compare(3 * size * size) for size in (8, 32, 224, 1024)] == [64, 64, 8, 2]

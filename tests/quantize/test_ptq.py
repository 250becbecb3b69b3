"""Calibration and the post-training quantization driver, on real files in real runtimes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.backends import machine
from resdeploy.errors import BackendMissing, MalformedInput, MissingInput, UsageError
from resdeploy.graph import files, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.models import weights, zoo
from resdeploy.quantize import bias, calibrate, methods, ptq
from resdeploy.records import Artifact, Calibration, Progress, Target
from resdeploy.report import sentences
from tests.sessions import session

pytest.importorskip("torch")

import torch

Images = NDArray[np.float32]


@contextlib.contextmanager
def here(model: onnx.ModelProto, image_shape: tuple[int | str, ...]) -> Iterator[Callable[[Images], Images]]:
    """In this process, which spares each test a child."""
    opened = session(model)
    batch, *shape = opened.get_inputs()[0].shape
    assert tuple(shape) == image_shape

    def predict(images: Images) -> Images:
        size = batch if isinstance(batch, int) else len(images)
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], size - len(parts[-1]), axis=0)])
        name = opened.get_inputs()[0].name
        return np.concatenate([opened.run(None, {name: part})[0] for part in parts])[: len(images)]

    yield predict


def export(module: torch.nn.Module, out: Path, size: int = 32) -> Artifact:
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"input": {0: "batch"}}
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, size, size),),
            buffer,
            dynamo=False,
            input_names=["input"],
            dynamic_axes=axes,
        )
    files.save_model(form.canonicalise(onnx.load_from_string(buffer.getvalue())), out)
    return Artifact(path=str(out), format="onnx", precision="fp32", sha256=store.digest(out))


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """With random weights."""
    return export(zoo.create(zoo.spec("resnet20")), tmp_path_factory.mktemp("resnet20") / "fp32.onnx")


@pytest.fixture
def images() -> Images:
    return np.random.default_rng(0).standard_normal((10, 3, 32, 32)).astype(np.float32)


def calibration(count: int = 10, method: str = "minmax") -> Calibration:
    return Calibration(data="noise", count=count, seed=0, method=method)


def quantize(
    source: Artifact,
    batches: list[Images],
    out: Path,
    target: Target = "openvino",
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Artifact:
    of_file = ptq.FileOptions(**options)
    return ptq.quantize(
        source, batches, of_file, calibration=calibration(), target=target, out=out, run=here, progress=progress
    )


def test_ranges_are_the_extremes_of_each_tensor_in_torch(images: Images) -> None:
    """Minimum and maximum over all images, however these are batched."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    buffer: Any = io.BytesIO()  # torch's annotation knows only files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            layers,
            (torch.zeros(1, 3, 32, 32),),
            buffer,
            dynamo=False,
            opset_version=17,
            dynamic_axes={"x": {0: "b"}},
            input_names=["x"],
        )
    model = onnx.load_from_string(buffer.getvalue())
    names = ["x", *(node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Relu"))]
    wanted = dict.fromkeys(names, np.ones(1))
    found, count = calibrate.observe(model, wanted, [images[:3], images[3:3], images[3:]], run=here)
    assert count == len(images)
    with torch.no_grad():
        at = torch.from_numpy(images)
        for name, layer in zip(names, (torch.nn.Identity(), *layers), strict=True):
            at = layer(at)
            assert found[name].extremes.lo == pytest.approx(at.min().item(), rel=1e-5, abs=1e-6)
            assert found[name].extremes.hi == pytest.approx(at.max().item(), rel=1e-5, abs=1e-6)


def test_a_lane_finds_the_same_ranges(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """What runs by default, in a child process: the same file, byte for byte."""
    local = quantize(resnet20, [images], tmp_path / "here.onnx")
    lane = ptq.quantize(resnet20, [images], calibration=calibration(), target="openvino", out=tmp_path / "lane.onnx")
    assert lane.sha256 == local.sha256


def test_ranges_seen_in_bf16_are_those_of_fp32_to_a_step_of_int8(
    resnet20: Artifact, images: Images, tmp_path: Path
) -> None:
    """2^-8 for the last rounding, and the noise of 20 layers; CPUs without BF16 refuse, and leave nothing."""
    pytest.importorskip("openvino")
    asked = dataclasses.replace(calibration(), arithmetic="bf16")
    out = tmp_path / "int8.onnx"
    if not machine.cpu().bf16:
        with pytest.raises(BackendMissing, match="BF16"):
            ptq.quantize(resnet20, [images], calibration=asked, target="openvino", out=out, run=here)
        assert not out.exists()
        return
    made = ptq.quantize(resnet20, [images], calibration=asked, target="openvino", out=out, run=here)
    assert made.calibration is not None
    assert made.calibration.arithmetic == "bf16"
    model = files.load_model(Path(resnet20.path))
    wanted = ptq.importance(model, qdq_placement.plan(model, "openvino"))
    exact, _ = calibrate.observe(model, wanted, [images], run=here)
    seen, _ = calibrate.observe(model, wanted, [images], run=calibrate.in_bf16_lane)
    for name, found in exact.items():
        span = found.extremes.hi - found.extremes.lo
        assert seen[name].extremes.lo == pytest.approx(found.extremes.lo, abs=span / 128)
        assert seen[name].extremes.hi == pytest.approx(found.extremes.hi, abs=span / 128)
    assert any(seen[name].extremes != found.extremes for name, found in exact.items())  # it was another arithmetic


def test_the_record_says_what_was_done(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """Parent, target, the number of images seen, reduced range and float layers."""
    told: list[tuple[str, int, int]] = []
    artifact = quantize(
        resnet20,
        [images[:4], images[4:9]],
        tmp_path / "int8.onnx",
        portable=True,
        keep_float=["conv1"],
        progress=lambda *report: told.append(report),
    )
    assert (artifact.precision, artifact.target, artifact.parent) == ("int8", "openvino", resnet20.sha256)
    assert artifact.calibration is not None
    assert artifact.calibration.count == 9
    assert artifact.sha256 == store.digest(tmp_path / "int8.onnx")
    assert artifact.machine is None
    assert any("conv1 is not quantized" in note for note in artifact.notes)
    assert told == [("calibrate", 4, 10), ("calibrate", 9, 10)]
    stored = files.load_model(tmp_path / "int8.onnx").graph.initializer
    integers = [numpy_helper.to_array(t) for t in stored if t.name.endswith("weight/quantized")]
    assert max(int(np.abs(values.astype(int)).max()) for values in integers) == 64


def test_the_record_names_the_method_of_every_tensor(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """What `auto` chose; and what was asked for, where that was one method. Others give other files."""
    placement = qdq_placement.plan(files.load_model(Path(resnet20.path)), "openvino")
    digests = set()
    for method in ("minmax", "percentile", "entropy", "mse", "auto"):
        asked = calibration(method=method)
        out = tmp_path / f"{method}.onnx"
        made = ptq.quantize(resnet20, [images], calibration=asked, target="openvino", out=out, run=here)
        assert made.calibration is not None
        assert set(made.calibration.methods) == set(placement.observed)
        assert set(made.calibration.methods.values()) <= ({method} if method != "auto" else set(methods.METHODS))
        digests.add(made.sha256)
    assert len(digests) >= 4


def test_samples_are_values_of_the_tensor_weighted_by_channel(images: Images, resnet20: Artifact) -> None:
    """Of a tensor smaller than the sample every element is seen; a channel's weight goes with its values."""
    model = files.load_model(Path(resnet20.path))
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    only = np.zeros(64)
    only[7] = 2.0
    found, _ = calibrate.observe(model, {pool.output[0]: only, "input": np.ones(3)}, [images], run=here)
    opened = session(_with_output(model, pool.output[0]))
    pooled = opened.run([pool.output[0]], {"input": images})[0].reshape(-1, 64)
    histogram = found[pool.output[0]].histogram
    assert histogram.total == pooled.size
    assert histogram.weights.sum() == 2 * np.count_nonzero(pooled[:, 7])
    counts = found["input"].histogram
    share = float(counts.counts[counts.centres > 1].sum() / counts.total)
    assert share == pytest.approx((images > 1).mean(), abs=0.01)


@given(
    channels=st.integers(1, 3000), height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1)
)
@example(100, 20, 1, 0)
@example(127, 8, 2, 0)
@example(512, 3, 3, 0)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_lattice_is_cut_out_of_every_channel_alike(channels: int, height: int, width: int, seed: int) -> None:
    """It lies within the map, spreads over more than half of it, and numpy cuts out the same values."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", channels, "h", "w"))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("GlobalAveragePool", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", [image], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (at,) = calibrate.choose_lattices(model, ["a"], (channels, height, width), seed)
    wanted = max(calibrate.SAMPLES // channels, calibrate.MIN_POSITIONS)
    assert min(wanted, height * width) <= at.samples // channels <= 6 * wanted
    for start, step, count, size in zip(at.starts, at.steps, at.counts, (height, width), strict=True):
        assert 0 <= start <= start + (count - 1) * step < size
        assert count * step > size / 2
    x = np.random.default_rng(seed).standard_normal((2, channels, height, width)).astype(np.float32)
    with here(calibrate.watch(model, [at]), (channels, "h", "w")) as predict:
        rows = predict(x)
    cuts = [slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(at.starts, at.steps, at.counts, strict=True)]
    a = np.maximum(x, 0)
    ends = np.stack([a.min(axis=(1, 2, 3)), a.max(axis=(1, 2, 3))], axis=1)
    np.testing.assert_array_equal(rows, np.hstack([ends, a[:, :, cuts[0], cuts[1]].reshape(2, -1)]))
    assert len(at.spread(np.arange(channels).astype(np.float64) + 1.0)) == at.samples


def _with_output(model: onnx.ModelProto, tensor: str) -> bytes:
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    wider.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    return bytes(wider.SerializeToString())


def test_a_fixed_batch_size_is_calibrated_but_not_corrected(images: Images, tmp_path: Path) -> None:
    """Its graph cannot be run on whole batches of images; the record says so."""

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).reshape(1, -1, 8).mean(2)

    buffer: Any = io.BytesIO()
    path = tmp_path / "fp32.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Fixed(), (torch.zeros(1, 3, 32, 32),), buffer, dynamo=False, opset_version=17)
    path.write_bytes(buffer.getvalue())
    source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    made = ptq.quantize(source, [images[:3]], calibration=calibration(), target="openvino", out=tmp_path / "int8.onnx")
    assert any("not corrected" in note for note in made.notes)


def test_a_file_of_full_range_is_tied_to_vnni(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """Its record says so, for whoever is about to run it; TensorRT's files have no such limit."""
    artifact = quantize(resnet20, [images], tmp_path / "int8.onnx")
    assert artifact.machine == "vnni"
    assert "needs VNNI" in sentences.checked(artifact)
    assert quantize(resnet20, [images], tmp_path / "trt.onnx", "tensorrt", portable=True).machine is None


def test_unfusable_blocks_are_noted(images: Images, tmp_path: Path) -> None:
    """A gate between the last convolution and the Add, as in squeeze-and-excitation."""

    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            y = self.conv(x)
            return (x + y * y.sigmoid()).relu().mean((2, 3))

    artifact = quantize(export(Gated(), tmp_path / "fp32.onnx"), [images], tmp_path / "int8.onnx", "tensorrt")
    assert any("ends in Mul, not in a convolution" in note for note in artifact.notes)
    assert artifact.checks.items() >= {"residual_adds": 1, "fusable_adds": 0}.items()


def test_int8_files_are_a_quarter_of_fp32_ones(tmp_path: Path) -> None:
    """CPU targets store integers, not float weights to be quantized at load time."""
    source = export(torch.nn.Sequential(torch.nn.Conv2d(3, 256, 3), torch.nn.Conv2d(256, 256, 3)), tmp_path / "a.onnx")
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    quantize(source, [images], tmp_path / "b.onnx", "onnxruntime")
    assert (tmp_path / "b.onnx").stat().st_size < 0.27 * (tmp_path / "a.onnx").stat().st_size


def test_no_images_are_refused_and_nothing_is_written(resnet20: Artifact, tmp_path: Path) -> None:
    """An empty stream and one of empty batches."""
    for batches in ([], [np.zeros((0, 3, 32, 32), np.float32)]):
        with pytest.raises(MissingInput, match="no calibration images"):
            quantize(resnet20, batches, tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_image_is_enough_but_noted(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """The user is told that the ranges are narrow."""
    artifact = quantize(resnet20, [images[:1]], tmp_path / "int8.onnx")
    assert any("a single image" in note for note in artifact.notes)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"])
def test_constant_images_give_a_file_that_runs(resnet20: Artifact, target: Target, tmp_path: Path) -> None:
    """All-zero images: scales stay positive, logits finite."""
    black = np.zeros((3, 3, 32, 32), np.float32)
    artifact = quantize(resnet20, [black], tmp_path / "int8.onnx", target)
    assert any("always zero" in note and "input" in note for note in artifact.notes)
    with here(files.load_model(Path(artifact.path)), (3, 32, 32)) as predict:
        assert np.isfinite(predict(black)).all()


def test_a_bad_image_is_named(resnet20: Artifact, images: Images, tmp_path: Path) -> None:
    """NaN in the sixth image of two batches."""
    images[5, 0, 0, 0] = np.nan
    with pytest.raises(MalformedInput, match=r"calibration image 5 \(counted from 0\)"):
        quantize(resnet20, [images[:4], images[4:]], tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_and_activations_that_are_not_finite_are_named(images: Images, tmp_path: Path) -> None:
    """A weight of NaN, and weights whose sums overflow float32."""
    for value, match in ((np.nan, "holds NaN"), (3e38, "activation .* is not finite")):
        layers: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
        layers[0].weight.data[:] = 3e38
        layers[2].bias.data[1] = value
        model: Any = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(layers, (torch.zeros(1, 3, 32, 32),), model, dynamo=False, opset_version=17)
        path = tmp_path / "bad.onnx"
        path.write_bytes(model.getvalue())
        source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
        with pytest.raises(MalformedInput, match=match):
            quantize(source, [np.abs(images)[:1]], tmp_path / "int8.onnx")
        assert not (tmp_path / "int8.onnx").exists()


def test_a_quantized_file_a_file_without_convolutions_and_an_unknown_method_are_refused(
    resnet20: Artifact, images: Images, tmp_path: Path
) -> None:
    """Each with its own sentence."""
    artifact = quantize(resnet20, [images], tmp_path / "int8.onnx")
    with pytest.raises(UsageError, match="quantized already"):
        quantize(artifact, [images], tmp_path / "twice.onnx")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["input"], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])],
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    path = tmp_path / "none.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    source = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    with pytest.raises(UsageError, match="nothing to quantize"):
        quantize(source, [images], tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="no calibration method 'magic'"):
        ptq.quantize(
            resnet20, [images], calibration=calibration(method="magic"), target="openvino", out=tmp_path / "out.onnx"
        )
    assert not (tmp_path / "out.onnx").exists()


def cifar(folder: Path, per_class: int) -> tuple[Images, NDArray[np.int64]]:
    """The first images of each class, normalised as the checkpoints expect."""
    from PIL import Image

    pixels, labels = [], []
    for label, kind in enumerate(sorted(folder.iterdir())):
        for file in sorted(kind.iterdir())[:per_class]:
            pixels.append(np.asarray(Image.open(file).convert("RGB"), np.float32))
            labels.append(label)
    normalised = (np.stack(pixels) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return normalised.transpose(0, 3, 1, 2).astype(np.float32), np.array(labels)


def openvino_logits(path: Path, images: Images) -> Images:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return np.concatenate([compiled(images[i : i + 100])[0] for i in range(0, len(images), 100)])


def onnxruntime_logits(path: Path, images: Images) -> Images:
    with here(files.load_model(path), (3, 32, 32)) as predict:
        return np.concatenate([predict(images[i : i + 100]) for i in range(0, len(images), 100)])


Real = tuple[Artifact, Images, Images, NDArray[np.int64], NDArray[np.int64]]


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    """CIFAR-10 ResNet-20: the FP32 file, 200 calibration images, 1,000 test images, their labels and its answers."""
    spec = zoo.spec("resnet20")
    module = zoo.create(spec)
    weights.load_into(module, shared / "data/weights/resnet20-12fca82f.th")
    source = export(module, tmp_path_factory.mktemp("real") / "fp32.onnx")
    chosen, _ = cifar(shared / "data/cifar10/train", 20)
    images, labels = cifar(shared / "data/cifar10/test", 100)
    return source, chosen, images, labels, onnxruntime_logits(Path(source.path), images).argmax(1)


@pytest.mark.parametrize(
    ("target", "limit_pct"), [("openvino", 4), ("onnxruntime", 4), ("tensorrt", 5), ("tensorrt-rtx", 4)]
)
def test_real_weights_keep_their_predictions(real: Real, tmp_path: Path, target: Target, limit_pct: float) -> None:
    """Few of 1,000 predictions change on this CPU, and accuracy drops by less than a point.

    The portable range is what makes the CPU targets hold on a machine without VNNI; where there is one it costs
    a little. S8S8 has half the resolution after a ReLU.
    """
    source, chosen, images, labels, before = real
    artifact = quantize(source, [chosen], tmp_path / "int8.onnx", target, portable=True)
    logits = openvino_logits if target == "openvino" else onnxruntime_logits
    after = logits(Path(artifact.path), images).argmax(1)
    assert 100 * (before != after).mean() < limit_pct
    assert 100 * ((before == labels).mean() - (after == labels).mean()) < 1.0


def test_calibration_memory_does_not_grow_with_the_images(resnet20: Artifact, tmp_path: Path) -> None:
    """Batches are read once and never held: at most two are alive at any time."""
    import weakref

    alive: list[weakref.ref[Images]] = []

    def stream() -> Iterator[Images]:
        for seed in range(20):
            batch = np.random.default_rng(seed).standard_normal((4, 3, 32, 32)).astype(np.float32)
            alive.append(weakref.ref(batch))
            assert sum(ref() is not None for ref in alive) <= 2
            yield batch
            del batch

    model = files.load_model(Path(resnet20.path))
    plan = qdq_placement.plan(model, "openvino")
    kept = bias.Reservoir(0)
    _, count = calibrate.observe(model, ptq.importance(model, plan), kept.watch(stream()), run=here)
    assert count == 80


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_below_a_block_in_use_goes_back_to_the_system() -> None:
    """100 MB in small blocks stay resident after they are freed, since the last one is in use; then they do not."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [b"x" * (100_000 + i) for i in range(1000)]
    last = blocks[-1]
    del blocks
    before = resident_bytes()
    calibrate.return_freed_memory()
    assert before - resident_bytes() > 50_000_000
    assert last[-1:] == b"x"

"""What is done to the float graph before it is quantized: exact, and worth it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy import store
from resdeploy.data import datasets, preprocess
from resdeploy.graph import files, metadata, pixels, qdq_placement
from resdeploy.graph.canonical import form
from resdeploy.models import weights, zoo
from resdeploy.quantize import prepare, ptq
from resdeploy.records import Artifact, Calibration, Effort, ModelSpec, Preprocessing, Target
from tests.sessions import session

TARGETS = get_args(Target)
SEEN = Preprocessing(size=(12, 12))
SPEC = ModelSpec(name="small", family="test", classes=5, input_shape=(3, 12, 12), preprocessing=SEEN)


@contextlib.contextmanager
def here(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    opened = session(model)
    (image,) = opened.get_inputs()
    size = image.shape[0] if isinstance(image.shape[0], int) else 64

    def predict(images: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [opened.run(None, {image.name: images[i : i + size]})[0] for i in range(0, len(images), size)]
        )

    yield predict


def network() -> onnx.ModelProto:
    """A stem, two residual blocks, a classifier; channels of very different ranges."""
    random = np.random.default_rng(4)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        spread = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        uneven = 2.0 ** random.uniform(-3, 1, (shape[0], *[1] * (len(shape) - 1)))
        return numpy_helper.from_array((spread * uneven).astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Conv", ["input", "w0", "b0"], ["a"], "stem", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["s0"], "relu0"),
    ]
    stored = [weight("w0", 8, 3, 3, 3), weight("b0", 8), weight("wf", 5, 8), weight("bf", 5)]
    for i in range(2):
        nodes += [
            node("Conv", [f"s{i}", f"v{i}", f"c{i}"], [f"d{i}"], f"first{i}", pads=[1, 1, 1, 1]),
            node("Relu", [f"d{i}"], [f"e{i}"], f"relu{i}a"),
            node("Conv", [f"e{i}", f"u{i}"], [f"f{i}"], f"second{i}", pads=[1, 1, 1, 1]),
            node("Add", [f"f{i}", f"s{i}"], [f"g{i}"], f"add{i}"),
            node("Relu", [f"g{i}"], [f"s{i + 1}"], f"relu{i}b"),
        ]
        stored += [weight(f"v{i}", 8, 8, 3, 3), weight(f"c{i}", 8), weight(f"u{i}", 8, 8, 3, 3)]
    nodes += [
        node("GlobalAveragePool", ["s2"], ["p"], "pool"),
        node("Flatten", ["p"], ["q"], "flat"),
        node("Gemm", ["q", "wf", "bf"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("input", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [value("logits", TensorProto.FLOAT, ["batch", 5])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = form.canonicalise(model)
    metadata.attach(model, SPEC)
    return model


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth random pictures (n, H, W, C)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3)).repeat(3, 1).repeat(3, 2)
    return np.clip(coarse + random.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def normalised(images: np.ndarray) -> np.ndarray:
    return np.stack([preprocess.normalise(image, SEEN) for image in images])


def raw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def logits(model: onnx.ModelProto | Path, images: np.ndarray) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    opened = session(source, exactly=True)
    return opened.run(None, {opened.get_inputs()[0].name: images})[0]


def quantized(model: onnx.ModelProto, folder: Path, target: Target, images: np.ndarray, effort: Effort) -> Artifact:
    source = folder / "fp32.onnx"
    files.save_model(model, source)
    return ptq.quantize(
        Artifact(path=str(source), format="onnx", precision="fp32", sha256=store.digest(source), model=SPEC),
        [images[:20], images[:0], images[20:]],
        calibration=Calibration(data="test", count=len(images), seed=0, method="percentile", effort=effort),
        target=target,
        out=folder / f"{effort}.onnx",
        run=here,
    )


def test_rescaling_keeps_the_function_and_makes_ranges_alike() -> None:
    """The ratio of the largest to the smallest channel range of a residual stream falls to about its root."""
    model = network()
    images = normalised(pictures(40, 1))
    placement = qdq_placement.plan(model, "tensorrt")
    made = prepare.rescale(model, placement, [images], here)
    np.testing.assert_allclose(logits(made, images), logits(model, images), rtol=1e-4, atol=1e-4)

    def spread(graph: onnx.ModelProto) -> list[float]:
        found = []
        for tensor in placement.observed:
            wider = onnx.ModelProto()
            wider.CopyFrom(graph)
            del wider.graph.output[:]
            wider.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
            values = np.abs(logits(wider, images))
            largest = values.reshape(*values.shape[:2], -1).max(axis=(0, 2))
            found.append(float(largest.max() / np.median(largest)))
        return found

    before, after = spread(model), spread(made)
    assert after[0] == before[0]  # the input
    assert np.mean(after[1:]) < 0.8 * np.mean(before[1:])


def test_images_looked_at_beforehand_are_calibrated_on_as_well() -> None:
    batches = [np.full((50, 3, 12, 12), i, np.float32) for i in range(6)]
    head, every = prepare.peek(iter(batches))
    assert sum(len(batch) for batch in head) == 150
    assert [float(batch[0, 0, 0, 0]) for batch in every] == list(range(6))


def inner(path: Path, tensor: str, images: np.ndarray) -> np.ndarray:
    """A tensor's value in a file."""
    model = onnx.load(path)
    del model.graph.output[:]
    half = any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    model.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
    return logits(model, images).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("uint8", [False, True])
def test_what_the_first_convolution_reads_is_exact_and_the_targets_rules_hold(
    tmp_path: Path, target: Target, uint8: bool
) -> None:
    """Floats at high effort, pixels at any; the full checker passes, S8S8 has no zero point but 0."""
    model, seen = network(), pictures(24, 1)
    source = pixels.to_pixels(model, SEEN) if uint8 else model
    images = raw(seen) if uint8 else normalised(seen)
    artifact = quantized(source, tmp_path, target, images, "normal" if uint8 else "high")
    made = onnx.load(artifact.path)
    onnx.checker.check_model(made, full_check=True)
    points = [numpy_helper.to_array(t) for t in made.graph.initializer if t.name.endswith("zero_point")]
    assert points
    assert "tensorrt" not in target or not any(point.any() for point in points)
    assert made.graph.input[0].type.tensor_type.elem_type == (TensorProto.UINT8 if uint8 else TensorProto.FLOAT)
    stem = next(node for node in made.graph.node if node.op_type == "Conv")
    read = inner(Path(artifact.path), stem.input[0], images)
    offset = 128 if "tensorrt" in target else 0
    np.testing.assert_array_equal(read[:, :, 1:-1, 1:-1], raw(seen).astype(np.float32) - offset)
    border = 255 * np.array(SEEN.mean)[:, None] - offset
    assert np.abs(read[:, :, 0] - border).max() <= 0.5
    assert artifact.calibration is not None
    assert "exact" in artifact.calibration.methods.values()
    assert any("quantized exactly" in note for note in artifact.notes)


@pytest.mark.acceptance
def test_high_effort_takes_a_tenth_off_the_error_of_a_trained_network(tmp_path: Path, shared: Path) -> None:
    """ResNet-20 for TensorRT, from few images; the RMS logit error on others, in exact arithmetic."""
    pytest.importorskip("torch")
    from tests import quick

    spec = zoo.spec("resnet20")
    net = zoo.create(spec)
    weights.load_into(net, shared / "data" / "weights" / "resnet20-12fca82f.th")
    source = quick.export(net, spec, tmp_path / "fp32.onnx")
    assert spec.preprocessing is not None
    train = datasets.open_dataset(f"{shared / 'data' / 'cifar10'}", split="train")
    chosen = datasets.choose(train, 168, 0)
    (batch,) = datasets.batches(chosen, spec.preprocessing, 168)
    images, others = batch.inputs[:48], batch.inputs[48:]
    expected = logits(Path(source.path), others)
    errors = {}
    for effort in get_args(Effort):
        artifact = ptq.quantize(
            source,
            [images],
            calibration=Calibration(data="cifar10", count=48, seed=0, method="percentile", effort=effort),
            target="tensorrt",
            out=tmp_path / f"{effort}.onnx",
            run=here,
        )
        errors[effort] = float(np.sqrt(np.square(logits(Path(artifact.path), others) - expected).mean()))
    assert errors["high"] < 0.9 * errors["normal"]  # 0.86 to 0.88 by the CPU, whose sums settle which way weights round


def test_a_float_input_is_left_alone_at_normal_effort_and_where_its_normalisation_is_unknown() -> None:
    model = network()
    assert prepare.make_input_exact(model, SEEN, "openvino", "normal").model is model
    assert not prepare.make_input_exact(model, None, "openvino", "high").exact

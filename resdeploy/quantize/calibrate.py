"""Watching a float graph while it runs: what must be known of each tensor is computed in the graph itself.

The watched graph has one output of one row per image, so nothing but a few numbers per tensor and image leaves the
runtime, memory does not grow with the number of images, and any backend that can run a classifier can calibrate.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.errors import BackendMissing, MalformedInput, MissingInput
from resdeploy.quantize.histogram import Histogram
from resdeploy.quantize.ranges import Range
from resdeploy.records import Arithmetic, Artifact, BackendName, Execution, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # Images (n, C, H, W) in, any number, the only output (n, ...) back; a fixed batch size is the runner's affair.
    Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    # Opens a graph for images of one shape (C, H, W).
    Runner = Callable[[onnx.ModelProto, tuple[int, int, int]], AbstractContextManager[Predict]]

# Any exact FP32 backend will do; a BF16 machine's OpenVINO would round what it watches.
RUNNERS: tuple[BackendName, ...] = ("onnxruntime", "openvino")
# Images of one run: one of 224 x 224, or more of smaller ones. Eight at once took 2.6 times as long an image (ResNet-50
# with its watchers, ONNX Runtime, one AVX2 core, shortest of several runs: 291 ms against 113): a core gets one image.
BATCH_ELEMENTS = 3 * 224 * 224
MAX_BATCH_SIZE = 64
MAX_STREAMS = 4  # each has its own copy of the weights in ONNX Runtime; more cores share them out
WATCHED = "watched"
# Values of a tensor that leave the runtime for each image. Of 300 images they are 600,000, of which 6 lie beyond the
# 99.999th percentile.
SAMPLES = 2048
LAST_FRACTION = np.nextafter(1.0, 0.0)  # of a tensor's size: below 1 even after rounding


@contextlib.contextmanager
def in_lane(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """Runs a graph in a child process, in FP32, on the first backend that is installed."""
    from resdeploy import backends

    name = next((name for name in RUNNERS if backends.load(name).available().ok), None)
    if name is None:
        raise BackendMissing(
            "nothing here can run the network to see its ranges",
            fix="Install ONNX Runtime: pip install onnxruntime",
        )
    with _opened(model, image_shape, name, "fp32") as predict:
        yield predict


@contextlib.contextmanager
def in_bf16_lane(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """Runs a graph in a child process in BF16: enough to see ranges, which are rounded to 8 bits anyway.

    A BF16 number has 8 significant bits, so that a rounded extreme is off by at most 2^-9 of itself, a quarter of the
    step of INT8 there; what the layers before add is noise that a histogram of thousands of values averages.

    Raises:
        BackendMissing: this CPU or this installation cannot do it.
    """
    with _opened(model, image_shape, "openvino", "bf16") as predict:
        yield predict


@contextlib.contextmanager
def _opened(
    model: onnx.ModelProto, image_shape: tuple[int, int, int], name: BackendName, arithmetic: Arithmetic
) -> Iterator[Predict]:
    from resdeploy.backends import machine
    from resdeploy.backends.lane import Lane

    cores, size = machine.usable_cores(), batch_size(model, image_shape)
    # A graph made for large batches holds much: once for all cores, not once a core.
    large = size > 1 and size * int(np.prod(image_shape)) > BATCH_ELEMENTS
    execution = Execution(
        precision=arithmetic,
        batch_size=size,
        threads=cores,
        streams=1 if large else min(cores, MAX_STREAMS),
        hint="throughput",
        input_shape=image_shape,
        memory_pattern=False,  # 383 MiB instead of 432 for ResNet-50's watched graph
    )
    with tempfile.TemporaryDirectory(prefix="resdeploy-") as folder, Lane(name) as lane:
        path = Path(folder) / "watched.onnx"
        # Nobody but the lane will ever read it: no need to wait for the disk, or for a digest.
        path.write_bytes(model.SerializeToString())
        del model  # a whole network's weights, while a lane holds its own
        return_freed_memory()
        # OpenVINO, too, reads the ONNX file itself when it opens one: a file of its own would be written for one use.
        watched = Artifact(path=str(path), format="onnx", precision="fp32", sha256="temporary")
        lane.open(watched, execution, query=False)
        yield lambda images: lane.predict(images).astype(np.float32, copy=False)


def return_freed_memory() -> None:
    """Gives what was freed back to the system, where the C library can (glibc).

    It keeps what lies between blocks in use: some 200 MiB after ResNet-50's graph was made canonical, and as much
    again after the paired graph for its biases was freed.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def batch_size(model: onnx.ModelProto, image_shape: tuple[int, ...]) -> int:
    """How many images `in_lane` runs at once: the graph's own batch size where that is fixed."""
    fixed = int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    return fixed or min(MAX_BATCH_SIZE, max(1, BATCH_ELEMENTS // int(np.prod(image_shape))))


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What calibration saw of one tensor: its exact extremes, and a seeded subsample of its values."""

    extremes: Range
    histogram: Histogram


def observe(
    model: onnx.ModelProto,
    tensors: Mapping[str, NDArray[np.float64]],
    batches: Iterable[NDArray[np.float32]],
    *,
    seed: int = 0,
    run: Runner = in_lane,
    total: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Observed], int]:
    """The exact extremes of each tensor over all images, histograms of `SAMPLES` values an image, and the image count.

    Args:
        model: the float graph, opset 13 to 17.
        tensors: what to observe, each with the weights of its channels (channels,): how much an error there matters.
        batches: preprocessed images, each (n, C, H, W) with any n.
        seed: of the positions sampled.
        run: opens a graph for running.
        total: the number of images expected, for the progress report.
        progress: told after every batch.

    Raises:
        MissingInput: no images.
        MalformedInput: images or activations that are not finite.
    """
    places = positions(seed)
    # A tensor is stored channel by channel, so the place within it tells the channel.
    weights = [w[(places * len(w)).astype(np.int64)] for w in tensors.values()]
    histograms = [Histogram() for _ in tensors]
    lo, hi, count = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf), 0
    with contextlib.ExitStack() as opened:
        predict: Predict | None = None
        for images in batches:
            if not len(images):
                continue
            _refuse_bad_images(images, count)
            if predict is None:
                channels, height, width = images.shape[1:]
                watched = run(watch(model, tuple(tensors), places), (channels, height, width))
                predict = opened.enter_context(watched)
            rows = predict(images).reshape(len(images), len(tensors), 2 + SAMPLES)
            _refuse_infinite(rows, tuple(tensors))
            lo, hi = np.minimum(lo, rows[:, :, 0].min(axis=0)), np.maximum(hi, rows[:, :, 1].max(axis=0))
            for i, histogram in enumerate(histograms):
                histogram.add(rows[:, i, 2:], weights[i])
            count += len(images)
            if progress is not None:
                progress("calibrate", count, max(total, count))
    if count == 0:
        raise MissingInput("there are no calibration images", fix="Give a folder that holds images: --calib-data DIR")
    found = {
        name: Observed(extremes=Range(lo=float(lo[i]), hi=float(hi[i])), histogram=histograms[i])
        for i, name in enumerate(tensors)
    }
    return found, count


def positions(seed: int) -> NDArray[np.float64]:
    """Where in a tensor to sample, as ascending fractions of its size: one in each of `SAMPLES` equal parts.

    So every channel is sampled alike, and a tensor that is smaller than the sample is seen whole.
    """
    return np.minimum((np.arange(SAMPLES) + np.random.default_rng(seed).random(SAMPLES)) / SAMPLES, LAST_FRACTION)


def watch(model: onnx.ModelProto, tensors: Sequence[str], places: NDArray[np.float64]) -> onnx.ModelProto:
    """The graph with one output (n, tensors x (2 + samples)): of each image and tensor minimum, maximum, samples."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    graph.initializer.append(numpy_helper.from_array(places, f"{WATCHED}/places"))
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), f"{WATCHED}/one"))
    columns: list[str] = []
    for i, tensor in enumerate(tensors):
        stem = f"{WATCHED}/{i}"
        columns += [f"{stem}/min", f"{stem}/max", f"{stem}/samples"]
        graph.node.extend(
            [
                helper.make_node("Flatten", [tensor], [f"{stem}/flat"], axis=1),
                helper.make_node("ReduceMin", [f"{stem}/flat"], [f"{stem}/min"], axes=[1], keepdims=1),
                helper.make_node("ReduceMax", [f"{stem}/flat"], [f"{stem}/max"], axes=[1], keepdims=1),
                # The size is known only when the graph runs: the image's size may be open.
                helper.make_node("Shape", [f"{stem}/flat"], [f"{stem}/shape"]),
                helper.make_node("Gather", [f"{stem}/shape", f"{WATCHED}/one"], [f"{stem}/size"]),
                helper.make_node("Cast", [f"{stem}/size"], [f"{stem}/real"], to=onnx.TensorProto.DOUBLE),
                helper.make_node("Mul", [f"{WATCHED}/places", f"{stem}/real"], [f"{stem}/at"]),
                helper.make_node("Cast", [f"{stem}/at"], [f"{stem}/index"], to=onnx.TensorProto.INT64),
                helper.make_node("Gather", [f"{stem}/flat", f"{stem}/index"], [f"{stem}/samples"], axis=1),
            ]
        )
    graph.node.append(helper.make_node("Concat", columns, [WATCHED], axis=1))
    del graph.output[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    shape = [batch, len(tensors) * (2 + SAMPLES)]
    graph.output.append(helper.make_tensor_value_info(WATCHED, onnx.TensorProto.FLOAT, shape))
    return result


def _refuse_bad_images(images: NDArray[np.float32], seen: int) -> None:
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise MalformedInput(
            f"calibration image {seen + int(np.argmin(finite))} (counted from 0) holds NaN or infinity",
            cause="The preprocessing divides by a standard deviation of zero, or the image is not an image",
            fix="Remove that image, or correct --mean and --std",
        )


def _refuse_infinite(rows: NDArray[np.float32], tensors: Sequence[str]) -> None:
    bad = ~np.isfinite(rows).all(axis=(0, 2))
    if bad.any():
        raise MalformedInput(
            f"activation {tensors[int(np.argmax(bad))]} is not finite for a calibration image",
            cause="The weights overflow float32, or the images are not preprocessed as the model expects",
            fix="Check the FP32 model's accuracy first (resdeploy eval)",
        )

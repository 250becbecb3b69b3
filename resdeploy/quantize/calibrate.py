"""Watching a float graph while it runs: what must be known of each tensor is computed in the graph itself.

The watched graph has one output of one row per image, so nothing but a few numbers per tensor and image leaves the
runtime, memory does not grow with the number of images, and any backend that can run a classifier can calibrate.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from resdeploy import store
from resdeploy.errors import BackendMissing, MalformedInput, MissingInput
from resdeploy.graph import files
from resdeploy.quantize.ranges import Range
from resdeploy.records import Artifact, BackendName, Execution, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # Images (n, C, H, W) in, the only output (n, ...) back.
    Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    # Opens a graph for images of one shape (C, H, W).
    Runner = Callable[[onnx.ModelProto, tuple[int, int, int]], AbstractContextManager[Predict]]

# Any exact FP32 backend will do; a BF16 machine's OpenVINO would round what it watches.
RUNNERS: tuple[BackendName, ...] = ("onnxruntime", "openvino")
BATCH_SIZE = 8  # enough to keep the cores busy; activations of 8 images of 224 x 224 fit into memory anywhere
WATCHED = "watched"


@contextlib.contextmanager
def in_lane(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """Runs a graph in a child process, on the first FP32 backend that is installed."""
    from resdeploy import backends
    from resdeploy.backends.lane import Lane

    name = next((name for name in RUNNERS if backends.load(name).available().ok), None)
    if name is None:
        raise BackendMissing(
            "nothing here can run the network to see its ranges",
            fix="Install ONNX Runtime: pip install onnxruntime",
        )
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    execution = Execution(batch_size=fixed or BATCH_SIZE, input_shape=image_shape)
    with tempfile.TemporaryDirectory(prefix="resdeploy-") as folder, Lane(name) as lane:
        path = Path(folder) / "watched.onnx"
        files.save_model(model, path)
        watched = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
        built = lane.build(watched, execution, path.with_suffix(".xml")) if name == "openvino" else watched
        lane.open(built, execution)
        yield lambda images: lane.predict(images).astype(np.float32, copy=False)


def extremes(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    *,
    run: Runner = in_lane,
    total: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Range], int]:
    """The exact smallest and largest value of each tensor over all images, and how many images there were.

    Args:
        model: the float graph, opset 13 to 17.
        tensors: whose ranges are wanted.
        batches: preprocessed images, each (n, C, H, W) with any n.
        run: opens a graph for running.
        total: the number of images expected, for the progress report.
        progress: told after every batch.

    Raises:
        MissingInput: no images.
        MalformedInput: images or activations that are not finite.
    """
    watched = watch_extremes(model, tensors)
    lo, hi, count = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf), 0
    with contextlib.ExitStack() as opened:
        predict: Predict | None = None
        for images in batches:
            if not len(images):
                continue
            _refuse_bad_images(images, count)
            if predict is None:
                channels, height, width = images.shape[1:]
                predict = opened.enter_context(run(watched, (channels, height, width)))
            rows = predict(images).reshape(len(images), 2, len(tensors))
            _refuse_infinite(rows, tensors)
            lo, hi = np.minimum(lo, rows[:, 0].min(axis=0)), np.maximum(hi, rows[:, 1].max(axis=0))
            count += len(images)
            if progress is not None:
                progress("calibrate", count, max(total, count))
    if count == 0:
        raise MissingInput("there are no calibration images", fix="Give a folder that holds images: --calib-data DIR")
    return {t: Range(lo=float(a), hi=float(b)) for t, a, b in zip(tensors, lo, hi, strict=True)}, count


def watch_extremes(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with one output (n, 2 x tensors): each image's minima, then its maxima."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    columns: dict[str, list[str]] = {"ReduceMin": [], "ReduceMax": []}
    for i, tensor in enumerate(tensors):
        flat = f"{WATCHED}/{i}/flat"
        graph.node.append(helper.make_node("Flatten", [tensor], [flat], axis=1))
        for op, column in columns.items():
            column.append(f"{WATCHED}/{i}/{op}")
            graph.node.append(helper.make_node(op, [flat], [column[-1]], axes=[1], keepdims=1))
    graph.node.append(helper.make_node("Concat", [*columns["ReduceMin"], *columns["ReduceMax"]], [WATCHED], axis=1))
    del graph.output[:]
    shape = [graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch", 2 * len(tensors)]
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
    bad = ~np.isfinite(rows).all(axis=(0, 1))
    if bad.any():
        raise MalformedInput(
            f"activation {tensors[int(np.argmax(bad))]} is not finite for a calibration image",
            cause="The weights overflow float32, or the images are not preprocessed as the model expects",
            fix="Check the FP32 model's accuracy first (resdeploy eval)",
        )

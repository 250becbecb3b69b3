"""Watching a float graph while it runs: what must be known of each tensor is computed in the graph itself.

The watched graph has one output of one row per image, so nothing but a few numbers per tensor and image leaves the
runtime, memory does not grow with the number of images, and any backend that can run a classifier can calibrate.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from resdeploy import packages, scratch
from resdeploy.errors import BackendMissing, MalformedInput, MissingInput
from resdeploy.graph import files
from resdeploy.graph.canonical import form
from resdeploy.graph.index import add_constant, copy, set_output
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
# Images of one run: one of 224 x 224, or more of smaller ones. Eight at once took 2.6 times as long each (ResNet-50
# with its watchers, ONNX Runtime, one AVX2 core, shortest of several runs: 291 ms against 113): a core gets one image.
BATCH_ELEMENTS = 3 * 224 * 224
MAX_BATCH_SIZE = 64
MAX_STREAMS = 4  # each has its own copy of the weights in ONNX Runtime; more cores share them out
WATCHED = "watched"
# Values of a tensor that leave the runtime for each image, about. Of 300 images they are 600,000, of which 6 lie beyond
# the 99.999th percentile.
SAMPLES = 2048
MIN_POSITIONS = 4  # of each channel's map, however many channels there are


@contextlib.contextmanager
def in_lane(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """Runs a graph in a child process, in FP32, on the first backend that is installed."""
    from resdeploy import backends

    name = next((name for name in RUNNERS if backends.load(name).available().ok), None)
    if name is None:
        raise BackendMissing(
            "nothing here can run the network to see its ranges",
            fix=f"Run `{packages.install('onnxruntime')}`",
        )
    with _open_in_lane(model, image_shape, name, "fp32") as predict:
        yield predict


@contextlib.contextmanager
def in_bf16_lane(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """Runs a graph in a child process in BF16: enough to see ranges, which are rounded to 8 bits anyway.

    A BF16 number has 8 significant bits: a rounded extreme is off by at most 2^-8 of itself, one step of U8. Whether
    that does harm was measured (docs/quantization.md).

    Raises:
        BackendMissing: this CPU or this installation cannot do it.
    """
    with _open_in_lane(model, image_shape, "openvino", "bf16") as predict:
        yield predict


@contextlib.contextmanager
def _open_in_lane(
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
    with scratch.folder() as folder, Lane(name) as lane:
        path = folder / "watched.onnx"
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
    """What calibration saw of one tensor: its extremes, exact to the arithmetic, and a subsample."""

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
    """The extremes of each tensor, exact to the arithmetic, histograms of a sample of its values, and the image count.

    Args:
        model: the float graph, opset 13 to 17.
        tensors: what to observe, each with the weights of its channels (channels,): how much an error there matters.
        batches: preprocessed images, each (n, C, H, W) with any n.
        seed: of the places sampled.
        run: opens a graph for running.
        total: the number of images expected, for the progress report.
        progress: told after every batch.

    Raises:
        MissingInput: no images.
        MalformedInput: images or activations that are not finite.
    """
    count, tallies = 0, list[_Tally]()
    with contextlib.ExitStack() as lane:
        for images in batches:
            if not len(images):
                continue
            _refuse_bad_images(images, count)
            if count == 0:
                channels, height, width = images.shape[1:]
                lattices = choose_lattices(model, tuple(tensors), (channels, height, width), seed)
                predict = lane.enter_context(run(watch(model, lattices), (channels, height, width)))
                tallies = [
                    _Tally(lattice, weights) for lattice, weights in zip(lattices, tensors.values(), strict=True)
                ]
                ends = np.cumsum([tally.columns for tally in tallies])
            rows = predict(images).reshape(len(images), ends[-1])
            for tally, columns in zip(tallies, np.split(rows, ends[:-1], axis=1), strict=True):
                tally.add(columns)
            count += len(images)
            if progress is not None:
                progress("calibrate", count, max(total, count))
    if count == 0:
        raise MissingInput("there are no calibration images", fix="Give a folder that holds images: --calib-data DIR")
    return {tally.tensor: tally.observed() for tally in tallies}, count


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Which values of a tensor are sampled: of every channel's map those at regular places, the same in all channels.

    So every channel is sampled alike. Runtimes cut a lattice out of a map in whatever order they keep it; to pick
    single values, OpenVINO would first turn every map around, which took it as long as the network itself.
    """

    tensor: str
    channels: int
    starts: tuple[int, ...]  # along each axis after the channels'; none: the tensor has no maps, and is seen whole
    steps: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Values of one image."""
        return self.channels * math.prod(self.counts)

    def spread(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight of each value, (samples,): they come channel by channel. One for all where it has no channels."""
        each = weights if len(weights) == self.channels else np.ones(self.channels)
        return np.repeat(each, self.samples // self.channels)


class _Tally:
    """What has been seen of one tensor so far."""

    def __init__(self, lattice: Lattice, weights: NDArray[np.float64]) -> None:
        self.tensor = lattice.tensor
        self.columns = 2 + lattice.samples  # of the watched graph's output
        self._weights = lattice.spread(weights)
        self._lo, self._hi = np.inf, -np.inf
        self._histogram = Histogram()

    def add(self, columns: NDArray[np.float32]) -> None:
        """Minimum, maximum and samples of each image, (images, columns).

        Raises:
            NotFinite: they are not.
        """
        if not np.isfinite(columns).all():
            _refuse_infinite(self.tensor)
        self._lo, self._hi = min(self._lo, columns[:, 0].min()), max(self._hi, columns[:, 1].max())
        self._histogram.add(columns[:, 2:], self._weights)

    def observed(self) -> Observed:
        return Observed(extremes=Range(lo=float(self._lo), hi=float(self._hi)), histogram=self._histogram)


def choose_lattices(
    model: onnx.ModelProto, tensors: Sequence[str], image_shape: tuple[int, int, int], seed: int
) -> tuple[Lattice, ...]:
    """A lattice of about `SAMPLES` values for each tensor, at an offset of its own.

    A tensor that is smaller than the sample, or has no maps, is seen whole.

    Raises:
        MalformedInput: a tensor's shape does not follow from the image's.
    """
    shapes, random = _shapes(model, image_shape), np.random.default_rng(seed)
    if not shapes.keys() >= set(tensors):  # written as arithmetic
        shapes = _shapes(form.fold_constants(model, (1, *image_shape)), image_shape)
    lattices = []
    for tensor in tensors:
        if tensor not in shapes:
            raise MalformedInput(
                f"the shape of {tensor} does not follow from images of shape {image_shape}",
                cause="The graph computes it while it runs",
                fix="Export the model again, for images of one size",
            )
        channels, *axes = shapes[tensor] or (1,)
        positions = max(SAMPLES // channels, MIN_POSITIONS)
        steps = [1] * len(axes)
        if math.prod(axes) > positions:
            # The shortest first: what it cannot give, the longer ones do.
            for rest, k in zip(range(len(axes), 0, -1), np.argsort(axes), strict=True):
                steps[k] = max(1, axes[k] // math.ceil(positions ** (1 / rest)))
                positions = math.ceil(positions / (axes[k] // steps[k]))
        counts = tuple(size // step for size, step in zip(axes, steps, strict=True))
        room = [size - (count - 1) * step for size, count, step in zip(axes, counts, steps, strict=True)]
        starts = tuple(int(random.integers(most)) for most in room)
        lattices.append(Lattice(tensor=tensor, channels=channels, starts=starts, steps=tuple(steps), counts=counts))
    return tuple(lattices)


def _shapes(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every value for one image, without the batch dimension, where it can be told."""
    light = files.weightless(model)
    del light.graph.value_info[:]
    dims = light.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims[1:], image_shape, strict=True):
        dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }
    return {name: sizes for name, sizes in shapes.items() if 0 not in sizes}


def watch(model: onnx.ModelProto, lattices: Sequence[Lattice]) -> onnx.ModelProto:
    """The graph with one output (n, columns): of each image and tensor minimum, maximum and samples."""
    result = copy(model)
    graph = result.graph
    columns = [name for i, at in enumerate(lattices) for name in _add_columns(graph, f"{WATCHED}/{i}", at)]
    width = sum(2 + at.samples for at in lattices)
    # OpenVINO computes in FP32 whatever lies between the last matrix product and the output, and what was to be BF16
    # would be converted first: a product with 1 comes last.
    unit = add_constant(graph, f"{WATCHED}/unit", np.ones((1, 1), np.float32))
    apart = add_constant(graph, f"{WATCHED}/apart", np.array([-1, width, 1], np.int64))
    together = add_constant(graph, f"{WATCHED}/together", np.array([-1, width], np.int64))
    graph.node.extend(
        [
            helper.make_node("Concat", columns, [f"{WATCHED}/row"], axis=1),
            helper.make_node("Reshape", [f"{WATCHED}/row", apart], [f"{WATCHED}/column"]),
            helper.make_node("MatMul", [f"{WATCHED}/column", unit], [f"{WATCHED}/product"]),
            helper.make_node("Reshape", [f"{WATCHED}/product", together], [WATCHED]),
        ]
    )
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    set_output(graph, WATCHED, [batch, width])
    return result


def _add_columns(graph: onnx.GraphProto, stem: str, at: Lattice) -> list[str]:
    """Adds the nodes that watch one tensor; the names of what they make, (n, 1), (n, 1) and (n, samples)."""
    axes = list(range(1, 2 + len(at.counts)))
    columns = [f"{stem}/ReduceMin", f"{stem}/ReduceMax", f"{stem}/samples"]
    for reduce, column in zip(("ReduceMin", "ReduceMax"), columns, strict=False):
        graph.node.append(helper.make_node(reduce, [at.tensor], [f"{column}/kept"], axes=axes, keepdims=1))
        graph.node.append(helper.make_node("Flatten", [f"{column}/kept"], [column], axis=1))
    cut = at.tensor
    if at.counts:
        last = [a + s * (n - 1) + 1 for a, s, n in zip(at.starts, at.steps, at.counts, strict=True)]
        bounds = {"starts": at.starts, "ends": last, "axes": axes[1:], "steps": at.steps}
        names = [add_constant(graph, f"{stem}/{name}", np.array(b, np.int64)) for name, b in bounds.items()]
        cut = f"{stem}/cut"
        graph.node.append(helper.make_node("Slice", [at.tensor, *names], [cut]))
    graph.node.append(helper.make_node("Flatten", [cut], [columns[-1]], axis=1))
    return columns


def _refuse_bad_images(images: NDArray[np.float32], seen: int) -> None:
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise MalformedInput(
            f"calibration image {seen + int(np.argmin(finite))} (counted from 0) holds NaN or infinity",
            cause="The preprocessing divides by a standard deviation of zero, or the image is not an image",
            fix="Remove that image, or correct --mean and --std",
        )


class NotFinite(MalformedInput):
    """An activation overflows the arithmetic that the network is watched in."""


def _refuse_infinite(tensor: str) -> None:
    raise NotFinite(
        f"activation {tensor} is not finite for a calibration image",
        cause="The weights overflow float32, or the images are not preprocessed as the model expects",
        fix="Check the FP32 model's accuracy first (resdeploy eval)",
    )

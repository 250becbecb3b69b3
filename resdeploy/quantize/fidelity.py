"""Whether a low-precision file still computes what its source does: its logits are compared before it is written.

The figure is a wreck detector and no accuracy: r and g are the logits of the source and of the file on some of the
calibration images, each less its mean over the images, and the ratio is `10 log10(sum r^2 / sum (r - g)^2)`. Good 8-bit
files of trained networks have 20 to 40 dB, rounding errors of FP16 give some 60. Near 0 dB the file's answers have
nothing to do with the source's. The file's arithmetic is simulated (`simulated`), so that the figure is of the file and
not of this machine's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from resdeploy.errors import BackendCrash, BackendMissing, MalformedInput, OutputLost, ResdeployError, UsageError
from resdeploy.graph.index import Index, node_name
from resdeploy.quantize import bias, calibrate, overflow, simulated
from resdeploy.records import Artifact, Likeness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.quantize.calibrate import Runner

LOST_DB = 3.0  # below it a file is refused
POOR_DB = 10.0  # below it a file is noted
# Beyond what FP32's own 24 bits tell (146 dB): what is written for outputs that agree exactly, or are not finite.
LIMIT_DB = 150.0
# Where no more than this share of the logits' energy differs from image to image, the images cannot tell: a rounding
# error 30 dB below the logits, which wrecks nothing, is as large. The logits as they are tell nothing either, since
# bias correction gives even a wreck the right mean.
ALIKE = 1e-3
LOST = "its output has nothing to do with its source's"


def checks(like: Likeness) -> dict[str, float]:
    """The figure, for a record's `checks`."""
    return {} if like.snr_db is None else {"snr_db": like.snr_db}


def notes(like: Likeness | None) -> tuple[str, ...]:
    """What a reader must know of it; None: nothing was compared."""
    if like is None:
        return ()
    if like.snr_db is None:
        return (f"its output was not compared with its source's: {like.why}",)
    how = "it is not finite" if like.snr_db == -LIMIT_DB else f"{like.snr_db:.1f} dB of signal to noise"
    finding = f"{how} on {like.images} images" if like.images > 1 else f"{how} on one image"
    if like.snr_db < LOST_DB:
        return (f"{LOST}: {finding}" + (f"; it breaks at {like.where}" if like.where else ""),)
    if like.snr_db < POOR_DB:
        return (f"its output differs much from its source's: {finding}, where 8-bit files should have 20 dB or more",)
    return ()


def images_to_compare(elements: int) -> int:
    """How many are compared, by the elements of one: as many as a batch of bias correction, two at least."""
    return max(2, min(bias.MAX_BATCH_SIZE, bias.BATCH_ELEMENTS // elements))


def compare(
    source: onnx.ModelProto,
    lowered: onnx.ModelProto,
    images: Sequence[NDArray[Any]],
    *,
    exact: NDArray[np.float32] | None = None,
    search: bool = True,
    run: Runner = calibrate.in_lane,
) -> Likeness:
    """Runs both on a seeded choice of `images_to_compare` of the images.

    Args:
        source: the float graph.
        lowered: made from it, its values under the same names.
        images: each (C, H, W), as the network takes them.
        exact: the source's logits on them, (images, ...), where they are known.
        search: whether to look for the layer where a lost output breaks; both graphs then run again.
        run: opens a graph for running.
    """
    if not len(images):
        return Likeness(snr_db=None, why="there are no images")
    chosen = sorted(np.random.default_rng(0).permutation(len(images))[: images_to_compare(images[0].size)])
    batch = np.stack([images[k] for k in chosen])
    plain = simulated.in_float(lowered)
    snr = snr_db(_values(source, batch, run) if exact is None else exact[chosen], _values(plain, batch, run))
    if snr is None:
        return Likeness(snr_db=None, why="these images hardly change the source's")
    where = _first_lost_layer(source, lowered, plain, batch, run) if search and snr < LOST_DB else ""
    return Likeness(snr_db=snr, images=len(batch), where=where)


def compare_half(source: onnx.ModelProto, lowered: onnx.ModelProto, images: Sequence[NDArray[Any]]) -> Likeness:
    """As `compare`, for FP16 and BF16, which can be made where nothing can run them: the record then says so."""
    from resdeploy import backends

    runtime = backends.load("onnxruntime").available()
    if not runtime.ok:  # OpenVINO leaves out the roundings
        return Likeness(snr_db=None, why=runtime.reason)
    try:
        return compare(source, lowered, images)
    except (BackendMissing, BackendCrash, MalformedInput, UsageError) as e:
        return Likeness(snr_db=None, why=e.what)


def refuse_lost(record: Artifact, *, force: bool = False, fix: str = "") -> None:
    """Returns where a file may be written: its output is like its source's, or good for timing only, or `force`.

    Args:
        record: the file's, with what `compare` found.
        force: whether it is wanted all the same.
        fix: the next step, where it is not that of `quantize`.

    Raises:
        OutputLost: it may not.
    """
    timing_only = (record.weights is not None and record.weights.random) or (
        record.calibration is not None and record.calibration.synthetic
    )
    snr = record.likeness.snr_db if record.likeness is not None else None
    if force or timing_only or snr is None or snr >= LOST_DB:
        return
    name = record.model.name if record.model is not None else record.path
    half = record.precision != "int8"
    raise OutputLost(
        f"{name} in {record.precision.upper()} is not written: {notes(record.likeness)[0]}",
        cause="Its values leave the range of the precision"
        if half
        else "The integers cannot hold the values there, or the images are not what the network was trained on",
        fix=fix
        or (
            "Give images (--calib-data DIR), by which what overflows stays in FP32; --force writes it all the same"
            if half
            else "Try --calib-method auto or --precision fp16, and check --mean, --std and the images; "
            "--force writes it all the same"
        ),
    )


def snr_db(source: NDArray[Any], lowered: NDArray[Any]) -> float | None:
    """Signal to noise of values (images, ...) about their means over the images.

    None where they cannot tell: one image, images that are too much alike, a source that is not finite.
    """
    r = source.reshape(len(source), -1).astype(np.float64)
    g = lowered.reshape(len(lowered), -1).astype(np.float64)
    if not np.isfinite(r).all():
        return None
    if not np.isfinite(g).all():
        return -LIMIT_DB
    signal, noise = (float(np.square(_subtract_mean(values)).sum()) for values in (r, r - g))
    if signal <= ALIKE * float(np.square(r).sum()):
        return None
    with np.errstate(over="ignore"):  # no noise at all
        return float(np.clip(10 * np.log10(np.divide(signal, max(noise, np.finfo(float).tiny))), -LIMIT_DB, LIMIT_DB))


def _subtract_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exactly zero where all images agree, however large the value: a border of -FLT_MAX is no signal."""
    return np.where((values == values[0]).all(axis=0), 0.0, values - values.mean(axis=0))


def _values(model: onnx.ModelProto, images: NDArray[Any], run: Runner) -> NDArray[np.float32]:
    """The first output, (images, ...)."""
    channels, height, width = images.shape[1:]
    with run(model, (channels, height, width)) as predict:
        return predict(images)


def _first_lost_layer(
    source: onnx.ModelProto, lowered: onnx.ModelProto, plain: onnx.ModelProto, images: NDArray[Any], run: Runner
) -> str:
    """The first layer whose output is lost, else the one whose is worst, with the range it reads; "" where unknown."""
    index = Index(source)
    computed = {name for node in plain.graph.node for name in node.output} | {plain.graph.input[0].name}
    tensors = [name for name in overflow.float_tensors(source, index) if name in computed]
    try:
        lattices = calibrate.choose_lattices(source, tensors, images.shape[1:], 0)
        ends = np.cumsum([2 + at.samples for at in lattices])[:-1]
        r, g = (
            dict(zip(tensors, np.split(_values(calibrate.watch(m, lattices), images, run), ends, axis=1), strict=True))
            for m in (source, plain)
        )
    except ResdeployError:  # shapes that are computed, or an opset whose operators `watch` does not speak
        return ""
    ratios = {t: db for t in tensors if index.maker(t) is not None and (db := snr_db(r[t], g[t])) is not None}
    if not ratios:
        return ""
    worst = next((t for t, db in ratios.items() if db < LOST_DB), min(ratios, key=lambda t: ratios[t]))
    node = index.maker(worst)
    assert node is not None
    reads = [f"{tensor} in {steps}, {_spread(r.get(tensor))}" for tensor, steps in _steps(lowered, worst)]
    return f"{node_name(node)} ({node.op_type})" + (f", which reads {' and '.join(reads)}" if reads else "")


def _steps(lowered: onnx.ModelProto, output: str) -> list[tuple[str, str]]:
    """The tensors that the maker of `output` reads quantized, each with the steps it is rounded to."""
    index, steps = Index(lowered), []
    node = index.maker(output)
    for name in node.input if node is not None else ():
        pair = index.maker(name)
        quantizer = index.maker(pair.input[0]) if pair is not None and pair.op_type == "DequantizeLinear" else None
        if quantizer is None or quantizer.input[0] in index.constants:
            continue
        scale, zero = (index.array(k) for k in quantizer.input[1:3])
        low, high = (
            float((limit - int(zero)) * scale) for limit in (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)
        )
        steps.append((quantizer.input[0], f"256 steps from {low:.3g} to {high:.3g}"))
    return steps


def _spread(rows: NDArray[Any] | None) -> str:
    """Where the values of a watched tensor lie, its extremes in the first two columns."""
    if rows is None:
        return "its values unknown"
    low, high = np.quantile(rows[:, 2:], (0.1, 0.9))
    return f"eight in ten of its values between {low:.3g} and {high:.3g}"

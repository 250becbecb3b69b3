"""Post-training quantization: an FP32 ONNX file and a few hundred images in, an INT8 ONNX file out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy import store
from resdeploy.errors import MalformedInput
from resdeploy.graph import counts, files, for_tensorrt, qdq_placement, zero_points
from resdeploy.graph.canonical import form
from resdeploy.graph.index import Index, attribute, by_name
from resdeploy.graph.qdq_placement import NVIDIA
from resdeploy.quantize import balance, bias, calibrate, fidelity, methods, prepare, ranges, rounding
from resdeploy.records import Artifact, Calibration, Effort, Likeness, Progress, Target

MUCH_IN_FLOAT = 0.1  # of the MACs: what is left in FP32 is then said first, in one sentence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.quantize.calibrate import Observed, Runner


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """A float graph and what was seen of it: INT8 files of any choice of layers can be made from this (`write`)."""

    source: Artifact
    model: onnx.ModelProto  # canonical
    target: Target
    calibration: Calibration  # with the number of images seen and the method of every tensor
    placement: qdq_placement.Placement  # every layer quantized
    observed: Mapping[str, Observed]
    activations: Mapping[str, qdq_placement.Activation]
    images: Sequence[NDArray[Any]]  # a bounded sample of them, each (C, H, W)

    @property
    def fixed_batch(self) -> bool:
        """Whether the graph takes batches of one size alone."""
        return bool(self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """What may differ between INT8 files from one calibration."""

    # Weights in [-64, 64], so that CPUs without VNNI compute exactly; no effect for TensorRT. Otherwise a CPU target's
    # record says `machine="vnni"`.
    portable: bool = False
    keep_float: Collection[str] = ()  # names of convolutions and matrix products to leave in float
    plain: bool = False  # as training takes it, not yet in the form of `in_target_form`
    force: bool = False  # write it even where its output has nothing to do with the source's


def quantize(
    source: Artifact,
    batches: Iterable[NDArray[Any]],
    options: FileOptions = FileOptions(),
    *,
    calibration: Calibration,
    target: Target,
    out: Path,
    run: Runner = calibrate.in_lane,
    progress: Progress | None = None,
) -> Artifact:
    """Writes the INT8 version of an FP32 file and returns its record, the sidecar not yet written.

    Args:
        source: an FP32 ONNX file.
        batches: calibration images as the model takes them, each (n, C, H, W); read once, a bounded sample kept.
        options: what the file is to be.
        calibration: where the images come from, and the method; its count becomes the number actually seen.
        target: whose fusion rules and integer types the file follows.
        out: where to write.
        run: opens a graph for running; ranges are observed in BF16 where `calibration.arithmetic` says so.
        progress: told after every batch of images.

    Raises:
        BackendMissing: BF16 on a CPU that does not have it.
        UsageError: quantized already, nothing to quantize, no images, or an unknown method or layer name.
        MalformedInput: weights, images or activations that are not finite; a graph that fails the ONNX checker.
        OutputLost: its output has nothing to do with the source's, which is neither random nor seen on synthetic
            images; nothing is written.
    """
    seen = run_calibration(source, batches, calibration=calibration, target=target, run=run, progress=progress)
    return write(seen, out, options, run=run, progress=progress)


def run_calibration(
    source: Artifact,
    batches: Iterable[NDArray[np.float32]],
    *,
    calibration: Calibration,
    target: Target,
    run: Runner = calibrate.in_lane,
    progress: Progress | None = None,
) -> Calibrated:
    """Runs the calibration images through the float graph; arguments and errors as in `quantize`."""
    methods.refuse_unknown(calibration.method)
    prepared, batches = _prepare(source, batches, target, calibration.effort, run)
    placement = qdq_placement.plan(prepared.model, target)
    reservoir = bias.Reservoir(calibration.seed)
    observed, count = calibrate.observe(
        prepared.model,
        importance(prepared.model, placement),
        reservoir.watch(batches),
        seed=calibration.seed,
        run=calibrate.in_bf16_lane if calibration.arithmetic == "bf16" else run,
        total=calibration.count,
        progress=progress,
    )
    chosen = {name: methods.choose(seen, target, calibration.method) for name, seen in observed.items()}
    exact = prepared.exact
    return Calibrated(
        source=source,
        model=prepared.model,
        target=target,
        calibration=dataclasses.replace(
            calibration,
            count=count,
            methods={n: "exact" if n in exact else method for n, (method, _) in chosen.items()},
        ),
        placement=placement,
        observed=observed,
        activations={
            n: exact.get(n) or ranges.activation(covered, target, centred=n in placement.centred)
            for n, (_, covered) in chosen.items()
        },
        images=reservoir.images,
    )


def _prepare(
    source: Artifact, batches: Iterable[NDArray[Any]], target: Target, effort: Effort, run: Runner
) -> tuple[prepare.Prepared, Iterable[NDArray[Any]]]:
    """The canonical float graph, made ready to lose less; and all batches, though some were looked at."""
    model = form.canonicalise(files.load_model(Path(source.path)))
    refuse_bad_weights(model)
    spec = source.model.preprocessing if source.model is not None else None
    prepared = prepare.make_input_exact(model, spec, target, effort)
    if target in NVIDIA or effort == "high":
        placement = qdq_placement.plan(prepared.model, target)
        head, batches = prepare.peek(batches)
        if placement.one_scale:
            model = balance.balance(prepared.model, placement, head, run, exact=prepared.exact)
        else:
            model = prepare.rescale(prepared.model, placement, head, run)
        prepared = dataclasses.replace(prepared, model=model)
    return prepared, batches


def write(
    seen: Calibrated,
    out: Path,
    options: FileOptions = FileOptions(),
    *,
    run: Runner = calibrate.in_lane,
    progress: Progress | None = None,
) -> Artifact:
    """Writes an INT8 file from what calibration saw.

    Args:
        seen: by calibration; many files can be written from it.
        out: where to write.
        options: what the file is to be.
        run: opens a graph for running.
        progress: told after every layer, with `effort` high.

    Raises:
        UsageError: nothing to quantize, or an unknown layer name.
        MalformedInput: a graph that fails the ONNX checker.
        OutputLost: as `quantize`.
    """
    rounded = _round_to_nearest(seen, options)
    images, exact = seen.images, None
    if not seen.fixed_batch:
        rounded, correction = _lessen_error(rounded, seen, run, progress)
        images, exact = list(correction.images), correction.logits
    result = rounded.graph()
    if not options.plain:
        result = in_target_form(result, seen.target)
    onnx.checker.check_model(result, full_check=True)
    like = fidelity.compare(seen.model, result, images, exact=exact, run=run)
    record = _record(seen, rounded, like, out)
    fidelity.refuse_lost(record, force=options.force)
    files.save_model(result, out)
    return dataclasses.replace(record, sha256=store.digest(out))


def in_target_form(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """An INT8 graph in FP32 -> the same for the target's compiler.

    TensorRT-RTX adds in the type of the file's floats, and no version of it reads FP32 better: FP16 around the pairs,
    which needs opset 19, and no zero point but 0. The others take it as it is.
    """
    return for_tensorrt.half_around_pairs(zero_points.to_additions(model)) if target == "tensorrt-rtx" else model


def _round_to_nearest(seen: Calibrated, options: FileOptions) -> rounding.Rounding:
    placement = qdq_placement.plan(seen.model, seen.target, keep_float=options.keep_float)
    limit = ranges.weight_limit(seen.target, portable=options.portable)
    return rounding.Rounding(
        model=seen.model,
        placement=placement,
        activations=seen.activations,
        weights=quantized_weights(seen.model, placement, seen.activations, limit),
        limit=limit,
    )


def _lessen_error(
    rounded: rounding.Rounding, seen: Calibrated, run: Runner, progress: Progress | None
) -> tuple[rounding.Rounding, bias.Correction]:
    """Weights rounded anew where that was asked for, and biases corrected, with what the pass for these told."""
    if seen.calibration.effort == "high":
        rounded = rounding.refine(rounded, seen.images, run, progress=progress)
    correction = bias.correction(rounded.model, rounded.graph(), rounded.placement, rounded.weights, seen.images, run)
    shifts = {name: shift + rounded.shifts.get(name, 0.0) for name, shift in correction.shifts.items()}
    return dataclasses.replace(rounded, shifts=shifts), correction


def _record(seen: Calibrated, rounded: rounding.Rounding, like: Likeness, out: Path) -> Artifact:
    """The file's record, but for its digest."""
    source, placement = seen.source, rounded.placement
    portable = rounded.limit == ranges.REDUCED_RANGE
    return dataclasses.replace(
        source,
        path=str(out),
        precision="int8",
        parent=source.sha256,
        target=seen.target,
        calibration=dataclasses.replace(
            seen.calibration,
            methods={name: seen.calibration.methods[name] for name in placement.observed},
        ),
        machine=None if portable or seen.target in NVIDIA else "vnni",
        checks={
            "residual_adds": float(len(placement.blocks)),
            "fusable_adds": float(len(placement.blocks) - len(placement.unfusable)),
            **fidelity.checks(like),
        },
        notes=(*source.notes, *notes(placement, seen), *fidelity.notes(like)),
        likeness=like,
        tools={"onnx": onnx.__version__, "numpy": np.__version__},
    )


def refuse_bad_weights(model: onnx.ModelProto) -> None:
    """Names the first float tensor that is not finite; folding a batch normalisation can make such.

    Raises:
        MalformedInput: there is one.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not files.is_sound(numpy_helper.to_array(tensor)):
            raise MalformedInput(
                f"weight {tensor.name} holds NaN or infinity",
                cause="The training diverged, or the file is damaged",
                fix="Export the model again from a sound checkpoint",
            )


def quantized_weights(
    model: onnx.ModelProto,
    placement: qdq_placement.Placement,
    activations: Mapping[str, qdq_placement.Activation],
    limit: int,
) -> dict[str, qdq_placement.Weight]:
    """The integers and scales of every quantized operator, by its name."""
    index = Index(model)
    nodes = by_name(index.nodes)
    weights: dict[str, qdq_placement.Weight] = {}
    for site in placement.weights:
        inputs = nodes[site.node].input
        if placement.target == "onnxruntime" and len(inputs) > 2 and inputs[2] in index.constants:
            offset, scale = index.array(inputs[2]), activations[placement.activations[site.data]].scale
        else:
            offset, scale = None, 1.0
        weights[site.node] = ranges.weight(
            index.array(site.tensor),
            site.axis,
            limit=limit,
            bias=offset,
            input_scale=scale,
            one_scale=placement.one_scale,
        )
    return weights


def importance(model: onnx.ModelProto, placement: qdq_placement.Placement) -> dict[str, NDArray[np.float64]]:
    """How much an error in each channel of each observed tensor matters: the energy of the weights that read it.

    An addition reads with a weight of 1. Where nothing but operators that move values read a tensor, all its channels
    matter alike.
    """
    index = Index(model)
    nodes = by_name(index.nodes)
    energies: dict[str, NDArray[np.float64]] = {}
    for site in placement.weights:
        if placement.activations.get(site.data) != site.data:
            continue
        squares = np.square(index.array(site.tensor).astype(np.float64))
        if nodes[site.node].op_type == "Conv":  # (out, in of a group, ...)
            groups = attribute(nodes[site.node], "group", 1)
            energy = squares.reshape(groups, len(squares) // groups, squares.shape[1], -1).sum(axis=(1, 3)).ravel()
        else:
            energy = squares.sum(axis=site.axis)
        energies[site.data] = energies.get(site.data, 0.0) + energy
    for block in placement.blocks:
        for operand in (block.main, block.skip):
            if operand in energies:
                energies[operand] = energies[operand] + 1.0
    return {tensor: energies.get(tensor, np.ones(1)) for tensor in placement.observed}


def _left_in_float(placement: qdq_placement.Placement, seen: Calibrated) -> list[str]:
    """What is not quantized: operator by operator, or in one sentence where it is much of the network's arithmetic."""
    kept = placement.kept_float
    if not kept or seen.source.model is None:
        return [f"{node} is not quantized: {why}" for node, why in kept.items()]
    macs = {layer.name: layer.macs for layer in counts.count(seen.model, seen.source.model).layers if layer.macs}
    share = sum(macs.get(node, 0) for node in kept) / max(sum(macs.values()), 1)
    if share <= MUCH_IN_FLOAT:
        return [f"{node} is not quantized: {why}" for node, why in kept.items()]
    total = len(kept) + len(placement.weights)
    reasons = "; ".join(f"{why}: {', '.join(_first(why, kept))}" for why in dict.fromkeys(kept.values()))
    return [f"{len(kept)} of {total} layers stay FP32, {100 * share:.0f} % of the arithmetic ({reasons})"]


def _first(why: str, kept: Mapping[str, str], most: int = 3) -> list[str]:
    nodes = [node for node, other in kept.items() if other == why]
    return [*nodes[:most], *([f"{len(nodes) - most} more"] if len(nodes) > most else [])]


def notes(placement: qdq_placement.Placement, seen: Calibrated) -> tuple[str, ...]:
    """What a reader of the artifact must know."""
    lines = [f"residual addition {add} cannot be fused in INT8: {why}" for add, why in placement.unfusable.items()]
    lines = [*_left_in_float(placement, seen), *lines]
    high = seen.calibration.effort == "high"
    if any(seen.calibration.methods[name] == "exact" for name in placement.observed):
        lines.append("the input is quantized exactly, as pixels; its padding border by at most half a pixel value off")
    elif high:
        lines.append("the input is rounded: how it was normalised is not known, or no convolution reads it")
    if seen.calibration.count == 1:
        lines.append("calibrated on a single image: ranges may be too narrow for others")
    if seen.fixed_batch:
        lines.append("biases are not corrected: the file's batch size is fixed")
    if seen.fixed_batch and high:
        lines.append("weights are rounded to nearest: the file's batch size is fixed")
    observed = seen.observed
    dead = [name for name in placement.observed if observed[name].extremes.lo == observed[name].extremes.hi == 0]
    if dead:
        lines.append(f"always zero on the calibration images: {', '.join(dead)}")
    return tuple(lines)

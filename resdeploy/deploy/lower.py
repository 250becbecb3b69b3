"""Lowers an FP32 ONNX file to FP16, BF16 or INT8, explicit in its graph, and checks that it still computes the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resdeploy import store
from resdeploy.deploy import calibration, export, reuse, rewriting
from resdeploy.errors import UsageError
from resdeploy.records import (
    Artifact,
    Precision,
    Progress,
    Target,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def lower(
    source: Artifact,
    precision: Precision,
    target: Target | None,
    plan: calibration.CalibrationPlan,
    out: Path | None = None,
    *,
    plain: bool = False,
    progress: Progress,
) -> Artifact:
    """The FP32 ONNX file in another precision, explicit in its graph; INT8 follows the fusion rules of `target`.

    With `plain` an INT8 file is as training takes it (`ptq.FileOptions`).

    Raises:
        UsageError: the file is in a low precision already, or INT8 without calibration images.
        OutputLost: its output has nothing to do with the source's (`quantize.fidelity`), or the source computes
            something else once it is rewritten; nothing is written.
    """
    from resdeploy.quantize import fidelity

    if source.precision == precision:
        return source
    if source.precision != "fp32" or precision == "fp32":
        raise UsageError(
            f"{source.path} is {source.precision} already and cannot become {precision}",
            fix="Name the FP32 file it was made from",
        )

    def make(path: Path) -> Artifact:
        notes = rewriting.refuse_other_function(source, images_to_compare(source, plan))
        if precision == "int8":
            assert target is not None  # a backend without one does not accept INT8
            record = _write_int8(source, target, plan, path, plain=plain, progress=progress)
        else:
            record = _write_half(source, precision, plan, path, progress)
        record = dataclasses.replace(record, notes=(*record.notes, *notes))
        if out is not None:  # the cache keeps a lost file: who forces it, or trains it further, need not make it again
            fidelity.refuse_lost(record, force=plan.force)
        return record

    artifact = reuse.make_or_reuse((lower_key(source, precision, target, plan), plain), ".onnx", out, make)
    fidelity.refuse_lost(artifact, force=plan.force)
    return artifact


def _write_int8(
    source: Artifact,
    target: Target,
    plan: calibration.CalibrationPlan,
    path: Path,
    *,
    plain: bool,
    progress: Progress,
) -> Artifact:
    from resdeploy.quantize import ptq

    seen = calibration.calibrate(source, target, plan, progress=progress)
    options = ptq.FileOptions(portable=plan.portable_here(), plain=plain, force=True)
    return ptq.write(seen, path, options, progress=progress)


def _write_half(
    source: Artifact,
    precision: Literal["fp16", "bf16"],
    plan: calibration.CalibrationPlan,
    path: Path,
    progress: Progress,
) -> Artifact:
    from resdeploy.graph import cast, files
    from resdeploy.graph.canonical import form
    from resdeploy.quantize import fidelity, overflow

    model, keep = form.canonicalise(files.load_model(Path(source.path))), {}
    if precision == "fp16" and plan.data is not None:
        images = calibration.calibration_inputs(source, plan)
        keep = overflow.find_overflowing(model, images, total=plan.samples, progress=progress)
    half = cast.to_half(model, precision, keep=keep)
    like = fidelity.compare_half(model, half, images_to_compare(source, plan))
    in_fp32 = cast.nodes_in_fp32(half)
    files.save_model(half, path)
    return store.derive(
        source,
        path,
        precision=precision,
        checks=fidelity.checks(like),
        notes=(
            *source.notes,
            *([f"kept in FP32, their values overflow: {', '.join(in_fp32)}"] if in_fp32 else []),
            *fidelity.notes(like),
        ),
        likeness=like,
        tools=reuse.versions("onnx"),
    )


def images_to_compare(source: Artifact, plan: calibration.CalibrationPlan) -> list[NDArray[Any]]:
    """Some images to compare a file with its source on: of those given, else a few synthetic ones, or noise."""
    from resdeploy.quantize import fidelity

    assert source.model is not None
    if plan.data is None:
        return list(export.comparison_images(source, None))
    most = fidelity.images_to_compare(int(np.prod(source.model.input_shape)))
    few = dataclasses.replace(plan, samples=min(plan.samples, most))
    return [image for batch in calibration.calibration_inputs(source, few) for image in batch]


def lower_key(source: Artifact, precision: Precision, target: Target | None, plan: calibration.CalibrationPlan) -> Any:
    """Everything that the file of `lower` depends on; not `force`, which decides whether a bad one is handed out."""
    tools = reuse.versions("onnx", "onnxruntime", "openvino", "pillow")
    if precision != "int8" and plan.data is None:
        return (precision, reuse.identity(source), tools)
    images = calibration.listed_images(source, plan).signature()  # files that were not touched are not read again
    if precision != "int8":
        return (precision, reuse.identity(source), plan.samples, plan.seed, images, tools)
    here = (plan.portable_here(), plan.arithmetic_here())
    return ("int8", reuse.identity(source), target, dataclasses.replace(plan, force=False), here, images, tools)

"""`--input uint8`: a model that takes raw pixels and normalises them itself, proved to compute the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from resdeploy import store
from resdeploy.deploy import export, model_files, reuse
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.records import Artifact

# As for an export: FP32 rounding is some 1e-5 of the largest logit, more is a wrong graph.
MAX_REL_ERROR = 1e-4


def uint8_input(source: Artifact, out: Path | None = None, *, data: str | None = None) -> Artifact:
    """An FP32 ONNX file whose input is uint8 pixels, its own normalisation folded into its first convolutions.

    Both files run in FP32 on images of `data` or on synthetic ones; the difference is in `checks`.

    Raises:
        UsageError: not an FP32 file, its preprocessing unknown, or its input uint8 already.
        MalformedInput: both files' logits differ by more than rounding.
    """
    spec = model_files.preprocessing_of(source)
    if source.precision != "fp32":
        raise UsageError(f"{source.path} is {source.precision} already", fix="Name the FP32 file it was made from")
    if spec.dtype == "uint8":
        raise UsageError(f"the input of {source.path} is uint8 already", fix="Leave --input out")

    def make(path: Path) -> Artifact:
        from resdeploy.graph import files, metadata, pixels
        from resdeploy.graph.canonical import form

        assert source.model is not None
        model = pixels.to_pixels(form.canonicalise(files.load_model(Path(source.path))), spec)
        described = dataclasses.replace(source.model, preprocessing=dataclasses.replace(spec, dtype="uint8"))
        metadata.attach(model, described)
        files.save_model(model, path)
        artifact = store.derive(
            source,
            path,
            model=described,
            notes=(*source.notes, "its input is uint8 pixels, normalised inside"),
            tools=reuse.versions("onnx"),
        )
        return dataclasses.replace(artifact, checks=_measure_error(source, artifact, data))

    return reuse.make_or_reuse(("uint8", source.sha256, spec, data, reuse.versions("onnx")), ".onnx", out, make)


def _measure_error(before: Artifact, after: Artifact, data: str | None) -> dict[str, float]:
    """The largest difference of the logits on the same images."""
    expected, logits = (
        export.run_fp32(Path(side.path), export.comparison_images(side, data)) for side in (before, after)
    )
    absolute, largest = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    relative = absolute / largest if largest else absolute
    if not relative <= MAX_REL_ERROR:
        raise MalformedInput(
            f"with its normalisation folded in, {after.path} is off by {relative:.1e} of the largest logit",
            cause="The file's own input may not be normalised as its description says",
            fix="Check --mean and --std: `resdeploy eval` on the original file",
        )
    return {"max_abs_error": absolute, "max_rel_error": relative}

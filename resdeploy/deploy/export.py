"""A network as a checkpoint or as a canonical ONNX file, compared with torch in float64."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import scratch, store
from resdeploy.deploy import model_files, networks, reuse, rewriting
from resdeploy.deploy.model_string import CompiledFile, OnnxFile, Request, ZooName
from resdeploy.errors import UsageError
from resdeploy.records import (
    Artifact,
    Execution,
    Progress,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECK_IMAGES = 3  # that two models are compared on
_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript", "timm", "torchvision")  # what an exported graph depends on


def to_checkpoint(request: Request, out: Path | None = None) -> Artifact:
    """The request's network as a safetensors checkpoint."""
    from resdeploy.models import weights

    network = networks.resolve(request)

    def make(path: Path) -> Artifact:
        module = weights.create(network.spec, network.path, seed=request.seed)
        return weights.save(module, network.spec, path, network.weights)

    return reuse.make_or_reuse(("checkpoint", network, reuse.versions("torch")), ".safetensors", out, make)


def to_onnx(request: Request, out: Path | None = None, *, data: str | None = None, progress: Progress) -> Artifact:
    """The request's network as a canonical ONNX file in FP32, compared with torch in float64.

    Compared on images of `data`, or on synthetic ones; the error is in `checks`. An ONNX file is taken as it is; with
    `out` its canonical form is written there, its preprocessing inside.

    Raises:
        UsageError: a compiled file, from which no ONNX can be made.
    """
    if isinstance(request.named, OnnxFile):
        artifact = model_files.open_model(request)
        return artifact if out is None else _write_canonical(artifact, out)
    if isinstance(request.named, CompiledFile):
        raise UsageError(f"{request.model} is compiled already", fix="Name the ONNX file or the model it was made from")
    network = networks.resolve(request)

    def make(path: Path) -> Artifact:
        from resdeploy.graph import from_torch
        from resdeploy.models import weights

        module = weights.create(network.spec, network.path, seed=request.seed)
        artifact = from_torch.export(module, network.spec, path, weights=network.weights, progress=progress)
        return from_torch.verify(artifact, module, run_fp32, comparison_images(artifact, data))

    key = ("onnx", network, data, reuse.versions(*_EXPORTERS))
    return reuse.make_or_reuse(key, ".onnx", out, make)


def to_blank(request: Request, *, progress: Progress) -> Artifact | None:
    """The file of `to_onnx` without its weights, which are neither drawn nor written: for counting alone.

    None for all but zoo names with random weights: those of a file may decide what is in the graph, and so may the code
    of a module that is not ours.
    """
    if not isinstance(request.named, ZooName):
        return None
    network = networks.resolve(request)
    if network.path is not None:
        return None

    def make(path: Path) -> Artifact:
        from resdeploy.graph import files, from_torch
        from resdeploy.models import weights

        progress("tracing", 0, 1)
        files.save_model(from_torch.blank_graph(weights.create_unfilled(network.spec), network.spec), path)
        progress("tracing", 1, 1)
        return Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path), model=network.spec)

    return reuse.make_or_reuse(("blank", network, reuse.versions(*_EXPORTERS)), ".onnx", None, make)


def _write_canonical(source: Artifact, out: Path) -> Artifact:
    """A user's own ONNX file in the canonical form, carrying what is known of it."""
    from resdeploy.graph import files, metadata
    from resdeploy.graph.canonical import form

    assert source.model is not None
    store.probe(out)
    if source.precision != "fp32":
        raise UsageError(f"{source.path} is {source.precision} already", fix="Name the FP32 file it was made from")
    model = form.canonicalise(files.load_model(Path(source.path)))
    notes = rewriting.refuse_other_function(source, list(comparison_images(source, None)))
    metadata.attach(model, source.model)

    def make(path: Path) -> Artifact:
        files.save_model(model, path)
        return store.derive(
            source,
            path,
            notes=(*source.notes, *notes),
            tools=reuse.versions("onnx"),
        )

    return store.publish(out, make)


def comparison_images(artifact: Artifact, data: str | None) -> NDArray[Any]:
    """A few inputs to compare two models on: real ones where the user has some, else images with natural spectra.

    Noise for a file that does not say how it sees images, where there are none.
    """
    from resdeploy.data import datasets

    assert artifact.model is not None
    if data is None and artifact.model.preprocessing is None:
        random, (channels, height, width) = np.random.default_rng(0), artifact.model.input_shape
        # Each image has a tint of its own: a network gives nearly the same logits for all images of plain noise.
        tints = random.standard_normal((CHECK_IMAGES, channels, 1, 1), np.float32)
        noise: NDArray[Any] = tints + random.standard_normal((CHECK_IMAGES, channels, height, width), np.float32)
        return noise
    images = datasets.open_dataset(data or f"synthetic:{CHECK_IMAGES}", need_labels=False)
    some = images.subset(range(min(CHECK_IMAGES, len(images))))
    return next(iter(datasets.batches(some, model_files.preprocessing_of(artifact), CHECK_IMAGES))).inputs


def run_fp32(path: Path, inputs: NDArray[Any]) -> NDArray[Any]:
    """Logits of an ONNX file from ONNX Runtime, one batch of whatever size `inputs` has."""
    from resdeploy.backends.lane import Lane

    execution = Execution(batch_size=len(inputs))
    artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    with scratch.folder() as folder, Lane("onnxruntime") as lane:
        lane.open(lane.build(artifact, execution, folder / "checked.onnx"), execution)
        return lane.predict(inputs).astype(np.float32)

"""Files from files: export, lower, build. Each result is cached under the hash of everything it depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resdeploy import __version__, backends, cache, scratch, store
from resdeploy.backends import machine
from resdeploy.errors import UsageError
from resdeploy.pipeline import engines, sources
from resdeploy.pipeline.request import Request
from resdeploy.records import (
    Arithmetic,
    Artifact,
    BackendName,
    Calibration,
    Effort,
    Execution,
    Precision,
    Progress,
    Target,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.data.datasets import Dataset
    from resdeploy.quantize.ptq import Calibrated

# Whose fusion rules INT8 follows for each backend; torch runs no Q/DQ graph of ours.
TARGETS: dict[BackendName, Target] = {
    "tensorrt": "tensorrt",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "null": "onnxruntime",
}
SUFFIX = {"checkpoint": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "engine": ".engine"}


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """How INT8 ranges are to be found. `data=None`: synthetic images for random weights, an error for others."""

    data: str | None = None
    samples: int = 300
    method: str = "percentile"
    portable: bool | None = None  # None: what this CPU needs
    effort: Effort = "normal"
    arithmetic: Arithmetic | None = None  # None: BF16 where this machine has it
    seed: int = 0
    force: bool = False  # make the file even where its output has nothing to do with the source's

    def portable_here(self) -> bool:
        """Whether weights must be in 7 bits: asked for, or this CPU has no VNNI and would saturate."""
        return not machine.cpu().vnni if self.portable is None else self.portable

    def arithmetic_here(self) -> Arithmetic:
        """In what the network is watched: asked for, or the fastest that this machine has."""
        if self.arithmetic is not None:
            return self.arithmetic
        return "bf16" if machine.cpu().bf16 and backends.load("openvino").available().ok else "fp32"


def checkpoint(request: Request, out: Path | None = None) -> Artifact:
    """The request's network as a safetensors checkpoint."""
    from resdeploy.models import weights, zoo

    network = sources.network(request)

    def make(path: Path) -> Artifact:
        module = zoo.create(network.spec, seed=request.seed)
        if network.path is not None:
            weights.load_into(module, network.path)
        return weights.save(module, network.spec, path, network.weights)

    return made(("checkpoint", network, versions("torch")), ".safetensors", out, make)


def onnx_fp32(request: Request, out: Path | None = None, *, data: str | None = None, progress: Progress) -> Artifact:
    """The request's network as a canonical ONNX file in FP32, compared with torch in float64.

    Compared on images of `data`, or on synthetic ones; the error is in `checks`. An ONNX file is taken as it is; with
    `out` its canonical form is written there, its preprocessing inside.

    Raises:
        UsageError: a compiled file, from which no ONNX can be made.
    """
    kind = sources.format_of(request.model)
    if kind == "onnx":
        artifact = sources.model_file(request)
        return artifact if out is None else _canonical(artifact, out)
    if kind not in (None, "checkpoint"):
        raise UsageError(f"{request.model} is compiled already", fix="Name the ONNX file or the model it was made from")
    network = sources.network(request)

    def make(path: Path) -> Artifact:
        from resdeploy.graph import export
        from resdeploy.models import weights, zoo

        module = zoo.create(network.spec, seed=request.seed)
        if network.path is not None:
            weights.load_into(module, network.path)
        artifact = export.export(module, network.spec, path, weights=network.weights, progress=progress)
        return export.verify(artifact, module, run_fp32, check_images(artifact, data))

    key = ("onnx", network, data, versions("torch", "onnx", "onnx-ir", "onnxscript", "timm", "torchvision"))
    return made(key, ".onnx", out, make)


def _canonical(source: Artifact, out: Path) -> Artifact:
    """A user's own ONNX file in the canonical form, carrying what is known of it."""
    from resdeploy.graph import files, metadata, portable

    assert source.model is not None
    store.probe(out)
    if source.precision != "fp32":
        raise UsageError(f"{source.path} is {source.precision} already", fix="Name the FP32 file it was made from")
    model = portable.canonicalise(files.load_model(Path(source.path)))
    metadata.attach(model, source.model)

    def make(path: Path) -> Artifact:
        files.save_model(model, path)
        return dataclasses.replace(
            source, path=str(path), sha256=store.digest(path), parent=source.sha256, checks={}, tools=versions("onnx")
        )

    return store.publish(out, make)


def check_images(artifact: Artifact, data: str | None) -> NDArray[Any]:
    """A few inputs to compare two models on: real ones where the user has some, else images with natural spectra."""
    from resdeploy.data import datasets

    images = datasets.open_dataset(data or f"synthetic:{CHECK_IMAGES}", need_labels=False)
    some = images.subset(range(min(CHECK_IMAGES, len(images))))
    return next(iter(datasets.batches(some, sources.sight_of(artifact), CHECK_IMAGES))).inputs


def run_fp32(path: Path, inputs: NDArray[Any]) -> NDArray[Any]:
    """Logits of an ONNX file from ONNX Runtime, one batch of whatever size `inputs` has."""
    from resdeploy.backends.lane import Lane

    execution = Execution(batch_size=len(inputs))
    artifact = Artifact(path=str(path), format="onnx", precision="fp32", sha256=store.digest(path))
    with scratch.folder() as folder, Lane("onnxruntime") as lane:
        lane.open(lane.build(artifact, execution, folder / "checked.onnx"), execution)
        return lane.predict(inputs).astype(np.float32)


def lowered(
    source: Artifact,
    precision: Precision,
    target: Target,
    plan: CalibrationPlan,
    out: Path | None = None,
    *,
    progress: Progress,
) -> Artifact:
    """The FP32 ONNX file in another precision, explicit in its graph.

    Raises:
        UsageError: the file is in a low precision already, or INT8 without calibration images.
        OutputLost: its output has nothing to do with the source's (`quantize.fidelity`); nothing is written.
    """
    from resdeploy.quantize import fidelity, ptq

    if source.precision == precision:
        return source
    if source.precision != "fp32" or precision == "fp32":
        raise UsageError(
            f"{source.path} is {source.precision} already and cannot become {precision}",
            fix="Name the FP32 file it was made from",
        )

    def make(path: Path) -> Artifact:
        if precision != "int8":
            return _half(source, precision, plan, path, progress)
        seen = calibrated(source, target, plan, progress=progress)
        return ptq.write(seen, path, portable=plan.portable_here(), force=True, progress=progress)

    def alike(path: Path) -> Artifact:
        record = make(path)
        fidelity.refuse_lost(record, force=plan.force)
        return record

    # The cache keeps a lost file: who forces it, and who trains it further, need not make it again.
    found = made(lowered_key(source, precision, target, plan), ".onnx", out, make if out is None else alike)
    fidelity.refuse_lost(found, force=plan.force)
    return found


def _half(
    source: Artifact, precision: Literal["fp16", "bf16"], plan: CalibrationPlan, path: Path, progress: Progress
) -> Artifact:
    from resdeploy.graph import cast, files, portable
    from resdeploy.quantize import fidelity, overflow

    model, keep = portable.canonicalise(files.load_model(Path(source.path))), {}
    if precision == "fp16" and plan.data is not None:
        images = calibration_inputs(source, plan)
        keep = overflow.overflowing(model, images, total=plan.samples, progress=progress)
    half = cast.to_half(model, precision, keep=keep)
    like = fidelity.compare_half(model, half, _compared_images(source, plan))
    kept = cast.kept(half)
    record = dataclasses.replace(
        source,
        path=str(path),
        precision=precision,
        parent=source.sha256,
        checks=fidelity.checks(like),
        notes=(
            *source.notes,
            *([f"kept in FP32, their values overflow: {', '.join(kept)}"] if kept else []),
            *fidelity.notes(like),
        ),
        likeness=like,
        tools=versions("onnx"),
    )
    files.save_model(half, path)
    return dataclasses.replace(record, sha256=store.digest(path))


def _compared_images(source: Artifact, plan: CalibrationPlan) -> list[NDArray[Any]]:
    """Some images to compare a file with its source on: of those given, else a few synthetic ones, or noise."""
    from resdeploy.quantize import fidelity

    assert source.model is not None
    if plan.data is None and source.model.preprocessing is None:
        random, (channels, height, width) = np.random.default_rng(0), source.model.input_shape
        # Each image has a tint of its own: a network gives nearly the same logits for all images of plain noise.
        tints = random.standard_normal((CHECK_IMAGES, channels, 1, 1), np.float32)
        return list(tints + random.standard_normal((CHECK_IMAGES, channels, height, width), np.float32))
    if plan.data is None:
        return list(check_images(source, None))
    most = fidelity.images_to_compare(int(np.prod(source.model.input_shape)))
    few = dataclasses.replace(plan, samples=min(plan.samples, most))
    return [image for batch in calibration_inputs(source, few) for image in batch]


def calibration_inputs(source: Artifact, plan: CalibrationPlan) -> Iterator[NDArray[Any]]:
    """The calibration images as the network sees them, in batches; those that cannot be read are left out."""
    from resdeploy.data import datasets

    images = calibration_images(source, plan)
    return (batch.inputs for batch in datasets.batches(images, sources.sight_of(source), CALIBRATION_BATCH))


def calibrated(source: Artifact, target: Target, plan: CalibrationPlan, *, progress: Progress) -> Calibrated:
    """What the calibration images show of an FP32 file, with the record of these images.

    Raises:
        UsageError: no images given for weights that are not random, or nothing to quantize.
    """
    from resdeploy.data import datasets
    from resdeploy.quantize import ptq

    images = calibration_images(source, plan)
    hashes: list[str] = []
    used: list[int] = []
    unreadable: list[str] = []

    def inputs() -> Iterator[NDArray[Any]]:
        for batch in datasets.batches(images, sources.sight_of(source), CALIBRATION_BATCH):
            hashes.extend(batch.hashes)
            used.extend(batch.indices.tolist())
            unreadable.extend(batch.unreadable)
            yield batch.inputs

    seen = ptq.calibrated(
        source,
        inputs(),
        calibration=Calibration(
            data="synthetic" if images.synthetic else images.name,
            count=len(images),
            seed=plan.seed,
            method=plan.method,
            effort=plan.effort,
            arithmetic=plan.arithmetic_here(),
        ),
        target=target,
        progress=progress,
    )
    found = images.subset(used)
    record = dataclasses.replace(
        seen.calibration,
        images=tuple(hashes),
        fingerprint=None if images.synthetic else datasets.fingerprint(found.ids, found.labels, hashes),
    )
    notes = [f"left out of calibration, unreadable: {name}" for name in unreadable]
    notes += [f"to calibrate on: {told}" for told in images.repeats.told]
    return dataclasses.replace(
        seen, calibration=record, source=dataclasses.replace(source, notes=(*source.notes, *notes))
    )


def lowered_key(source: Artifact, precision: Precision, target: Target, plan: CalibrationPlan) -> Any:
    """Everything that the file of `lowered` depends on: `force` says only whether a lost one is given out."""
    tools = versions("onnx", "onnxruntime", "openvino", "pillow")
    if precision != "int8" and plan.data is None:
        return (precision, _identity(source), tools)
    images = _chosen(source, plan).signature()  # of files' times and sizes: a hit reads no image
    if precision != "int8":
        return (precision, _identity(source), plan.samples, plan.seed, images, tools)
    here = (plan.portable_here(), plan.arithmetic_here())
    return ("int8", _identity(source), target, dataclasses.replace(plan, force=False), here, images, tools)


def _identity(source: Artifact) -> Any:
    """A file and what is known of it, which what is made from it inherits."""
    return (source.sha256, source.precision, source.model, source.weights, source.calibration, source.notes)


def calibration_images(source: Artifact, plan: CalibrationPlan) -> Dataset:
    """The images that INT8 ranges will come from: of the training split, spread over the classes, seeded, each once.

    Raises:
        UsageError: no images given for weights that are not random.
    """
    from resdeploy.data import datasets

    return datasets.distinct(_chosen(source, plan))


def _chosen(source: Artifact, plan: CalibrationPlan) -> Dataset:
    """As `calibration_images`, with those that are there twice, which only reading them tells."""
    from resdeploy.data import datasets

    data = plan.data
    if data is None:
        if source.weights is None or not source.weights.random:
            raise UsageError(
                "INT8 needs images to calibrate on",
                cause="Ranges from random data would lose accuracy unseen",
                fix="Add --calib-data DIR (a few hundred images like those the model will see)",
            )
        data = f"synthetic:{min(plan.samples, SYNTHETIC_SAMPLES)}"
    images = datasets.open_dataset(data, split="train", need_labels=False)
    return datasets.choose(images, min(plan.samples, len(images)), plan.seed)


def data_signature(data: str, split: Literal["train", "test"]) -> str:
    """Changes whenever the images or labels of a data set may have changed."""
    from resdeploy.data import datasets

    return datasets.open_dataset(data, split=split).signature()


CALIBRATION_BATCH = 16
CHECK_IMAGES = 3
# Ranges from noise mean nothing, so a few images are enough to time a model whose weights are random too.
SYNTHETIC_SAMPLES = 16


def built(
    source: Artifact,
    backend: BackendName,
    execution: Execution,
    out: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Artifact:
    """What `backend` runs, made from `source` in a lane; a compiled file is taken as it is.

    Raises:
        UsageError: a precision or file that the backend cannot run.
    """
    from resdeploy.backends.lane import Lane

    module = backends.load(backend)
    if source.format != module.SOURCE and suffix_of(backend) == SUFFIX[source.format]:
        return source
    if source.format != module.SOURCE:
        raise UsageError(
            f"{backend} does not run {source.path}", fix=f"It builds from a file in format {module.SOURCE}"
        )
    if source.precision not in module.ACCEPTS:
        able = [name for name in backends.PREFERENCE if source.precision in backends.load(name).ACCEPTS]
        raise UsageError(f"{backend} does not run {source.precision}", fix=f"Choose --backend {' or '.join(able)}")

    def make(path: Path) -> Artifact:
        if backend == "tensorrt":
            return engines.built(source, execution, path, progress)
        with Lane(backend) as lane:
            return lane.build(source, execution, path, progress=progress)

    return made(built_key(source, backend, execution), suffix_of(backend), out, make)


def built_key(source: Artifact, backend: BackendName, execution: Execution) -> Any:
    """Everything that `built` depends on."""
    found = backends.load(backend).available()
    return (
        "built",
        backend,
        found.version,
        found.devices,
        machine.isa_name(),
        _identity(source),
        execution,
        versions(),
    )


def suffix_of(backend: BackendName) -> str:
    """The file suffix of what a backend's build makes."""
    return {"tensorrt": ".engine", "openvino": ".xml", "torch": ".safetensors"}.get(backend, ".onnx")


def made(key: Any, suffix: str, out: Path | None, make: Callable[[Path], Artifact]) -> Artifact:
    """Made at `out` where the user named a file, else taken from or put into the cache."""
    if out is None:
        return cache.cached(key, suffix, make)
    store.probe(out)
    return store.publish(out, make)


def versions(*packages: str) -> dict[str, str]:
    """Our code and the versions of the packages that a result depends on; what is not installed is left out."""
    found = {"resdeploy": f"{__version__} {_code()}"}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def _code() -> str:
    """A digest of our own sources: what another version of them made is made again."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]

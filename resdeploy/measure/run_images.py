"""Runs a data set through a model in a lane: per-image predictions, from which every accuracy figure is derived."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import __version__, backends
from resdeploy.backends import Tensor, machine
from resdeploy.backends.lane import Lane
from resdeploy.data import datasets, preprocess
from resdeploy.data.datasets import Dataset
from resdeploy.errors import BackendCrash, MalformedInput, UsageError
from resdeploy.measure import prediction_files, shards
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Availability, Origin, Partial, Predictions, Preprocessing, Progress, Shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODED = 32  # images decoded at a time, whatever the batch size of the model


def predict(
    candidate: Candidate,
    dataset: Dataset,
    spec: Preprocessing | None,
    *,
    batch_size: int = 32,
    keep_logits: bool = True,
    partial: Partial | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Per-image predictions of a built model, in the data set's order.

    Images stream through in batches; of each only its best classes, its hash and, if wanted, its logits are kept (four
    bytes per class: 200 MB of 50,000 images and 1,000 classes). Unreadable images have no prediction; they are named in
    the result. So is what is there more than once by its bytes: it is counted once, or not at all where its labels
    differ. Classes are matched by name where the model knows names (`datasets.align`), so that a
    folder in another order than the model's is no silent 10 %.

    Args:
        candidate: its execution's batch size is what the backend runs; it was built for that.
        dataset: labelled images.
        spec: what the model was trained to see.
        batch_size: images decoded at a time.
        keep_logits: whether the result has them.
        partial: which shard of a data set these images are; None: all of it.
        progress: what is being done.

    Raises:
        UsageError: no preprocessing known, or classes that are not the model's.
        BackendCrash: logits that are NaN or infinite.
        MalformedInput: no image can be decoded, or every one has several labels.
        ResdeployError: what the backend or the data raised.
    """
    aligned = _align(dataset, candidate)
    scores: NDArray[np.float32] | None = None
    parts: list[Part] = []
    done = 0
    for part, logits in _stream(candidate, aligned, spec, batch_size, progress):
        if keep_logits:
            scores = np.empty((len(aligned), logits.shape[1]), np.float32) if scores is None else scores
            scores[done : done + len(logits)] = logits
        parts.append(part)
        done += len(logits)
    kept = None if scores is None else scores[:done]
    return predictions_of(candidate, dataset, spec, parts, logits=kept, partial=partial)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What a model answers to the images of one batch."""

    indices: NDArray[np.int64]  # (n,) positions in the data set
    hashes: tuple[str, ...]  # (n,) of each image's content
    top: NDArray[np.int64]  # (n, k) best classes
    right: NDArray[np.bool_]  # (n,)
    unreadable: tuple[str, ...]  # `id: reason` of the images around these

    def first(self, count: int) -> Part:
        """The first images of it alone."""
        return dataclasses.replace(
            self,
            indices=self.indices[:count],
            hashes=self.hashes[:count],
            top=self.top[:count],
            right=self.right[:count],
        )


def answer(
    candidate: Candidate, dataset: Dataset, spec: Preprocessing | None, *, batch_size: int
) -> Generator[Part, None, None]:
    """A model's answers batch by batch, for as long as they are asked for; closing the iterator ends the lane.

    Every model gets the same images in the same batches, since whether one can be decoded depends on its bytes alone.

    Args:
        candidate: as for `predict`.
        dataset: labelled images.
        spec: what the model was trained to see.
        batch_size: images decoded at a time.

    Raises:
        ResdeployError: as `predict` does.
    """
    for part, _ in _stream(candidate, _align(dataset, candidate), spec, batch_size, None):
        yield part


def predictions_of(
    candidate: Candidate,
    dataset: Dataset,
    spec: Preprocessing | None,
    parts: Sequence[Part],
    *,
    logits: NDArray[np.float32] | None = None,
    partial: Partial | None = None,
) -> Predictions:
    """The answers of a model to the images of these parts, each counted once unless they are a shard's.

    Raises:
        MalformedInput: every image has several labels.
    """
    aligned = _align(dataset, candidate)
    spec = require_preprocessing(spec, candidate)
    hashes = tuple(digest for part in parts for digest in part.hashes)
    kept = aligned.subset(np.concatenate([part.indices for part in parts]))
    predictions = Predictions(
        model=candidate.model,
        ids=kept.ids,
        labels=kept.labels,
        top=np.concatenate([part.top for part in parts]),
        logits=logits,
        data=dataset.name,
        data_fingerprint=datasets.fingerprint(kept.ids, kept.labels, hashes),
        preprocessing_fingerprint=preprocess.fingerprint(spec),
        sha256=candidate.artifact.sha256,
        images=hashes,
        unreadable=tuple(name for part in parts for name in part.unreadable),
        repeats=aligned.repeats,
        classes=aligned.classes,
        origin=_origin(candidate, spec),
        partial=partial,
    )
    return prediction_files.count_once(predictions) if partial is None else predictions


def _stream(
    candidate: Candidate, aligned: Dataset, spec: Preprocessing | None, batch_size: int, progress: Progress | None
) -> Iterator[tuple[Part, NDArray[np.float32]]]:
    """Each batch's answers and its logits."""
    spec = require_preprocessing(spec, candidate)
    with Lane(candidate.backend) as lane:
        opened = lane.open(candidate.artifact, candidate.execution)
        _check_classes(next(iter(opened.outputs.values())), aligned, candidate)
        for batch in datasets.batches(aligned, spec, batch_size, progress=progress):
            logits = require_finite(lane.predict(batch.inputs), candidate)
            top = prediction_files.top_classes(logits)
            right = top[:, 0] == aligned.labels[batch.indices]
            yield (
                Part(indices=batch.indices, hashes=batch.hashes, top=top, right=right, unreadable=batch.unreadable),
                logits,
            )


def shares_right(
    candidate: Candidate, dataset: Dataset, specs: Sequence[Preprocessing], *, progress: Progress | None = None
) -> tuple[float, ...]:
    """The share of right answers with each of several ways to see the images, in one lane; readable images count.

    Raises:
        ResdeployError: what the backend or the data raised.
    """
    aligned = _align(dataset, candidate)
    shares = []
    with Lane(candidate.backend) as lane:
        lane.open(candidate.artifact, candidate.execution)
        for k, spec in enumerate(specs):
            if progress is not None:
                progress("looking for the cause", k, len(specs))
            right = images = 0
            for batch in datasets.batches(aligned, spec, 32):
                answers = lane.predict(batch.inputs).argmax(axis=1)
                right += int((answers == aligned.labels[batch.indices]).sum())
                images += len(answers)
            shares.append(right / max(images, 1))
    if progress is not None:
        progress("looking for the cause", len(specs), len(specs))
    return tuple(shares)


def require_preprocessing(spec: Preprocessing | None, candidate: Candidate) -> Preprocessing:
    """How the model sees images.

    Raises:
        UsageError: nobody says.
    """
    if spec is None:
        raise UsageError(
            f"{candidate.model} does not say how it sees images",
            cause="The file was not written by resdeploy and has no preprocessing in its metadata",
            fix="Give --mean and --std, and --img-size and --resize where images are not of the model's size",
        )
    return spec


def _align(dataset: Dataset, candidate: Candidate) -> Dataset:
    """With class ids in the model's order."""
    model = candidate.artifact.model
    return datasets.align(dataset, model.labels if model else ())


def _origin(candidate: Candidate, spec: Preprocessing) -> Origin:
    """Everything besides weights and images that the predictions depend on."""
    artifact = candidate.artifact
    state = backends.load(candidate.backend).available()
    cpu = machine.cpu()
    tools = {"resdeploy": __version__, "numpy": np.__version__}
    pillow = backends.installed_version("PIL", "pillow")
    tools |= {"pillow": pillow} if pillow else {}
    if state.version:
        tools[candidate.backend] = state.version
    on_cpu = _is_on_cpu(state)
    return Origin(
        weights=artifact.weights.source if artifact.weights else "",
        precision=artifact.precision,
        backend=candidate.backend,
        machine=f"{cpu.model} ({machine.isa_name(cpu)})" if on_cpu else ", ".join(state.devices),
        tools=tools,
        preprocessing=spec,
        calibration=dataclasses.replace(artifact.calibration, methods={}) if artifact.calibration else None,
    )


def _is_on_cpu(state: Availability) -> bool:
    return state.devices in ((), ("CPU",))


def _partial(candidate: Candidate, dataset: Dataset, shard: Shard) -> Partial:
    """What is remembered of a shard of this data set."""
    on_cpu = _is_on_cpu(backends.load(candidate.backend).available())
    return Partial(
        shard=shard,
        images=len(dataset),
        listing=shards.listing(dataset),
        batch_size=candidate.execution.batch_size,
        threads=(candidate.execution.threads or machine.usable_cores()) if on_cpu else 0,
    )


def _check_classes(output: Tensor, dataset: Dataset, candidate: Candidate) -> None:
    if output.shape[2:] not in ((), (1, 1)):
        raise UsageError(
            f"{candidate.model} gives an output of shape {list(output.shape)}, not (images, classes)",
            fix="Give a classifier",
        )
    classes = output.shape[1]
    known = len(dataset.classes) or int(dataset.labels.max()) + 1
    # Without names, a data set need not have images of the last classes.
    if known > classes or (dataset.classes and known != classes):
        raise UsageError(
            f"{candidate.model} tells {classes} classes apart, {dataset.name} has {known}",
            fix="Give --data with the model's own classes",
        )


def require_finite(logits: NDArray[np.generic], candidate: Candidate) -> NDArray[np.float32]:
    """Logits in FP32.

    Raises:
        BackendCrash: one is NaN or infinite.
    """
    array = np.asarray(logits, np.float32)
    if not np.isfinite(array).all():
        raise BackendCrash(
            f"{candidate.label} gave logits that are NaN or infinite",
            cause="Activations overflowed, as FP16 does above 65,504",
            fix="Use fp32 or bf16, or another --backend",
            code="E-NOT-FINITE",
        )
    return array


def predict_test_split(
    candidate: Candidate,
    data: str,
    *,
    shard: Shard | None = None,
    skip_bad: bool = False,
    keep_logits: bool = True,
    progress: Progress,
) -> Predictions:
    """Per-image results of a built model on the data set's test split, or on one shard of it.

    Raises:
        MalformedInput: images that cannot be decoded (each named), unless `skip_bad`.
        UsageError: more shards than batches.
    """
    images = datasets.open_dataset(data, split="test")
    model = candidate.artifact.model
    batch_size = max(DECODED, candidate.execution.batch_size)
    partial = None
    if shard is not None:
        partial, images = _partial(candidate, images, shard), shards.cut(images, shard, batch_size)
    predictions = predict(
        candidate,
        images,
        model.preprocessing if model else None,
        batch_size=batch_size,
        keep_logits=keep_logits,
        partial=partial,
        progress=progress,
    )
    if not skip_bad:
        refuse_unreadable(predictions.unreadable, len(images))
    return predictions


def refuse_unreadable(names: Sequence[str], images: int) -> None:
    """Refuses a set of which some images cannot be decoded.

    Raises:
        MalformedInput: there are any; the first are named.
    """
    if names:
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise MalformedInput(
            f"{len(names)} of {images} images cannot be decoded: {shown}",
            fix="Repair or remove them; eval and gate go on without them with --skip-bad",
        )

"""Calibration images: which ones INT8 ranges come from, and what the model does on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resdeploy import backends
from resdeploy.backends import machine
from resdeploy.deploy import model_files
from resdeploy.errors import UsageError
from resdeploy.records import (
    Arithmetic,
    Artifact,
    Calibration,
    Effort,
    Progress,
    Target,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.data.datasets import Dataset
    from resdeploy.quantize.ptq import Calibrated


# (2 - 2^-7) 2^127 against (2 - 2^-23) 2^127: exporters pad with -FLT_MAX before a max pool, which is -inf in BF16.
BF16_ENDS = "The largest number of BF16 is 0.4 % below that of FP32: what lies between is infinite in it"
CALIBRATION_BATCH = 16
# Ranges from noise mean nothing, so a few images are enough to time a model whose weights are random too.
SYNTHETIC_SAMPLES = 16


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
        """The arithmetic in which the network is observed: the one asked for, or the fastest that this machine has."""
        if self.arithmetic is not None:
            return self.arithmetic
        return "bf16" if machine.cpu().bf16 and backends.load("openvino").available().ok else "fp32"


def calibration_inputs(source: Artifact, plan: CalibrationPlan) -> Iterator[NDArray[Any]]:
    """The calibration images as the network sees them, in batches; those that cannot be read are left out."""
    from resdeploy.data import datasets

    images = calibration_images(source, plan)
    return (batch.inputs for batch in datasets.batches(images, model_files.preprocessing_of(source), CALIBRATION_BATCH))


def calibrate(source: Artifact, target: Target, plan: CalibrationPlan, *, progress: Progress) -> Calibrated:
    """What the calibration images show of an FP32 file, with the record of these images.

    Raises:
        UsageError: no images given for weights that are not random, or nothing to quantize.
    """
    from resdeploy.quantize import ptq
    from resdeploy.quantize.calibrate import NotFinite

    images = calibration_images(source, plan)
    batches = _Batches(source, images)

    def observe(arithmetic: Arithmetic) -> Calibrated:
        calibration = Calibration(
            data="synthetic" if images.synthetic else images.name,
            count=len(images),
            seed=plan.seed,
            method=plan.method,
            effort=plan.effort,
            arithmetic=arithmetic,
        )
        return ptq.run_calibration(source, batches, calibration=calibration, target=target, progress=progress)

    try:
        seen = observe(plan.arithmetic_here())
    except NotFinite as e:
        if plan.arithmetic == "bf16":
            raise NotFinite(e.what, cause=BF16_ENDS, fix="Leave --calib-precision bf16 out") from e
        if plan.arithmetic_here() == "fp32":
            raise
        seen = observe("fp32")
    return dataclasses.replace(
        seen,
        calibration=batches.identify(seen.calibration),
        source=dataclasses.replace(source, notes=(*source.notes, *batches.notes())),
    )


class _Batches:
    """The calibration images as the network sees them, in batches; and which ones the last pass saw."""

    def __init__(self, source: Artifact, images: Dataset) -> None:
        self._source, self._images = source, images
        self._hashes: list[str] = []
        self._indices: list[int] = []
        self._unreadable: list[str] = []

    def __iter__(self) -> Iterator[NDArray[Any]]:
        from resdeploy.data import datasets

        self._hashes, self._indices, self._unreadable = [], [], []
        spec = model_files.preprocessing_of(self._source)
        for batch in datasets.batches(self._images, spec, CALIBRATION_BATCH):
            self._hashes.extend(batch.hashes)
            self._indices.extend(batch.indices.tolist())
            self._unreadable.extend(batch.unreadable)
            yield batch.inputs

    def identify(self, calibration: Calibration) -> Calibration:
        """The record, with what identifies the images."""
        from resdeploy.data import datasets

        used = self._images.subset(self._indices)
        return dataclasses.replace(
            calibration,
            images=tuple(self._hashes),
            fingerprint=None if used.synthetic else datasets.fingerprint(used.ids, used.labels, self._hashes),
        )

    def notes(self) -> list[str]:
        """What a reader of the record must know of the images."""
        unreadable = [f"left out of calibration, unreadable: {name}" for name in self._unreadable]
        return unreadable + [f"to calibrate on: {note}" for note in self._images.repeats.notes]


def calibration_images(source: Artifact, plan: CalibrationPlan) -> Dataset:
    """The images that INT8 ranges will come from: of the training split, spread over the classes, seeded, each once.

    Raises:
        UsageError: no images given for weights that are not random.
    """
    from resdeploy.data import datasets

    return datasets.deduplicate(listed_images(source, plan))


def listed_images(source: Artifact, plan: CalibrationPlan) -> Dataset:
    """As `calibration_images`, repeats included: which ones those are, only reading the files tells."""
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

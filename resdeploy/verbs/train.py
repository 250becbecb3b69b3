"""`train`: training and quantization-aware training from images, and the data that both take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdeploy import store, torchrun, vocabulary
from resdeploy.data import datasets
from resdeploy.deploy import export, lower, networks
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import ForeignName, Request, ZooName
from resdeploy.errors import UsageError, refuse
from resdeploy.records import Artifact, Effort, ModelSpec, Progress, Target

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.train.loop import Plan
    from resdeploy.train.state import Epoch


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `train` was asked for; None: the default of the kind of training."""

    data: str
    epochs: int
    recipe: Literal["fast", "paper"] = "fast"
    lr: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    hold_out: float = 0.0
    augmentation: Literal["shift", "shift-only", "crop", "none"] | None = None
    precision: Literal["fp32", "bf16"] | None = None
    threads: int | None = None
    resume: bool = False
    qat: bool = False
    target: Target | None = None  # of the INT8 file; None: openvino
    portable: bool | None = None
    effort: Effort = "normal"
    strict: bool = False  # whoever asks wants to know whether the accuracy fell


def unfinished_state(out: Path) -> Path | None:
    """The state that a training has left after an epoch; QAT keeps none."""
    from resdeploy.train import state

    return next((path for path in state.paths(out) if path.is_file()), None)


def train(
    request: Request,
    how: TrainOptions,
    out: Path,
    *,
    progress: Progress,
    watch: Callable[[str], None],
    sees: Callable[[ModelSpec], None] = lambda _spec: None,
) -> Artifact:
    """Trains a network, or with `qat` its INT8 file.

    Args:
        request: the network.
        how: on what, and how.
        out: the file to write.
        progress: called after every step.
        watch: gets a line per epoch.
        sees: is told what is trained, before that begins; under torchrun in the first process alone.

    Raises:
        UsageError: a suffix of another kind of file, options that do not go together, or a finished training to resume.
    """
    _refuse_contradictions(request, how, out)
    if not how.qat:
        progress("loading torch", 0, 1)
        from resdeploy.train import curves, loop

        progress("loading torch", 1, 1)
        plan = loop.Plan(
            epochs=how.epochs, lr=how.lr, batch_size=how.batch_size, seed=request.seed,
            recipe=how.recipe, augmentation=how.augmentation, hold_out=how.hold_out, accumulate=how.accumulate,
            precision=how.precision, threads=how.threads,
        )  # fmt: skip
        return train_float(
            request, how.data, plan, out, resume=how.resume, progress=progress, sees=sees,
            watch=lambda line: watch(curves.describe(line, how.epochs)),
        )  # fmt: skip
    return _train_int8(request, how, out, progress=progress, watch=watch, sees=sees)


def _refuse_contradictions(request: Request, how: TrainOptions, out: Path) -> None:
    """Refuses what the asked kind of training cannot do, or would leave unheeded.

    Raises:
        UsageError: such options, or `qat` by several processes, each of which would train and write the same file.
    """
    wanted = ".onnx" if how.qat else ".safetensors"
    of_int8 = (
        ("--effort", how.effort == "high"),
        ("--target", how.target is not None),
        ("--portable", how.portable is not None),
    )
    of_floats = (
        ("--resume", how.resume),
        ("--hold-out", how.hold_out > 0),
        ("--accumulate", how.accumulate > 1),
        ("--recipe paper", how.recipe == "paper"),
        ("--precision bf16", how.precision == "bf16"),
        ("--strict", how.strict),
    )
    processes = torchrun.process_count() if how.qat else 1
    untrained = request.random and isinstance(request.named, (ZooName, ForeignName))
    refuse(
        (
            out.suffix != wanted,
            f"{out} is no {wanted} file, which is what this writes",
            f"Name it -o {out.stem}{wanted}",
        ),
        *(
            (
                given and not how.qat,
                f"{option} is that of the INT8 file which --qat trains",
                "Add --qat, or leave it out",
            )
            for option, given in of_int8
        ),
        *((given and how.qat, f"{option} does not go with --qat", "Leave it out") for option, given in of_floats),
        (processes > 1, f"--qat trains in one process, and torchrun started {processes}", "Run it without torchrun"),
        (
            how.strict and not how.qat and untrained,
            "--strict compares with the accuracy before, and random weights have none",
            "Add --weights FILE, or leave --strict out",
        ),
        (
            how.resume and not how.qat and out.is_file() and unfinished_state(out) is None,
            f"there is nothing to resume: {out} is finished",
            "Train it anew without --resume, or name another file with -o",
        ),
    )


def train_float(
    request: Request,
    data: str,
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress,
    watch: Callable[[Epoch], None] | None = None,
    sees: Callable[[ModelSpec], None] = lambda _spec: None,
) -> Artifact:
    """The request's network trained on the data set's training split, its accuracy on the test split in `checks`.

    Weights of another number of classes get a new last layer.

    Raises:
        UsageError: a data set without a test split, on which the result could not be judged.
    """
    from resdeploy.train import loop

    store.probe(out)
    progress("opening images", 0, 1)
    network = networks.resolve(request)
    train_data, test_data = datasets.training_images(data)
    spec = spec_for(network.spec, train_data)
    progress("opening images", 1, 1)
    if torchrun.rank() == 0:
        sees(spec)
    task = loop.Task(spec=spec, train_data=train_data, test_data=test_data, plan=plan, out=out, initial=network.path)
    return loop.train(task, resume=resume, progress=progress, watch=watch)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Top-1 on the test images in percent, and what it was before where weights were trained on."""

    before: float | None  # None: random weights, or a new last layer
    after: float
    images: int

    @property
    def fell(self) -> bool:
        return self.before is not None and self.after < self.before

    def note(self, lr: float | None) -> str:
        """The outcome in one line; `lr` is the peak learning rate asked for."""
        if self.before is None:
            return f"top-1 {self.after:.2f} % on {self.images:,} images"
        found = f"top-1 {self.before:.2f} % before, {self.after:.2f} % after, on {self.images:,} images"
        lower = (lr or vocabulary.FINE_TUNING_LR) / 10
        return f"{found}: it fell on these images; try --lr {lower:g}, or more images" if self.fell else found


def outcome_of(trained: Artifact) -> Outcome | None:
    """What the training of a network came to; None for an INT8 file, which is trained without labels."""
    checks = trained.checks
    if "test_top1" not in checks:
        return None
    return Outcome(
        before=checks.get("test_top1_before"), after=checks["test_top1"], images=round(checks["test_images"])
    )


def _train_int8(
    request: Request,
    how: TrainOptions,
    out: Path,
    *,
    progress: Progress,
    watch: Callable[[str], None],
    sees: Callable[[ModelSpec], None],
) -> Artifact:
    """The request's network as an INT8 ONNX file whose constants were trained, its Q/DQ placed for `how.target`.

    Raises:
        UsageError: a network in low precision already, or with random weights.
    """
    from resdeploy.train import qat

    store.probe(out)
    source = export.to_onnx(request, progress=progress)
    if source.weights is not None and source.weights.random:
        raise UsageError(f"{request.model} is not trained, so there is nothing to keep", fix="Add --weights FILE")
    if source.model is not None:
        sees(source.model)
    # Training may restore an output that calibration lost (`force`); what it ends with is what counts.
    calibration = CalibrationPlan(
        data=how.data, portable=how.portable, effort=how.effort, seed=request.seed, force=True
    )
    start = lower.lower(source, "int8", how.target or "openvino", calibration, plain=True, progress=progress)
    images = datasets.open_dataset(how.data, split="train", need_labels=False)
    plan = qat.Plan(
        epochs=how.epochs, lr=how.lr or vocabulary.QAT_LR, batch_size=how.batch_size, seed=request.seed,
        augmentation=how.augmentation, threads=how.threads,
    )  # fmt: skip
    return store.publish(
        out,
        lambda path: qat.train(
            source, start, images, plan, out=path, progress=progress,
            watch=lambda epoch, loss: watch(f"epoch {epoch}/{how.epochs}: squared distance of logits {loss:.4g}"),
        ),
    )  # fmt: skip


def spec_for(spec: ModelSpec, images: Dataset) -> ModelSpec:
    """The spec with the data set's classes; the 8x8 scans of `digits` are enlarged to the input's size."""
    from resdeploy.models import zoo

    seen = spec.preprocessing
    if images.name == "digits" and seen is not None and seen.resize is None:
        seen = dataclasses.replace(seen, resize=seen.size[0])
    classes = len(images.classes) or int(images.labels.max()) + 1
    made = zoo.spec(spec.name, classes=classes, input_shape=spec.input_shape, preprocessing=seen, labels=images.classes)
    return dataclasses.replace(made, removed=spec.removed, params=None if spec.removed else made.params)

"""Quantization-aware training: from a post-training quantized file to a better one with the same graph.

The student is the INT8 file itself (`fake.Graph`), the teacher the FP32 file that it was made from; the loss is the
mean squared distance of their logits, so that no labels are needed and what is restored is the FP32 model's
answers. The file written has the nodes of the one it started from and other constants.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from resdeploy import store, vocabulary
from resdeploy.errors import UsageError
from resdeploy.graph import files, program
from resdeploy.graph.qdq_placement import NVIDIA
from resdeploy.quantize import fidelity, ptq, ranges
from resdeploy.records import Artifact, Progress
from resdeploy.train.fake import Graph
from resdeploy.train.images import Augmentation, Samples, Step, load, normalise, steps_of, usual_augmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.nn import Parameter

    from resdeploy.data.datasets import Dataset
    from resdeploy.records import Preprocessing


# Peak learning rate of the logarithms of the activations' scales (Adam): half a percent a step, enough to cross a range
# that calibration misjudged within some hundred steps, where the weights' rate would leave them where they are.
SCALE_LR = 5e-3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train the INT8 file."""

    epochs: int
    lr: float = vocabulary.QAT_LR  # peak, of weights and biases (Adam)
    batch_size: int = 64
    seed: int = 0
    augmentation: Augmentation | None = None  # as `loop.Plan`
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Distillation:
    """Who learns what from whom, on which images."""

    student: Graph  # the INT8 file
    weights: list[Parameter]  # of the student, biases included
    scales: list[Parameter]  # of the student's activations: the logarithms of factors on them
    teacher: Graph  # the FP32 file
    samples: Samples
    preprocessing: Preprocessing
    plan: Plan
    augmentation: Augmentation


def train(
    teacher: Artifact,
    start: Artifact,
    images: Dataset,
    plan: Plan,
    *,
    out: Path,
    progress: Progress | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> Artifact:
    """Trains an INT8 file to answer as its FP32 original does, and returns its record, the sidecar not yet written.

    Args:
        teacher: the FP32 ONNX file.
        start: the INT8 ONNX file that was made from it, plain (`ptq.FileOptions`).
        images: to learn from; labels are not used.
        plan: how.
        out: where to write.
        progress: called after every step.
        watch: called after every epoch with its number and its mean loss.

    Raises:
        UsageError: operators that cannot be trained, or a loss that is not finite (E-DIVERGED).
        OutputLost: the trained file's output has nothing to do with the teacher's; nothing is written.
        MalformedInput: no image can be read.
    """
    if plan.threads:
        torch.set_num_threads(plan.threads)
    model = files.load_model(Path(start.path))
    distillation, unread = _prepare(program.read(model), teacher, start, images, plan, progress)
    loss = _distil(distillation, progress, watch)
    result = program.with_constants(model, distillation.student.constants())
    if start.target is not None:
        result = ptq.in_target_form(result, start.target)
    original, inputs = files.load_model(Path(teacher.path)), _inputs_to_compare(distillation)
    likeness = fidelity.compare(original, result, inputs, search=False)
    inherited = [note for note in start.notes if note not in fidelity.notes(start.likeness)]
    about = f"trained for {plan.epochs} epochs on {len(distillation.samples):,} images of {images.name}"
    left_out = [f"left out of training, unreadable: {name}" for name in unread]
    record = dataclasses.replace(
        start,
        path=str(out),
        parent=start.sha256,
        checks={"distillation_loss": loss, **fidelity.checks(likeness)},
        notes=(*inherited, about, *left_out, *fidelity.notes(likeness)),
        likeness=likeness,
        tools={**start.tools, "torch": torch.__version__},
    )
    fidelity.refuse_lost(record, fix=f"Train with --lr {plan.lr / 10:g}, or for more epochs")
    files.save_model(result, out)
    return dataclasses.replace(record, sha256=store.digest(out))


def _prepare(
    quantized: program.Program,
    teacher: Artifact,
    start: Artifact,
    images: Dataset,
    plan: Plan,
    progress: Progress | None,
) -> tuple[_Distillation, tuple[str, ...]]:
    """Both files as graphs in torch, and the images in memory; and those that cannot be read, `id: reason`."""
    assert start.model is not None and start.model.preprocessing is not None  # noqa: PT018 (both at once)
    preprocessing = start.model.preprocessing
    # A CPU file that is not tied to VNNI has its weights in 7 bits.
    reduced = start.target not in NVIDIA and start.machine is None
    student = Graph(quantized, weight_limit=ranges.REDUCED_RANGE if reduced else ranges.FULL_RANGE)
    original = Graph(program.read(files.load_model(Path(teacher.path))))
    samples, unread = load(images, preprocessing, progress)
    methods = start.calibration.methods if start.calibration is not None else {}
    weights, scales = student.groups([tensor for tensor, method in methods.items() if method == "exact"])
    distillation = _Distillation(
        student=student,
        weights=weights,
        scales=scales,
        teacher=original,
        samples=samples,
        preprocessing=preprocessing,
        plan=plan,
        augmentation=plan.augmentation or usual_augmentation(images, preprocessing),
    )
    return distillation, unread


def _inputs_to_compare(distillation: _Distillation) -> list[NDArray[Any]]:
    """Training images to compare the two files on, as the networks take them."""
    samples = distillation.samples
    height, width, channels = samples.pixels.shape[1:]
    most = fidelity.images_to_compare(channels * height * width)
    indices = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:most]
    return list(normalise(samples.pixels[indices], distillation.preprocessing).contiguous().numpy())


def _distil(
    distillation: _Distillation, progress: Progress | None, watch: Callable[[int, float], None] | None
) -> float:
    """Adam with a warm-up of a twentieth and a half cosine; the last epoch's mean loss."""
    plan, samples = distillation.plan, distillation.samples
    optimizer = _optimizer(distillation)
    batch_size = min(plan.batch_size, len(samples))
    steps = plan.epochs * (len(samples) // batch_size)
    mean = math.nan
    for epoch in range(plan.epochs):
        total, count = 0.0, 0
        for step in steps_of(samples, batch_size, plan.seed, epoch, distillation.augmentation):
            share = (
                min(1.0, (step.number + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step.number / steps))
            )
            for group in optimizer.param_groups:
                group["lr"] = share * group["peak"]
            total, count = total + _step(distillation, optimizer, step), count + 1
            if progress is not None:
                progress("training", step.number + 1, steps)
        mean = total / count
        if watch is not None:
            watch(epoch + 1, mean)
    return mean


def _optimizer(distillation: _Distillation) -> torch.optim.Adam:
    """Adam over what is trained of the student; only that has gradients. The learning rate is set before each step."""
    for parameter in distillation.student.parameters():
        parameter.requires_grad = False
    weights, scales = distillation.weights, distillation.scales
    for parameter in (*weights, *scales):
        parameter.requires_grad_()
    groups = [{"params": weights, "peak": distillation.plan.lr}, {"params": scales, "peak": SCALE_LR}]
    return torch.optim.Adam(groups, lr=0)


def _step(distillation: _Distillation, optimizer: torch.optim.Adam, step: Step) -> float:
    """One step of the optimizer; the batch's loss before it."""
    x = normalise(step.pixels, distillation.preprocessing)
    with torch.no_grad():
        targets = distillation.teacher(x)
    loss = F.mse_loss(distillation.student(x), targets)
    if not math.isfinite(loss.item()):
        lr = distillation.plan.lr
        raise UsageError(
            f"the loss is {loss.item()} at step {step.number + 1}",
            cause=f"The learning rate of {lr:g} may be too high",
            fix=f"Try --lr {lr / 10:g}",
            code="E-DIVERGED",
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()

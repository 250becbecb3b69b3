"""Training a classifier. `recipes` says how, `images` what a step sees, `state` what a resumed training goes on from.

The result is the network after the last step (of `fast`: the average of the last ones). Nothing is chosen on the test
images: the network that comes out answers them once, at the end, and trained weights that go in do at the start. Every
image is judged on once, and none that was learned from (`images.load_to_judge`). Where a share of the training images
is held out (`Plan.hold_out`), the network is judged on those after every epoch, and the best epoch's is kept beside
the last one's.

A training that was interrupted anywhere goes on bit by bit as if it had not been, on the same machine with as many
threads and processes.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resdeploy import store, vocabulary
from resdeploy.backends import machine
from resdeploy.data import datasets
from resdeploy.errors import UsageError
from resdeploy.models import zoo
from resdeploy.models.weights import load_into, save
from resdeploy.records import Artifact, ModelSpec, Progress, Weights
from resdeploy.train import curves, distributed, recipes, state
from resdeploy.train.images import (
    Augmentation,
    Samples,
    Step,
    load,
    load_to_judge,
    normalise,
    steps_of,
    usual_augmentation,
)

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset
    from resdeploy.records import Preprocessing

EVALUATION_BATCH = 256
# Multiply-accumulates of a forward pass from which on threads pay. ResNet-20 at 16x16 in batches of 64 has 0.65e9: an
# epoch of `digits` takes 2.9 s on one thread, and with a second one whose core another program uses, 30 s.
SHARED_MACS = 2e9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train. Where something is None, it follows from data or machine."""

    epochs: int  # passes over the training images; an incomplete last batch of each is left out
    lr: float | None = None  # peak learning rate; one of `vocabulary`'s by what the network has to learn
    batch_size: int = 64  # images per step, of all processes together
    seed: int = 0  # of the initial weights, the order and the augmentation
    recipe: recipes.Recipe = "fast"
    augmentation: Augmentation | None = None  # shift-only for `digits`, crop from 96 pixels on, else shift
    hold_out: float = 0.0  # share of the training images to judge every epoch on instead of learning from them
    accumulate: int = 1  # forward passes per step: a batch that does not fit into memory is divided
    precision: Literal["fp32", "bf16", "fp64"] | None = None  # bf16 where the machine computes in it
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training: which network learns what from which images, and the file that comes of it."""

    spec: ModelSpec  # with preprocessing; its labels, if any, decide the order of the classes
    train_data: Dataset  # to learn from
    # To judge with at the end: `Artifact.checks["test_top1"]`, in percent, of `"test_images"`. What is also among
    # `train_data`, or there twice, is left out and noted. Weights that know the classes are judged at the start as
    # well: `"test_top1_before"`.
    test_data: Dataset
    plan: Plan
    out: Path  # the checkpoint to write, `.safetensors`
    initial: Path | None = None  # a checkpoint to start from; its head is left out if the classes differ
    teacher: nn.Module | None = None  # of the same inputs and classes: its logits are learned instead of the labels
    held_out: Dataset | None = None  # to judge every epoch on, for the curve alone: no best epoch is kept


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a training, in memory."""

    learned: Samples  # what the network learns from
    held_out: Samples | None  # what it is judged on after every epoch
    test: Samples  # what it is judged on at the end
    notes: tuple[str, ...]  # what was left out


@dataclass(kw_only=True)
class _Run:
    """Everything that changes while training, and what it is done with."""

    plan: Plan
    lr: float
    group: distributed.Group
    net: nn.Module
    optimizer: torch.optim.SGD
    average: recipes.Average | None
    teacher: nn.Module | None
    preprocessing: Preprocessing
    augmentation: Augmentation
    steps: int
    history: list[state.Epoch]
    whole: bool = False  # all of the network was trained before, its last layer included

    def network_to_judge(self) -> nn.Module:
        """The network to judge and to save: the average where there is one. Every process has the first one's."""
        if self.average is None:
            # Each has batch statistics of its own, and sees a share of the images; the first one's network is saved.
            self.group.share(dict(self.net.named_buffers()))
            return self.net
        self.group.share(self.average.tensors)
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.average.tensors)
        return net


def train(
    task: Task,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Callable[[state.Epoch], None] | None = None,
) -> Artifact:
    """Trains a network and writes its checkpoint, sidecar and curves (`<stem>.history.csv` and `.svg`).

    The state after every epoch lies in `<stem>.last.safetensors` until training is done; with `plan.hold_out` the
    network of the epoch that did best on the held-out images in `<stem>.best.safetensors`.

    Args:
        task: what is trained on what.
        resume: go on from the last state, if there is one.
        progress: called after every step.
        watch: called after every epoch.

    Raises:
        UsageError: data that do not fit the model, one class only, no test image that is not learned from, a state of
            other settings, or a loss that is not finite (E-DIVERGED); the last state stays.
        MalformedInput: no image can be read.
        WeightsMismatch: `initial` is of another network.
    """
    plan, out = task.plan, task.out
    with distributed.group() as group:
        torch.set_num_threads(plan.threads or default_threads(task.spec, plan.batch_size))
        task = _fit(task)
        images = _load(task, progress)
        run = _start(task, images.learned, group)
        before = _top1_before(run, task, images.test, progress)
        settings, notes = _settings(run, task), list(images.notes)
        if resume:
            run.history, note = state.restore(out, run.net, run.optimizer, run.average, settings)
            notes += [note] if note else []
        if run.history and group.writes:
            curves.write(out, run.history)  # they are written after the state, which may have been the last thing done
        if progress is not None:
            done = run.steps * len(run.history) // plan.epochs
            progress("training", done, run.steps)  # the first step takes long
        for epoch in range(len(run.history), plan.epochs):
            line = _epoch(run, images.learned, epoch, out, progress)
            if images.held_out is not None:
                line = _judge_epoch(run, line, images.held_out, task)
            run.history.append(line)
            if group.writes:
                state.save(out, run.net, run.optimizer, run.average, run.history, settings)
                curves.write(out, run.history)
            if watch is not None and group.writes:
                watch(line)
            group.wait()
        return _finish(run, task, images.test, before, notes, progress)


def default_threads(spec: ModelSpec, batch_size: int) -> int:
    """One thread for steps so small that sharing them out costs more than it saves, else all usable cores."""
    if spec.name not in zoo.ENTRIES:
        return machine.usable_cores()
    entry = zoo.ENTRIES[spec.name]
    area = spec.input_shape[1] * spec.input_shape[2] / (entry.input_shape[1] * entry.input_shape[2])
    return 1 if entry.macs * area * batch_size < SHARED_MACS else machine.usable_cores()


def _fit(task: Task) -> Task:
    """The task with the model's class ids in its data, and with the classes' names in its spec.

    Raises:
        UsageError: they don't fit.
    """
    spec = task.spec
    if spec.preprocessing is None:
        raise UsageError(f"nobody says how images become inputs of {spec.name}", fix="Give --mean and --std")
    if not spec.labels and len(task.train_data.classes) == spec.classes:
        spec = replace(spec, labels=task.train_data.classes)
    train_data, test_data = datasets.align(task.train_data, spec.labels), datasets.align(task.test_data, spec.labels)
    for data in (train_data, test_data):
        if not data.labelled:
            raise UsageError(f"{data.name} has no labels", fix="Give images in one folder per class")
        if data.labels.max() >= spec.classes:
            raise UsageError(
                f"{data.name} has {data.labels.max() + 1} classes, the model {spec.classes}",
                fix=f"Give --classes {data.labels.max() + 1}",
            )
    if len(np.unique(train_data.labels)) < 2:
        raise UsageError(f"all images of {train_data.name} are of one class", fix="Give at least two class folders")
    return replace(task, spec=spec, train_data=train_data, test_data=test_data)


def _split(task: Task) -> tuple[Dataset, Dataset | None]:
    """The images to learn from, and the held-out ones: the task's, or `hold_out` of the former from all classes."""
    data, plan = task.train_data, task.plan
    if task.held_out is not None or not plan.hold_out:
        return data, task.held_out
    held_out = datasets.choose(data, max(1, round(plan.hold_out * len(data))), plan.seed)
    held_out_ids = set(held_out.ids)
    return data.subset([i for i, name in enumerate(data.ids) if name not in held_out_ids]), held_out


def _load(task: Task, progress: Progress | None) -> _Images:
    """The images to learn from, to judge every epoch on, and to judge on at the end."""
    preprocessing = task.spec.preprocessing
    assert preprocessing is not None
    learn_from, judge_epochs_on = _split(task)
    learned, unread = load(learn_from, preprocessing, progress)
    known, held_out, notes = set(learned.contents), None, [f"left out of training, unreadable: {n}" for n in unread]
    if judge_epochs_on is not None:
        held_out, left_out = load_to_judge(judge_epochs_on, preprocessing, known, progress)
        notes += left_out
    if held_out is not None and task.plan.hold_out:  # the best epoch is chosen on them
        known |= set(held_out.contents)
    test, left_out = load_to_judge(task.test_data, preprocessing, known, progress)
    return _Images(learned=learned, held_out=held_out, test=test, notes=(*notes, *left_out))


def _start(task: Task, images: Samples, group: distributed.Group) -> _Run:
    """A new training."""
    preprocessing, plan = task.spec.preprocessing, task.plan
    assert preprocessing is not None
    plan = replace(plan, batch_size=min(plan.batch_size, len(images)), precision=plan.precision or _precision(group))
    if plan.accumulate * group.size > plan.batch_size:
        raise UsageError(
            f"a batch of {plan.batch_size} images cannot be divided into {plan.accumulate * group.size}",
            fix="Give a larger --batch-size",
        )
    net = zoo.create(task.spec, seed=plan.seed)
    whole = task.initial is not None and load_into(net, task.initial, new_head=True)
    if task.initial is None and plan.recipe == "fast":
        recipes.start_at_identity(net)
    placement: dict[str, Any] = {"device": group.device, "dtype": torch.float64 if plan.precision == "fp64" else None}
    net = net.to(**placement).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = plan.epochs * (len(images) // plan.batch_size)
    return _Run(
        plan=plan,
        lr=plan.lr or _default_rate(task.initial, whole and task.teacher is None),
        group=group,
        net=net,
        optimizer=recipes.optimizer(net, plan.recipe),
        average=recipes.Average(net, steps) if plan.recipe == "fast" else None,
        teacher=None if task.teacher is None else copy.deepcopy(task.teacher).to(**placement).eval(),
        preprocessing=preprocessing,
        augmentation=plan.augmentation or usual_augmentation(task.train_data, preprocessing),
        steps=steps,
        history=[],
        whole=whole,
    )


def _default_rate(initial: Path | None, knowing: bool) -> float:
    if initial is None:
        return vocabulary.LR
    return vocabulary.FINE_TUNING_LR if knowing else vocabulary.ADAPTING_LR


def _precision(group: distributed.Group) -> Literal["fp32", "bf16"]:
    """BF16 where it is computed in hardware: AVX512-BF16, AMX, or an NVIDIA GPU from Ampere on."""
    if group.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if machine.cpu().bf16 else "fp32"


def _top1_before(run: _Run, task: Task, test: Samples, progress: Progress | None) -> float | None:
    """What the initial weights reach on the test images, in percent, where they know the classes.

    Of a resumed training, too: `_settings` has the digest of what it began with.
    """
    if task.initial is None or not run.whole or task.teacher is not None:
        return None
    return evaluate(run.net, test, run.preprocessing, run.group, progress)[1]


def _settings(run: _Run, task: Task) -> dict[str, Any]:
    """What must be the same for a state to be gone on from."""
    plan = {key: value for key, value in asdict(run.plan).items() if key != "threads"}
    return plan | {
        "lr": run.lr,
        "model": asdict(task.spec),
        "data": task.train_data.signature(),
        "initial": store.digest(task.initial) if task.initial else None,
        "augmentation": run.augmentation,
        "distilled": run.teacher is not None,
        "processes": run.group.size,
    }


def _epoch(run: _Run, images: Samples, epoch: int, out: Path, progress: Progress | None) -> state.Epoch:
    """One pass over the training images."""
    plan, start_s = run.plan, time.perf_counter()
    run.net.train()
    parallel = DistributedDataParallel(run.net) if run.group.size > 1 else run.net
    loss_sum, correct, image_count, step_count = 0.0, 0.0, 0, 0
    for step in steps_of(images, plan.batch_size, plan.seed, epoch, run.augmentation):
        for group in run.optimizer.param_groups:
            group["lr"] = recipes.learning_rate(plan.recipe, run.lr, step.number, run.steps)
        loss, right = _step(run, parallel, step)
        _check_finite(loss, step.number, run.lr, out)
        if run.average is not None:
            run.average.update(run.net, step.number)
        loss_sum += loss * plan.batch_size
        correct += right
        image_count += plan.batch_size
        step_count = step.number + 1
        if progress is not None:
            progress("training", step_count, run.steps)
    loss_sum, correct = run.group.sums(loss_sum, correct)
    return state.Epoch(
        epoch=epoch + 1,
        steps=step_count,
        lr=run.optimizer.param_groups[0]["lr"],
        train_loss=loss_sum / image_count,
        train_top1=100 * correct / image_count,
        seconds=time.perf_counter() - start_s,
    )


def _step(run: _Run, parallel: Any, step: Step) -> tuple[float, int]:
    """One step of the optimizer; this process's share of the batch's mean loss, and its right answers."""
    plan, group = run.plan, run.group
    parts = np.array_split(np.arange(len(step.labels)), group.size * plan.accumulate)
    mine = parts[group.rank * plan.accumulate : (group.rank + 1) * plan.accumulate]
    run.optimizer.zero_grad()
    total, right = 0.0, 0
    for i, part in enumerate(mine):
        of_part = slice(part[0], part[-1] + 1)
        pixels, labels = step.pixels[of_part].to(group.device), step.labels[of_part].to(group.device)
        x = normalise(pixels, run.preprocessing).to(next(run.net.parameters()).dtype)
        last = i == len(mine) - 1
        synchronised: Any = parallel.no_sync() if group.size > 1 and not last else contextlib.nullcontext()
        with synchronised:
            with torch.autocast(group.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                logits = parallel(x)
            with torch.no_grad():
                targets = None if run.teacher is None else run.teacher(x)
            loss = recipes.loss_of(logits.to(x.dtype), labels, targets, plan.recipe)
            # DDP divides by the number of processes; each part counts by its images.
            share = len(part) / len(step.labels)
            (loss * (share * group.size)).backward()  # type: ignore[no-untyped-call]
        total += loss.item() * share
        right += int((logits.argmax(1) == labels).sum())
    run.optimizer.step()
    return total, right


def _check_finite(loss: float, step: int, lr: float, out: Path) -> None:
    if math.isfinite(loss):
        return
    last = next((path for path in state.paths(out) if path.is_file()), None)
    raise UsageError(
        f"the loss is {loss} at step {step + 1}",
        cause=f"The learning rate of {lr:g} may be too high",
        fix=f"Try --lr {lr / 10:g}" + (f"; the state after the last good epoch is in {last}" if last else ""),
        code="E-DIVERGED",
    )


def _judge_epoch(run: _Run, line: state.Epoch, held_out: Samples, task: Task) -> state.Epoch:
    """The epoch with its figures on the held-out images; its network is kept if none was better, and they are ours."""
    net = run.network_to_judge()
    loss, top1 = evaluate(net, held_out, run.preprocessing, run.group)
    best = max((line.held_out_top1 or 0.0 for line in run.history), default=-1.0)
    if run.plan.hold_out and top1 > best and run.group.writes:
        checks = {"held_out_top1": top1, "epoch": float(line.epoch)}
        weights = Weights(source="trained", seed=run.plan.seed)
        save(net, task.spec, best_path(task.out), weights, checks=checks)
    return replace(line, held_out_loss=loss, held_out_top1=top1)


def best_path(out: Path) -> Path:
    """Where the network of the best epoch lies."""
    return out.with_name(f"{out.stem}.best.safetensors")


@torch.no_grad()
def evaluate(
    net: nn.Module,
    samples: Samples,
    preprocessing: Preprocessing,
    group: distributed.Group | None = None,
    progress: Progress | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy and percent right on images, without augmentation; each process sees its share of them."""
    group = group or distributed.Group()
    net.eval()
    kind = next(net.parameters()).dtype
    mine = range(group.rank, len(samples), group.size)
    loss, correct = 0.0, 0
    for start in range(0, len(mine), EVALUATION_BATCH):
        indices = torch.tensor(mine[start : start + EVALUATION_BATCH])
        labels = samples.labels[indices].to(group.device)
        logits: Tensor = net(normalise(samples.pixels[indices].to(group.device), preprocessing).to(kind))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        if progress is not None:
            progress("judging", min(start + EVALUATION_BATCH, len(mine)), len(mine))
    loss, right = group.sums(loss, correct)
    return loss / len(samples), 100 * right / len(samples)


def _finish(
    run: _Run, task: Task, test: Samples, before: float | None, notes: Iterable[str], progress: Progress | None
) -> Artifact:
    """Judges the network on the test images and writes it; `before`: what it began with reached on them."""
    net, out = run.network_to_judge(), task.out
    _, top1 = evaluate(net, test, run.preprocessing, run.group, progress)
    weights = Weights(source=f"trained:{task.train_data.name}", seed=run.plan.seed)
    if not run.group.writes:
        return Artifact(
            path=str(out), format="checkpoint", precision="fp32", sha256="", model=task.spec, weights=weights
        )
    last = run.history[-1]
    checks = {"test_top1": top1, "test_images": float(len(test)), "train_loss": last.train_loss}
    if before is not None:
        checks = {"test_top1_before": before, **checks}
    if run.plan.hold_out and last.held_out_top1 is not None:
        best = max(run.history, key=lambda line: (line.held_out_top1 or 0.0, -line.epoch))
        checks |= {"held_out_top1": last.held_out_top1, "best_epoch": float(best.epoch)}
    parent = store.digest(task.initial) if task.initial else None
    artifact = save(
        net.float(), task.spec, out, weights, parent=parent, checks=checks, notes=tuple(dict.fromkeys(notes))
    )
    state.remove(out)
    return artifact

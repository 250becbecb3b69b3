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
from collections.abc import Callable, Sequence
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
from resdeploy.train.images import Augmentation, Samples, Step, load, load_to_judge, normalise, steps_of, suited

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
    sight: Preprocessing
    augmentation: Augmentation
    steps: int
    history: list[state.Epoch]
    whole: bool = False  # all of the network was trained before, its last layer included

    def judged(self) -> nn.Module:
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
    spec: ModelSpec,
    train_data: Dataset,
    test_data: Dataset,
    plan: Plan,
    *,
    out: Path,
    initial: Path | None = None,
    teacher: nn.Module | None = None,
    held_out: Dataset | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Callable[[state.Epoch], None] | None = None,
) -> Artifact:
    """Trains the network of `spec` and writes its checkpoint, sidecar and curves (`<stem>.history.csv` and `.svg`).

    The state after every epoch lies in `<stem>.last.safetensors` until training is done; with `plan.hold_out` the
    network of the epoch that did best on the held-out images in `<stem>.best.safetensors`.

    Args:
        spec: with preprocessing; its labels, if any, decide the order of the classes.
        train_data: images to learn from.
        test_data: images to judge with at the end: `Artifact.checks["test_top1"]`, in percent, of `"test_images"`.
            What is also among `train_data`, or there twice, is left out and noted. Weights that know the classes are
            judged at the start as well: `"test_top1_before"`.
        plan: how.
        out: the checkpoint to write, `.safetensors`.
        initial: checkpoint to start from instead of random weights; its head is left out if the classes differ.
        teacher: a network of the same inputs and classes whose logits are learned instead of the labels.
        held_out: images to judge every epoch on, for the curve alone: no best epoch is kept.
        resume: go on from the last state, if there is one.
        progress: called after every step.
        watch: called after every epoch.

    Raises:
        UsageError: data that do not fit the model, one class only, no test image that is not learned from, a state of
            other settings, or a loss that is not finite (E-DIVERGED); the last state stays.
        MalformedInput: no image can be read.
        WeightsMismatch: `initial` is of another network.
    """
    with distributed.group() as group:
        torch.set_num_threads(plan.threads or default_threads(spec, plan.batch_size))
        spec, train_data, test_data = _fit(spec, train_data, test_data)
        assert spec.preprocessing is not None
        learned, held_out = _divided(train_data, plan) if held_out is None else (train_data, held_out)
        images, watched, tested, notes = _loaded(learned, held_out, test_data, plan, spec.preprocessing, progress)
        run = _start(spec, train_data, images, plan, group, initial, teacher)
        # Of a resumed training, too: `_settings` has the digest of what it began with.
        judge_first = initial is not None and run.whole and teacher is None
        before = evaluate(run.net, tested, run.sight, group, progress)[1] if judge_first else None
        settings = _settings(run, spec, train_data, initial)
        if resume:
            run.history, note = state.restore(out, run.net, run.optimizer, run.average, settings)
            notes += [note] if note else []
        if run.history and group.writes:
            curves.write(out, run.history)  # they are written after the state, which may have been the last thing done
        for epoch in range(len(run.history), plan.epochs):
            line = _epoch(run, images, epoch, out, progress)
            if watched is not None:
                line = _judged(run, line, watched, spec, out)
            run.history.append(line)
            if group.writes:
                state.save(out, run.net, run.optimizer, run.average, run.history, settings)
                curves.write(out, run.history)
            if watch is not None and group.writes:
                watch(line)
            group.wait()
        return _finish(run, spec, train_data, tested, before, out, initial, tuple(dict.fromkeys(notes)), progress)


def default_threads(spec: ModelSpec, batch_size: int) -> int:
    """One thread for steps so small that sharing them out costs more than it saves, else all usable cores."""
    if spec.name not in zoo.ENTRIES:
        return machine.usable_cores()
    entry = zoo.ENTRIES[spec.name]
    area = spec.input_shape[1] * spec.input_shape[2] / (entry.input_shape[1] * entry.input_shape[2])
    return 1 if entry.macs * area * batch_size < SHARED_MACS else machine.usable_cores()


def _fit(spec: ModelSpec, train_data: Dataset, test_data: Dataset) -> tuple[ModelSpec, Dataset, Dataset]:
    """Data with the model's class ids, and a spec with the classes' names and preprocessing.

    Raises:
        UsageError: they don't fit.
    """
    if spec.preprocessing is None:
        raise UsageError(f"nobody says how images become inputs of {spec.name}", fix="Give --mean and --std")
    if not spec.labels and len(train_data.classes) == spec.classes:
        spec = replace(spec, labels=train_data.classes)
    train_data, test_data = datasets.align(train_data, spec.labels), datasets.align(test_data, spec.labels)
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
    return spec, train_data, test_data


def _divided(train_data: Dataset, plan: Plan) -> tuple[Dataset, Dataset | None]:
    """The images to learn from, and the held-out ones, spread over the classes."""
    if not plan.hold_out:
        return train_data, None
    held_out = datasets.choose(train_data, max(1, round(plan.hold_out * len(train_data))), plan.seed)
    held = set(held_out.ids)
    return train_data.subset([i for i, name in enumerate(train_data.ids) if name not in held]), held_out


def _loaded(
    learned: Dataset,
    held_out: Dataset | None,
    test_data: Dataset,
    plan: Plan,
    sight: Preprocessing,
    progress: Progress | None,
) -> tuple[Samples, Samples | None, Samples, list[str]]:
    """The images to learn from, to watch every epoch on, and to judge on at the end; and notes on what was left out."""
    images, unread = load(learned, sight, progress)
    known, watched, notes = set(images.contents), None, [f"left out of training, unreadable: {n}" for n in unread]
    if held_out is not None:
        watched, left_out = load_to_judge(held_out, sight, known, progress)
        notes += left_out
    if watched is not None and plan.hold_out:  # the best epoch is chosen on them
        known |= set(watched.contents)
    tested, left_out = load_to_judge(test_data, sight, known, progress)
    return images, watched, tested, [*notes, *left_out]


def _start(
    spec: ModelSpec,
    train_data: Dataset,
    images: Samples,
    plan: Plan,
    group: distributed.Group,
    initial: Path | None,
    teacher: nn.Module | None,
) -> _Run:
    """A new training."""
    assert spec.preprocessing is not None
    plan = replace(plan, batch_size=min(plan.batch_size, len(images)), precision=plan.precision or _precision(group))
    if plan.accumulate * group.size > plan.batch_size:
        raise UsageError(
            f"a batch of {plan.batch_size} images cannot be divided into {plan.accumulate * group.size}",
            fix="Give a larger --batch-size",
        )
    net = zoo.create(spec, seed=plan.seed)
    whole = initial is not None and load_into(net, initial, new_head=True)
    if initial is None and plan.recipe == "fast":
        recipes.start_at_identity(net)
    placed: dict[str, Any] = {"device": group.device, "dtype": torch.float64 if plan.precision == "fp64" else None}
    net = net.to(**placed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Run(
        plan=plan,
        lr=plan.lr or _default_rate(initial, whole and teacher is None),
        group=group,
        net=net,
        optimizer=recipes.optimizer(net, plan.recipe),
        average=None,
        teacher=None if teacher is None else copy.deepcopy(teacher).to(**placed).eval(),
        sight=spec.preprocessing,
        augmentation=plan.augmentation or suited(train_data, spec.preprocessing),
        steps=plan.epochs * (len(images) // plan.batch_size),
        history=[],
        whole=whole,
    )
    if plan.recipe == "fast":
        run.average = recipes.Average(net, run.steps)
    return run


def _default_rate(initial: Path | None, knowing: bool) -> float:
    if initial is None:
        return vocabulary.LR
    return vocabulary.FINE_TUNING_LR if knowing else vocabulary.ADAPTING_LR


def _precision(group: distributed.Group) -> Literal["fp32", "bf16"]:
    """BF16 where it is computed in hardware: AVX512-BF16, AMX, or an NVIDIA GPU from Ampere on."""
    if group.device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if machine.cpu().bf16 else "fp32"


def _settings(run: _Run, spec: ModelSpec, train_data: Dataset, initial: Path | None) -> dict[str, Any]:
    """What must be the same for a state to be gone on from."""
    plan = {key: value for key, value in asdict(run.plan).items() if key != "threads"}
    return plan | {
        "lr": run.lr,
        "model": asdict(spec),
        "data": train_data.signature(),
        "initial": store.digest(initial) if initial else None,
        "augmentation": run.augmentation,
        "distilled": run.teacher is not None,
        "processes": run.group.size,
    }


def _epoch(run: _Run, images: Samples, epoch: int, out: Path, progress: Progress | None) -> state.Epoch:
    """One pass over the training images."""
    plan, started = run.plan, time.perf_counter()
    run.net.train()
    parallel = DistributedDataParallel(run.net) if run.group.size > 1 else run.net
    loss_sum, correct, seen, done = 0.0, 0.0, 0, 0
    for step in steps_of(images, plan.batch_size, plan.seed, epoch, run.augmentation):
        for group in run.optimizer.param_groups:
            group["lr"] = recipes.learning_rate(plan.recipe, run.lr, step.number, run.steps)
        loss, right = _step(run, parallel, step)
        _check_finite(loss, step.number, run.lr, out)
        if run.average is not None:
            run.average.update(run.net, step.number)
        loss_sum += loss * plan.batch_size
        correct += right
        seen += plan.batch_size
        done = step.number + 1
        if progress is not None:
            progress("training", done, run.steps)
    loss_sum, correct = run.group.sums(loss_sum, correct)
    return state.Epoch(
        epoch=epoch + 1,
        steps=done,
        lr=run.optimizer.param_groups[0]["lr"],
        train_loss=loss_sum / seen,
        train_top1=100 * correct / seen,
        seconds=time.perf_counter() - started,
    )


def _step(run: _Run, parallel: Any, step: Step) -> tuple[float, int]:
    """One step of the optimizer; this process's share of the batch's mean loss, and its right answers."""
    plan, group = run.plan, run.group
    parts = np.array_split(np.arange(len(step.labels)), group.size * plan.accumulate)
    mine = parts[group.rank * plan.accumulate : (group.rank + 1) * plan.accumulate]
    run.optimizer.zero_grad()
    total, right = 0.0, 0
    for i, part in enumerate(mine):
        there = slice(part[0], part[-1] + 1)
        pixels, labels = step.pixels[there].to(group.device), step.labels[there].to(group.device)
        x = normalise(pixels, run.sight).to(next(run.net.parameters()).dtype)
        last = i == len(mine) - 1
        gathered: Any = parallel.no_sync() if group.size > 1 and not last else contextlib.nullcontext()
        with gathered:
            with torch.autocast(group.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                logits = parallel(x)
            with torch.no_grad():
                taught = None if run.teacher is None else run.teacher(x)
            loss = recipes.loss_of(logits.to(x.dtype), labels, taught, plan.recipe)
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


def _judged(run: _Run, line: state.Epoch, held_out: Samples, spec: ModelSpec, out: Path) -> state.Epoch:
    """The epoch with its figures on the held-out images; its network is kept if none was better, and they are ours."""
    net = run.judged()
    loss, top1 = evaluate(net, held_out, run.sight, run.group)
    best = max((line.held_out_top1 or 0.0 for line in run.history), default=-1.0)
    if run.plan.hold_out and top1 > best and run.group.writes:
        checks = {"held_out_top1": top1, "epoch": float(line.epoch)}
        trained = Weights(source="trained", seed=run.plan.seed)
        save(net, spec, best_path(out), trained, checks=checks)
    return replace(line, held_out_loss=loss, held_out_top1=top1)


def best_path(out: Path) -> Path:
    """Where the network of the best epoch lies."""
    return out.with_name(f"{out.stem}.best.safetensors")


@torch.no_grad()
def evaluate(
    net: nn.Module,
    samples: Samples,
    sight: Preprocessing,
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
        chosen = torch.tensor(mine[start : start + EVALUATION_BATCH])
        labels = samples.labels[chosen].to(group.device)
        logits: Tensor = net(normalise(samples.pixels[chosen].to(group.device), sight).to(kind))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        if progress is not None:
            progress("judging", min(start + EVALUATION_BATCH, len(mine)), len(mine))
    loss, right = group.sums(loss, correct)
    return loss / len(samples), 100 * right / len(samples)


def _finish(
    run: _Run,
    spec: ModelSpec,
    train_data: Dataset,
    tested: Samples,
    before: float | None,
    out: Path,
    initial: Path | None,
    notes: Sequence[str],
    progress: Progress | None,
) -> Artifact:
    """Judges the network on the test images and writes it."""
    net = run.judged()
    _, top1 = evaluate(net, tested, run.sight, run.group, progress)
    weights = Weights(source=f"trained:{train_data.name}", seed=run.plan.seed)
    if not run.group.writes:
        return Artifact(path=str(out), format="checkpoint", precision="fp32", sha256="", model=spec, weights=weights)
    last = run.history[-1]
    checks = {"test_top1": top1, "test_images": float(len(tested)), "train_loss": last.train_loss}
    if before is not None:
        checks = {"test_top1_before": before, **checks}
    if run.plan.hold_out and last.held_out_top1 is not None:
        best = max(run.history, key=lambda line: (line.held_out_top1 or 0.0, -line.epoch))
        checks |= {"held_out_top1": last.held_out_top1, "best_epoch": float(best.epoch)}
    parent = store.digest(initial) if initial else None
    artifact = save(net.float(), spec, out, weights, parent=parent, checks=checks, notes=tuple(notes))
    state.remove(out)
    return artifact

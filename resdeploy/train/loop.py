"""Training a classifier: one function, read from top to bottom.

Two recipes. `paper` is He et al. 2015 (arXiv:1512.03385, section 4.2): SGD with momentum 0.9 and weight decay
1e-4, learning rate divided by 10 after half and three quarters of the steps. `fast` reaches the same in a fraction of
the epochs: one cycle of the learning rate (Smith & Topin 2018, arXiv:1708.07120), Nesterov momentum, label smoothing
0.1 (Szegedy et al. 2016), weight decay 5e-4 on the matrices only, and residual branches that start at zero (Goyal et
al. 2017, arXiv:1706.02677, section 5.1).

The result is the network after the last step. Nothing is chosen on the test images: they are looked at once, at
the end. All images are held in memory as bytes; shuffling and augmentation are functions of (seed, epoch), so that an
interrupted training goes on bit by bit as if it had not been, on the same machine with as many threads.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from resdeploy import store
from resdeploy.backends import machine
from resdeploy.data import datasets
from resdeploy.errors import UsageError
from resdeploy.models import weights as checkpoints
from resdeploy.models import zoo
from resdeploy.models.resnet import BasicBlock, Bottleneck
from resdeploy.records import Artifact, ModelSpec, Preprocessing, Progress, Weights
from resdeploy.train import state

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset

Recipe = Literal["fast", "paper"]
MOMENTUM = 0.9
SMOOTHING: dict[Recipe, float] = {"fast": 0.1, "paper": 0.0}
WARM_UP = 0.2  # share of the steps in which `fast` raises the learning rate from a tenth to its peak
EVALUATION_BATCH = 256
# Multiply-accumulates of a forward pass from which on threads pay. ResNet-20 at 16x16 in batches of 64 has 0.65e9: an
# epoch of `digits` takes 2.9 s on one thread, and with a second one whose core another program uses, 30 s.
SHARED_MACS = 2e9


def train(
    spec: ModelSpec,
    train_data: Dataset,
    test_data: Dataset,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
    out: Path,
    recipe: Recipe = "fast",
    flip: bool | None = None,
    initial: Path | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Trains the network of `spec` and writes its checkpoint, sidecar and history (`<stem>.history.csv`).

    The state after every epoch lies in `<stem>.last.safetensors` until training is done.

    Args:
        spec: with preprocessing; its labels, if any, decide the order of the classes.
        train_data: images to learn from.
        test_data: images to judge with, once, at the end: `Artifact.checks["test_top1"]`, in percent.
        epochs: passes over the training images; an incomplete last batch of each is left out.
        lr: peak learning rate.
        batch_size: images a step.
        seed: of the initial weights, the order and the augmentation.
        out: the checkpoint to write, `.safetensors`.
        recipe: see the head of this file.
        flip: whether images may be mirrored; None: yes, except for `digits`.
        initial: checkpoint to start from instead of random weights.
        threads: None: the usable cores.
        resume: go on from the last state, if there is one.
        progress: called after every step.

    Raises:
        UsageError: data that do not fit the model, one class only, a state of other settings, or a loss that is
            not finite (E-DIVERGED); the last state stays.
        MalformedInput: no image can be read.
    """
    torch.set_num_threads(threads or default_threads(spec, batch_size))
    spec, train_data, test_data = _fit(spec, train_data, test_data)
    assert spec.preprocessing is not None
    images = datasets.load_pixels(train_data, spec.preprocessing, progress=progress)
    inputs, labels = torch.from_numpy(images.values), torch.from_numpy(train_data.labels[images.indices])
    batch_size = min(batch_size, len(labels))
    flip = train_data.name != "digits" if flip is None else flip

    net = zoo.create(spec, seed=seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if initial is not None:
        checkpoints.load_into(net, initial)
    elif recipe == "fast":
        _start_at_identity(net)
    optimizer = _optimizer(net, recipe)
    settings = {
        "model": asdict(spec), "data": train_data.signature(), "initial": store.digest(initial) if initial else None,
        "recipe": recipe, "epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed, "flip": flip,
    }  # fmt: skip
    history, note = state.restore(out, net, optimizer, settings) if resume else ([], "")

    steps = epochs * (len(labels) // batch_size)
    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        net.train()
        loss_sum, correct, seen = 0.0, 0, 0
        for step, x, y in _batches(inputs, labels, spec.preprocessing, batch_size, seed, epoch, flip=flip):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, lr, step, steps)
            logits = net(x)
            loss = F.cross_entropy(logits, y, label_smoothing=SMOOTHING[recipe])
            _check_finite(loss.item(), step, lr, out)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(y)
            correct += int((logits.argmax(1) == y).sum())
            seen += len(y)
            if progress is not None:
                progress("training", step + 1, steps)
        history.append(
            state.Epoch(
                epoch=epoch + 1,
                steps=step + 1,
                lr=optimizer.param_groups[0]["lr"],
                train_loss=loss_sum / seen,
                train_top1=100 * correct / seen,
                seconds=time.perf_counter() - started,
            )
        )
        state.save(out, net, optimizer, history, settings)
        _write_history(out, history)

    net.eval()
    top1, unread = _top1(net, test_data, spec.preprocessing)
    artifact = checkpoints.save(net, spec, out, Weights(source=f"trained:{train_data.name}", seed=seed))
    notes = [f"left out of training, unreadable: {name}" for name in images.unreadable]
    notes += [f"left out of testing, unreadable: {name}" for name in unread]
    artifact = replace(
        artifact,
        parent=store.digest(initial) if initial else None,
        checks={**artifact.checks, "test_top1": top1, "train_loss": history[-1].train_loss},
        notes=(*artifact.notes, *notes, *([note] if note else [])),
    )
    store.save(artifact)
    state.remove(out)
    return artifact


def default_threads(spec: ModelSpec, batch_size: int) -> int:
    """One thread for steps so small that sharing them out costs more than it saves, else all usable cores."""
    if spec.name not in zoo.ENTRIES:
        return machine.usable_cores()
    entry = zoo.ENTRIES[spec.name]
    area = spec.input_shape[1] * spec.input_shape[2] / (entry.input_shape[1] * entry.input_shape[2])
    return 1 if entry.macs * area * batch_size < SHARED_MACS else machine.usable_cores()


def learning_rate(recipe: Recipe, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    `fast`: linear from a tenth to the peak, then a half cosine to zero. `paper`: the peak, a tenth of it from half, a
    hundredth from three quarters of the steps on (32k and 48k of 64k in section 4.2).
    """
    done = step / steps
    if recipe == "paper":
        return peak * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    if done < WARM_UP:
        return peak * (0.1 + 0.9 * done / WARM_UP)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def augment(images: Tensor, flip: bool, random: torch.Generator) -> Tensor:
    """Random shifts by up to an eighth of the size (4 pixels of 32, as section 4.2), and mirror images.

    Bytes (n, H, W, C) in, the same shape out; what comes in at the border is black.
    """
    n, height, width, _ = images.shape
    dy, dx = height // 8, width // 8
    padded = F.pad(images, (0, 0, dx, dx, dy, dy))
    top = torch.randint(0, 2 * dy + 1, (n, 1), generator=random)
    left = torch.randint(0, 2 * dx + 1, (n, 1), generator=random)
    columns = torch.arange(width).repeat(n, 1)
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=random) < 0.5, width - 1 - columns, columns)
    rows = (top + torch.arange(height))[:, :, None]
    return padded[torch.arange(n)[:, None, None], rows, (left + columns)[:, None, :]]


def normalise(images: Tensor, spec: Preprocessing) -> Tensor:
    """Bytes (n, H, W, C) to what `preprocess.normalise` gives: float32 (n, C, H, W), channels last in memory."""
    values = images.float().div_(255).sub_(torch.tensor(spec.mean)).div_(torch.tensor(spec.std))
    return values.permute(0, 3, 1, 2)


def _batches(
    inputs: Tensor, labels: Tensor, spec: Preprocessing, batch_size: int, seed: int, epoch: int, *, flip: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, inputs, labels) of one epoch: a function of seed and epoch alone, so that it can be had again."""
    entropy = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    random = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
    per_epoch = len(labels) // batch_size
    order = torch.randperm(len(labels), generator=random)
    for i in range(per_epoch):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        yield epoch * per_epoch + i, normalise(augment(inputs[chosen], flip, random), spec), labels[chosen]


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
            raise UsageError(f"{data.name} has no labels", fix="Give images in one folder a class")
        if data.labels.max() >= spec.classes:
            raise UsageError(
                f"{data.name} has {data.labels.max() + 1} classes, the model {spec.classes}",
                fix=f"Give --classes {data.labels.max() + 1}",
            )
    if len(np.unique(train_data.labels)) < 2:
        raise UsageError(f"all images of {train_data.name} are of one class", fix="Give at least two class folders")
    return spec, train_data, test_data


def _start_at_identity(net: nn.Module) -> None:
    """Sets the last BN's gamma of every residual branch to zero: at first each block hands on its input."""
    for block in net.modules():
        if isinstance(block, BasicBlock | Bottleneck) and block.residual:
            nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]  # biases and BN: decay there only costs accuracy
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    if recipe == "paper":
        groups = [{"params": [*net.parameters()], "weight_decay": 1e-4}]
    optimizer = torch.optim.SGD(groups, lr=0, momentum=MOMENTUM, nesterov=recipe == "fast")
    for parameter in net.parameters():
        # Made here and not by torch from the first gradient, so that a resumed training has the same memory layout.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _check_finite(loss: float, step: int, lr: float, out: Path) -> None:
    if math.isfinite(loss):
        return
    last, _ = state.paths(out)
    raise UsageError(
        f"the loss is {loss} at step {step + 1}",
        cause=f"The learning rate of {lr:g} may be too high",
        fix=f"Try --lr {lr / 10:g}" + (f"; the state after the last good epoch is in {last}" if last.is_file() else ""),
        code="E-DIVERGED",
    )


@torch.no_grad()
def _top1(net: nn.Module, data: Dataset, spec: Preprocessing) -> tuple[float, tuple[str, ...]]:
    """Percent of the readable images that are classified right, and the unreadable ones."""
    images = datasets.load_pixels(data, spec)
    labels = torch.from_numpy(data.labels[images.indices])
    correct = 0
    for start in range(0, len(labels), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits: Any = net(normalise(torch.from_numpy(images.values[part]), spec))
        correct += int((logits.argmax(1) == labels[part]).sum())
    return 100 * correct / len(labels), images.unreadable


def _write_history(out: Path, history: list[state.Epoch]) -> None:
    text = io.StringIO()
    rows = csv.DictWriter(text, list(asdict(history[0])), lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(line) for line in history)
    store.write_bytes(out.with_name(f"{out.stem}.history.csv"), text.getvalue().encode())

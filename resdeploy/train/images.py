"""From the bytes of images to training batches: order, augmentation, normalisation.

All images are held in memory as bytes. Order and augmentation are functions of (seed, epoch) alone and are drawn for
the whole batch before it is divided among processes, so that a training can be interrupted anywhere, and the number of
processes changes nothing about which images a step sees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor

from resdeploy.data import datasets, repeats
from resdeploy.errors import UsageError
from resdeploy.records import Preprocessing, Progress

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset

# shift: up to an eighth of the size each way, and mirrored (CIFAR, He et al. 2015, section 4.2); crop: a random part
# scaled to the full size, and mirrored (ImageNet, Szegedy et al. 2014, arXiv:1409.4842, section 6); shift-only: for
# images whose mirror means something else, such as digits.
Augmentation = Literal["shift", "shift-only", "crop", "none"]
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images in memory with their labels."""

    pixels: Tensor  # uint8 (n, H, W, C)
    labels: Tensor  # int64 (n,)
    ids: tuple[str, ...] = ()  # (n,) where `load` made them
    contents: tuple[str, ...] = ()  # (n,) content hashes, likewise

    def __len__(self) -> int:
        return len(self.labels)


def load(
    data: Dataset, preprocessing: Preprocessing, progress: Progress | None = None
) -> tuple[Samples, tuple[str, ...]]:
    """All readable images of a data set, and the others, `id: reason`.

    Raises:
        MalformedInput: no image can be read.
        OutOfMemory: more pixels than fit.
    """
    images = datasets.load_pixels(data, preprocessing, progress=progress)
    samples = Samples(
        pixels=torch.from_numpy(images.values),
        labels=torch.from_numpy(data.labels[images.indices]),
        ids=tuple(data.ids[i] for i in images.indices),
        contents=images.hashes,
    )
    return samples, images.unreadable


def load_to_judge(
    data: Dataset, preprocessing: Preprocessing, learned: Collection[str] = (), progress: Progress | None = None
) -> tuple[Samples, tuple[str, ...]]:
    """Images that a figure may be taken from, each once and none that was learned from; and notes on what is left out.

    Args:
        data: the images.
        preprocessing: how the network sees them.
        learned: content hashes of those that the network learns from.
        progress: what is being done.

    Raises:
        UsageError: all of them are among those learned from.
        MalformedInput: no image can be read, or every one has several labels.
        OutOfMemory: more pixels than fit.
    """
    samples, unread = load(data, preprocessing, progress)
    counted, copies = repeats.count_each_once(samples.ids, samples.labels.numpy(), samples.contents)
    shared = [samples.ids[k] for k in counted if samples.contents[k] in learned]
    counted = np.array([k for k in counted if samples.contents[k] not in learned], np.int64)
    if not len(counted):
        raise UsageError(
            f"all images to judge on are also learned from, such as {shared[0]}",
            cause="The folders of the training and the test images lead to the same files",
            fix="Put images that are not trained on into the test folder",
        )
    notes = [f"left out of testing, unreadable: {name}" for name in unread]
    notes += [f"to judge on: {note}" for note in (data.repeats + copies).notes]
    if shared:
        first = ", ".join(shared[:3]) + ", ..." * (len(shared) > 3)
        plural = "s" * (len(shared) > 1)
        notes.append(f"to judge on: {len(shared):,} image{plural} learned from too: left out ({first})")
    if len(counted) < len(samples):
        samples = Samples(
            pixels=samples.pixels[counted],
            labels=samples.labels[counted],
            ids=tuple(samples.ids[k] for k in counted),
            contents=tuple(samples.contents[k] for k in counted),
        )
    return samples, tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step sees of the images: the whole batch, augmented, still bytes."""

    number: int  # from 0, over all epochs
    pixels: Tensor
    labels: Tensor


def steps_of(samples: Samples, batch_size: int, seed: int, epoch: int, augmentation: Augmentation) -> Iterator[Step]:
    """The steps of one epoch, an incomplete last batch left out."""
    entropy = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    random = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
    per_epoch = len(samples) // batch_size
    order = torch.randperm(len(samples), generator=random)
    for i in range(per_epoch):
        indices = order[i * batch_size : (i + 1) * batch_size]
        pixels = augment(samples.pixels[indices], augmentation, random)
        yield Step(number=epoch * per_epoch + i, pixels=pixels, labels=samples.labels[indices])


def usual_augmentation(data: Dataset, preprocessing: Preprocessing) -> Augmentation:
    """What is usual for such images: no mirrored digits, random crops of photographs, shifts of small images."""
    if data.name == "digits":
        return "shift-only"
    return "crop" if min(preprocessing.size) >= 96 else "shift"


def augment(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    """Bytes (n, H, W, C) in, the same shape out."""
    if how == "none":
        return images
    if how == "crop":
        return _crop(images, random)
    return _shift(images, how == "shift", random)


def _shift(images: Tensor, flip: bool, random: torch.Generator) -> Tensor:
    """Random shifts by up to an eighth of the size (4 pixels of 32), and mirror images; the border is black."""
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


def _crop(images: Tensor, random: torch.Generator) -> Tensor:
    """A part of 8 to 100 % of the area and 3:4 to 4:3 of each image, scaled to the full size (bilinear), or mirrored.

    Where such a part does not fit into the image, the largest of its shape that does is taken.
    """
    n, height, width, _ = images.shape
    draws = torch.rand(n, 5, generator=random)
    area = (CROP_AREA[0] + draws[:, 0] * (CROP_AREA[1] - CROP_AREA[0])) * height * width
    low, high = np.log(CROP_ASPECT[0]), np.log(CROP_ASPECT[1])
    aspect = torch.exp(low + draws[:, 1] * (high - low))
    h = (area / aspect).sqrt().round().clamp(1, height).int().tolist()
    w = (area * aspect).sqrt().round().clamp(1, width).int().tolist()
    result = torch.empty_like(images)
    for i, image in enumerate(images):
        y, x = int(draws[i, 2] * (height - h[i] + 1)), int(draws[i, 3] * (width - w[i] + 1))
        part = image[y : y + h[i], x : x + w[i]].permute(2, 0, 1)[None].float()
        scaled = F.interpolate(part, (height, width), mode="bilinear", antialias=True)[0]
        scaled = scaled.flip(2) if draws[i, 4] < 0.5 else scaled
        result[i] = scaled.round_().clamp_(0, 255).permute(1, 2, 0).to(torch.uint8)
    return result


def normalise(images: Tensor, spec: Preprocessing) -> Tensor:
    """Bytes (n, H, W, C) to what `preprocess.normalise` gives: float32 (n, C, H, W), channels last in memory."""
    mean, std = torch.tensor(spec.mean, device=images.device), torch.tensor(spec.std, device=images.device)
    return images.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

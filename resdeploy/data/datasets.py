"""Data sets: what `--data` names, and the batches of images that everything else reads.

A `Dataset` is a list of items (files, or pixels in memory) with ids and labels; nothing is decoded until
`batches` does it, in threads, in order. An image that cannot be decoded is never dropped silently: it is
counted and named in `Batch.unreadable`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy import cache, packages, store
from resdeploy.data import cifar, folder, repeats
from resdeploy.data.folder import Split
from resdeploy.data.loading import Batch, Pixels, batches, content_hash, load_pixels
from resdeploy.errors import MissingInput, UnknownName, UsageError
from resdeploy.records import Repeats

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Batch",
    "Dataset",
    "Pixels",
    "align",
    "batches",
    "choose",
    "content_hash",
    "contents",
    "deduplicate",
    "fingerprint",
    "load_pixels",
    "open_dataset",
    "training_images",
]

ACCEPTED = "digits, cifar10:DIR, an image folder, or synthetic:N"


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels, in a fixed order."""

    name: str  # the --data argument
    split: Split  # what this really is: "all" for a folder without splits, whatever was asked for
    ids: tuple[str, ...]
    labels: NDArray[np.int64]  # (N,) class ids, -1: unlabelled
    classes: tuple[str, ...]  # names in the order of the ids; empty: the labels are the model's own class ids
    items: tuple[Path, ...] | NDArray[np.uint8] | Synthetic  # files, or pixels (N, H, W) or (N, H, W, C)
    repeats: Repeats = field(default_factory=Repeats)  # the duplicates that were left out
    hashes: tuple[str, ...] = ()  # of each image's content, where `deduplicate` has read them

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def synthetic(self) -> bool:
        return isinstance(self.items, Synthetic)

    @property
    def labelled(self) -> bool:
        return bool((self.labels >= 0).all())

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """The bytes of an image file, or pixels (H, W) or (H, W, C).

        Raises:
            OSError: the file cannot be read.
        """
        if isinstance(self.items, tuple):
            return self.items[index].read_bytes()
        if isinstance(self.items, Synthetic):
            return self.items.image(index)
        pixels: NDArray[np.uint8] = self.items[index]
        return pixels

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """The images at these positions, in this order."""
        positions = np.asarray(indices, np.int64)
        items = tuple(self.items[i] for i in positions) if isinstance(self.items, tuple) else self.items[positions]
        hashes = tuple(self.hashes[i] for i in positions) if self.hashes else ()
        ids = tuple(self.ids[i] for i in positions)
        return replace(self, ids=ids, labels=self.labels[positions], items=items, hashes=hashes)

    def signature(self) -> str:
        """Changes when images or labels change, for step keys: files that were only touched are the same images.

        Files are read where one of them may have changed since they were read last, by its path, size and time.
        """
        if isinstance(self.items, Synthetic):
            items: object = [self.items.seed, self.items.numbers.tolist()]
        elif isinstance(self.items, np.ndarray):
            items = hashlib.sha256(np.ascontiguousarray(self.items).data).hexdigest()
        else:
            items = _content_of_files(self)
        return store.fingerprint(
            [self.name, self.split, list(self.ids), self.labels.tolist(), list(self.classes), items]
        )


@dataclass(frozen=True, kw_only=True)
class Read:
    """What was in files when they were read last."""

    sha256: str  # over the hashes of their contents, in order


def _content_of_files(dataset: Dataset) -> str:
    """A digest of all files' contents, remembered for as long as none of them was touched."""
    assert isinstance(dataset.items, tuple)
    stamps = [_stamp(path) for path in dataset.items]
    if (kept := cache.recall(Read, cache.IMAGES, stamps)) is not None:
        return kept.sha256
    read = Read(sha256=store.fingerprint(list(contents(dataset))))
    cache.keep(cache.IMAGES, stamps, read)
    return read.sha256


def _stamp(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except OSError:
        return [str(path), -1]  # named as unreadable when it is read
    return [str(path), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Random images with the smooth look of photographs: amplitude falls as 1/frequency (Field 1987).

    Each is made from its own seed when asked for: 64x64x3, all values used.
    """

    numbers: NDArray[np.int64]
    seed: int = 0

    def __getitem__(self, positions: NDArray[np.int64]) -> Synthetic:
        return replace(self, numbers=self.numbers[positions])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index`: (64, 64, 3)."""
        frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None, :])
        frequency[0, 0] = 1  # the mean: any number
        noise = np.random.default_rng((self.seed, int(self.numbers[index]))).standard_normal((3, 64, 64))
        image = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (64, 64))
        low, high = image.min(), image.max()
        values: NDArray[np.uint8] = np.round((image - low) * (255 / (high - low))).astype(np.uint8)
        return values.transpose(1, 2, 0)


def open_dataset(data: str, *, split: Split = "all", need_labels: bool = True) -> Dataset:
    """Opens what `--data` names, without decoding anything.

    `digits`: the 1,797 images of handwriting (8x8, from UCI's optical digits) that scikit-learn carries. The test
    split is every fifth image, starting with the first, of the images ordered by class and then by position: 360
    images, every class within one image of its share; the other 1,437 train.
    `cifar10:DIR`, or just DIR: the python or binary batches; `test_batch` is the test split.
    Any other folder: see `folder.scan`. `synthetic:N`: N random images, without labels.

    Folders without splits are the same whatever `split` is asked for; `Dataset.split` tells. `need_labels` is False
    for calibration, which can use unlabelled images.

    Raises:
        UnknownName: neither a name nor a folder that exists.
        MissingInput: no usable images, not that split, or no labels though needed.
        PackageMissing: `digits` without scikit-learn.
        PickleRefused, MalformedInput: a CIFAR batch or label list that is not one.
    """
    kind, _, rest = data.partition(":")
    if data == "digits":
        dataset = _digits(split)
    elif kind == "synthetic" and rest:
        dataset = _synthetic(data, rest)
    elif kind == "cifar10" and rest:
        dataset = _cifar(data, Path(rest), split)
    else:
        dataset = _folder(data, Path(data), split)
    if need_labels and not dataset.labelled:
        raise MissingInput(
            f"{data} has no labels",
            fix="Put the images into one folder per class, or a val.txt with `file label` lines beside them",
        )
    return dataset


def _digits(split: Split) -> Dataset:
    packages.need("sklearn", "the data set `digits`", otherwise="name a folder of images")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    held_out[np.argsort(labels, kind="stable")[::5]] = True
    positions = np.flatnonzero({"train": ~held_out, "test": held_out, "all": held_out | True}[split])
    return Dataset(
        name="digits",
        split=split,
        ids=tuple(f"digits/{i:04d}" for i in positions),
        labels=labels[positions],
        classes=tuple("0123456789"),
        items=np.round(images[positions].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8),  # values are 0 to 16
    )


def _synthetic(data: str, count: str) -> Dataset:
    if not count.isdecimal() or int(count) == 0:
        raise UsageError(f"{data!r}: how many images?", fix="Write for example synthetic:64")
    numbers = np.arange(int(count))
    return Dataset(
        name=data,
        split="all",
        ids=tuple(f"synthetic/{i:04d}" for i in numbers),
        labels=np.full(len(numbers), -1, np.int64),
        classes=(),
        items=Synthetic(numbers),
    )


def _cifar(data: str, path: Path, split: Split) -> Dataset:
    batches = cifar.find(path)
    if batches is None:
        raise MissingInput(
            f"there are no CIFAR-10 batches in {path}",
            fix=f"Unpack cifar-10-python.tar.gz there; for a folder of image files pass --data {path}",
        )
    pixels, labels, ids = cifar.read(batches, split)
    return Dataset(name=data, split=split, ids=ids, labels=labels, classes=cifar.CLASSES, items=pixels)


def _folder(data: str, path: Path, split: Split) -> Dataset:
    if not data or not path.is_dir():
        near = difflib.get_close_matches(data, ["digits", "cifar10:DIR", "synthetic:N"], 1)
        kind = MissingInput if "/" in data or (data and path.exists()) else UnknownName
        raise kind(
            f"there is no data set or folder {data!r}" if not data or not path.exists() else f"{data} is not a folder",
            cause=f"Perhaps {near[0]} is meant" if near else "",
            fix=f"Accepted are {ACCEPTED}",
        )
    if cifar.find(path) is not None:
        return _cifar(data, path, split)
    listing = folder.scan(path, split)
    return Dataset(
        name=data,
        split=listing.split,
        ids=listing.ids,
        labels=np.array(listing.labels, np.int64),
        classes=listing.classes,
        items=listing.paths,
        repeats=listing.repeats,
    )


def align(dataset: Dataset, labels: Sequence[str]) -> Dataset:
    """The data set with class ids in the model's order.

    Folders number their classes by sorted name; a model may know the same names in another order, or more of them.
    Where all names of the data set are among the model's, labels are renumbered. Where none is (folders named by
    WordNet id, say), equal numbers of classes are taken to mean the same order. `labels` may be empty: unknown.

    Raises:
        UsageError: some names are the model's and some are not, or the numbers of classes differ.
    """
    numbers = {name: i for i, name in enumerate(labels)}
    missing = [name for name in dataset.classes if name not in numbers]
    if not labels or not dataset.labelled:
        return dataset
    if not dataset.classes or len(missing) == len(dataset.classes):
        count = len(dataset.classes) or int(dataset.labels.max()) + 1
        if count > len(labels) or (dataset.classes and count != len(labels)):
            raise UsageError(f"{dataset.name} has {count} classes, the model {len(labels)}, and no name is in both")
        return dataset
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(dataset.classes)} classes of {dataset.name} are unknown to the model: "
            + ", ".join(missing[:5]),
            fix=f"Rename the class folders as the model does, for example {labels[0]!r}",
        )
    if len(set(labels)) != len(labels):
        raise UsageError("the model has labels of the same name, so class folders cannot be matched by name")
    return replace(
        dataset, labels=np.array([numbers[name] for name in dataset.classes])[dataset.labels], classes=tuple(labels)
    )


def choose(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` images (or all there are), every class within one image of its share, in seeded random order.

    Systematic sampling: the k-th image of a shuffled class of n sorts at (k + u) / n, with u uniform for the class.
    Every prefix of the result is spread over the classes as well.
    """
    rng = np.random.default_rng(seed)
    position = np.empty(len(dataset))
    for label in np.unique(dataset.labels):
        members = np.flatnonzero(dataset.labels == label)
        position[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
    return dataset.subset(np.argsort(position, kind="stable")[:count])


def deduplicate(dataset: Dataset) -> Dataset:
    """Every image once, by its bytes; those of several labels left out; both named in `Dataset.repeats`.

    For sets that are to be divided or counted before they are decoded: all files are read. Those that cannot be are
    left in, and named where they are used.

    Raises:
        MalformedInput: every image has several labels.
    """
    if dataset.synthetic:
        return dataset
    hashes = contents(dataset)
    counted, copies = repeats.count_each_once(dataset.ids, dataset.labels, hashes)
    return replace(dataset, hashes=hashes, repeats=dataset.repeats + copies).subset(counted)


def contents(dataset: Dataset) -> tuple[str, ...]:
    """The content hash of every image; of one that cannot be read, something that no other has."""
    return dataset.hashes or tuple(_content(dataset, k) for k in range(len(dataset)))


def _content(dataset: Dataset, index: int) -> str:
    try:
        return content_hash(dataset.read(index))
    except OSError:
        return f"unreadable: {dataset.name}, {dataset.ids[index]}"


def fingerprint(ids: Sequence[str], labels: NDArray[np.int64], hashes: Sequence[str]) -> str:
    """SHA-256 over what was evaluated or calibrated on: names, labels and contents, in order."""
    return store.fingerprint([list(ids), labels.tolist(), list(hashes)])


def training_images(data: str) -> tuple[Dataset, Dataset]:
    """The training and the test split of a data set.

    Raises:
        UsageError: it has no splits, so that a result could not be judged.
    """
    train_data, test_data = (open_dataset(data, split=split) for split in ("train", "test"))
    if train_data.split == "all":
        raise UsageError(
            f"{data} has no training and test images of its own", fix="Put them into two folders in it: train and val"
        )
    return train_data, test_data

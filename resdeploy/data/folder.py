"""Folders of image files: ImageFolder (one folder per class), splits of those, and flat folders with a label list."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resdeploy.errors import MalformedInput, MissingInput, UsageError
from resdeploy.records import Repeats

Split = Literal["train", "test", "all"]

# torchvision's list and two more: what is listed but neither JPEG nor PNG is later reported, not silently dropped.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".fits"})
# "test" first: where both are there, `val` was meant for choosing, not for judging.
SPLITS = {"train": ("train",), "test": ("test", "val", "validation"), "all": ("train", "val", "validation", "test")}
LISTS = ("val_map.txt", "val_map.csv", "val.txt", "val.csv")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Image files with their class ids (-1: unlabelled) and the classes' names (empty: ids as given in a list)."""

    paths: tuple[Path, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    split: Split
    repeats: Repeats = field(default_factory=Repeats)  # folders that links lead to once more


def scan(folder: Path, split: Split) -> Listing:
    """The images of a folder.

    Accepted are `DIR/{train,val,test}/<class>/*`, `DIR/<class>/*`, a flat folder with `val.txt`, `val_map.txt` or a
    `.csv` of them (`file label` a line; the files beside it or in `val/`), and a flat folder without labels.
    Classes are in the order of their sorted names, over all splits, as in torchvision's ImageFolder. A folder
    without splits is the same whatever split is asked for, and says so in `Listing.split`. Links are followed; a folder
    that they lead to once more is read once, and named in `Listing.repeats`. (Files are told apart by their bytes,
    which are read later.)

    Raises:
        MissingInput: no images, or not that split.
        MalformedInput: a label list with a line that cannot be understood.
    """
    listing = _with_splits(folder, split) or _with_list(folder) or _with_classes(folder) or _flat(folder)
    if not listing.paths:
        raise MissingInput(
            f"there are no images in {folder}",
            fix="Expected are DIR/<class>/*.jpg, DIR/{train,val}/<class>/*.jpg, or images with a val.txt",
        )
    return listing


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, base: Path) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """All image files below, in sorted order, by suffix; and the folders met again, each with where it was first.

    The folders from `base` down to `folder` count as met: a link to one of them would bring other classes' images.
    """
    paths: list[Path] = []
    again: list[tuple[Path, Path]] = []
    above = [path for path in folder.parents if path.is_relative_to(base)]
    met = {_identity(path): path for path in above}
    for root, folders, files in os.walk(folder, followlinks=True):
        first = met.setdefault(_identity(Path(root)), Path(root))
        if first != Path(root):
            again.append((Path(root), first))
            folders.clear()
            continue
        folders.sort()
        paths += [
            Path(root, name)
            for name in sorted(files)
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")  # noqa: PTH122
        ]
    return paths, again


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _with_splits(folder: Path, split: Split) -> Listing | None:
    present = [name for name in SPLITS["all"] if (folder / name).is_dir() and _subfolders(folder / name)]
    if not present:
        return None
    parts = [name for name in SPLITS[split] if name in present]
    if not parts:
        raise MissingInput(
            f"{folder} has no {split} split, only {', '.join(present)}",
            fix=f"Pass the folder to use, for example {folder / present[0]}",
        )
    # Classes over all splits: a class that one of them lacks must not shift the numbers of the others.
    classes = tuple(sorted({name for part in present for name in _subfolders(folder / part)}))
    parts = parts if split == "all" else parts[:1]
    return _collect(folder, [(folder / part / name, name) for part in parts for name in classes], classes, split)


def _with_classes(folder: Path) -> Listing | None:
    classes = tuple(_subfolders(folder))
    return _collect(folder, [(folder / name, name) for name in classes], classes, "all") if classes else None


def _collect(base: Path, sources: list[tuple[Path, str]], classes: tuple[str, ...], split: Split) -> Listing:
    number = {name: i for i, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    again: list[str] = []
    for source, name in sources:
        images, folders = _images(source, base)
        paths += images
        labels += [number[name]] * len(images)
        again += [f"{path.relative_to(base)} is {first.relative_to(base)}" for path, first in folders]
    return Listing(
        paths=tuple(paths),
        ids=tuple(path.relative_to(base).as_posix() for path in paths),
        labels=tuple(labels),
        classes=classes,
        split=split,
        repeats=Repeats(again=tuple(again)),
    )


def _flat(folder: Path) -> Listing:
    paths, _ = _images(folder, folder)  # without folders in it, or there would be classes
    return Listing(
        paths=tuple(paths), ids=tuple(p.name for p in paths), labels=(-1,) * len(paths), classes=(), split="all"
    )


def _with_list(folder: Path) -> Listing | None:
    list_file = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if list_file is None:
        return None
    rows = _rows(list_file)
    numeric = all(label.isdecimal() for _, label in rows)
    classes = () if numeric else tuple(sorted({label for _, label in rows}))
    base = next((b for b in (folder, folder / "val") if rows and (b / rows[0][0]).is_file()), folder)
    return Listing(
        paths=tuple(base / name for name, _ in rows),
        ids=tuple(name for name, _ in rows),
        labels=tuple(int(label) if numeric else classes.index(label) for _, label in rows),
        classes=classes,
        split="all",
    )


def _rows(list_file: Path) -> list[tuple[str, str]]:
    """(file, label) of each line; a .csv may have a header."""
    separator = "," if list_file.suffix == ".csv" else None
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise MalformedInput(f"{list_file} is not UTF-8 text") from e
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.rsplit(separator, 1)]
        if len(parts) != 2 or not all(parts):
            raise MalformedInput(f"{list_file}, line {number} is not `file label`: {line[:80]!r}")
        if number == 1 and separator and Path(parts[0]).suffix.lower() not in SUFFIXES:
            continue
        if Path(parts[0]).is_absolute() or ".." in Path(parts[0]).parts:
            raise UsageError(f"{list_file}, line {number} names a file outside the folder: {parts[0]!r}")
        rows.append((parts[0], parts[1]))
    return rows

"""Folders of image files: ImageFolder (one folder a class), splits of those, and flat folders with a label list."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resdeploy.errors import MalformedInput, MissingInput, UsageError

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


def scan(folder: Path, split: Split) -> Listing:
    """The images of a folder.

    Accepted are `DIR/{train,val,test}/<class>/*`, `DIR/<class>/*`, a flat folder with `val.txt`, `val_map.txt` or a
    `.csv` of them (`file label` a line; the files beside it or in `val/`), and a flat folder without labels.
    Classes are in the order of their sorted names, over all splits, as in torchvision's ImageFolder. A folder
    without splits is the same whatever split is asked for, and says so in `Listing.split`.

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


def _images(folder: Path) -> Iterator[Path]:
    """All image files below, in sorted order, by suffix."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):  # noqa: PTH122
                yield Path(root, name)


def _with_splits(folder: Path, split: Split) -> Listing | None:
    present = [name for name in SPLITS["all"] if (folder / name).is_dir() and _subfolders(folder / name)]
    if not present:
        return None
    wanted = [name for name in SPLITS[split] if name in present]
    if not wanted:
        raise MissingInput(
            f"{folder} has no {split} split, only {', '.join(present)}",
            fix=f"Pass the folder to use, for example {folder / present[0]}",
        )
    # Classes over all splits: a class that one of them lacks must not shift the numbers of the others.
    classes = tuple(sorted({name for part in present for name in _subfolders(folder / part)}))
    parts = wanted if split == "all" else wanted[:1]
    return _collect(folder, [(folder / part / name, name) for part in parts for name in classes], classes, split)


def _with_classes(folder: Path) -> Listing | None:
    classes = tuple(_subfolders(folder))
    return _collect(folder, [(folder / name, name) for name in classes], classes, "all") if classes else None


def _collect(base: Path, sources: list[tuple[Path, str]], classes: tuple[str, ...], split: Split) -> Listing:
    number = {name: i for i, name in enumerate(classes)}
    found = [(path, number[name]) for source, name in sources for path in _images(source)]
    return Listing(
        paths=tuple(path for path, _ in found),
        ids=tuple(path.relative_to(base).as_posix() for path, _ in found),
        labels=tuple(label for _, label in found),
        classes=classes,
        split=split,
    )


def _flat(folder: Path) -> Listing:
    paths = tuple(_images(folder))
    return Listing(paths=paths, ids=tuple(p.name for p in paths), labels=(-1,) * len(paths), classes=(), split="all")


def _with_list(folder: Path) -> Listing | None:
    listed = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if listed is None:
        return None
    rows = _rows(listed)
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


def _rows(listed: Path) -> list[tuple[str, str]]:
    """(file, label) of each line; a .csv may have a header."""
    separator = "," if listed.suffix == ".csv" else None
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise MalformedInput(f"{listed} is not UTF-8 text") from e
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.rsplit(separator, 1)]
        if len(parts) != 2 or not all(parts):
            raise MalformedInput(f"{listed}, line {number} is not `file label`: {line[:80]!r}")
        if number == 1 and separator and Path(parts[0]).suffix.lower() not in SUFFIXES:
            continue
        if Path(parts[0]).is_absolute() or ".." in Path(parts[0]).parts:
            raise UsageError(f"{listed}, line {number} names a file outside the folder: {parts[0]!r}")
        rows.append((parts[0], parts[1]))
    return rows

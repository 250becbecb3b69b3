"""Reuses finished work: models are cached under a hash of everything that they depend on, our code included."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from resdeploy import __version__, cache, store
from resdeploy.records import (
    Artifact,
)


def identity(source: Artifact) -> Any:
    """What a cache key takes of a source: its digest, and what files made from it inherit of its record."""
    return (source.sha256, source.precision, source.model, source.weights, source.calibration, source.notes)


def data_signature(data: str, split: Literal["train", "test"]) -> str:
    """Changes whenever the images or labels of a data set may have changed."""
    from resdeploy.data import datasets

    return datasets.open_dataset(data, split=split).signature()


def make_or_reuse(key: Any, suffix: str, out: Path | None, make: Callable[[Path], Artifact]) -> Artifact:
    """The artifact: made at `out` where the user named a file, else taken from the cache or made and put there."""
    if out is None:
        return cache.cached(key, suffix, make)
    store.probe(out)
    return store.publish(out, make)


def versions(*packages: str) -> dict[str, str]:
    """Our code and the versions of the packages that a result depends on; what is not installed is left out."""
    found = {"resdeploy": f"{__version__} {_code()}"}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@functools.cache
def _code() -> str:
    """A digest of our own sources: what another version of them made is made again."""
    sha = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]

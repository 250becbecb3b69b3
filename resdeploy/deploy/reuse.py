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
from resdeploy.records import Artifact

# What only chooses, judges and shows: nothing here is reached from this room (tests/deploy/test_reuse.py).
UNCONCERNED = ("cli", "api.py", "pytest_plugin.py", "run", "report", "judge", "study", "cost", "verbs", "packaged")


def identity(source: Artifact) -> Any:
    """All that a file made from this one depends on: its content, and what its record hands on."""
    return (source.sha256, source.precision, source.model, source.weights, source.calibration, source.notes)


def data_signature(data: str, split: Literal["train", "test"]) -> str:
    """Changes whenever the images or labels of a data set may have changed."""
    from resdeploy.data import datasets

    return datasets.open_dataset(data, split=split).signature()


def make_or_reuse(key: Any, suffix: str, out: Path | None, make: Callable[[Path], Artifact]) -> Artifact:
    """The artifact: made at `out` where the user named a file, else taken from the cache or made and put there."""
    if out is None:
        return cache.load_or_make(key, suffix, make)
    store.probe(out)
    return store.publish(out, make)


def versions(*packages: str, by_verb: bool = False) -> dict[str, str]:
    """Our code and the versions of the packages that a result depends on; what is not installed is left out.

    Args:
        packages: names of distributions.
        by_verb: whether a verb decides what is in the file, as which blocks `prune` drops.
    """
    installed = {"resdeploy": f"{__version__} {_code(by_verb=by_verb)}"}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


@functools.cache
def _code(*, by_verb: bool) -> str:
    """A digest of the sources that can change a file: what another version of them made is made again."""
    sha = hashlib.sha256()
    for path in sources(by_verb=by_verb):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def sources(*, by_verb: bool = False) -> list[Path]:
    """Our files but those of `UNCONCERNED`; with `by_verb`, those of the verbs too, and what they judge by."""
    root = Path(__file__).parents[1]
    rooms = set(UNCONCERNED) - ({"verbs", "judge"} if by_verb else set())
    return [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in rooms]

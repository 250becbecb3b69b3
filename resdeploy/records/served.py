"""A model in a folder that is served without resdeploy: its spec, its manifest, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.records.artifacts import Artifact, Preprocessing
from resdeploy.vocabulary import STRICT, PackageKind, Precision, Runtime, State


@dataclass(frozen=True, kw_only=True)
class ServedSpec:
    """What a packaged module must know of its model: `spec.json`."""

    __pydantic_config__ = STRICT
    name: str
    runtime: Runtime
    model: str  # its file, beside the spec
    batch_size: int  # images per query; a query with fewer is filled up
    threads: int | None  # None: the usable cores
    precision: Precision  # arithmetic of what the graph leaves in floats
    classes: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a packaged folder holds, and what it was made of: `manifest.json`."""

    __pydantic_config__ = STRICT
    schema_version: int
    kind: PackageKind
    runtime: Runtime
    batch_size: int
    threads: int | None
    source: Artifact  # its hash, that of its parent, its weights and calibration; its path is the bare name
    gate: State | None  # the verdict of gate.json; None: none was given
    files: Mapping[str, str]  # path in the folder -> SHA-256, of every file but this one
    versions: Mapping[str, str]  # package -> version, where it was made


@dataclass(frozen=True, kw_only=True)
class Fault:
    """In what a packaged folder is not its source's."""

    file: str  # in the folder
    what: str  # such as `mean`, `weights`, `module`, `logits`
    why: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found of a packaged folder."""

    manifest: Manifest
    source: str  # path of the file that it was compared with
    images: int  # that both answered; 0: they could not be replayed
    changed: int  # of them with other logits
    faults: tuple[Fault, ...]

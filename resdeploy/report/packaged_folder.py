"""The documents of `package`: what was written to a folder, and what is amiss in one."""

from __future__ import annotations

import dataclasses

from resdeploy.records import Manifest, Verified
from resdeploy.report.documents import Environment, document
from resdeploy.report.rows import Json


def written(manifest: Manifest, folder: str, environment: Environment) -> Json:
    """`package`: one row per file that was written, and the manifest."""
    rows = [{"file": name, "sha256": sha256} for name, sha256 in manifest.files.items()]
    source, runtime = manifest.source, manifest.runtime
    gate = f"; gate: {manifest.gate}" if manifest.gate else ""
    note = f"wrote {folder}: {source.path} ({source.precision}) for {manifest.kind}, in {runtime}{gate}"
    return document("package", environment, rows, folder=folder, manifest=dataclasses.asdict(manifest), notes=[note])


def verified(found: Verified, folder: str, environment: Environment) -> Json:
    """`package --verify`: the faults of a folder, and how many images answered alike."""
    rows = [dataclasses.asdict(fault) for fault in found.faults]
    replayed = {"images": found.images, "changed": found.changed}
    of = {"folder": folder, "kind": found.manifest.kind, "source": found.source}
    same = f"{found.images - found.changed} of {found.images} images have the logits of {found.source}, bit for bit"
    same = same if found.images else "no image was replayed"
    verdict = f"{folder} is not what was packaged" if rows else f"{folder} is whole"
    return document(
        "package --verify",
        environment,
        rows,
        **of,
        verdict="fail" if rows else "pass",
        replayed=replayed,
        notes=[f"{verdict}: {same}"],
    )

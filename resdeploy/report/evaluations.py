"""The documents of `eval`, of one shard of it, and of `merge`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from resdeploy.records import Predictions, Score
from resdeploy.report.documents import Environment, document
from resdeploy.report.rows import Json, score_row


def evaluation(
    results: Iterable[tuple[str, Predictions, Score, str, str]], environment: Environment, *, notes: Sequence[str] = ()
) -> Json:
    """`eval`: accuracies in percent, with 95 % intervals, each with the name that its file has."""
    rows, told = [], list(notes)
    for name, predictions, score, backend, precision in results:
        rows.append(
            {
                "model": predictions.model,
                "name": name,
                "backend": backend,
                "precision": precision,
                **score_row(score),
                "data": predictions.data,
                "data_fingerprint": predictions.data_fingerprint,
                "preprocessing_fingerprint": predictions.preprocessing_fingerprint,
                "sha256": predictions.sha256,
                "unreadable": list(predictions.unreadable),
                "unreadable_count": len(predictions.unreadable),
                "repeats": dataclasses.asdict(predictions.repeats),
            }
        )
        told += [f"{name}: could not read {image}" for image in predictions.unreadable]
        told += [f"{predictions.data}: {note}" for note in predictions.repeats.notes]
    return document("eval", environment, rows, notes=list(dict.fromkeys(told)))


def shard(name: str, predictions: Predictions, environment: Environment) -> Json:
    """`eval --shard`: how many images are done; an accuracy is the whole's alone, of which classes are not shuffled."""
    partial, origin = predictions.partial, predictions.origin
    assert partial is not None
    assert origin is not None
    row = {
        "model": predictions.model,
        "name": name,
        "backend": origin.backend,
        "precision": origin.precision,
        "data": predictions.data,
        "shard": str(partial.shard),
        "images": len(predictions.labels),
        "images_of_all": partial.images,
        "sha256": predictions.sha256,
        "unreadable": list(predictions.unreadable),
        "unreadable_count": len(predictions.unreadable),
    }
    notes = [
        f"shard {partial.shard} is a part, without an accuracy of its own: `resdeploy merge PART... -o ALL.npz` has it",
        *(f"{name}: could not read {image}" for image in predictions.unreadable),
    ]
    return document("eval --shard", environment, [row], notes=notes)


def merged(predictions: Predictions, score: Score, shards: int, environment: Environment) -> Json:
    """`merge`: the document of `eval`, with a word on where its shards were computed."""
    origin = predictions.origin
    assert origin is not None
    row = (predictions.model, predictions, score, origin.backend, origin.precision)
    return evaluation([row], environment, notes=[f"of {shards} shards, computed on {origin.machine}"])

"""An evaluation in shards, on several machines or in several processes: cut into parts, and put together again.

A shard is whole batches of the order that one process goes through, so that every query holds the same images in the
same places, and its logits are the same bits: a batch of another composition need not give them. Copies of an image may
lie in two shards. Therefore a shard counts nothing; the whole does, when it is put together.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from resdeploy import store, torchrun
from resdeploy.data import datasets
from resdeploy.data.datasets import Dataset
from resdeploy.errors import MalformedInput, UsageError
from resdeploy.measure import prediction_files
from resdeploy.records import Partial, Predictions, Shard

AUTO = "auto"
ALIKE = "Evaluate all shards with the same files, options and versions, on machines of one kind"


def parse(text: str) -> Shard:
    """`2/3`, or `auto`: as torchrun numbers this process.

    Raises:
        UsageError: anything else, or `auto` without torchrun.
    """
    if text == AUTO:
        if not torchrun.started():
            raise UsageError(
                "--shard auto is numbered by torchrun, which did not start this process",
                fix="Begin with `torchrun --nproc-per-node 2 -m resdeploy eval`, or write --shard 1/2 and --shard 2/2",
            )
        return Shard(number=torchrun.rank() + 1, count=torchrun.process_count())
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--shard takes 1/3, 2/3 and so on, or auto, not {text!r}", fix="The first of three is 1/3")
    return Shard(number=number, count=count)


def path_of(path: Path, shard: Shard) -> Path:
    """A file of this shard where all processes were given one name: `r50.npz` is `r50.2-of-3.npz`."""
    return path.with_name(f"{path.stem}.{shard.number}-of-{shard.count}{path.suffix}")


def cut(dataset: Dataset, shard: Shard, batch_size: int) -> Dataset:
    """The images of a shard: whole batches of the data set's order, as many as in any other shard or one more.

    Raises:
        UsageError: there are fewer batches than shards.
    """
    batches = math.ceil(len(dataset) / batch_size)
    if shard.count > batches:
        raise UsageError(
            f"{dataset.name} has {len(dataset)} images, which are {batches} batches of {batch_size} and no more shards",
            fix=f"Write --shard {min(shard.number, batches)}/{batches}, or evaluate in one process",
        )
    first, last = (batch_size * (batches * k // shard.count) for k in (shard.number - 1, shard.number))
    return dataset.subset(range(first, min(last, len(dataset))))


def listing(dataset: Dataset) -> str:
    """A fingerprint of a whole data set by what is known of it before anything is read."""
    known = [list(dataset.ids), dataset.labels.tolist(), list(dataset.classes), dataclasses.asdict(dataset.repeats)]
    return store.fingerprint(known)


def merge(parts: Mapping[Path, Predictions]) -> Predictions:
    """The predictions of one process, bit for bit, from those of all shards in any order.

    Args:
        parts: each by its file, as `prediction_files.load_part` reads it.

    Raises:
        UsageError: parts that are not of one evaluation; a shard that is missing, or there twice.
        MalformedInput: a part that has not all of its images; every image has several labels.
    """
    _refuse_strangers(parts)
    _refuse_gaps(parts)
    ordered = sorted(parts.values(), key=lambda part: _partial(part).shard.number)
    ids, images, unreadable = (
        tuple(name for part in ordered for name in getattr(part, field)) for field in ("ids", "images", "unreadable")
    )
    if len(ids) + len(unreadable) != _partial(ordered[0]).images:
        raise MalformedInput(
            f"the shards hold {len(ids) + len(unreadable)} images, and the data set {_partial(ordered[0]).images}",
            cause="A file was edited",
            fix="Repeat the shards",
        )
    labels = np.concatenate([part.labels for part in ordered])
    logits = [part.logits for part in ordered if part.logits is not None]
    whole = dataclasses.replace(
        ordered[0],
        ids=ids,
        images=images,
        unreadable=unreadable,
        labels=labels,
        top=np.concatenate([part.top for part in ordered]),
        logits=np.concatenate(logits) if logits else None,
        data_fingerprint=datasets.fingerprint(ids, labels, images),
        partial=None,
    )
    return prediction_files.count_once(whole)


def _partial(part: Predictions) -> Partial:
    assert part.partial is not None
    return part.partial


def _refuse_strangers(parts: Mapping[Path, Predictions]) -> None:
    """All parts are of one evaluation: whatever the bits of a logit depend on is equal."""
    (first, known), *others = ((path, _facts(part)) for path, part in parts.items())
    for path, facts in others:
        differing = [
            f"{name} {known.get(name, '-')} and {facts.get(name, '-')}"
            for name in known | facts
            if known.get(name) != facts.get(name)
        ]
        if differing:
            raise UsageError(f"{first} and {path} are not of one evaluation: {'; '.join(differing)}", fix=ALIKE)


def _facts(part: Predictions) -> dict[str, str]:
    """What must be equal in all parts, by the name that a person has for it."""
    partial, origin = _partial(part), part.origin
    facts = {
        "shards": str(partial.shard.count),
        "model": part.sha256[:12],
        "data": f"{partial.images} images, {partial.listing[:12]}",
        "preprocessing": part.preprocessing_fingerprint[:12],
        "classes": store.fingerprint(list(part.classes))[:12],
        "logits": "none" if part.logits is None else str(part.logits.shape[1]),
        "batch size": str(partial.batch_size),
        "threads": str(partial.threads),
    }
    if origin is None:
        return facts
    run = {"backend": origin.backend, "precision": origin.precision, "machine": origin.machine}
    return facts | run | dict(origin.tools)


def _refuse_gaps(parts: Mapping[Path, Predictions]) -> None:
    """Every shard is there, once."""
    files: dict[int, list[Path]] = {}
    for path, part in parts.items():
        files.setdefault(_partial(part).shard.number, []).append(path)
    some = next(iter(parts.values()))
    count = _partial(some).shard.count
    for number, paths in files.items():
        if len(paths) > 1:
            raise UsageError(
                f"shard {number}/{count} is there {len(paths)} times: {', '.join(map(str, paths))}",
                fix="Name one of them",
            )
    if missing := [Shard(number=k, count=count) for k in range(1, count + 1) if k not in files]:
        raise UsageError(_missing(missing), fix=_repeat(missing, some))


def _missing(missing: Sequence[Shard]) -> str:
    several = len(missing) > 1
    return f"shard{'s' if several else ''} {', '.join(map(str, missing))} {'are' if several else 'is'} missing"


def _repeat(missing: Sequence[Shard], some: Predictions) -> str:
    """The command that makes the first of the shards that are not there."""
    options = f"--data {some.data} --shard {missing[0]} --predictions PART.npz"
    return f"Name its file, or repeat it alone with the options of the others: resdeploy eval MODEL {options}"

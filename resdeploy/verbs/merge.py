"""`merge`: the predictions of all shards of an evaluation as those of one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdeploy.errors import UsageError
from resdeploy.measure import prediction_files, shards
from resdeploy.records import Predictions


def merge(parts: Sequence[Path], out: Path) -> Predictions:
    """Puts the files of shards together and writes what one process would have written.

    Raises:
        MissingInput: a file is not there.
        UsageError: a file that is no shard, shards that are not of one evaluation, missing or there twice.
        MalformedInput: a file that is damaged.
    """
    if len({path.resolve() for path in parts}) < len(parts):
        raise UsageError("a file is named twice", fix="Name the file of every shard once")
    whole = shards.merge({path: prediction_files.load_part(path) for path in parts})
    prediction_files.save(whole, out)
    return whole

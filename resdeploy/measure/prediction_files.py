"""Predictions on disk, read and written: foreign files, and our own with their origin.

A foreign file holds `predictions` (class ids, one per image) or `logits` (images x classes), `labels` (class ids), and
optionally `ids`, under these names:

- `.npz`: arrays of these names;
- `.json`: one object with lists of these names;
- `.csv`: a header and one row per image; logits as columns `logits_0 ... logits_{C-1}`.

Our own files add `top`, `images` and the fields of `Predictions`, and come back as they were saved; a CSV carries them
in a first line that starts with `# resdeploy `. Nothing is unpickled, and no array is read before its size is known.

Which error: an array that is not there, or two good files that cannot be compared, is a matter of usage (exit 2); an
array that is there and cannot be right, by shape, type, length or values, is malformed (exit 4).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy import stats, store
from resdeploy.data import repeats
from resdeploy.errors import MalformedInput, MissingInput, ResdeployError, UsageError
from resdeploy.records import Origin, Partial, Predictions, Repeats, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 4 << 30  # 1,000 classes, 1,000,000 images in float32: more is not predictions
MAX_CLASS = 1 << 31
ROWS = 512
SUFFIXES = (".npz", ".json", ".csv")
TEXT_FIELDS = ("model", "data", "data_fingerprint", "preprocessing_fingerprint", "sha256")
NAMES = ("predictions", "logits", "labels", "ids", "top", "images", "cluster", "resdeploy")
TEXTS = ("ids", "images", "cluster")  # one text per image each
CSV_MARK = "# resdeploy "
AGAIN = "Write it again: resdeploy eval MODEL --data D --predictions F"
# A cell that starts so is run as a formula by spreadsheets (OWASP ASVS 1.2.10); ours gets an apostrophe before it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'", "#")


def score(predictions: Predictions) -> Score:
    """Top-1 and top-5 in percent, with Wilson's 95 % interval of top-1."""
    hits = predictions.top == predictions.labels[:, None]
    correct, total = int(hits[:, 0].sum()), len(predictions.labels)
    low, high = stats.wilson_interval(correct, total)
    return Score(
        model=predictions.model,
        top1=100 * correct / total,
        top5=100 * float(hits.any(axis=1).mean()) if hits.shape[1] == 5 else None,
        correct=correct,
        total=total,
        top1_ci95=(100 * low, 100 * high),
        repeats=predictions.repeats,
    )


def count_once(predictions: Predictions) -> Predictions:
    """The predictions without those of images that are there already, which are named instead (`repeats.counted`).

    Where the contents are not known, nothing is a repeat.

    Raises:
        MalformedInput: every image has several labels.
    """
    if len(set(predictions.images)) == len(predictions.images):
        return predictions
    from resdeploy.data import datasets  # it brings the image decoder, which saved predictions do not need

    names = predictions.ids or tuple(map(str, range(len(predictions.labels))))
    kept, extra = repeats.count_each_once(names, predictions.labels, predictions.images)
    ids, images = (tuple(some[k] for k in kept) for some in (predictions.ids or names, predictions.images))
    labels = predictions.labels[kept]
    return dataclasses.replace(
        predictions,
        ids=ids if predictions.ids else (),
        images=images,
        cluster=tuple(predictions.cluster[k] for k in kept) if predictions.cluster else (),
        labels=labels,
        top=predictions.top[kept],
        logits=None if predictions.logits is None else predictions.logits[kept],
        data_fingerprint=predictions.data_fingerprint and datasets.fingerprint(ids, labels, images),
        repeats=predictions.repeats + extra,
    )


def top_classes(logits: NDArray[np.float32], count: int = 5) -> NDArray[np.int64]:
    """The `count` best class ids of each image, best first; of equal logits the lower id, as argmax has it.

    Args:
        logits: (N, C), without NaN.
        count: at most this many.

    Returns:
        (N, min(count, C)).
    """
    best = np.empty((len(logits), min(count, logits.shape[1])), dtype=np.int64)
    for start in range(0, len(logits), ROWS):  # parts that stay in the cache: twice as fast with 1,000 classes
        rest = logits[start : start + ROWS].copy()
        rows = np.arange(len(rest))
        # Five passes of argmax cost a fraction of one sort of 1,000 classes, and break ties predictably.
        for rank in range(best.shape[1]):
            winners = rest.argmax(axis=1)
            best[start : start + ROWS, rank] = winners
            rest[rows, winners] = -np.inf
    return best


def save(predictions: Predictions, path: Path) -> None:
    """Writes predictions as `.npz`, `.json` or `.csv`, atomically; `load` returns them unchanged.

    Raises:
        UsageError: another suffix.
        NotWritable, DiskFull: as the operating system says.
    """
    suffix = _suffix(path)
    meta: dict[str, Any] = {name: getattr(predictions, name) for name in TEXT_FIELDS}
    meta |= {"unreadable": list(predictions.unreadable), "classes": list(predictions.classes)}
    if predictions.repeats != Repeats():
        meta["repeats"] = dataclasses.asdict(predictions.repeats)
    if predictions.origin is not None:
        meta["origin"] = dataclasses.asdict(predictions.origin)
    if predictions.partial is not None:
        meta["partial"] = dataclasses.asdict(predictions.partial)
    arrays: dict[str, Any] = {
        "predictions": predictions.top[:, 0],
        "labels": predictions.labels,
        "top": predictions.top,
    }
    arrays |= {name: np.array(getattr(predictions, name), dtype=np.str_) for name in TEXTS}
    arrays = {name: array for name, array in arrays.items() if len(array)}
    if predictions.logits is not None:
        arrays["logits"] = predictions.logits
    if suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, resdeploy=np.array(json.dumps(meta)), **arrays)
        store.write_bytes(path, buffer.getvalue())
    elif suffix == ".json":
        store.write_json(path, {"resdeploy": meta} | {name: array.tolist() for name, array in arrays.items()})
    else:
        store.write_bytes(path, _csv_text(meta, arrays).encode())


def load(path: Path) -> Predictions:
    """Reads predictions, our own or those of another tool; each image is counted once where contents are known.

    Raises:
        MissingInput: no such file.
        UsageError: another suffix; arrays that are needed are not in the file; it is one shard of an evaluation.
        MalformedInput: the file is damaged, an array cannot be what its name says, or two do not fit each other.
    """
    predictions = _load(path)
    if predictions.partial is not None:
        raise UsageError(
            f"{path} is shard {predictions.partial.shard} of an evaluation and tells nothing of the rest",
            fix="Put all shards together, and name the file of that: resdeploy merge PART... -o ALL.npz",
        )
    with _damage(path):
        return count_once(predictions)


def load_part(path: Path) -> Predictions:
    """Reads the predictions of one shard, for `shards.merge`.

    Raises:
        MissingInput, MalformedInput: as `load`.
        UsageError: as `load`, or it is no shard.
    """
    predictions = _load(path)
    if predictions.partial is None:
        raise UsageError(
            f"{path} is no shard of an evaluation, but a whole one",
            fix="Leave it out: only files that eval --shard --predictions wrote are put together",
        )
    return predictions


def _load(path: Path) -> Predictions:
    suffix = _suffix(path)
    if not path.is_file():
        raise MissingInput(f"there is no file {path}", fix="Check the path")
    if path.stat().st_size > MAX_BYTES:
        raise MalformedInput(f"{path} is larger than {MAX_BYTES >> 30} GiB", cause="It does not hold predictions")
    with _damage(path):
        content = {".npz": _read_npz, ".json": _read_json, ".csv": _read_csv}[suffix](path)
        return _predictions(content, path)


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"predictions are .npz, .json or .csv files, not {path.suffix or 'without suffix'}: {path}",
            fix="numpy.savez(file, predictions=..., labels=..., ids=...) writes one",
        )
    return path.suffix


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever a parser raises about a file into MalformedInput."""
    try:
        yield
    except ResdeployError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, EOFError, RecursionError, csv.Error) as e:
        reason = str(e).split("\n")[0][:200]
    except (zipfile.BadZipFile, NotImplementedError, OSError, MemoryError) as e:
        reason = str(e).split("\n")[0][:200] or type(e).__name__
    else:
        return
    raise MalformedInput(
        f"{path} cannot be read as predictions: {reason}",
        cause="It is damaged, or of another format than its suffix says",
        fix="Write it again; numpy.savez(file, predictions=..., labels=...) will do",
    )


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist() if info.filename.removesuffix(".npy") in NAMES)
    if unpacked > MAX_BYTES:
        raise MalformedInput(f"{path} unpacks to {unpacked / 2**30:.0f} GiB", cause="It does not hold predictions")
    with np.load(path, allow_pickle=False) as archive:
        content: dict[str, Any] = {name: archive[name] for name in NAMES if name in archive}
        content["names"] = tuple(archive)
    if "resdeploy" in content:
        content["resdeploy"] = store.parse_json(str(content["resdeploy"]), f"`resdeploy` in {path}")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    document = store.parse_json(path.read_bytes(), str(path))
    if not isinstance(document, dict):
        msg = f"an object with lists named predictions and labels is expected, not a {type(document).__name__}"
        raise ValueError(msg)
    content = {name: document[name] for name in NAMES if name in document}
    content["names"] = tuple(document)
    return content


def _read_csv(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        marked = first.startswith(CSV_MARK)
        ours = store.parse_json(first.removeprefix(CSV_MARK), f"the first line of {path}") if marked else None
        rows = csv.reader(file if ours else _chain(first, file), strict=True)
        header = [name.strip() for name in next(rows, [])]
        table = [row for row in rows if row]
    if len(set(header)) != len(header):
        msg = "a column name is used twice"
        raise ValueError(msg)
    for number, row in enumerate(table, start=2):
        if len(row) != len(header):
            msg = f"row {number} has {len(row)} cells, the header {len(header)}"
            raise ValueError(msg)
    columns = dict(zip(header, zip(*table, strict=True), strict=False)) if table else dict.fromkeys(header, ())
    content: dict[str, Any] = {"names": tuple(header)}
    for name in ("predictions", "labels"):
        if name in columns:
            content[name] = np.array([_number(cell, name, row) for row, cell in enumerate(columns[name], start=2)])
    for name in ("logits", "top"):
        numbered = sorted(
            (k for k in columns if k.startswith(f"{name}_") and k[len(name) + 1 :].isdecimal()), key=_index
        )
        if [_index(column) for column in numbered] != list(range(len(numbered))):
            msg = f"the columns {name}_0, {name}_1, ... have a gap"
            raise ValueError(msg)
        if numbered:
            content[name] = np.array([columns[column] for column in numbered]).T.astype(np.float64)
    for name in TEXTS:
        if name in columns:
            content[name] = [cell[1:] if ours and cell.startswith("'") else cell for cell in columns[name]]
    if ours is not None:
        content["resdeploy"] = ours
    return content


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _index(column: str) -> int:
    return int(column.rpartition("_")[2])


def _number(cell: str, name: str, row: int) -> float:
    if not cell.strip():
        raise MalformedInput(
            f"{name} are missing: row {row} has none",
            fix="Give every image a class id, or leave its row out of both files",
        )
    return float(cell)


def _csv_text(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    buffer = io.StringIO()
    buffer.write(CSV_MARK + json.dumps(meta) + "\n")
    header: list[str] = []
    columns: list[list[Any]] = []
    for name, array in arrays.items():
        if array.ndim == 2:
            header += [f"{name}_{k}" for k in range(array.shape[1])]
            columns += array.T.tolist()
        else:
            header.append(name)
            cells = array.tolist()
            columns.append([f"'{c}" if isinstance(c, str) and c.startswith(FORMULA) else c for c in cells])
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue()


def _predictions(content: Mapping[str, Any], path: Path) -> Predictions:
    """The record of what a file holds, all of it checked."""
    _refuse_missing(content, path)
    labels = _class_ids(content["labels"], "labels", path)
    logits = _logits(content["logits"], path) if "logits" in content else None
    answers = _class_ids(content["predictions"], "predictions", path) if "predictions" in content else None
    top = _top(content, logits, answers, path)
    answers = top[:, 0] if answers is None else answers
    texts = {name: _texts(content.get(name, ()), name, path) for name in TEXTS}
    lengths = {"labels": len(labels), "predictions": len(answers), "top": len(top)}
    lengths |= {name: len(values) for name, values in texts.items() if values}
    if len(set(lengths.values())) != 1:
        raise MalformedInput(
            f"{path}: lengths differ: {', '.join(f'{n} {name}' for name, n in lengths.items())}",
            fix="Every array needs one entry per image",
        )
    if logits is not None:
        _check_agreement(logits, labels, answers, path)
    facts = _facts(dict(content.get("resdeploy", {})), path) | texts
    return Predictions(labels=labels, top=top, logits=logits, **facts)


def _refuse_missing(content: Mapping[str, Any], path: Path) -> None:
    if missing := [name for name in ("predictions or logits", "labels") if not set(name.split(" or ")) & set(content)]:
        raise UsageError(
            f"{path} has no {' and no '.join(missing)}; it has {', '.join(content['names']) or 'nothing'}",
            fix="Name the arrays predictions (class ids) or logits (images x classes), labels, and optionally ids",
        )


def _top(
    content: Mapping[str, Any], logits: NDArray[np.float32] | None, answers: NDArray[np.int64] | None, path: Path
) -> NDArray[np.int64]:
    """The best classes of each image: as our own file has them, else by the logits, else the one that is named."""
    if "resdeploy" in content and "top" in content:
        return _saved_top(content["top"], answers, path)
    if logits is not None:
        return top_classes(logits)
    assert answers is not None
    return answers[:, None]


def _facts(meta: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of `Predictions` besides its arrays, as our own file has them; defaults for a foreign one."""
    texts = dict.fromkeys(TEXT_FIELDS, "") | {"model": path.stem}
    return {
        **texts,
        **{name: str(meta[name]) for name in TEXT_FIELDS if name in meta},
        "origin": store.parse(Origin, json.dumps(meta["origin"]), f"the origin in {path}")
        if "origin" in meta
        else None,
        "partial": store.parse(Partial, json.dumps(meta["partial"]), f"the shard in {path}")
        if "partial" in meta
        else None,
        "unreadable": tuple(str(v) for v in meta.get("unreadable", ())),
        "repeats": store.parse(Repeats, json.dumps(meta["repeats"]), f"the repeats in {path}")
        if "repeats" in meta
        else Repeats(),
        "classes": tuple(str(v) for v in meta.get("classes", ())),
    }


def _texts(values: Any, name: str, path: Path) -> tuple[str, ...]:
    """One text per image; a lone text would be taken apart into its characters, and those would pass for ids."""
    if np.ndim(values) != 1:
        raise MalformedInput(
            f"{path}: {name} must be one text per image, and is of type {type(values).__name__} with {np.ndim(values)} "
            "axes",
            fix=f"Save {name} as a list with one entry per image, or leave it out",
        )
    return tuple(str(value) for value in values)


def _saved_top(values: Any, answers: NDArray[np.int64] | None, path: Path) -> NDArray[np.int64]:
    """The best class ids of each image in our own file, which must begin with its predictions."""
    array = np.asarray(values)
    if array.ndim != 2 or not 1 <= array.shape[1] <= 5:
        raise MalformedInput(
            f"{path}: top must be images x best classes (at most five), and has shape {array.shape}", fix=AGAIN
        )
    top = _class_ids(array.ravel(), "top", path).reshape(array.shape)
    if answers is not None and not np.array_equal(top[:, 0], answers):
        raise MalformedInput(
            f"{path}: predictions are not the first column of top", cause="The file was edited", fix=AGAIN
        )
    return top


def _class_ids(values: Any, name: str, path: Path) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        kind = "logits or probabilities" if array.dtype.kind == "f" else f"an array of shape {array.shape}"
        raise MalformedInput(
            f"{path}: {name} must be one class id per image, and is {kind}",
            fix="Save scores under the name logits, and class ids (not one-hot vectors) under predictions and labels",
        )
    if len(array) == 0:
        raise MalformedInput(f"{path}: {name} is empty", fix="Save the predictions of at least one image")
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all() or (array != np.floor(array)).any():
        raise MalformedInput(f"{path}: {name} are missing or are no whole numbers", fix="Save one class id per image")
    if (array < 0).any() or (array >= MAX_CLASS).any():
        raise MalformedInput(
            f"{path}: {name} has class ids below 0 or above {MAX_CLASS} (images {_rows(array < 0)})",
            cause="Images without a class are often marked -1",
            fix="Leave them out",
        )
    return array.astype(np.int64)


def _logits(values: Any, path: Path) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "iuf":
        raise MalformedInput(
            f"{path}: logits must be images x classes (two or more), and have shape {array.shape}, type {array.dtype}",
            fix="Save class ids under the name predictions",
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is found to be infinite below
        array = array.astype(np.float32, copy=False)
    # Both ends tell, NaN included, and need no second array of the size of the first.
    if not (finite := np.isfinite(array.min(axis=1)) & np.isfinite(array.max(axis=1))).all():
        raise MalformedInput(
            f"{path}: logits are not finite for {int((~finite).sum())} of {len(array)} images ({_rows(~finite)})",
            cause="The model overflowed (in half precision, often) or its weights are damaged",
            fix="Look at the model: a score that is not a number cannot be judged",
        )
    return array


def _check_agreement(
    logits: NDArray[np.float32], labels: NDArray[np.int64], answers: NDArray[np.int64], path: Path
) -> None:
    """Labels and class ids must be columns of the logits, and the class ids their maxima."""
    classes = logits.shape[1]
    if (worst := int(max(labels.max(), answers.max()))) >= classes:
        raise MalformedInput(
            f"{path}: class {worst} occurs, but the logits know {classes} classes (0 to {classes - 1})",
            cause="Labels that count from 1, or of another class list",
        )
    rows = np.arange(len(logits))
    if (off := logits[rows, answers] < logits.max(axis=1)).any():
        raise MalformedInput(
            f"{path}: predictions are not the largest logits for {int(off.sum())} images ({_rows(off)})",
            cause="The two arrays come from different models or in different order",
            fix="Leave one of them out",
        )


def _rows(mask: NDArray[np.bool_]) -> str:
    """The first few positions, counted from 0."""
    where = np.flatnonzero(mask)
    return ", ".join(map(str, where[:3])) + (", ..." if len(where) > 3 else "")

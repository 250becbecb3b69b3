"""CIFAR-10's own files (Krizhevsky 2009): the python batches, which are pickles, and the binary version.

The pickles are read without trusting them: every class and function they name becomes an inert stand-in that
records what it was called with, any other name is refused, and numpy never sees a pickled byte.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resdeploy.errors import MalformedInput, MissingInput, PickleRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
BATCHES["all"] = BATCHES["train"] + BATCHES["test"]
PIXELS = 3 * 32 * 32
MAX_BYTES = 64 << 20  # a real batch has 31 MB


def find(folder: Path) -> Path | None:
    """The folder with the batches: `folder` itself or the one that the official archives unpack to."""
    names = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
    batches = [name + suffix for name in BATCHES["all"] for suffix in ("", ".bin")]
    return next((folder / n for n in names if any((folder / n / batch).is_file() for batch in batches)), None)


def read(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Pixels (N, 32, 32, 3), labels (N,) and ids such as `test_batch/0042` of a folder found by `find`.

    Raises:
        MissingInput: a batch of the split is not there.
        PickleRefused: a batch names anything but an array of bytes.
        MalformedInput: a batch is truncated or of another form.
    """
    pixels, labels, ids = [], [], []
    for name in BATCHES[split]:
        planes, numbers = _read_batch(folder, name)
        pixels.append(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(numbers)
        ids += [f"{name}/{i:04d}" for i in range(len(numbers))]
    return np.concatenate(pixels), np.concatenate(labels), tuple(ids)


def _read_batch(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    path = next((p for p in (folder / name, folder / f"{name}.bin") if p.is_file()), None)
    if path is None:
        raise MissingInput(
            f"{folder} has no {name} (nor {name}.bin)",
            cause="CIFAR-10 has data_batch_1 to data_batch_5 and test_batch",
            fix="Unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz again",
        )
    if path.stat().st_size > MAX_BYTES:
        raise MalformedInput(f"{path} is too large for a CIFAR-10 batch ({path.stat().st_size >> 20} MiB)")
    planes, labels = _parse_binary(path) if path.suffix else _parse_python(path)
    if not len(labels) or len(labels) != len(planes) or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise MalformedInput(f"{path} has {len(planes)} images and {len(labels)} labels, which must be 0 to 9")
    return planes, labels


def _parse_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    raw = np.fromfile(path, np.uint8)
    if len(raw) % (1 + PIXELS):
        raise MalformedInput(f"{path} is not a whole number of 3073-byte records", cause="It may be truncated")
    records = raw.reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)


class _Inert:
    """Stands for whatever a pickle names: keeps the arguments and the state, does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode(text: str, _encoding: str) -> bytes:
    """How Python 3 writes bytes at protocol 2."""
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise PickleRefused(
                f"the pickle wants to call {module}.{name}",
                cause="A CIFAR-10 batch holds nothing but an array of bytes and lists",
                fix="Take the file from its official source, or use the binary version",
            )
        return _ALLOWED[module, name]


def _parse_python(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        planes = _pixels_of(fields["data"])
        labels = _labels_of(fields["labels"])
    except PickleRefused:
        raise
    # A damaged pickle can raise nearly anything.
    except Exception as e:
        raise MalformedInput(
            f"{path} is not a CIFAR-10 python batch: {type(e).__name__}: {e}",
            cause="It may be truncated",
            fix="Unpack cifar-10-python.tar.gz again",
        ) from e
    return planes, labels


def _pixels_of(array: _Inert) -> NDArray[np.uint8]:
    """The array behind numpy's `__reduce__`: state (version, shape, dtype, Fortran order, bytes)."""
    _, shape, dtype, fortran, raw = array.state
    if dtype.args[0] not in ("u1", b"u1", "|u1", b"|u1") or fortran or len(shape) != 2 or shape[1] != PIXELS:
        msg = f"expected bytes of shape (N, {PIXELS}), found {dtype.args[0]} {shape}"
        raise ValueError(msg)
    return np.frombuffer(raw, np.uint8).reshape(-1, PIXELS)


def _labels_of(labels: Sequence[int]) -> NDArray[np.int64]:
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        msg = "labels are not a list of integers"
        raise TypeError(msg)
    return np.array(labels, np.int64)

"""Reading and decoding images in threads, ahead of the consumer, in order and in bounded memory.

Threads suffice: Pillow and numpy release the interpreter's lock while they decode, resize and normalise.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from resdeploy.data import preprocess
from resdeploy.errors import MalformedInput, OutOfMemory, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.records import Preprocessing, Progress

    Convert = Callable[[Image.Image, Preprocessing], NDArray[Any]]

FORMATS = ("JPEG", "PNG")  # by content; the other decoders of Pillow are attack surface
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb; here it is an error
MAX_PIXEL_BYTES = 8 << 30  # of all images that training holds in memory
CHUNK_BYTES = 2 << 20  # decoded images per task, so that small images don't drown in task switching

# Pillow's warning would add nothing: `decode` turns the same limit into an error.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Images(Protocol):
    """What `batches` needs of a `Dataset`."""

    @property
    def name(self) -> str: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def synthetic(self) -> bool: ...
    def read(self, index: int) -> bytes | NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class Given:
    """Images that a caller has in hand, for `batches`."""

    ids: tuple[str, ...]  # paths, or `image N`
    contents: tuple[str | Path | bytes | NDArray[np.uint8], ...]
    name: str = "what was given"
    synthetic: bool = False

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """A file's bytes, or pixels."""
        content = self.contents[index]
        return Path(content).read_bytes() if isinstance(content, str | Path) else content


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Consecutive readable images of a data set, at least one."""

    inputs: NDArray[Any]  # (n, C, H, W), of `Preprocessing.dtype`
    indices: NDArray[np.int64]  # (n,) positions in the data set
    hashes: tuple[str, ...]  # (n,) 16 hex digits: `content_hash`
    unreadable: tuple[str, ...]  # `id: reason` of the images around these that could not be decoded


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """All readable images of a data set in memory."""

    values: NDArray[np.uint8]  # (n, H, W, C), not normalised
    indices: NDArray[np.int64]  # (n,) positions in the data set
    hashes: tuple[str, ...]  # (n,) as in `Batch`
    unreadable: tuple[str, ...]  # `id: reason`


@dataclass(frozen=True)
class _Decoded:
    index: int
    values: NDArray[Any] | None = None
    digest: str = ""
    reason: str = ""


def content_hash(raw: bytes | NDArray[np.uint8]) -> str:
    """The first 16 hex digits of SHA-256 of a file's bytes, or of raw pixels."""
    return hashlib.sha256(raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).data).hexdigest()[:16]


def decode(raw: bytes | NDArray[np.uint8]) -> Image.Image:
    """An image from a file's bytes (JPEG or PNG by content) or from pixels, not yet converted.

    Raises:
        MalformedInput: another format, truncated, grey of more than 8 bits, or of more than 89 million pixels.
    """
    if not isinstance(raw, bytes):
        return Image.fromarray(raw)
    try:
        image = Image.open(io.BytesIO(raw), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise MalformedInput(f"{image.width}x{image.height} pixels, which may be a decompression bomb")
        image.load()
        if image.mode.startswith(("I", "F")):
            raise MalformedInput("grey of more than 8 bits, which Pillow would clip to white: save it with 8")
    except UnidentifiedImageError as e:
        raise MalformedInput("an empty file" if not raw else "neither JPEG nor PNG") from e
    # Pillow's decoders raise whatever they stumble over: OSError, SyntaxError, ValueError, struct.error, zlib.error.
    except Exception as e:
        if isinstance(e, MalformedInput | MemoryError):
            raise
        raise MalformedInput(str(e) or type(e).__name__) from e
    return image


def given(images: Any) -> Given:
    """One image or a sequence of them as `batches` reads them.

    Args:
        images: each the path of a JPEG or PNG file, the bytes of one, an image of Pillow, or uint8 pixels of shape
            (H, W, 3) in RGB, or (H, W) in grey.

    Raises:
        UsageError: no image, or something else.
    """
    one = isinstance(images, str | Path | bytes | Image.Image) or getattr(images, "ndim", 4) < 4
    contents = [images] if one else list(images)
    if not contents:
        raise UsageError("no images were given", fix="Name at least one")
    ids = [str(each) if isinstance(each, str | Path) else f"image {number}" for number, each in enumerate(contents, 1)]
    return Given(tuple(ids), tuple(_content(each, name) for each, name in zip(contents, ids, strict=True)))


def _content(image: Any, name: str) -> str | Path | bytes | NDArray[np.uint8]:
    if isinstance(image, str | Path | bytes):
        return image
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))  # of grey the same value thrice, which becomes that grey again
    array = np.asarray(image)
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) and array.size:
        return array
    raise UsageError(
        f"{name} is {array.dtype} of shape {list(array.shape)}",
        cause="Pixels are uint8 of shape (height, width, 3) in RGB, or (height, width) in grey, not yet normalised",
        fix="Give such pixels, a path, the bytes of a file or an image of Pillow",
    )


def batches(
    dataset: Images,
    spec: Preprocessing,
    batch_size: int,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """The images of a data set as the network's inputs, in order, `batch_size` at a time; the last may be shorter.

    So is a batch with unreadable images: which others it holds depends on their places alone, and a part of the set
    that begins with a batch has the batches of the whole (`shards.cut`). Synthetic images are scaled to whatever size
    the model takes. `workers` is the number of decoding threads, by default one per core.

    Raises:
        UsageError: preprocessing that does not fit an image.
        MalformedInput: not one image can be decoded.
    """
    if dataset.synthetic:
        spec = replace(spec, resize=max(spec.size), resize_mode="squash")
    full: list[_Decoded] = []
    bad: list[str] = []
    count = 0
    for done, image in enumerate(_decode_all(dataset, spec, preprocess.apply, workers), 1):
        if image.values is None:
            bad.append(f"{dataset.ids[image.index]}: {image.reason}")
            continue
        # Handed over only when another image follows, so that the last batch names every unreadable one.
        if full and image.index // batch_size > full[-1].index // batch_size:
            yield _batch(full, bad)
            full, bad = [], []
            if progress is not None:
                progress("reading images", done - 1, len(dataset.ids))
        full.append(image)
        count += 1
    if not count:
        raise _none_readable(dataset, bad)
    yield _batch(full, bad)
    if progress is not None:
        progress("reading images", len(dataset.ids), len(dataset.ids))


def _batch(images: Sequence[_Decoded], unreadable: Sequence[str]) -> Batch:
    return Batch(
        inputs=np.stack([image.values for image in images if image.values is not None]),
        indices=np.array([image.index for image in images], np.int64),
        hashes=tuple(image.digest for image in images),
        unreadable=tuple(unreadable),
    )


def load_pixels(
    dataset: Images, spec: Preprocessing, *, workers: int | None = None, progress: Progress | None = None
) -> Pixels:
    """All images of a data set in memory, resized and cropped but not normalised.

    Raises:
        UsageError: preprocessing that does not fit an image.
        MalformedInput: not one image can be decoded.
        OutOfMemory: more pixels than `MAX_PIXEL_BYTES`.
    """
    height, width = spec.size
    total = len(dataset.ids)
    shape = (total, height, width, 1 if spec.channels == "L" else 3)
    if (needed := math.prod(shape)) > MAX_PIXEL_BYTES:
        raise OutOfMemory(
            f"{total} images of {height}x{width} take {needed / 1e9:.0f} GB in memory, the limit is "
            f"{MAX_PIXEL_BYTES / 1e9:.0f} GB",
            fix="Use fewer or smaller images",
        )
    values = np.empty(shape, np.uint8)
    indices: list[int] = []
    hashes: list[str] = []
    bad: list[str] = []
    for image in _decode_all(dataset, spec, preprocess.pixels, workers):
        if image.values is None:
            bad.append(f"{dataset.ids[image.index]}: {image.reason}")
        else:
            values[len(indices)] = image.values
            indices.append(image.index)
            hashes.append(image.digest)
        if progress is not None and (image.index % 256 == 0 or image.index == total - 1):
            progress("reading images", image.index + 1, total)
    if not indices:
        raise _none_readable(dataset, bad)
    return Pixels(
        values=values[: len(indices)],
        indices=np.array(indices, np.int64),
        hashes=tuple(hashes),
        unreadable=tuple(bad),
    )


def _none_readable(dataset: Images, bad: Sequence[str]) -> MalformedInput:
    return MalformedInput(
        f"none of the {len(dataset.ids)} images of {dataset.name} can be decoded",
        cause=f"The first is {bad[0]}" if bad else "",
        fix="Give JPEG or PNG files",
    )


def _decode_all(dataset: Images, spec: Preprocessing, convert: Convert, workers: int | None) -> Iterator[_Decoded]:
    """Every image in order, decoded by threads that are never more than two tasks each ahead."""
    workers = workers or usable_cores()
    chunk = max(1, min(64, CHUNK_BYTES // (12 * spec.size[0] * spec.size[1])))
    starts = iter(range(0, len(dataset.ids), chunk))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def submit(start: int) -> Future[list[_Decoded]]:
        return pool.submit(_decode_range, dataset, spec, convert, start, min(start + chunk, len(dataset.ids)))

    try:
        waiting = deque(submit(start) for start in itertools.islice(starts, 2 * workers))
        while waiting:
            decoded = waiting.popleft().result()
            waiting.extend(submit(start) for start in itertools.islice(starts, 1))
            yield from decoded
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_range(dataset: Images, spec: Preprocessing, convert: Convert, start: int, stop: int) -> list[_Decoded]:
    return [_decode_one(dataset, spec, convert, index) for index in range(start, stop)]


def _decode_one(dataset: Images, spec: Preprocessing, convert: Convert, index: int) -> _Decoded:
    try:
        raw = dataset.read(index)
        values = convert(decode(raw), spec)
    except OSError as e:
        return _Decoded(index, reason=e.strerror or str(e))
    except MalformedInput as e:
        return _Decoded(index, reason=e.what)
    except UsageError as e:
        raise UsageError(f"{dataset.ids[index]}: {e.what}", cause=e.cause, fix=e.fix) from e
    return _Decoded(index, values, content_hash(raw))


def usable_cores() -> int:
    """Cores this process may run on by affinity; a container's quota only makes some threads wait."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Batches: order, contents, and images that cannot be read."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.data import loading, preprocess
from resdeploy.data.datasets import Dataset, batches, choose, load_pixels, open_dataset
from resdeploy.errors import MalformedInput, OutOfMemory, UsageError
from resdeploy.records import Preprocessing

SPEC = Preprocessing(size=(8, 8))


def encoded(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Dataset:
    for name, content in files.items():
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / name).write_bytes(content)
    return open_dataset(str(tmp_path))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_order_and_contents_do_not_depend_on_threads_or_batch_size(workers: int, batch_size: int) -> None:
    """Concatenated batches are the images one by one."""
    data = choose(open_dataset("digits"), 200, 3)
    found = list(batches(data, SPEC, batch_size, workers=workers))
    assert [len(b.indices) for b in found[:-1]] == [batch_size] * (len(found) - 1)
    assert np.concatenate([b.indices for b in found]).tolist() == list(range(200))
    expected = np.stack([preprocess.apply(Image.fromarray(np.asarray(data.read(i))), SPEC) for i in range(200)])
    np.testing.assert_array_equal(np.concatenate([b.inputs for b in found]), expected)


def test_slow_images_are_not_overtaken() -> None:
    """Order holds where early images take longest."""

    class Slow:
        name, synthetic, ids = "slow", False, tuple(map(str, range(8)))

        def read(self, index: int) -> np.ndarray:
            time.sleep(0.02 * (8 - index) / 8)
            return np.full((512, 512, 3), index, np.uint8)

    spec = Preprocessing(size=(512, 512), mean=(0, 0, 0), std=(1 / 255,) * 3)
    found = np.concatenate([b.inputs[:, 0, 0, 0] for b in batches(Slow(), spec, 3, workers=4)])
    np.testing.assert_allclose(found, np.arange(8), atol=1e-4)


def test_hashes_are_sha256_of_the_file_or_the_pixels(tmp_path: Path) -> None:
    """The first 16 hex digits, of what is stored, not of what is decoded."""
    png = encoded("PNG")
    (batch,) = batches(folder_of(tmp_path, {"a.png": png}), SPEC, 4)
    assert batch.hashes == (hashlib.sha256(png).hexdigest()[:16],)
    digits = open_dataset("digits").subset([5])
    (batch,) = batches(digits, SPEC, 4)
    assert batch.hashes == (hashlib.sha256(np.asarray(digits.read(0)).tobytes()).hexdigest()[:16],)


def test_unreadable_images_are_counted_and_named_with_the_reason(tmp_path: Path) -> None:
    """Empty, cut off, a bomb, 16-bit, FITS, GIF and BMP under an image's name: listed, the rest in its places."""
    deep = io.BytesIO()  # grey of 16 bits, of which Pillow makes white
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep, "PNG")
    bomb = bytearray(encoded("PNG"))  # 100 megapixels: where Pillow itself would only warn
    bomb[16:24] = (10000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    files = {
        "0.png": encoded("PNG"),
        "bad1.jpg": b"",
        "bad2.jpg": encoded("JPEG", (64, 64))[:400],
        "bad3.png": bytes(bomb),
        "bad4.jpg": b"SIMPLE  =                    T" + b" " * 3000,
        "bad5.gif": encoded("GIF"),
        "bad6.jpg": encoded("BMP"),
        "bad7.png": encoded("PNG")[:60],
        "bad8.png": deep.getvalue(),
        "c.jpg": encoded("JPEG"),
        "d.jpg": encoded("PNG"),
        "z.png": b"\x89PNG\r\n\x1a\n",
    }
    found = list(batches(folder_of(tmp_path, files), SPEC, 2))
    assert [b.indices.tolist() for b in found] == [[0], [9], [10]]
    unreadable = [entry for b in found for entry in b.unreadable]
    assert [entry.split(":")[0] for entry in unreadable] == [
        *(f"c/{n}" for n in files if n.startswith("bad")),
        "c/z.png",
    ]
    assert all(entry.split(": ", 1)[1] for entry in unreadable)
    assert "bomb" in unreadable[2]


def test_every_cut_of_a_jpeg_is_unreadable_or_whole(tmp_path: Path) -> None:
    """No cut makes Pillow's filler grey pass for an image."""
    whole = encoded("JPEG", (32, 32))
    for length in range(0, len(whole) - 2, 37):
        with pytest.raises(MalformedInput):
            loading.decode(whole[:length])


def test_a_file_that_vanishes_is_unreadable(tmp_path: Path) -> None:
    """Between listing and reading."""
    data = folder_of(tmp_path, {"a.png": encoded("PNG"), "b.png": encoded("PNG")})
    (tmp_path / "c/a.png").unlink()
    (batch,) = batches(data, SPEC, 4)
    assert batch.indices.tolist() == [1]
    assert batch.unreadable == ("c/a.png: No such file or directory",)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    """Instead of no batches at all."""
    data = folder_of(tmp_path, {"a.png": b"x", "b.png": b"y"})
    for read in (lambda: list(batches(data, SPEC, 4)), lambda: load_pixels(data, SPEC)):
        with pytest.raises(MalformedInput, match="none of the 2 images"):
            read()


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    """With the id, the two sizes and --resize."""
    data = folder_of(tmp_path, {"a.png": encoded("PNG"), "b.png": encoded("PNG", (9, 8))})
    with pytest.raises(UsageError, match=r"c/b\.png.*8x9.*8x8") as caught:
        list(batches(data, SPEC, 4))
    assert "--resize" in caught.value.fix


def test_a_consumer_that_stops_leaves_no_threads() -> None:
    """Closing the stream ends the decoders."""
    before = set(threading.enumerate())
    stream: Any = batches(open_dataset("digits"), SPEC, 4, workers=3)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before


def test_pixels_normalised_are_the_inputs() -> None:
    """The bytes that training holds are what inference normalises."""
    data = choose(open_dataset("digits"), 50, 0)
    spec = replace(SPEC, size=(16, 16), resize=16)
    pixels = load_pixels(data, spec)
    (batch,) = batches(data, spec, 50)
    np.testing.assert_array_equal(np.stack([preprocess.normalise(v, spec) for v in pixels.values]), batch.inputs)


def test_more_pixels_than_fit_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the size that would be needed."""
    monkeypatch.setattr(loading, "MAX_PIXEL_BYTES", 1000)
    with pytest.raises(OutOfMemory, match="1797 images"):
        load_pixels(open_dataset("digits"), SPEC)


def test_synthetic_images_fit_any_model_and_repeat() -> None:
    """The same numbers every time, different images, at the size of the model."""
    data = open_dataset("synthetic:5", need_labels=False)
    for size in ((32, 32), (224, 224), (24, 40)):
        (first,), (again,) = (list(batches(data, Preprocessing(size=size), 8)) for _ in range(2))
        assert first.inputs.shape == (5, 3, *size)
        np.testing.assert_array_equal(first.inputs, again.inputs)
        assert len(set(first.hashes)) == 5

"""Thumbnails: of a data set's own images, by their ids alone."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from resdeploy.data import datasets, thumbnails


def decoded(address: str) -> Image.Image:
    kind, _, content = address.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    return image


def test_images_are_made_small_and_small_ones_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    """Whatever their mode; a name that no image has, and a file that is none, are left out."""
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGBA", (400, 200), (200, 10, 10, 255)).save(folder / "large.png")
    small = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(small).save(folder / "small.png")
    (folder / "damaged.png").write_bytes(b"no image")
    (tmp_path / "secret.png").write_bytes((folder / "small.png").read_bytes())
    images = datasets.open_dataset(str(tmp_path), split="test", need_labels=False)
    names = ["a/large.png", "a/small.png", "a/damaged.png", "../secret.png", "secret.png", str(folder / "small.png")]
    found = thumbnails.thumbnails(images, names)
    assert found.keys() == {"a/large.png", "a/small.png"}
    assert decoded(found["a/large.png"]).size == (96, 48)
    assert np.array_equal(np.asarray(decoded(found["a/small.png"]))[::12, ::12, 0], small)

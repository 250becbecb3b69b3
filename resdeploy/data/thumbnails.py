"""Small pictures of a data set's images, as text that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from typing import TYPE_CHECKING

from resdeploy.data import loading
from resdeploy.errors import MalformedInput

if TYPE_CHECKING:
    from resdeploy.data.datasets import Dataset

SIDE = 96  # pixels, at most


def thumbnails(images: Dataset, names: Collection[str]) -> dict[str, str]:
    """`data:` URLs (RFC 2397) of the images with these ids, by id; those that are not there or unreadable are left out.

    A name is compared with the data set's own ids and never becomes a path.
    """
    wanted = set(names)
    found = {}
    for k, name in enumerate(images.ids):
        if name in wanted:
            try:
                found[name] = _encode(images, k)
            except (MalformedInput, OSError):
                continue
    return found


def _encode(images: Dataset, index: int) -> str:
    """JPEG; PNG where it is so small that every pixel counts, enlarged by whole numbers without smoothing."""
    from PIL import Image

    image = loading.decode(images.read(index)).convert("RGB")
    longest = max(image.size)
    is_small = longest <= SIDE // 2
    if is_small:
        times = SIDE // longest
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    else:
        image.thumbnail((SIDE, SIDE))
    kind = "png" if is_small else "jpeg"
    content = io.BytesIO()
    image.save(content, kind)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
